//! A Python process that compiles kernels, one after the other. Starting it takes seconds, a kernel about one.

use super::{Cubin, HIDDEN, Python, Request};
use crate::{Result, RunError};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

const SCRIPT: &str = include_str!("worker.py");

/// Longest time that a kernel may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Bytes of what the process says on standard error that go into a message.
const LOG_TAIL: usize = 400;

/// The process. It ends when this is dropped.
pub(super) struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

impl Worker {
    /// Starts it and checks the version of Triton.
    ///
    /// # Errors
    /// If there is no Python, no Triton or another one.
    pub(super) fn start(python: &Python) -> Result<Worker> {
        let python = python.find();
        let spawned = Command::new(&python.path)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = spawned.map_err(|e| python.missing(&format!("cannot be started ({e})")))?;
        let (Some(requests), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(RunError::Failed("no pipes to the compiler".into()));
        };
        let (send, answers) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(std::result::Result::ok);
            lines.map(|line| send.send(line)).take_while(std::result::Result::is_ok).for_each(drop);
        });
        let mut worker = Worker { child, requests, answers };
        let hello = worker.answer().map_err(|e| python.missing(&e))?;
        match hello["triton"].as_str() {
            Some(v) if v.starts_with(&format!("{}.", super::VERSION)) => Ok(worker),
            Some(v) => Err(python.missing(&format!("has Triton {v}"))),
            None => Err(python.missing(hello["error"].as_str().unwrap_or("gives no version of Triton"))),
        }
    }

    /// The next line, as JSON.
    fn answer(&mut self) -> std::result::Result<Value, String> {
        match self.answers.recv_timeout(LIMIT) {
            Ok(line) => serde_json::from_str(&line).map_err(|e| format!("gives no JSON ({e})")),
            Err(RecvTimeoutError::Timeout) => Err(format!("gave no answer in {} s", LIMIT.as_secs())),
            Err(RecvTimeoutError::Disconnected) => match self.child.wait() {
                Ok(status) => Err(format!("ended ({status})")),
                Err(e) => Err(format!("ended ({e})")),
            },
        }
    }

    /// Compiles one kernel.
    ///
    /// # Errors
    /// If the compiler fails or takes too long.
    pub(super) fn compile(&mut self, r: &Request<'_>) -> Result<Cubin> {
        let failed = |what: &str| {
            // What is wrong stands at the end, behind the source up to there.
            let start = what.char_indices().rev().nth(LOG_TAIL).map_or(0, |(i, _)| i);
            RunError::Failed(format!(
                "Triton cannot compile {} for sm_{}: {}",
                r.function,
                r.arch,
                &what[start..]
            ))
        };
        let request = json!({
            "name": r.function, "source": r.source, "types": r.types, "warps": r.warps, "stages": r.stages, "arch": r.arch,
        });
        writeln!(self.requests, "{request}")
            .and_then(|()| self.requests.flush())
            .map_err(|e| failed(&e.to_string()))?;
        let answer = self.answer().map_err(|e| failed(&format!("the compiler {e}")))?;
        if let Some(error) = answer["error"].as_str() {
            return Err(failed(error));
        }
        let expected = r.types.len() + HIDDEN;
        if answer["parameters"].as_u64() != Some(expected as u64) {
            let what = format!("it takes {} parameters, its launch gives {expected}", answer["parameters"]);
            return Err(failed(&what));
        }
        Cubin::from_answer(&answer).ok_or_else(|| failed("the compiler's answer is incomplete"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be amid a compilation, or gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
