//! `bench-compare`: saves a baseline of benchmarks, and says later which of them a change made slower.
//!
//!     cargo run --release -p kfc-benches --bin bench-compare -- save NAME [ARGS]      as `cargo bench -p kfc-benches ARGS`
//!     cargo run --release -p kfc-benches --bin bench-compare -- check NAME [--threshold 5] [--no-run] [ARGS]
//!
//! `check` runs the benchmarks again (not with `--no-run`) and prints a table with a verdict each. Exit codes: 0 nothing is
//! slower, 1 something is slower by more than the threshold (per cent) and the noise, 2 usage.

use kfc::output::table;
use kfc_benches::compare::{Change, Verdict, changes, read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

const USAGE: &str = "usage: bench-compare save NAME [ARGS of cargo bench]\n       \
                     bench-compare check NAME [--threshold PERCENT] [--no-run] [ARGS of cargo bench]";

/// What is asked for.
struct Arguments {
    check: bool,
    baseline: String,
    threshold: f64,
    run: bool,
    rest: Vec<String>,
}

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1).collect()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match work(&arguments) {
        Ok(slower) => ExitCode::from(u8::from(slower)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: Vec<String>) -> Option<Arguments> {
    let mut words = arguments.into_iter();
    let check = match words.next()?.as_str() {
        "save" => false,
        "check" => true,
        _ => return None,
    };
    let baseline = words.next().filter(|name| !name.starts_with('-') && !name.contains(['/', '\\']))?;
    let mut parsed = Arguments { check, baseline, threshold: 0.05, run: true, rest: Vec::new() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--threshold" if check => {
                let percent: f64 = words.next()?.parse().ok()?;
                parsed.threshold = Some(percent / 100.0).filter(|t| (0.0..10.0).contains(t))?;
            }
            "--no-run" if check => parsed.run = false,
            _ => parsed.rest.push(word),
        }
    }
    Some(parsed)
}

/// Saves or checks; true if something is slower.
fn work(a: &Arguments) -> std::io::Result<bool> {
    if !a.check {
        run(&a.rest, &["--save-baseline", &a.baseline])?;
        return Ok(false);
    }
    let start = SystemTime::now();
    if a.run {
        run(&a.rest, &["--baseline-lenient", &a.baseline])?;
    }
    // Criterion keeps what ran last under `new`, whenever that was.
    let folder = criterion_folder();
    let mut before = read(&folder, &a.baseline, None)?;
    let after = read(&folder, "new", a.run.then_some(start))?;
    if before.is_empty() {
        let m = format!("there is no baseline `{}` in {}; save one first", a.baseline, folder.display());
        return Err(std::io::Error::other(m));
    }
    if a.run && after.is_empty() {
        return Err(std::io::Error::other(format!("no benchmark ran: `{}` names none", a.rest.join(" "))));
    }
    if a.run && !a.rest.is_empty() {
        // Some benchmarks were asked for: of the others there is nothing to say.
        before.retain(|name, _| after.contains_key(name));
    }
    let changes = changes(&before, &after, a.threshold);
    println!("{}", describe(&changes, a));
    Ok(changes.iter().any(|c| c.verdict == Verdict::Slower))
}

/// Runs the benchmarks: what stands before `--` in `rest` is cargo's, the rest and `own` criterion's.
fn run(rest: &[String], own: &[&str]) -> std::io::Result<()> {
    let split = rest.iter().position(|w| w == "--");
    let (cargo, criterion) = rest.split_at(split.unwrap_or(rest.len()));
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["bench", "-p", "kfc-benches"])
        .args(cargo)
        .arg("--")
        .args(criterion.iter().skip(1))
        .args(own)
        .status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("cargo bench: {status}"))) }
}

/// Where criterion keeps its estimates.
fn criterion_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("target");
    target.unwrap_or(own).join("criterion")
}

/// The table, the largest changes first, and a line that sums it up.
fn describe(changes: &[Change], a: &Arguments) -> String {
    let time = |e: Option<kfc_benches::compare::Estimate>| {
        e.map_or("-".into(), |e| kfc_benches::limits::milliseconds(e.median * 1e-9))
    };
    let mut sorted: Vec<&Change> = changes.iter().collect();
    sorted.sort_by(|x, y| y.relative().unwrap_or(0.0).total_cmp(&x.relative().unwrap_or(0.0)));
    let mut rows =
        vec![["benchmark", a.baseline.as_str(), "now", "change", "verdict"].map(String::from).to_vec()];
    rows.extend(sorted.iter().map(|c| {
        let change = c.relative().map_or("-".into(), |r| format!("{:+.1} %", r * 100.0));
        vec![c.name.clone(), time(c.before), time(c.after), change, c.verdict.name().into()]
    }));
    let count = |v| changes.iter().filter(|c| c.verdict == v).count();
    format!(
        "{}{} slower, {} faster, {} unclear, {} the same (threshold {} %)",
        table(&rows),
        count(Verdict::Slower),
        count(Verdict::Faster),
        count(Verdict::Unclear),
        count(Verdict::Same),
        a.threshold * 100.0
    )
}
