//! The `nestpatch` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    nestpatch::cli::main()
}
