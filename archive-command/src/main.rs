//! `walden-archive`: the program that PostgreSQL's `archive_command` runs.

fn main() {}
