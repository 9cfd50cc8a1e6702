//! How products and attention are cut into tiles: what programs are built with when nothing else is chosen, and what else
//! there is to choose from.
//!
//! Invariant: a tiling of a product decides who computes what and when operands are fetched, never in which order an element's
//! products are summed: all tilings of a shape give the same bits on one architecture.

mod attention;

use super::ir::Elem;
use crate::cuda::Arch;
use std::collections::BTreeMap;
use std::fmt;

/// A product of `[m, k]` and `[k, n]` in a kernel, or attention of `m` queries and `n` keys in heads of width `k`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Shape {
    /// Name of the program.
    pub kernel: String,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Products of these extents in a launch: heads of all sequences.
    pub parts: usize,
    /// Type in which factors are multiplied.
    pub elem: Elem,
}

/// Ends of names of kernels that walk the depth once for two products, each with `n` columns: see [`Shape::sums`].
pub(super) const GATED: &str = "_swiglu";
/// The same for the halves of heads, of which `n` is one half and `parts` is how many there are.
pub(super) const ROTATED: &str = "_rope";

impl Shape {
    /// Tiles of sums that a block has, of one left factor.
    pub fn sums(&self) -> usize {
        if [GATED, ROTATED].iter().any(|end| self.kernel.ends_with(end)) { 2 } else { 1 }
    }

    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Shape> {
        let words: Vec<&str> = name.split(' ').collect();
        let (kernel, extents, elem, parts) = match words[..] {
            [kernel, extents, elem] => (kernel, extents, elem, 1),
            [kernel, extents, elem, "times", parts] => (kernel, extents, elem, parts.parse().ok()?),
            _ => return None,
        };
        let [m, n, k] = numbers(extents)?;
        let elem = [Elem::F32, Elem::Bf16, Elem::F16].into_iter().find(|e| e.name() == elem)?;
        Some(Shape { kernel: kernel.into(), m, n, k, parts, elem })
    }
}

impl fmt::Display for Shape {
    /// `linear 2048x4096x4096 bf16`, `attention 2048x2048x128 bf16 times 32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{}x{} {}", self.kernel, self.m, self.n, self.k, self.elem.name())?;
        if self.parts == 1 { Ok(()) } else { write!(f, " times {}", self.parts) }
    }
}

/// Three numbers with `x` between them.
fn numbers(text: &str) -> Option<[usize; 3]> {
    let all: Vec<usize> = text.split('x').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    all.try_into().ok()
}

/// Extents of the tile that a block computes, and how.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tiling {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Depth taken at once.
    pub k: usize,
    /// Warps of a block.
    pub warps: usize,
    /// Rounds of the depth whose operands are in shared memory or on their way to it; fewer where memory ends.
    pub stages: usize,
}

/// A shape and how it is cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tiled {
    /// The product.
    pub shape: Shape,
    /// How it is cut.
    pub tiling: Tiling,
}

/// Tilings that were chosen for shapes; others are cut as [`Tiling::builtin`] says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tilings(BTreeMap<Shape, Tiling>);

impl Tilings {
    /// Nothing is chosen.
    pub const fn new() -> Tilings {
        Tilings(BTreeMap::new())
    }

    /// Chooses for a shape.
    pub fn choose(&mut self, shape: Shape, tiling: Tiling) {
        self.0.insert(shape, tiling);
    }

    /// Goes back to what is built in for a shape.
    pub fn forget(&mut self, shape: &Shape) {
        self.0.remove(shape);
    }

    /// The tiling of a shape.
    pub fn of(&self, shape: &Shape) -> Tiling {
        self.0.get(shape).copied().unwrap_or_else(|| Tiling::builtin(shape))
    }

    /// What was chosen.
    pub fn iter(&self) -> impl Iterator<Item = (&Shape, Tiling)> {
        self.0.iter().map(|(s, t)| (s, *t))
    }
}

/// Rounds that loops over operands of dots have on their way where nothing else is said.
pub const STAGES: usize = 3;

/// Registers of a thread at most.
const MOST_REGISTERS: usize = 255;

/// Registers of a multiprocessor, for all threads of a block.
const ALL_REGISTERS: usize = 1 << 16;

/// Registers for addresses, counters and what an epilogue loads.
const OTHER_REGISTERS: usize = 48;

/// A tile's extent along an axis of `n`: a power of two that products can take, at most `most`.
pub(super) fn extent(n: usize, most: usize) -> usize {
    n.next_power_of_two().clamp(16, most)
}

/// Kernels whose tiles may be 128 x 256 or two of 128 x 128.
const WIDE: [&str; 7] =
    ["head_logits", "head_teacher_logits", "linear", "linear_add", "linear_rope", "linear_swiglu", "matmul"];

/// Blocks that keep nearly every multiprocessor of a device at work: seven eighths of the 132 of an H100.
const WAVE: usize = 116;

impl fmt::Display for Tiling {
    /// `tile 128x128x64, 8 warps, 3 stages`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile {}x{}x{}, {} warps, {} stages", self.m, self.n, self.k, self.warps, self.stages)
    }
}

impl Tiling {
    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Tiling> {
        let [tile, warps, stages] = name.split(", ").collect::<Vec<_>>()[..] else { return None };
        let [m, n, k] = numbers(tile.strip_prefix("tile ")?)?;
        let number = |text: &str, unit: &str| text.strip_suffix(unit)?.parse().ok();
        Some(Tiling { m, n, k, warps: number(warps, " warps")?, stages: number(stages, " stages")? })
    }

    /// What is built when nothing is chosen: the largest tiles of which there are enough.
    ///
    /// A block reads `m + n` elements for each `m·n` products: `m·n / (m + n)` FLOP for each byte of 16-bit operands, 85 at
    /// 128 × 256, 64 at 128 × 128, 32 at 64 × 64, 13 at 16 × 64. So tiles should be large, yet there should be a block for
    /// nearly every multiprocessor, and for 128 × 256 two: it leaves the most undone in the last wave. Sums take `m·n / threads`
    /// registers of a thread, 64 at 128 × 128 and 128 at 128 × 256 with 8 warps, which leaves room for one block a
    /// multiprocessor; three stages of a depth of 64 at 128 × 128 (96 KiB) or 4 of 32 at 128 × 256 (96 KiB) keep two and
    /// three rounds of copies on their way while it multiplies. Factors of 32 bits are multiplied without tensor cores, which
    /// takes registers for operands too: at most 64 × 64.
    ///
    /// Attention is cut for the registers of a thread.
    pub fn builtin(s: &Shape) -> Tiling {
        if let Some(part) = attention::part(s) {
            return attention::builtin(s, part);
        }
        let sums = s.sums();
        let sizes: &[[usize; 2]] = match (s.elem, sums) {
            (Elem::F32, 1) => &[[64, 64], [32, 64], [32, 32]],
            (Elem::F32, _) => &[[64, 32], [32, 32]],
            (_, 1) => &[[128, 256], [128, 128], [64, 128], [64, 64], [32, 64], [32, 32]],
            (_, _) => &[[128, 128], [256, 64], [128, 64], [64, 64], [64, 32], [32, 32]],
        };
        let cut = |&[m, n]: &[usize; 2]| {
            let (m, n) = (extent(s.m, m), extent(s.n, n));
            (m, n, s.m.div_ceil(m) * s.n.div_ceil(n) * s.parts)
        };
        // What adds an adapter's part to its sums takes registers that 128 x 256 has not.
        let is_plain = WIDE.contains(&s.kernel.as_str());
        let mut tiles = sizes
            .iter()
            .map(cut)
            .filter(|(m, n, blocks)| sums * m * n <= 1 << 14 || is_plain && *blocks >= 2 * WAVE);
        let smallest = sizes.last().map_or((16, 16, 1), cut);
        let (m, n, _) = tiles.find(|(_, _, blocks)| *blocks >= WAVE).unwrap_or(smallest);
        let (deep, stages) = match (s.elem, sums * m * n > 1 << 14) {
            (Elem::F32, _) => (32, STAGES),
            (_, true) => (32, STAGES + 1),
            (_, false) => (64, STAGES),
        };
        Tiling { m, n, k: extent(s.k, deep), warps: if sums * m * n >= 1 << 13 { 8 } else { 4 }, stages }
    }

    /// Bytes of shared memory that the operands of all stages take, if both are copied as they are.
    pub fn shared_bytes(&self, s: &Shape) -> usize {
        let elem = s.elem;
        // Rows of 32-bit factors are padded by 16 bytes; they are as long as the shorter extent in the worst case.
        let padding = if elem == Elem::F32 { 16 / elem.bytes() } else { 0 };
        let tile = |x: usize| x * self.k + padding * x.max(self.k);
        let operands = tile(self.m) + s.sums() * tile(self.n);
        self.stages * operands * elem.bytes()
    }

    /// Registers of a thread: sums, operands of two steps, and some for the rest. An estimate from above for plain products.
    pub fn registers(&self, s: &Shape) -> usize {
        let (wm, wn) = super::cuda::warp_grid(self.m, self.n, self.warps);
        let (rows, columns) = (self.m / wm, self.n / wn);
        let sums = s.sums() * rows * columns / 32;
        let operands = match s.elem {
            Elem::F32 => rows / 8 + columns / 4,
            _ => 2 * (rows / 4 + columns / 8),
        };
        sums + operands + OTHER_REGISTERS
    }

    /// Whether blocks of it can be launched for a shape on an architecture.
    pub fn is_legal(&self, s: &Shape, arch: Arch) -> bool {
        let registers = self.registers(s);
        [self.m, self.n, self.k].iter().all(|x| x.is_power_of_two() && *x >= 16)
            && self.warps.is_power_of_two()
            && self.warps * 32 <= 1024
            && (2..=8).contains(&self.stages)
            && self.m * self.n >= 256 * self.warps
            && self.m.max(self.n) * self.k.max(self.m.min(self.n)) <= 1 << 16
            && registers <= MOST_REGISTERS
            && registers * self.warps * 32 <= ALL_REGISTERS
            && self.shared_bytes(s) <= arch.usual_shared_memory()
    }
}

/// What a block does, and what it takes: an estimate.
pub(super) struct Work {
    /// Blocks of a launch.
    pub(super) blocks: usize,
    /// Rounds of a block's loop.
    pub(super) rounds: usize,
    /// Multiplications and additions of a round.
    pub(super) flops: usize,
    /// Elements that a round loads.
    pub(super) loaded: usize,
    /// Bytes of shared memory.
    pub(super) shared_bytes: usize,
    /// Registers of a thread.
    pub(super) registers: usize,
}

impl Work {
    /// That of a shape which is cut in this way.
    pub(super) fn of(s: &Shape, t: &Tiling) -> Work {
        if let Some(part) = attention::part(s) {
            return attention::work(s, t, part);
        }
        Work {
            blocks: s.m.div_ceil(t.m) * s.n.div_ceil(t.n) * s.parts,
            rounds: s.k.div_ceil(t.k),
            flops: 2 * s.sums() * t.m * t.n * t.k,
            loaded: (t.m + s.sums() * t.n) * t.k,
            shared_bytes: t.shared_bytes(s),
            registers: t.registers(s),
        }
    }
}

/// Tilings that a shape can be launched with on an architecture, the built-in one first. All of a product give the same bits:
/// on Hopper, where instructions of four warps add up in another order than those of one, all or none are for the former.
pub fn candidates(shape: &Shape, arch: Arch) -> Vec<Tiling> {
    let builtin = Tiling::builtin(shape);
    if let Some(part) = attention::part(shape) {
        return std::iter::once(builtin).chain(attention::others(shape, part, arch)).collect();
    }
    let in_groups = |t: &Tiling| arch == Arch::Sm90a && shape.elem != Elem::F32 && t.m >= 64;
    let mut all = vec![builtin];
    let depths: &[usize] = if shape.elem == Elem::F32 { &[16, 32] } else { &[32, 64] };
    for m in [16, 32, 64, 128, 256] {
        for n in [16, 32, 64, 128, 256] {
            // Tiles much larger than the result compute nothing more.
            if m > extent(shape.m, 256) || n > extent(shape.n, 256) {
                continue;
            }
            for &k in depths {
                for warps in [4, 8] {
                    for stages in 2..=5 {
                        let t = Tiling { m, n, k, warps, stages };
                        let is_like = in_groups(&t) == in_groups(&builtin);
                        if t != builtin && is_like && k <= extent(shape.k, 64) && t.is_legal(shape, arch) {
                            all.push(t);
                        }
                    }
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(m: usize, n: usize, k: usize, elem: Elem) -> Shape {
        Shape { kernel: "linear".into(), m, n, k, parts: 1, elem }
    }

    #[test]
    fn candidates_begin_with_what_is_built_in_and_can_be_launched() {
        for elem in [Elem::F32, Elem::Bf16] {
            for (m, n, k) in [(2048, 4096, 4096), (16, 4096, 2048), (2048, 16, 2048), (3, 5, 7)] {
                let s = shape(m, n, k, elem);
                for arch in Arch::ALL {
                    let all = candidates(&s, arch);
                    assert_eq!(all[0], Tiling::builtin(&s));
                    let legal = |t: &Tiling| t.is_legal(&s, arch) || t.m * t.n < 256 * t.warps;
                    assert!(all.iter().all(legal), "{s:?} {arch}");
                    let mut unique = all.clone();
                    unique.sort_unstable();
                    unique.dedup();
                    assert_eq!(unique.len(), all.len());
                }
            }
        }
        assert!(candidates(&shape(4096, 4096, 4096, Elem::Bf16), Arch::Sm80).len() > 50);
    }

    #[test]
    fn candidates_for_hopper_keep_to_one_instruction() {
        for (m, rows) in [(2048, 64..=256), (16, 16..=16)] {
            let all = candidates(&shape(m, 4096, 2048, Elem::Bf16), Arch::Sm90a);
            assert!(all.len() > 4 && all.iter().all(|t| rows.contains(&t.m)), "{all:?}");
        }
    }

    #[test]
    fn attention_has_others_that_fit() {
        for kernel in ["attention", "attention_dkv", "attention_dq"] {
            for width in [64, 128, 192] {
                let s =
                    Shape { kernel: kernel.into(), m: 2048, n: 2048, k: width, parts: 32, elem: Elem::Bf16 };
                for arch in Arch::ALL {
                    let all = candidates(&s, arch);
                    assert_eq!(all[0], Tiling::builtin(&s));
                    // The widest leave no room for others where memory is small.
                    assert!(all.len() > 1 || width > 128 && arch == Arch::Sm80, "{s} on {arch}");
                    let fits = |t: &Tiling| Work::of(&s, t).shared_bytes <= arch.usual_shared_memory();
                    assert!(
                        all[1..].iter().all(|t| fits(t) && t.k == all[0].k && *t != all[0]),
                        "{s} on {arch}"
                    );
                }
            }
        }
        // Where memory ends, long heads have a ring with smaller tiles.
        let s = Shape { kernel: "attention".into(), m: 2048, n: 2048, k: 128, parts: 32, elem: Elem::Bf16 };
        assert!(Work::of(&s, &Tiling::builtin(&s)).shared_bytes > Arch::Sm80.usual_shared_memory());
        let smaller = Tiling { m: 64, n: 64, k: 128, warps: 4, stages: 2 };
        assert!(candidates(&s, Arch::Sm80).contains(&smaller));
    }

    #[test]
    fn more_shared_memory_allows_more_stages() {
        let t = Tiling { m: 128, n: 256, k: 64, warps: 8, stages: 4 };
        let s = shape(4096, 4096, 4096, Elem::Bf16);
        assert!(!t.is_legal(&s, Arch::Sm80) && t.is_legal(&s, Arch::Sm90a));
        assert!(!Tiling { m: 256, n: 256, ..t }.is_legal(&s, Arch::Sm90a));
        // Two tiles of sums take as much as one that is twice as wide.
        let two = Shape { kernel: format!("linear{GATED}"), ..s.clone() };
        let half = Tiling { n: 128, ..t };
        assert_eq!(
            (half.shared_bytes(&two), half.registers(&two) >= t.registers(&s) - 32),
            (t.shared_bytes(&s), true)
        );
    }

    #[test]
    fn what_is_chosen_goes_before_what_is_built_in() {
        let (s, mut chosen) = (shape(64, 64, 64, Elem::Bf16), Tilings::new());
        let t = Tiling { m: 32, n: 64, k: 32, warps: 4, stages: 2 };
        assert_ne!(chosen.of(&s), t);
        chosen.choose(s.clone(), t);
        assert_eq!(chosen.of(&s), t);
    }
}
