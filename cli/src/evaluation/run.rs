//! Asking a model all tasks of a suite.

use super::suite::{Suite, SuiteTask};
use crate::args::Global;
use crate::output;
use crate::progress::Progress;
use kfc_runtime::eval::{self, Attack, Evaluation, Exam, Observer, Subject};
use kfc_runtime::inference::Served;

/// What a model made of one task.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) evaluation: Evaluation,
    /// One for each kind of perturbation; empty if the task is not perturbed.
    pub(crate) attacks: Vec<Attack>,
}

/// Asks every task, in order. `before` asks for what a comparison needs and no more: no speed, no attacks.
pub(crate) fn measure(
    served: &Served,
    suite: &Suite,
    before: bool,
    global: &Global,
) -> anyhow::Result<Vec<Option<Measured>>> {
    let mut out = Vec::new();
    for task in &suite.tasks {
        if before && task.options.task.subject() == Subject::Speed {
            out.push(None);
            continue;
        }
        let title = if before { format!("{} (before)", task.name) } else { task.name.clone() };
        out.push(Some(one(served, suite, task, before, &title, global)?));
    }
    Ok(out)
}

fn one(
    served: &Served,
    suite: &Suite,
    task: &SuiteTask,
    before: bool,
    title: &str,
    global: &Global,
) -> anyhow::Result<Measured> {
    let mut display = Display::new(&format!("rows of {title}"), global);
    if before || !task.perturb {
        let evaluation = eval::evaluate(served, &task.options, &mut display)?;
        display.finish();
        return Ok(Measured { evaluation, attacks: Vec::new() });
    }
    let mut exam = Exam::new(served, &task.options)?;
    let evaluation = exam.evaluate(&mut display)?;
    display.finish();
    let mut attacks = Vec::new();
    for kind in &suite.kinds {
        let mut display = Display::new(&format!("perturbed rows of {title} ({})", kind.name()), global);
        attacks.push(exam.attack(&evaluation.rows, *kind, &suite.attack, &mut display)?);
        display.finish();
    }
    Ok(Measured { evaluation, attacks })
}

/// Shows rows as they are done.
pub(crate) struct Display<'a> {
    /// What is counted.
    what: String,
    /// With the number of rows in all.
    progress: Option<(usize, Progress)>,
    global: &'a Global,
}

impl<'a> Display<'a> {
    /// Counts `what`.
    pub(crate) fn new(what: &str, global: &'a Global) -> Display<'a> {
        Display { what: what.to_owned(), progress: None, global }
    }

    pub(crate) fn finish(self) {
        if let Some((_, progress)) = self.progress {
            progress.finish();
        }
    }
}

impl Observer for Display<'_> {
    fn progress(&mut self, done: usize, total: usize) {
        // Each round of an attack has its own number of rows.
        if let Some((_, old)) = self.progress.take_if(|(of, _)| *of != total) {
            old.finish();
        }
        let new = || (total, Progress::new(&self.what, 0, total, self.global));
        self.progress.get_or_insert_with(new).1.update(done, "");
    }

    fn note(&mut self, text: &str) {
        match &self.progress {
            Some((_, progress)) => progress.note(text),
            None if !self.global.quiet => output::stderr_line(text),
            None => {}
        }
    }
}
