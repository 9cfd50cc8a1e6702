//! The arena over time: what lives when, what lives at the peak, what waits for the backward pass.

use super::Place;
use kfc_graph::Phase;
use kfc_kernels::timeline::{self, Block};
use kfc_runtime::profile::PlanProfile;
use std::collections::BTreeMap;

/// The arena of one plan.
pub(crate) struct PlanMemory {
    pub(crate) name: String,
    /// Bytes alive during each launch.
    pub(crate) live: Vec<usize>,
    /// The first launch at which most is alive.
    pub(crate) peak: usize,
    /// What it is: operation, scope, phase.
    pub(crate) peak_at: String,
    /// What lives then, the largest first.
    pub(crate) living: Vec<Living>,
    /// What waits for the backward pass, the largest first.
    pub(crate) saved: Vec<Living>,
}

/// Blocks of one origin.
pub(crate) struct Living {
    /// Operation that made them, or whose scratch they are.
    pub(crate) op: String,
    pub(crate) place: Place,
    pub(crate) phase: Phase,
    pub(crate) scratch: bool,
    pub(crate) blocks: usize,
    pub(crate) bytes: usize,
}

impl Living {
    /// In words.
    pub(crate) fn what(&self) -> String {
        let scratch = if self.scratch { "scratch of " } else { "" };
        format!("{scratch}{} in {} ({})", self.op, self.place.name(), self.phase.name())
    }
}

impl PlanMemory {
    /// Reads it off the plan's blocks.
    pub(crate) fn of(plan: &PlanProfile) -> PlanMemory {
        let live = timeline::live_bytes(&plan.blocks, plan.launches.len());
        let most = live.iter().copied().max().unwrap_or(0);
        let peak = live.iter().position(|b| *b == most).unwrap_or(0);
        let peak_at = plan.launches.get(peak).map_or(String::new(), |l| {
            format!("{} in {} ({})", plan.kinds[l.kind].op, l.scope, l.phase.name())
        });
        let at_peak = |b: &&Block| b.first <= peak && peak <= b.last;
        PlanMemory {
            name: plan.name.clone(),
            peak,
            peak_at,
            living: grouped(plan, plan.blocks.iter().filter(at_peak)),
            saved: grouped(plan, plan.blocks.iter().filter(|b| is_saved(plan, b))),
            live,
        }
    }

    /// Bytes alive at the peak.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.live.get(self.peak).copied().unwrap_or(0)
    }
}

/// Whether a block is made in the forward pass and used in the backward pass.
pub(super) fn is_saved(plan: &PlanProfile, b: &Block) -> bool {
    let phase = |launch: usize| plan.launches.get(launch).map(|l| l.phase);
    phase(b.first) == Some(Phase::Forward)
        && matches!(phase(b.last), Some(Phase::Backward | Phase::Recompute))
}

fn grouped<'b>(plan: &PlanProfile, blocks: impl Iterator<Item = &'b Block>) -> Vec<Living> {
    let mut groups: BTreeMap<(&str, Place, Phase, bool), (usize, usize)> = BTreeMap::new();
    for b in blocks {
        let l = &plan.launches[b.first];
        let op = plan.kinds[l.kind].op.as_str();
        let sum = groups.entry((op, Place::of(op, &l.scope, l.phase), l.phase, b.scratch)).or_default();
        *sum = (sum.0 + 1, sum.1 + b.bytes);
    }
    let mut living: Vec<Living> = groups
        .into_iter()
        .map(|((op, place, phase, scratch), (blocks, bytes))| Living {
            op: op.to_string(),
            place,
            phase,
            scratch,
            blocks,
            bytes,
        })
        .collect();
    living.sort_by_key(|l| std::cmp::Reverse(l.bytes));
    living
}
