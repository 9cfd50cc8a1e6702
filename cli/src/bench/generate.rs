//! Greedy generation by a workload's student, timed: reading the prompt, and making tokens.

use super::Place;
use super::workloads::Workload;
use kfc_graph::DType;
use kfc_runtime::generate::{Generator, Request, Sampling, Speed};
use kfc_runtime::hf::WeightFile;
use kfc_runtime::inference::Served;
use kfc_runtime::memory;
use std::ops::ControlFlow;
use std::path::Path;

/// Timed runs of which the fastest counts, for each of the two rates.
const RUNS: usize = 3;

/// How much is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens that are made after it.
    pub new: usize,
}

/// What it came to.
#[derive(Clone, Debug)]
pub struct GenerateTiming {
    /// Prompt tokens a second.
    pub prefill_tokens_per_s: f64,
    /// New tokens a second, the first left out: it comes with the prompt.
    pub decode_tokens_per_s: f64,
    /// Peak resident memory, bytes.
    pub peak_bytes: u64,
    /// The tokens made.
    pub tokens: Vec<i32>,
}

/// Generates with the student of a workload, from the first tokens of its rows. Nothing is trained; files stay in `keep`,
/// if that is given.
///
/// # Errors
/// If files cannot be written or memory runs out.
pub fn run(
    workload: &Workload,
    dtype: DType,
    lengths: Lengths,
    keep: Option<&Path>,
) -> anyhow::Result<GenerateTiming> {
    let place = Place::of(workload, dtype, keep)?;
    let served = Served::open(&place.job.model.path, None, Some(dtype))?;
    let rows = WeightFile::open(&place.job.data.train[0])?.expect("input_ids")?.to_i64()?;
    let prompt: Vec<i32> = rows.iter().cycle().take(lengths.prompt).map(|t| *t as i32).collect();
    let request = |new| [Request { prompt: prompt.clone(), max_new_tokens: new }];
    let mut generator = Generator::new(&served, lengths.prompt + lengths.new, 1)?;
    let mut go_on = |_: usize, _: &[i32]| Ok(ControlFlow::Continue(()));
    // Compiles, and brings the weights into memory.
    generator.run(&request(lengths.new.min(2)), &Sampling::GREEDY, &[], &mut go_on)?;
    let (mut speeds, mut tokens): (Vec<Speed>, _) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (answers, speed) = generator.run(&request(lengths.new), &Sampling::GREEDY, &[], &mut go_on)?;
        speeds.push(speed);
        tokens = answers.into_iter().flat_map(|a| a.tokens).collect();
    }
    let best = |rate: fn(&Speed) -> f64| speeds.iter().map(rate).fold(f64::NAN, f64::max);
    Ok(GenerateTiming {
        prefill_tokens_per_s: best(Speed::prefill_rate),
        decode_tokens_per_s: best(Speed::decode_rate),
        peak_bytes: memory::peak_resident(),
        tokens,
    })
}
