//! The `nestpatch` command.

fn main() {}
