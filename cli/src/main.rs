//! The `kfc` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(kfc::app::main(std::env::args_os().collect()))
}
