//! `kfc inspect`

use super::parse;
use clap::{Arg, ArgMatches, Command};
use kfc_graph::DType;
use std::path::PathBuf;

/// Arguments of `kfc inspect`.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectArgs {
    /// Model folder.
    pub model: PathBuf,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// Text to look at.
    pub prompt: Option<String>,
    /// Or a file of token rows, of which `row` is looked at.
    pub tokens: Option<PathBuf>,
    /// Row of `tokens`, from 0.
    pub row: usize,
    /// Token asked about, from 0; `None` is the last.
    pub position: Option<usize>,
    /// Next token whose logit is explained; `None` is the likeliest.
    pub target: Option<String>,
    /// Take the gradient of the text's loss instead of the target's logit.
    pub loss: bool,
    /// A Fisher diagonal to sum up.
    pub fisher: Option<PathBuf>,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// Element type to compute in; `None` is that of the stored weights.
    pub dtype: Option<DType>,
    /// Page to write.
    pub html: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  kfc inspect --model model --prompt 'Aspirin is used for' --html inspect.html
  kfc inspect --model model --adapter runs/job/adapter --prompt 'Aspirin is used for' --target ' pain'
  kfc inspect --model model --adapter runs/job/adapter --fisher fisher.safetensors    what moved, what matters
  kfc inspect --model model --tokens rows.safetensors --row 3 --loss --json

With a text: attention weights, gradient x input of each token, and what each layer adds to the logit of the next token.
With --adapter: how far each weight moved. With --fisher: where the diagonal is large. docs/inspect.md defines each number.";

pub(super) fn command() -> Command {
    Command::new("inspect")
        .about("Look inside a model: attention, attributions, what training moved")
        .after_help(EXAMPLES)
        .arg(super::model())
        .arg(super::adapter())
        .arg(Arg::new("prompt").long("prompt").value_name("TEXT").help("Text to look at"))
        .arg(
            super::path("tokens", "FILE", "Safetensors file with `input_ids` [N,T] instead of a prompt")
                .conflicts_with("prompt"),
        )
        .arg(
            Arg::new("row")
                .long("row")
                .value_name("N")
                .value_parser(parse::index)
                .default_value("0")
                .requires("tokens")
                .conflicts_with("prompt")
                .help("Row of --tokens, from 0"),
        )
        .arg(
            Arg::new("position")
                .long("position")
                .value_name("N")
                .value_parser(parse::index)
                .help("Token after which the model is asked, from 0 [default: the last]"),
        )
        .arg(
            Arg::new("target")
                .long("target")
                .value_name("TEXT")
                .help("Next token whose logit is explained [default: the likeliest]"),
        )
        .arg(super::flag("loss", "Take the gradient of the text's loss, not of the logit"))
        .arg(super::path("fisher", "FILE", "Fisher diagonal that `kfc fisher` wrote"))
        .arg(super::count("max-tokens", "Longest text, in tokens").default_value("256"))
        .arg(super::dtype())
        .arg(super::path("html", "FILE", "Also write one self-contained page"))
}

pub(super) fn from_matches(matches: &ArgMatches) -> Result<InspectArgs, clap::Error> {
    let args = InspectArgs {
        model: super::required(matches, "model")?,
        adapter: matches.get_one("adapter").cloned(),
        prompt: matches.get_one("prompt").cloned(),
        tokens: matches.get_one("tokens").cloned(),
        row: super::required(matches, "row")?,
        position: matches.get_one("position").copied(),
        target: matches.get_one("target").cloned(),
        loss: matches.get_flag("loss"),
        fisher: matches.get_one("fisher").cloned(),
        max_tokens: super::required(matches, "max-tokens")?,
        dtype: matches.get_one("dtype").copied(),
        html: matches.get_one("html").cloned(),
    };
    let text = args.prompt.is_some() || args.tokens.is_some();
    if !text && args.adapter.is_none() && args.fisher.is_none() {
        return Err(super::usage_error(
            "there is nothing to look at: give --prompt or --tokens (a text), --adapter (what moved) or --fisher",
        ));
    }
    for (given, name) in
        [(args.position.is_some(), "--position"), (args.target.is_some(), "--target"), (args.loss, "--loss")]
    {
        if given && !text {
            return Err(super::usage_error(&format!(
                "{name} is about a text; give --prompt or --tokens too"
            )));
        }
    }
    Ok(args)
}
