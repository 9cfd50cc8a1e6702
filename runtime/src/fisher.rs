//! `kfc fisher`: the exact diagonal of the Fisher information on a job's data.
//!
//! The empirical Fisher of a parameter is the mean over samples of the squared gradient of the sample's loss (mean
//! cross-entropy of the row), at the parameters where training would start (Kirkpatrick et al. 2017). One row at a time
//! is run, and squares are added to accumulators as soon as a gradient is made.

use crate::config::{EwcMode, JobConfig};
use crate::data::{RowBuffers, RowSet};
use crate::error::{Result, RunError};
use crate::exec::Store;
use crate::files::AtomicFile;
use crate::hf::{TensorOut, write_safetensors};
use crate::inference::bind_one;
use crate::models::Model;
use crate::train::ewc::file_name;
use crate::train::open::{Student, open_student};
use crate::train::setup::place_adapter;
use kfc_ops::model::transformer::lora_input;
use kfc_ops::step::fisher::fisher_graph;
use std::collections::BTreeMap;
use std::path::Path;

/// What was computed.
#[derive(Clone, Debug, PartialEq)]
pub struct FisherSummary {
    /// Samples.
    pub rows: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Elements written.
    pub elements: usize,
    /// Mean cross-entropy over the samples, nats.
    pub ce: f64,
    /// What the diagonal is of.
    pub mode: EwcMode,
}

/// Computes the diagonal on the first `limit` rows (all without one) and writes it to `out`, under the names that
/// `ewc.fisher` is read with.
///
/// # Errors
/// If the job's files are missing or damaged, no row has a label, or a gradient is not finite.
pub fn write_fisher(
    job: &JobConfig,
    rows: &RowSet,
    limit: Option<usize>,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FisherSummary> {
    let student = open_student(job)?;
    let mode = match (&job.ewc, &job.lora) {
        (Some(e), _) => e.mode,
        (None, Some(_)) => EwcMode::Adapter,
        (None, None) => EwcMode::Weights,
    };
    let wrt = parameters(&student, mode)?;
    let seq = rows.seq_len();
    let config = &student.model.config;
    let mut store = Store::new();
    student.model.place(&mut store, "student.", false)?;
    student.model.place_rope(&mut store, "student.", seq)?;
    if let Some(lora) = &student.lora {
        place_adapter(&mut store, lora, student.adapter.as_ref(), job.train.seed)?;
    }
    let graph = fisher_graph(config, student.model.dtype, student.lora.as_ref(), seq, &wrt)?;
    let mut plan = bind_one(graph, &mut store)?;

    let mut buffers = RowBuffers::new(seq);
    let mut labelled = Vec::new();
    for row in 0..rows.len() {
        buffers.fill(rows, row);
        if buffers.labelled() > 0 {
            labelled.push(row);
        }
    }
    let samples = &labelled[..limit.unwrap_or(labelled.len()).min(labelled.len())];
    if samples.is_empty() {
        return Err(RunError::Input(
            "data.train: no row has a labelled token, there is nothing to take a gradient of".into(),
        ));
    }
    // A place that cannot be written is found out before the work, not after it.
    drop(AtomicFile::create(out)?);
    let slot = |name: &str| store.slot(name);
    let names = ["tokens", "labels", "positions", "segments"].map(slot);
    let (w_ce, weight) = (slot("w_ce"), slot("weight"));
    let ce_output = plan.output_index("ce");
    let mut ce = 0.0;
    for (done, &row) in samples.iter().enumerate() {
        buffers.fill(rows, row);
        let data: [&[i32]; 4] = [&buffers.tokens, &buffers.labels, &buffers.positions, &buffers.segments];
        for (slot, data) in names.iter().zip(data) {
            if let Some(slot) = slot {
                store.write(*slot, data);
            }
        }
        let share = 1.0 / buffers.labelled() as f32;
        if let Some(slot) = w_ce {
            for (w, label) in store.slice_mut::<f32>(slot).iter_mut().zip(&buffers.labels) {
                *w = if *label >= 0 { share } else { 0.0 };
            }
        }
        if let Some(slot) = weight {
            store.write(slot, &[1.0 / samples.len() as f32]);
        }
        plan.run(&mut store);
        ce += f64::from(plan.scalar(ce_output));
        progress(done + 1, samples.len());
    }
    check(&store, &wrt, &student.model)?;
    write(&store, &wrt, mode, samples.len(), out)?;
    let elements =
        wrt.iter().filter_map(|n| store.get(&format!("fisher.{n}"))).map(|t| t.ty().elements()).sum();
    Ok(FisherSummary {
        rows: samples.len(),
        tensors: wrt.len(),
        elements,
        ce: ce / samples.len() as f64,
        mode,
    })
}

/// Graph inputs that the diagonal is of.
fn parameters(student: &Student, mode: EwcMode) -> Result<Vec<String>> {
    let lora = student.lora.as_ref();
    match (mode, lora) {
        (EwcMode::Weights, _) => {
            Ok(student.model.config.parameters().into_iter().map(|p| format!("student.{}", p.name)).collect())
        }
        (EwcMode::Adapter, Some(lora)) => {
            Ok(lora.modules.iter().flat_map(|m| ["A", "B"].map(|side| lora_input(&m.path, side))).collect())
        }
        (EwcMode::Delta, Some(lora)) => {
            Ok(lora.modules.iter().map(|m| format!("student.{}.weight", m.path)).collect())
        }
        (_, None) => Err(RunError::Input("ewc.mode = \"adapter\" and \"delta\" need [lora]".into())),
    }
}

/// A diagonal that is not finite would silently break every later penalty.
fn check(store: &Store, wrt: &[String], model: &Model) -> Result<()> {
    for name in wrt {
        let Some(t) = store.get(&format!("fisher.{name}")) else { continue };
        if t.slice::<f32>().iter().any(|v| !v.is_finite()) {
            return Err(model.not_finite(&format!("the gradients of `{name}`")));
        }
    }
    Ok(())
}

fn write(store: &Store, wrt: &[String], mode: EwcMode, rows: usize, out: &Path) -> Result<()> {
    let tensors = wrt
        .iter()
        .filter_map(|name| {
            let t = store.get(&format!("fisher.{name}"))?;
            Some(TensorOut::typed(file_name(name), t.ty().dtype, &t.ty().dims, t.bytes()))
        })
        .collect();
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        ("kfc.fisher".to_string(), mode.name().to_string()),
        ("kfc.rows".to_string(), rows.to_string()),
    ]);
    write_safetensors(out, tensors, &metadata)?;
    Ok(())
}
