//! What lives in the arena when: the life of every block of memory, read off a plan's launches.
//!
//! Times are positions of launches in the plan, both ends inclusive. A result that takes over the place of an operand
//! prolongs that block; a block is named after the launch that first wrote it.

use crate::plan::{Place, Plan};
use std::collections::BTreeMap;

/// A range of the arena from its first to its last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First byte.
    pub offset: usize,
    /// Size; a multiple of 64.
    pub bytes: usize,
    /// Launch that makes it.
    pub first: usize,
    /// Launch that last uses it.
    pub last: usize,
    /// Whether it is scratch of one launch, not a result.
    pub scratch: bool,
}

/// The blocks of a plan, in order of their first use.
pub fn blocks(plan: &Plan) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut at: BTreeMap<usize, usize> = BTreeMap::new();
    for (now, step) in plan.steps.iter().enumerate() {
        let sources = step.copies.iter().map(|(from, _)| from);
        for place in step.inputs.iter().chain(sources) {
            if let Some(&b) = offset(place).and_then(|o| at.get(&o)) {
                blocks[b].last = now;
            }
        }
        for place in &step.outputs {
            let Place::Arena { offset, bytes } = *place else { continue };
            // A result at the place of an operand is the same block, changed.
            let taken_over =
                step.inputs.iter().any(|i| matches!(i, Place::Arena { offset: o, .. } if *o == offset));
            if !(taken_over && at.contains_key(&offset)) {
                at.insert(offset, blocks.len());
                blocks.push(Block { offset, bytes: rounded(bytes), first: now, last: now, scratch: false });
            }
        }
        if let Place::Arena { offset, bytes: bytes @ 1.. } = step.workspace {
            blocks.push(Block { offset, bytes: rounded(bytes), first: now, last: now, scratch: true });
        }
    }
    let end = plan.steps.len().saturating_sub(1);
    for place in plan.outputs.iter().map(|o| &o.place).chain(plan.epilogue.iter().map(|(from, _)| from)) {
        if let Some(&b) = offset(place).and_then(|o| at.get(&o)) {
            blocks[b].last = end;
        }
    }
    blocks
}

/// Bytes alive during each of `launches` launches.
pub fn live_bytes(blocks: &[Block], launches: usize) -> Vec<usize> {
    let mut change = vec![0isize; launches + 1];
    for b in blocks.iter().filter(|b| b.last < launches) {
        change[b.first] += b.bytes as isize;
        change[b.last + 1] -= b.bytes as isize;
    }
    let mut live = 0isize;
    change
        .iter()
        .take(launches)
        .map(|c| {
            live += c;
            live.unsigned_abs()
        })
        .collect()
}

fn offset(place: &Place) -> Option<usize> {
    match *place {
        Place::Arena { offset, bytes } if bytes > 0 => Some(offset),
        _ => None,
    }
}

fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(kfc_graph::memory::ALIGN)
}
