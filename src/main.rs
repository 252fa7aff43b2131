//! Starts the runtime and hands over to the command line.

fn main() {}
