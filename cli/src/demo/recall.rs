//! Recall: the share of questions whose likeliest next word, over the whole vocabulary, is the right object.

use kfc_ops::step::score::score_graph;
use kfc_runtime::data::{Tokenizer, eval_data::read_qa};
use kfc_runtime::inference::{Served, bind_one};
use std::path::Path;

/// Questions scored at a time.
const BATCH: usize = 64;

/// Asks a model (with an adapter, if given) every question of a file.
///
/// # Errors
/// If model or questions cannot be read.
pub(super) fn recall(model: &Path, adapter: Option<&Path>, questions: &Path) -> anyhow::Result<f64> {
    let served = Served::open(model, adapter, None)?;
    let tokenizer = Tokenizer::load(model)?;
    let items = read_qa(questions)?;
    let mut rows = Vec::with_capacity(items.len());
    for item in &items {
        let prompt = tokenizer.encode(&item.prompt)?;
        let answer = tokenizer.encode(item.answers.first().map_or("", String::as_str))?;
        rows.push((prompt, answer.first().copied().unwrap_or(-1)));
    }
    let seq = rows.iter().map(|(prompt, _)| prompt.len()).max().unwrap_or(1);
    let mut store = served.store(seq)?;
    let graph = score_graph(&served.model.config, served.model.dtype, served.lora.as_ref(), BATCH, seq)?;
    let mut plan = bind_one(graph, &mut store)?;
    let slots = ["tokens", "positions", "segments", "labels"].map(|name| store.slot(name));
    let greedy = plan.output_index("greedy").unwrap_or(0);
    let mut right = 0;
    for chunk in rows.chunks(BATCH) {
        let mut data =
            [vec![0i32; BATCH * seq], vec![0; BATCH * seq], vec![-1; BATCH * seq], vec![-100; BATCH * seq]];
        for (r, (prompt, _)) in chunk.iter().enumerate() {
            for (t, token) in prompt.iter().enumerate() {
                let at = r * seq + t;
                (data[0][at], data[1][at], data[2][at]) = (*token, t as i32, 0);
            }
            data[3][r * seq + prompt.len() - 1] = chunk[r].1;
        }
        for (slot, data) in slots.iter().zip(&data) {
            if let Some(slot) = slot {
                store.write(*slot, data);
            }
        }
        plan.run(&mut store);
        let said = plan.output::<i32>(greedy);
        right += chunk
            .iter()
            .enumerate()
            .filter(|(r, (prompt, answer))| said[r * seq + prompt.len() - 1] == *answer)
            .count();
    }
    Ok(right as f64 / items.len().max(1) as f64)
}
