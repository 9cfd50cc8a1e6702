//! `kfc teach`: runs the teacher once over a job's rows and keeps its `k` largest logits of every position.

use crate::config::{JobConfig, ModelInit};
use crate::data::{Loader, RowBuffers, RowSet};
use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, Store};
use crate::files::{AtomicDir, write_json};
use crate::hf::{FileDType, TensorFileWriter, TensorSpec};
use crate::inference::bind_one;
use crate::models::Model;
use crate::teacher_cache::{CacheDescription, DESCRIPTION, TENSORS, is_cache};
use crate::train::open::check_teacher;
use crate::train::setup::rows_fingerprint;
use kfc_ops::model::ModelConfig;
use kfc_ops::step::logits::logits_graph;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the cache of the job's teacher for the rows of `loader` to the folder `out`. The logits of one row are in memory
/// at a time. Tokens that only the teacher has (a padded vocabulary) are left out, as when it runs beside `student`.
///
/// # Errors
/// If the job has no teacher, teacher and student do not belong together, a file is missing or damaged, or memory runs
/// out.
pub fn write_cache(
    job: &JobConfig,
    student: &ModelConfig,
    loader: &Loader,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<CacheDescription> {
    let Some(distill) = &job.distill else {
        return Err(RunError::Input(
            "the configuration has no [distill] section, so there is no teacher".into(),
        ));
    };
    crate::hf::folder::require_free(out)?;
    if is_cache(&distill.teacher) {
        let m = format!(
            "distill.teacher: {} is a cache already; give the teacher's model folder",
            distill.teacher.display()
        );
        return Err(RunError::Input(m));
    }
    let teacher = Model::open(&distill.teacher, job.model.dtype, ModelInit::Pretrained, 0)?;
    check_teacher(job, &teacher, loader)?;
    let (vocab, theirs) = (student.vocab_size, teacher.config.vocab_size);
    if theirs < vocab {
        return Err(RunError::Input(format!(
            "distill.teacher: {} has {theirs} tokens, the student {vocab}: a cache cannot tell the student's further tokens \
             from the rest; train with the teacher itself",
            distill.teacher.display()
        )));
    }
    let seq = loader.seq_len();
    let general = loader.general_rows();
    let Some(main) = loader.rows() else {
        return Err(RunError::Input(
            "data.streaming: the answers to rows are kept by their number, which streamed rows do not have; set it to \
             \"off\""
                .into(),
        ));
    };
    let mut store = Store::new();
    teacher.place(&mut store, "teacher.", false)?;
    teacher.place_rope(&mut store, "teacher.", seq)?;
    let graph = logits_graph(&teacher.config, "teacher.", teacher.dtype, None, 1, seq)?;
    let mut plan = bind_one(graph, &mut store)?;
    let description = CacheDescription {
        k: distill.top_k.min(vocab),
        temperature: distill.temperature,
        rows: main.len(),
        general_rows: general.map_or(0, RowSet::len),
        seq_len: seq,
        vocab,
        fingerprint: rows_fingerprint(loader),
        teacher: distill.teacher.display().to_string(),
    };
    let dir = AtomicDir::create(out)?;
    let rows = description.rows + description.general_rows;
    let dims = [vec![rows, seq, description.k], vec![rows, seq, description.k], vec![rows, seq]];
    let types = [FileDType::I32, FileDType::F32, FileDType::F32];
    let mut writers = Vec::new();
    for ((name, dims), dtype) in TENSORS.iter().zip(dims).zip(types) {
        let path = dir.path().join(format!("{name}.safetensors"));
        writers.push(TensorFileWriter::create(
            &path,
            &[TensorSpec::new(*name, dtype, dims)],
            &BTreeMap::new(),
        )?);
    }
    let mut buffers = RowBuffers::new(seq);
    let sets = [Some(main), general];
    let mut done = 0;
    for set in sets.into_iter().flatten() {
        for row in 0..set.len() {
            buffers.fill(set, row);
            let Some(top) = run_row(&mut plan, &mut store, &buffers, theirs, &description) else {
                return Err(teacher.not_finite("the teacher's logits"));
            };
            let parts: [&[u8]; 3] = [
                bytemuck::cast_slice(&top.ids),
                bytemuck::cast_slice(&top.logits),
                bytemuck::cast_slice(&top.lse),
            ];
            for (writer, bytes) in writers.iter_mut().zip(parts) {
                writer.put(bytes)?;
            }
            done += 1;
            progress(done, rows);
        }
    }
    for writer in writers {
        writer.finish()?;
    }
    write_json(&dir.path().join(DESCRIPTION), &description.to_json())?;
    dir.commit()?;
    Ok(description)
}

/// The kept outcomes of one row.
struct TopRow {
    ids: Vec<i32>,
    logits: Vec<f32>,
    lse: Vec<f32>,
}

/// Runs the teacher, which has `vocab` tokens, on a row; the first `d.vocab` count. None if a logit is not finite.
fn run_row(
    plan: &mut BoundPlan,
    store: &mut Store,
    row: &RowBuffers,
    vocab: usize,
    d: &CacheDescription,
) -> Option<TopRow> {
    for (name, data) in [("tokens", &row.tokens), ("positions", &row.positions), ("segments", &row.segments)]
    {
        if let Some(slot) = store.slot(name) {
            store.write(slot, data);
        }
    }
    plan.run(store);
    let logits = plan.output::<f32>(0);
    let positions: Vec<(Vec<(f32, i32)>, f32)> = logits
        .par_chunks(vocab)
        .map(|z| &z[..d.vocab])
        .map(|z| (largest(z, d.k), logsumexp(z, d.temperature)))
        .collect();
    if positions.iter().any(|(_, lse)| !lse.is_finite()) {
        return None;
    }
    let mut top = TopRow { ids: Vec::new(), logits: Vec::new(), lse: Vec::new() };
    for (best, lse) in positions {
        top.ids.extend(best.iter().map(|(_, id)| *id));
        top.logits.extend(best.iter().map(|(z, _)| *z));
        top.lse.push(lse);
    }
    Some(top)
}

/// The `k` largest logits with their ids, descending; the smaller id first among equals.
fn largest(logits: &[f32], k: usize) -> Vec<(f32, i32)> {
    let mut all: Vec<(f32, i32)> = logits.iter().copied().zip(0..).collect();
    let order = |a: &(f32, i32), b: &(f32, i32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if k < all.len() {
        all.select_nth_unstable_by(k, order);
        all.truncate(k);
    }
    all.sort_unstable_by(order);
    all
}

/// `log Σ exp(z / T)`, in double precision.
fn logsumexp(logits: &[f32], temperature: f64) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| ((f64::from(*z) - f64::from(max)) / temperature).exp()).sum();
    (f64::from(max) / temperature + sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_is_sorted_and_stable() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0], 3), vec![(3.0, 1), (3.0, 3), (2.0, 2)]);
        assert_eq!(largest(&[0.5, 0.25], 5), vec![(0.5, 0), (0.25, 1)]);
    }

    #[test]
    fn logsumexp_at_a_temperature() {
        let expected = ((1.0f64 / 2.0).exp() + (3.0f64 / 2.0).exp()).ln();
        assert!((f64::from(logsumexp(&[1.0, 3.0], 2.0)) - expected).abs() < 1e-6);
    }
}
