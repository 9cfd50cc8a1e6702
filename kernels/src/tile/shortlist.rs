//! Which tilings of a product or of attention are worth trying on a device: all that can be launched, ordered by a model of their time.
//!
//! The model: a tile's products go as fast as a multiprocessor multiplies or as its operands come from the second-level
//! cache, whichever is slower; blocks share a multiprocessor as far as registers, threads and shared memory allow; a round of
//! the depth is no shorter than the latency of memory over the rounds that are on their way; blocks run in whole waves. It
//! only orders: what is tried is timed.

use super::ir::Elem;
use super::tiling::{Shape, Tiling, Work, candidates};
use crate::cuda::Arch;

/// Threads that a multiprocessor holds, and its registers.
const THREADS: usize = 2048;
const REGISTERS: usize = 1 << 16;

/// Bytes a cycle that a multiprocessor has from the second-level cache, and cycles until the first of them are there.
const BYTES: f64 = 64.0;
const LATENCY: f64 = 600.0;

/// Tilings of one extent, as far as there are others to try.
const OF_EXTENT: usize = 3;

/// At most `most` tilings of a shape, the built-in one first, then those that the model takes for the fastest, of several
/// extents.
pub fn shortlist(shape: &Shape, arch: Arch, processors: usize, most: usize) -> Vec<Tiling> {
    let all = candidates(shape, arch);
    let (builtin, rest) = (all[0], &all[1..]);
    let mut rest: Vec<(f64, Tiling)> =
        rest.iter().map(|t| (cycles(shape, *t, arch, processors.max(1)), *t)).collect();
    rest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut chosen = vec![builtin];
    // First the best of each extent, then what else is good.
    for limit in [OF_EXTENT, usize::MAX] {
        for (_, t) in &rest {
            let alike = chosen.iter().filter(|c| (c.m, c.n) == (t.m, t.n)).count();
            if chosen.len() < most && alike < limit && !chosen.contains(t) {
                chosen.push(*t);
            }
        }
    }
    chosen
}

/// Cycles that the model gives a shape.
fn cycles(s: &Shape, t: Tiling, arch: Arch, processors: usize) -> f64 {
    let threads = t.warps * 32;
    let work = Work::of(s, &t);
    let fit = [
        THREADS / threads,
        REGISTERS / (work.registers * threads).max(1),
        arch.shared_memory() / work.shared_bytes.max(1),
    ];
    let resident = fit.into_iter().min().unwrap_or(1).max(1);
    let waves = work.blocks.div_ceil(processors * resident) as f64;
    let flops = match (s.elem, arch) {
        (Elem::F32, Arch::Sm80) => 128.0,
        (Elem::F32, _) => 256.0,
        (_, Arch::Sm80) => 2048.0,
        (_, Arch::Sm90a) => 4096.0,
        (_, Arch::Sm100a) => 8192.0,
    };
    let products = work.flops as f64 / flops;
    let operands = (work.loaded * s.elem.bytes()) as f64 / BYTES;
    // A wave that is not full shares a multiprocessor among fewer blocks.
    let sharing = resident.min(work.blocks.div_ceil(processors)) as f64;
    let waiting = LATENCY / (t.stages.max(2) - 1) as f64;
    let round = (sharing * products.max(operands)).max(waiting);
    waves * work.rounds as f64 * round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tilings_of_several_extents_and_the_built_in_one_first() {
        let s = Shape { kernel: "linear".into(), m: 4096, n: 4096, k: 4096, parts: 1, elem: Elem::Bf16 };
        let all = shortlist(&s, Arch::Sm90a, 132, 12);
        assert_eq!((all.len(), all[0]), (12, Tiling::builtin(&s)));
        let mut extents: Vec<(usize, usize)> = all.iter().map(|t| (t.m, t.n)).collect();
        extents.sort_unstable();
        extents.dedup();
        assert!(extents.len() >= 4, "{all:?}");
        // Large products want large tiles, small ones blocks enough for all multiprocessors.
        assert!(all[1].m * all[1].n >= 128 * 128, "{:?}", all[1]);
        let few = Shape { m: 128, n: 2048, ..s };
        let best = shortlist(&few, Arch::Sm90a, 132, 12)[1];
        assert!(128usize.div_ceil(best.m) * 2048usize.div_ceil(best.n) > 16, "{best:?}");
        assert_eq!(shortlist(&few, Arch::Sm90a, 132, 1).len(), 1);
    }
}
