//! Transposed copies of frozen weights, held for kernels that were found to be faster with them.
//!
//! Invariant: only weights that no plan updates are copied; a copy is made once, when plans are bound.

use super::buffer::HostBuffer;
use super::store::{Store, StoreError};
use crate::profile::Kind;
use crate::tuning::Tuning;
use kfc_graph::{InputKind, TensorType};
use kfc_kernels::KernelError;
use kfc_kernels::cpu::transposed::Transposed;
use kfc_kernels::cpu::{self, Buf};
use kfc_kernels::plan::{Place, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which weights are copied, as far as memory has room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// Those of kernels that a tuning found to be faster with a copy.
    #[default]
    AsTuned,
    /// All that a kernel may read from a copy: for a search.
    All,
}

/// A weight that a copy is held of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub of: Transposed,
}

/// The weights that kernels of these plans would read from copies, each once, in order of their first use.
///
/// # Errors
/// If a step has no kernel.
pub(crate) fn wanted(plans: &[Plan], which: Copies, tuning: &Tuning) -> Result<Vec<Copied>, KernelError> {
    let updates = |p: &Plan| {
        p.outputs.iter().filter_map(|o| Some(p.inputs[o.updates?].name.clone())).collect::<Vec<_>>()
    };
    let updated: BTreeSet<String> = plans.iter().flat_map(updates).collect();
    let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
    for plan in plans {
        for s in &plan.steps {
            let is_wanted = || {
                let kind = Kind::of(&s.op, &s.input_types, &s.output_types);
                tuning.choice(&kind.signature()).transposed
            };
            if which == Copies::AsTuned && (tuning.is_empty() || !is_wanted()) {
                continue;
            }
            let kernel = cpu::build(&s.op, &s.input_types, &s.output_types)?;
            let Some(of) = kernel.transposed() else { continue };
            let Place::Input(i) = s.inputs[of.operand] else { continue };
            let input = &plan.inputs[i];
            if input.kind == InputKind::Weight && !updated.contains(&input.name) && seen.insert(&input.name) {
                all.push(Copied { name: input.name.clone(), of });
            }
        }
    }
    Ok(all)
}

/// Those of `wanted` that fit in `room` bytes together, the first ones first, and their size.
pub(crate) fn within(wanted: Vec<Copied>, room: u64) -> (Vec<Copied>, u64) {
    let mut bytes = 0;
    let fits = |c: &Copied| {
        let with = bytes + c.of.bytes() as u64;
        let fits = with <= room;
        bytes = if fits { with } else { bytes };
        fits
    };
    (wanted.into_iter().filter(fits).collect(), bytes)
}

/// Copies that plans are bound to, by the name of the weight.
#[derive(Clone, Default)]
pub struct Held(BTreeMap<String, (Transposed, Arc<HostBuffer>)>);

impl Held {
    /// Makes copies of tensors of `store`.
    ///
    /// # Errors
    /// If a tensor is missing, or memory runs out.
    pub(crate) fn new(copied: &[Copied], store: &Store) -> Result<Held, StoreError> {
        let mut all = BTreeMap::new();
        for Copied { name, of } in copied {
            let bytes = of.bytes();
            let out_of_memory = || StoreError::OutOfMemory { name: name.clone(), bytes };
            let mut copy = HostBuffer::zeroed(bytes).ok_or_else(out_of_memory)?;
            let weight = store.expect(name, &TensorType::new(of.dtype, [of.rows, of.columns]))?;
            of.fill(weight.bytes(), copy.bytes_mut());
            all.insert(name.clone(), (*of, Arc::new(copy)));
        }
        Ok(Held(all))
    }

    /// The copy of this weight, if one of that shape is held.
    pub(crate) fn get(&self, name: &str, of: &Transposed) -> Option<Buf> {
        let (held, buffer) = self.0.get(name)?;
        let is_same = (held.rows, held.columns, held.dtype) == (of.rows, of.columns, of.dtype);
        is_same.then(|| buffer.buf())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfc_graph::DType;

    #[test]
    fn what_fits_is_copied_in_order() {
        let copied = |rows: usize| Copied {
            name: rows.to_string(),
            of: Transposed { operand: 0, rows, columns: 1, dtype: DType::F32 },
        };
        let names = |room: u64| {
            let (kept, bytes) = within([10, 30, 20].map(copied).to_vec(), room);
            (kept.into_iter().map(|c| c.name).collect::<Vec<_>>(), bytes)
        };
        assert_eq!(names(u64::MAX), (vec!["10".into(), "30".into(), "20".into()], 240));
        assert_eq!(names(130), (vec!["10".into(), "20".into()], 120));
        assert_eq!(names(39), (vec![], 0));
    }
}
