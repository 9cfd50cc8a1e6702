//! How the depth of a sum of products is cut: into segments, and phases of as many segments as are packed together.

use super::micro::{Chain, Isa};
use super::pack::Part;
use super::{KC, Mat, Product};
use kfc_graph::DType;

/// Units of depth of a phase.
pub(super) const PHASE: usize = 2 * KC;

/// Units by which the last phase may be longer: a phase of its own for a few of them, such as an adapter's, would read and
/// write all sums once more.
const REST: usize = 32;

/// Most units of a phase.
pub(super) const LONGEST: usize = PHASE + REST;

/// Distance of rows, in bytes, of which a multiple lets rows evict each other from the cache: such operands are packed.
pub(super) const CROWDED: usize = 8192;

/// A part of the depth of one product.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) product: &'a Product,
    pub(super) k: usize,
    pub(super) depth: usize,
    pub(super) units: usize,
    /// Whether units are pairs.
    pub(super) pair: bool,
    /// Whether the left operand is read where it lies.
    pub(super) direct: bool,
    /// Units of the phase before it.
    pub(super) at: usize,
}

impl Segment<'_> {
    /// Lines of one of its operands.
    pub(super) fn part(&self, first: usize, count: usize, width: usize) -> Part {
        Part { first, count, k: self.k, depth: self.depth, width, pair: self.pair }
    }
}

/// Most segments of a phase: a full phase has one or two of full depth, or shorter ones of several products.
pub(super) const SEGMENTS: usize = 8;

/// Segments that are packed together, and where the next phase begins: a product and a depth of it.
pub(super) struct Phase<'a> {
    segments: [Option<Segment<'a>>; SEGMENTS],
    pub(super) next: (usize, usize),
}

/// Whether both operands are multiplied as `bf16`.
fn is_pair(p: &Product, isa: &Isa) -> bool {
    let is_plain = |m: &Mat| m.src.dtype() == DType::Bf16 && m.dropout.is_none();
    isa.pair.is_some() && is_plain(&p.a) && is_plain(&p.b)
}

/// Depth up to which operands of `f32` have segments as long as a phase: their sums go to memory half as often. In deeper ones
/// that is slower, as measured.
const DEEP: usize = 16 * PHASE;

/// Most depth of a segment: [`KC`] units where elements are converted as they are packed.
fn most_depth(p: &Product, isa: &Isa) -> usize {
    let is_single = |m: &Mat| m.src.dtype() == DType::F32 && m.dropout.is_none();
    if is_pair(p, isa) {
        2 * KC
    } else if is_single(&p.a) && is_single(&p.b) && p.k <= DEEP {
        PHASE
    } else {
        KC
    }
}

/// Units of a depth.
fn units_of(p: &Product, depth: usize, isa: &Isa) -> usize {
    if is_pair(p, isa) { depth.div_ceil(2) } else { depth }
}

/// Units from a depth of a product on, those of products behind it included.
fn units_left(products: &[Product], isa: &Isa, (product, k): (usize, usize)) -> usize {
    let units = products[product..].iter().map(|p| units_of(p, p.k, isa)).sum::<usize>();
    units - units_of(&products[product], k, isa)
}

/// Whether the left operand's rows are units as they lie in memory.
pub(super) fn is_direct(p: &Product, isa: &Isa) -> bool {
    let is_pair = is_pair(p, isa);
    let is_plain = is_pair || (p.a.src.dtype() == DType::F32 && p.a.dropout.is_none());
    let is_whole = !is_pair || p.k.is_multiple_of(2);
    let bytes = p.a.rs * p.a.src.dtype().size();
    isa.direct.is_some() && is_plain && is_whole && p.a.cs == 1 && !bytes.is_multiple_of(CROWDED)
}

impl<'a> Phase<'a> {
    /// The phase that begins at `from`; without segments if there is no depth left.
    pub(super) fn new(products: &'a [Product], isa: &Isa, from: (usize, usize)) -> Phase<'a> {
        let (mut product, mut k) = from;
        let (mut segments, mut count, mut used) = ([None; SEGMENTS], 0, 0);
        while let Some(p) = products.get(product) {
            let (pair, direct) = (is_pair(p, isa), is_direct(p, isa));
            let depth = most_depth(p, isa).min(p.k - k);
            let units = units_of(p, depth, isa);
            if depth > 0 {
                let is_full =
                    used + units > PHASE && used + units_left(products, isa, (product, k)) > LONGEST;
                if is_full || count == SEGMENTS {
                    break;
                }
                segments[count] = Some(Segment { product: p, k, depth, units, pair, direct, at: used });
                (count, used, k) = (count + 1, used + units, k + depth);
            }
            if k == p.k {
                (product, k) = (product + 1, 0);
            }
        }
        Phase { segments, next: (product, k) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().flatten()
    }

    pub(super) fn units(&self) -> usize {
        self.iter().last().map_or(0, |s| s.at + s.units)
    }

    /// Segments whose products dropout is applied to, and the others.
    pub(super) fn dropped(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.iter().filter(|s| s.product.dropout.is_some())
    }

    pub(super) fn plain(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.iter().filter(|s| s.product.dropout.is_none())
    }

    /// The micro-kernel that goes through all segments at once, if they allow it: decisions of dropout are made.
    pub(super) fn chain(&self, isa: &Isa) -> Option<unsafe fn(&Chain<'_>)> {
        let fits = |s: &Segment<'_>| {
            let is_decided = s.product.dropout.is_none_or(|d| d.kept().is_some());
            s.pair && s.product.alpha == 1.0 && is_decided
        };
        let is_one = self.dropped().count() <= 1;
        isa.chain.filter(|_| self.units() > 0 && is_one && self.iter().all(fits))
    }
}

/// All phases; there is always one, if only without segments.
pub(super) fn phases<'a>(products: &'a [Product], isa: &Isa) -> impl Iterator<Item = Phase<'a>> {
    let first = Phase::new(products, isa, (0, 0));
    std::iter::successors(Some(first), move |phase| {
        // What is left may be products without depth.
        let is_last = products[phase.next.0.min(products.len())..].iter().all(|p| p.k == 0);
        (!is_last).then(|| Phase::new(products, isa, phase.next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::float::Src;
    use crate::cpu::gemm::micro;
    use crate::cpu::simd::available;

    /// Units of phases of products of these depths, all `f32`.
    fn lengths(isa: &Isa, depths: &[usize]) -> Vec<usize> {
        let mat = |columns: usize| Mat::rows(Src::new(std::ptr::null_mut(), DType::F32), columns);
        let products: Vec<_> = depths.iter().map(|&k| Product::new(mat(k), mat(64), k)).collect();
        phases(&products, isa).map(|p| p.units()).collect()
    }

    #[test]
    fn a_short_rest_is_part_of_the_last_phase() {
        for isa in available().into_iter().map(micro::isa) {
            assert_eq!(lengths(isa, &[PHASE]), [PHASE]);
            assert_eq!(lengths(isa, &[PHASE, REST]), [LONGEST]);
            assert_eq!(lengths(isa, &[3 * PHASE + REST]), [PHASE, PHASE, LONGEST]);
            assert_eq!(lengths(isa, &[PHASE, REST / 2, REST / 2]), [LONGEST]);
            assert_eq!(lengths(isa, &[PHASE, REST, 1]), [PHASE, REST + 1]);
            assert_eq!(lengths(isa, &[PHASE, REST + 1]), [PHASE, REST + 1]);
            assert_eq!(lengths(isa, &[0]), [0]);
        }
    }
}
