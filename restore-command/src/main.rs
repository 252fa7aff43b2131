//! `walden-restore`: the program that PostgreSQL's `restore_command` runs.

fn main() {}
