//! `kfc completions`

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

/// Arguments of `kfc completions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  kfc completions bash > ~/.local/share/bash-completion/completions/kfc
  kfc completions zsh > ~/.zfunc/_kfc
  kfc completions fish > ~/.config/fish/completions/kfc.fish";

pub(super) fn command() -> Command {
    Command::new("completions").about("Print completions for a shell").after_help(EXAMPLES).arg(
        Arg::new("shell")
            .value_name("SHELL")
            .required(true)
            .value_parser(value_parser!(Shell))
            .help("The shell"),
    )
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<CompletionsArgs, clap::Error> {
    Ok(CompletionsArgs { shell: super::required(matches, "shell")? })
}
