//! How attention is cut: queries and keys of a tile, warps, stages. Of a [`Shape`], `m` are queries, `n` keys, `k` is the width
//! of a head (of its queries or values, whichever is wider) and `parts` counts heads of all sequences; of a [`Tiling`], `k`
//! is always all of the width.
//!
//! The gradients go through tiles with probabilities that are known: another tiling adds the same terms in the same order.
//! The forward kernel scales its sums as it goes, once a tile of keys, so that other keys a tile are other bits. Which tilings
//! keep them is found by comparing results where they are tried, not promised here.

use super::{MOST_REGISTERS, OTHER_REGISTERS, STAGES, Shape, Tiling, Work, extent};
use crate::cuda::Arch;
use crate::tile::ir::Elem;

/// Queries and keys of a tile that are tried.
const QUERIES: [usize; 4] = [16, 32, 64, 128];
const KEYS: [usize; 4] = [16, 32, 64, 128];

/// Which kernel of attention.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    /// The forward kernel: a block takes queries and goes through keys.
    Forward,
    /// Gradients of keys and values: a block takes keys and goes through queries.
    Keys,
    /// The gradient of queries: a block takes queries and goes through keys.
    Queries,
}

/// The kernel of a shape, if it is one of attention.
pub(super) fn part(s: &Shape) -> Option<Part> {
    match s.kernel.as_str() {
        "attention" => Some(Part::Forward),
        "attention_dkv" => Some(Part::Keys),
        "attention_dq" => Some(Part::Queries),
        _ => None,
    }
}

/// What fits the registers of a thread: long heads and 32-bit factors take more of them.
pub(super) fn builtin(s: &Shape, part: Part) -> Tiling {
    let (is_long, is_wide) = (s.k > 64, s.elem == Elem::F32);
    let (queries, keys) = match (is_wide, is_long, part) {
        (true, true, _) => (16, 16),
        (true, false, _) => (32, 32),
        (false, _, Part::Forward) => (128, 64),
        (false, _, Part::Queries) => (64, 64),
        // Rows of keys for two groups of four warps: probabilities stay in registers on Hopper. Long heads leave no registers
        // for it.
        (false, false, Part::Keys) => (32, 128),
        (false, true, Part::Keys) => (32, 64),
    };
    let warps = if is_long || !is_wide { 8 } else { 4 };
    Tiling {
        m: extent(s.m, queries),
        n: extent(s.n, keys),
        k: extent(s.k, usize::MAX),
        warps,
        stages: STAGES,
    }
}

/// What a block does; an estimate of what it takes.
pub(super) fn work(s: &Shape, t: &Tiling, part: Part) -> Work {
    let (own, step, all, others) = match part {
        Part::Keys => (t.n, t.m, s.n, s.m),
        Part::Forward | Part::Queries => (t.m, t.n, s.m, s.n),
    };
    // Products of a round, in units of a tile of pairs by the width; tiles that stay; sums by the width; tiles of pairs.
    let (products, staying, sums) = match part {
        Part::Forward => (2, 1, 1),
        Part::Keys => (4, 2, 2),
        Part::Queries => (3, 2, 1),
    };
    let pairs = own * step;
    let threads = t.warps * 32;
    Work {
        blocks: all.div_ceil(own) * s.parts,
        rounds: others.div_ceil(step),
        flops: 2 * products * pairs * t.k,
        loaded: 2 * step * t.k,
        shared_bytes: (staying * own * t.k + 2 * t.stages * step * t.k + products / 2 * pairs)
            * s.elem.bytes(),
        registers: (sums * own * t.k + 2 * pairs) / threads + OTHER_REGISTERS,
    }
}

/// Other tilings that can be launched.
pub(super) fn others(s: &Shape, part: Part, arch: Arch) -> Vec<Tiling> {
    let builtin = builtin(s, part);
    // On Hopper all products of a kernel are for four warps, or none is.
    let rows = |t: &Tiling| if part == Part::Keys { t.n } else { t.m };
    let in_groups = |t: &Tiling| arch == Arch::Sm90a && s.elem != Elem::F32 && rows(t) >= 64;
    let mut all = Vec::new();
    for m in QUERIES.into_iter().filter(|m| *m <= extent(s.m, 128)) {
        for n in KEYS.into_iter().filter(|n| *n <= extent(s.n, 128)) {
            for warps in [4, 8] {
                for stages in [2, 3] {
                    let t = Tiling { m, n, warps, stages, ..builtin };
                    let w = work(s, &t, part);
                    let is_legal = m * n >= 256 * warps
                        && w.registers <= MOST_REGISTERS
                        && w.shared_bytes <= arch.usual_shared_memory();
                    if t != builtin && is_legal && in_groups(&t) == in_groups(&builtin) {
                        all.push(t);
                    }
                }
            }
        }
    }
    all
}
