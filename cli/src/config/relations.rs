//! What must hold between keys, and what is allowed but hardly meant.

use super::error::ConfigError;
use super::field::Context;
use super::node::{Node, Origin};
use kfc_runtime::config::{EwcMode, EwcSection, Important, JobConfig, Length, ModelInit, Streaming};

/// Checks everything that spans several keys.
pub(super) fn check(job: &JobConfig, root: &Node, context: &Context) -> Result<(), ConfigError> {
    check_length(root, context)?;
    check_general(job, root, context)?;
    check_report(job, root, context)?;
    check_streaming(job, root, context)?;
    match &job.ewc {
        Some(ewc) => check_ewc(ewc, job.lora.is_some(), root, context),
        None => Ok(()),
    }
}

/// Overriding one of `steps` and `epochs` drops the other where it came from the file: they say the same thing.
pub(super) fn displace_length(root: &mut Node) {
    let given =
        |root: &Node, key| root.get("train").and_then(|train| train.get(key)).map(|node| node.at.clone());
    let dropped = match (given(root, "steps"), given(root, "epochs")) {
        (Some(Origin::Set(_)), Some(Origin::Line(_))) => "epochs",
        (Some(Origin::Line(_)), Some(Origin::Set(_))) => "steps",
        _ => return,
    };
    root.remove("train", dropped);
}

/// Where `section.key` was written, or else the section.
fn origin<'a>(root: &'a Node, section: &str, key: &str) -> &'a Origin {
    match root.get(section) {
        Some(node) => node.get(key).map_or(&node.at, |value| &value.at),
        None => &root.at,
    }
}

fn check_length(root: &Node, context: &Context) -> Result<(), ConfigError> {
    let given = |key| root.get("train").is_some_and(|section| section.get(key).is_some());
    match (given("steps"), given("epochs")) {
        (true, true) => {
            let problem = "both `steps` and `epochs` are given; keep one";
            Err(context.error(origin(root, "train", "epochs"), "train.epochs", problem))
        }
        (false, false) => {
            let problem = "is missing and has no default; say how long to train, with `steps` or `epochs`";
            Err(context.error(origin(root, "train", "steps"), "train.steps", problem))
        }
        _ => Ok(()),
    }
}

/// An adapter of random weights can be asked nothing: the weights are in no file.
fn check_report(job: &JobConfig, root: &Node, context: &Context) -> Result<(), ConfigError> {
    if job.report.is_none() || job.lora.is_none() || job.model.init != ModelInit::Random {
        return Ok(());
    }
    let problem =
        "needs a model that is in a file, and [lora] with `model.init = \"random\"` leaves none; drop it";
    Err(context.error(origin(root, "report", "prompts"), "report.prompts", problem))
}

fn check_general(job: &JobConfig, root: &Node, context: &Context) -> Result<(), ConfigError> {
    match &job.distill {
        Some(distill) if !distill.general.is_empty() && distill.alpha == 0.0 => {
            let problem =
                "is 0.0, which leaves the rows of `general` without any loss; raise it, or drop `general`";
            Err(context.error(origin(root, "distill", "alpha"), "distill.alpha", problem))
        }
        _ => Ok(()),
    }
}

fn check_streaming(job: &JobConfig, root: &Node, context: &Context) -> Result<(), ConfigError> {
    let data = &job.data;
    if data.rank >= data.world {
        let problem =
            format!("is {}, but `world` is {}: ranks go from 0 to {}", data.rank, data.world, data.world - 1);
        return Err(context.error(origin(root, "data", "rank"), "data.rank", problem));
    }
    if data.streaming == Streaming::On && matches!(job.train.length, Length::Epochs(_)) {
        let problem = "is \"on\", but the length is in `epochs`, and streamed rows are not counted before they are read; \
                       give `steps`, or use \"off\"";
        return Err(context.error(origin(root, "data", "streaming"), "data.streaming", problem));
    }
    Ok(())
}

fn check_ewc(ewc: &EwcSection, has_lora: bool, root: &Node, context: &Context) -> Result<(), ConfigError> {
    let error = |key: &str, problem: &str| {
        Err(context.error(origin(root, "ewc", key), &format!("ewc.{key}"), problem))
    };
    match ewc.mode {
        EwcMode::Delta if !has_lora => error(
            "mode",
            "\"delta\" penalises the change s·B·A of adapters, but there is no [lora]; use \"weights\"",
        ),
        EwcMode::Adapter if !has_lora => error(
            "mode",
            "\"adapter\" penalises adapters, but there is no [lora]; add [lora], or use \"weights\"",
        ),
        EwcMode::Weights if has_lora => error(
            "mode",
            "\"weights\" penalises full weights, which [lora] freezes: it would always be 0; use \"delta\" or \"adapter\"",
        ),
        EwcMode::Delta if ewc.anchor.is_some() => error(
            "anchor",
            "mode \"delta\" penalises the change from the base model, so its anchor is the base model; drop `anchor`",
        ),
        EwcMode::Delta if ewc.important != Important::Keep => error(
            "important",
            "mode \"delta\" has Fisher values of merged weights, but the parameters that are updated are A and B, which \
             have none of their own; use \"keep\", or mode \"adapter\"",
        ),
        _ => Ok(()),
    }
}

/// What is allowed but hardly meant, one sentence each; `kfc train` prints them before it starts.
pub fn warnings(job: &JobConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let train = &job.train;
    if let Length::Steps(steps) = train.length
        && train.warmup_steps >= steps
    {
        warnings.push(format!(
            "train.warmup_steps = {} is not below train.steps = {steps}: the learning rate never reaches train.lr; \
             lower train.warmup_steps",
            train.warmup_steps
        ));
    }
    if train.lr == 0.0 {
        warnings.push("train.lr = 0.0 trains nothing".to_owned());
    }
    if let Some(ewc) = &job.ewc
        && ewc.lambda == 0.0
    {
        warnings.push("ewc.lambda = 0.0: the penalty is computed and reported, but has no weight".to_owned());
    }
    warnings
}
