//! `kfc completions`

use crate::args::{self, CompletionsArgs};
use crate::error::Outcome;
use crate::output;

/// Prints the completions of a shell.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "kfc", &mut script);
    output::write_stdout(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
