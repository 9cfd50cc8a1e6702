//! Edited kernels on Triton's own interpreter, where there is no device: slow, and right.

use super::Python;
use crate::edited::Source;
use crate::{Result, RunError, files};
use kfc_kernels::tile::lower::{Kernel, Origin};
use kfc_kernels::tile::trial::Trial;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

const SCRIPT: &str = include_str!("interpret.py");

/// Seconds after which no further block is begun.
const SECONDS: u64 = 20;

/// Bytes of what the process says on standard error that go into a message.
const LOG_TAIL: usize = 300;

/// Tries an edited kernel against its program, once for each way in which launches share buffers. Returns what was compared.
///
/// # Errors
/// If it breaks or leaves something else; with the first difference.
pub fn check(source: &Source, kernel: &Kernel, origin: &Origin, python: &Python) -> Result<String> {
    let wrong = |what: String| RunError::Input(format!("{}: {what}", source.edit));
    let p = &kernel.program;
    let mut said = String::new();
    for shared in &origin.shared {
        let trial = Trial::new(p, shared).map_err(|e| wrong(format!("no trial of it is possible: {e}")))?;
        let grid = source.grid(p);
        // Blocks of another grid write other elements: only all of them write those that are compared.
        let is_same = grid == p.grid;
        let programs: Vec<usize> = match is_same {
            true => trial.sampled().to_vec(),
            false => (0..grid.iter().product()).collect(),
        };
        let (after, done) = run(source, kernel, &trial, grid, &programs, python)?;
        let is_whole = done == programs.len();
        let before: Vec<Vec<u8>> =
            if is_whole { Vec::new() } else { (0..after.len()).map(|k| trial.bytes(k)).collect() };
        // Where not every block ran, what nobody wrote is not compared.
        let is_done = |k: usize, i: usize| {
            let n = p.params[k].elem.bytes();
            is_whole || before[k][i * n..(i + 1) * n] != after[k][i * n..(i + 1) * n]
        };
        if let Some(difference) = trial.compare(&after, &is_done) {
            return Err(wrong(format!("it does not compute what {} means: {difference}", kernel.name)));
        }
        let compared = trial.compared(&is_done);
        if compared == 0 {
            return Err(wrong(format!("{done} blocks wrote nothing that could be compared in {SECONDS} s")));
        }
        let all = p.programs();
        let blocks =
            if is_same { format!("{done} of {all}") } else { format!("{done} of {}", programs.len()) };
        said =
            format!("agrees with the original on Triton's interpreter: {blocks} blocks, {compared} elements");
    }
    Ok(said)
}

/// Contents of all parameters' buffers after these programs, and how many of them ran.
fn run(
    source: &Source,
    kernel: &Kernel,
    trial: &Trial,
    grid: [usize; 3],
    programs: &[usize],
    python: &Python,
) -> Result<(Vec<Vec<u8>>, usize)> {
    let folder = Scratch::new()?;
    let failed = |what: &str| RunError::Input(format!("{}: on Triton's interpreter: {what}", source.edit));
    let io = |e: std::io::Error| RunError::Failed(format!("{}: {e}", folder.0.display()));
    let (params, shared) = (&kernel.program.params, trial.shared());
    let param =
        |(k, p): (usize, &kfc_kernels::tile::ir::Param)| json!({"elem": p.elem.name(), "buffer": shared[k]});
    let list: Vec<Value> = params.iter().enumerate().map(param).collect();
    let request = json!({
        "name": kernel.program.name, "grid": grid, "programs": programs, "seconds": SECONDS, "params": list,
    });
    std::fs::write(folder.0.join("kernel.py"), &source.text).map_err(io)?;
    std::fs::write(folder.0.join("request.json"), request.to_string()).map_err(io)?;
    for k in (0..params.len()).filter(|&k| shared[k] == k) {
        std::fs::write(folder.0.join(k.to_string()), trial.bytes(k)).map_err(io)?;
    }
    let python = python.find();
    let output = Command::new(&python.path)
        .args(["-c", SCRIPT])
        .arg(&folder.0)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| python.missing(&format!("cannot be started ({e})")))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|_| {
        let start = log.char_indices().rev().nth(LOG_TAIL).map_or(0, |(i, _)| i);
        failed(&format!("the process ended ({}) {}", output.status, log[start..].trim().replace('\n', " | ")))
    })?;
    if let Some(error) = answer["error"].as_str() {
        return Err(failed(&error.replace('\n', " | ")));
    }
    let read = |k: usize| files::read_limited(&folder.0.join(shared[k].to_string()), u64::MAX);
    let after = (0..params.len()).map(read).collect::<std::result::Result<_, _>>()?;
    Ok((after, answer["programs"].as_u64().unwrap_or(0) as usize))
}

/// A folder that goes with what is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kfc-trial-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(|e| RunError::Failed(format!("{}: {e}", path.display())))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind lies in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
