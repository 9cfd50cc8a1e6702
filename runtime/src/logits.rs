//! `kfc logits`: the logits of every position of a file of token rows, row by row.

use crate::data::{Documents, token_file::read_token_file};
use crate::error::Result;
use crate::hf::LogitsWriter;
use crate::inference::{Served, bind_one};
use kfc_ops::step::logits::logits_graph;
use std::path::Path;

/// Writes `logits` `f32 [N,T,V]` of the rows of `tokens` (`input_ids` `[N,T]`) to `out`. One row is in memory at a time.
/// `progress` is told the rows done and in all. Returns `[N, T, V]`.
///
/// # Errors
/// If a file is missing or damaged, a token is out of range, or a logit is not finite.
pub fn write_logits(
    served: &Served,
    tokens: &Path,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<[usize; 3]> {
    let config = &served.model.config;
    let mut rows = Documents::new();
    let (n, seq) = read_token_file(tokens, config.vocab_size, &mut rows)?;
    let mut store = served.store(seq)?;
    let graph = logits_graph(config, "student.", served.model.dtype, served.lora.as_ref(), 1, seq)?;
    let mut plan = bind_one(graph, &mut store)?;
    let dims = [n, seq, config.vocab_size];
    let mut writer = LogitsWriter::create(out, dims, Vec::new())?;
    let slots = ["tokens", "positions", "segments"].map(|name| store.slot(name));
    let positions: Vec<i32> = (0..seq as i32).collect();
    let segments = vec![0; seq];
    for row in 0..n {
        let data: [&[i32]; 3] = [rows.tokens(row), &positions, &segments];
        for (slot, data) in slots.iter().zip(data) {
            if let Some(slot) = slot {
                store.write(*slot, data);
            }
        }
        plan.run(&mut store);
        let logits = plan.output::<f32>(0);
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(served.model.not_finite(&format!("the logits of row {row}")));
        }
        writer.push(logits)?;
        progress(row + 1, n);
    }
    writer.finish()?;
    Ok(dims)
}
