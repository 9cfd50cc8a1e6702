//! Attention beside that of torch, case by case in one run: milliseconds of the best run each, and their ratio.
//!
//! `cargo run --release -p kfc-benches --example attention -- [--python PYTHON] [--threads N] [CASE...]`; a case is
//! `DTYPE:LENGTH:HEADS:KV_HEADS:HEAD_SIZE`. Without a Python that has torch, only kfc is timed.
#![allow(clippy::expect_used)]

use kfc_benches::attention::Case;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a pass is repeated.
const TIME: Duration = Duration::from_millis(200);

/// What torch leaves running for a while after its work.
const CALM: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut python, mut threads, mut cases) = (None, 2, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => python = args.next(),
            "--threads" => threads = args.next().ok_or("a number of threads")?.parse()?,
            case => cases.push(case.parse::<Case>()?),
        }
    }
    if cases.is_empty() {
        cases = Case::all();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut torch = python.map(|p| start(&p, threads)).transpose()?;
    println!(
        "{:<20} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7}",
        "", "forward", "torch", "", "backward", "torch", ""
    );
    for case in cases {
        let peer = match &mut torch {
            Some(child) => Some(ask(child, &case)?),
            None => None,
        };
        std::thread::sleep(CALM);
        let (mut plans, mut store) = case.plans()?;
        let times = pool.install(|| {
            [0, 1].map(|i| {
                let (mut best, end) = (Duration::MAX, Instant::now() + TIME);
                let mut runs = 0;
                while runs < 4 || Instant::now() < end {
                    let start = Instant::now();
                    plans[i].run(&mut store);
                    best = best.min(start.elapsed());
                    runs += 1;
                }
                1e3 * best.as_secs_f64()
            })
        });
        let mut line = format!("{case:<20}", case = case.to_string());
        for (i, products) in [(0, 2), (1, 5)] {
            let (ms, flops) = (times[i], case.flops(products) as f64);
            line += &match peer {
                Some(peer) => format!(" {ms:9.3} {:9.3} {:6.2}x", peer[i], peer[i] / ms),
                None => format!(" {ms:9.3} {:7.1} GFLOP/s", flops / ms / 1e6),
            };
        }
        println!("{line}");
    }
    Ok(())
}

/// Starts the peer, which reads cases and writes times.
fn start(python: &str, threads: usize) -> std::io::Result<Child> {
    Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/attention.py"))
        .args(["--threads", &threads.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

/// Milliseconds of the peer, forward and backward.
fn ask(peer: &mut Child, case: &Case) -> Result<[f64; 2], Box<dyn std::error::Error>> {
    writeln!(peer.stdin.as_mut().ok_or("no input")?, "{case}")?;
    let mut line = String::new();
    // One line is all there is to read until the next case.
    BufReader::new(peer.stdout.as_mut().ok_or("no output")?).read_line(&mut line)?;
    let times: serde_json::Value = serde_json::from_str(&line)?;
    let time = |name: &str| times[name].as_f64().ok_or("no time");
    Ok([time("forward")?, time("backward")?])
}
