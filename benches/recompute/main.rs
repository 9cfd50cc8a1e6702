//! Time of a step against its memory budget: what the planner chooses for budgets from the smallest feasible one to none
//! at all, beside the policies that a job can name, each in a process of its own, measured.
//!
//!     cargo bench -p kfc-benches --bench recompute                   # the workload `tiny` in bf16
//!     cargo bench -p kfc-benches --bench recompute -- small f32 --budgets 6 --rounds 2
//!
//! Processes take turns of a few steps, so that what the machine does beside hits all alike; the best turn of each counts.
//! The planner weighs with times that are calibrated here before, as by `kfc tune --calibrate`, or with guesses after
//! `--uncalibrated`. Prints a table and writes the curve as `recompute-WORKLOAD-TYPE.svg` and `.json` to `--out DIR`
//! (`target/recompute` by default).

mod child;
mod curve;

use anyhow::{Context, bail, ensure};
use child::{Child, Spec};
use curve::{Budget, Curve, Point};
use kfc::config::format_bytes;
use kfc_benches::temp::TempFolder;
use kfc_benches::workloads::{ALL, TINY, Workload};
use kfc_graph::DType;
use std::path::PathBuf;

/// What is allowed on top of a plan's predicted peak: processes differ by some pages before their first step.
const SLACK: u64 = 2 << 20;

/// What was asked for.
struct Options {
    workload: Workload,
    dtype: DType,
    budgets: usize,
    rounds: usize,
    /// Milliseconds of a turn, at least one step.
    turn_ms: f64,
    out: PathBuf,
    /// Whether the planner knows measured times.
    calibrated: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(child::FLAG) => child::run(&arguments[1..]),
        _ => options(&arguments)?.map_or(Ok(()), |o| bench(&o)),
    }
}

/// What the arguments say; `None` if they ask for another benchmark, as `cargo bench -- NAME` does of all files.
fn options(arguments: &[String]) -> anyhow::Result<Option<Options>> {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("recompute");
    let mut o = Options {
        workload: TINY,
        dtype: DType::Bf16,
        budgets: 8,
        rounds: 6,
        turn_ms: 300.0,
        out,
        calibrated: true,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--bench" => {}
            "--budgets" => o.budgets = value()?.parse()?,
            "--uncalibrated" => o.calibrated = false,
            "--rounds" => o.rounds = value()?.parse()?,
            "--out" => o.out = value()?.into(),
            "--quick" => (o.budgets, o.rounds) = (4, 2),
            flag if flag.starts_with("--") => {
                bail!("there is no option {flag}; see benches/recompute/main.rs")
            }
            names => {
                for name in names.split('/') {
                    match (name, ALL.into_iter().find(|w| w.name == name)) {
                        ("recompute", _) => {}
                        ("bf16", _) => o.dtype = DType::Bf16,
                        ("f32", _) => o.dtype = DType::F32,
                        (_, Some(workload)) => o.workload = workload,
                        (_, None) => return Ok(None),
                    }
                }
            }
        }
    }
    ensure!(o.budgets >= 2 && o.rounds >= 1, "at least two budgets and one round");
    Ok(Some(o))
}

fn bench(o: &Options) -> anyhow::Result<()> {
    let folder = TempFolder::new(&format!("recompute-{}", o.workload.name))?;
    o.workload.write(folder.path(), o.dtype)?;
    let spec = Spec { workload: o.workload.name, dtype: o.dtype, folder: folder.path().into() };
    if o.calibrated {
        spec.calibrate()?;
    }
    let plans = spec.choices()?;
    println!(
        "{} {}: {} choices between {} and {}, found in {:.2} s",
        o.workload.name,
        o.dtype,
        plans.choices.len(),
        format_bytes(plans.choices.last().map_or(0, |c| c.peak)),
        format_bytes(plans.choices.first().map_or(0, |c| c.peak)),
        plans.seconds
    );

    let mut children: Vec<Child> = Vec::new();
    let named: Vec<usize> = plans
        .named
        .iter()
        .map(|policy| child::index(&mut children, &spec, &policy.name, None))
        .collect::<anyhow::Result<_>>()?;
    let budgets: Vec<(Option<u64>, usize)> = plans
        .budgets(o.budgets)
        .into_iter()
        .map(|budget| {
            let budget = budget.map(|b| b + SLACK);
            Ok((budget, child::index(&mut children, &spec, child::AUTO, budget)?))
        })
        .collect::<anyhow::Result<_>>()?;
    for round in 0..o.rounds {
        for child in &mut children {
            child.turn(o.turn_ms)?;
        }
        eprint!("\rround {} of {}", round + 1, o.rounds);
    }
    eprintln!();

    let point = |name: &str, i: usize| Point::of(name, &children[i], &plans);
    let curve = Curve::new(
        o.workload.name,
        o.dtype,
        plans.named.iter().zip(&named).map(|(policy, &i)| point(&policy.name, i)).collect(),
        budgets.iter().map(|&(budget, i)| Budget { budget, chosen: point("", i) }).collect(),
    );
    print!("{}", curve.table());
    let stem = format!("recompute-{}-{}", o.workload.name, o.dtype);
    std::fs::create_dir_all(&o.out)?;
    for (end, text) in [("svg", curve.svg()), ("json", curve.json())] {
        let path = o.out.join(format!("{stem}.{end}"));
        std::fs::write(&path, text)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
