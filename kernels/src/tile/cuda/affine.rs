//! Integers of a program as sums: what the hardware is told of a copy instead of the index of each element. An index that is
//! such a sum walks over a matrix: consecutive elements along one axis, a pitch along the other.

use super::assign::{Kind, Plan};
use crate::tile::ir::{Binary, Compare, Inst, Var};
use std::collections::BTreeMap;

/// `start + axes[0] · i + axes[1] · j` for element `(i, j)` of a tile, or `(i)` of a vector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Affine {
    axes: [i64; 2],
    pub start: Start,
}

/// Multiples of scalars and a constant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Start {
    pub terms: BTreeMap<Var, i64>,
    pub constant: i64,
}

/// What a load reads: element `(i, j)` of the tile is in row `rows + i` (or `j`), column `columns + j` (or `i`) of a matrix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Window {
    /// The axis of the tile along which elements are consecutive in memory.
    pub fast: usize,
    /// Elements from row to row.
    pub pitch: usize,
    /// First row and first column.
    pub rows: Start,
    pub columns: Start,
    /// Rows and columns from which on there is nothing to be read, where a mask says so.
    pub most: [Option<usize>; 2],
}

impl Start {
    /// Whether it is at least 0 and below `limit`, scalars being at most what `most` says.
    pub(super) fn is_below(&self, limit: usize, most: &dyn Fn(Var) -> Option<i64>) -> bool {
        let largest = self.terms.iter().try_fold(self.constant, |sum, (v, c)| {
            let term = c.checked_mul(most(*v)?).filter(|_| *c > 0)?;
            sum.checked_add(term)
        });
        self.constant >= 0 && largest.is_some_and(|x| (x as u64) < limit as u64)
    }
}

impl Affine {
    fn scaled(&self, by: i64) -> Affine {
        let mut out = self.clone();
        out.axes.iter_mut().for_each(|c| *c *= by);
        out.start.terms.values_mut().for_each(|c| *c *= by);
        out.start.terms.retain(|_, c| *c != 0);
        out.start.constant *= by;
        out
    }

    fn plus(&self, other: &Affine) -> Affine {
        let mut out = self.clone();
        out.axes.iter_mut().zip(other.axes).for_each(|(c, d)| *c += d);
        other.start.terms.iter().for_each(|(v, c)| *out.start.terms.entry(*v).or_default() += c);
        out.start.terms.retain(|_, c| *c != 0);
        out.start.constant += other.start.constant;
        out
    }

    fn constant(&self) -> Option<i64> {
        (self.axes == [0, 0] && self.start.terms.is_empty()).then_some(self.start.constant)
    }

    /// Seen through [`Inst::Expand`] to this axis.
    fn expanded(&self, axis: usize) -> Affine {
        let along = self.axes[0];
        Affine { axes: if axis == 1 { [along, 0] } else { [0, along] }, start: self.start.clone() }
    }

    fn turned(&self) -> Affine {
        Affine { axes: [self.axes[1], self.axes[0]], start: self.start.clone() }
    }
}

impl Plan<'_> {
    /// An integer as a sum of scalars among which `is_known` are; nothing if it is none.
    pub(super) fn affine(&self, v: Var, is_known: &dyn Fn(Var) -> bool) -> Option<Affine> {
        let of = |v: Var| self.affine(v, is_known);
        let term = || {
            let is_scalar = self.kinds[v.index()] == Kind::Scalar && is_known(v);
            is_scalar.then(|| Affine { start: Start { terms: [(v, 1)].into(), constant: 0 }, axes: [0, 0] })
        };
        let Some(def) = self.defs[v.index()] else { return term() };
        match def {
            Inst::Int(x, _) => {
                Some(Affine { start: Start { constant: *x, ..Start::default() }, axes: [0, 0] })
            }
            // There is one number along such an axis.
            Inst::ProgramId(axis) if self.p.grid[*axis] == 1 => Some(Affine::default()),
            Inst::Range(_) => Some(Affine { axes: [1, 0], ..Affine::default() }),
            Inst::Splat(v, _) | Inst::Broadcast(v, _) => of(*v),
            Inst::Expand(v, axis) => Some(of(*v)?.expanded(*axis)),
            Inst::Transpose(v) => Some(of(*v)?.turned()),
            Inst::Binary(Binary::Add, a, b) => Some(of(*a)?.plus(&of(*b)?)),
            Inst::Binary(Binary::Sub, a, b) => Some(of(*a)?.plus(&of(*b)?.scaled(-1))),
            Inst::Binary(Binary::Mul, a, b) => {
                let (a, b) = (of(*a)?, of(*b)?);
                match (a.constant(), b.constant()) {
                    (_, Some(x)) => Some(a.scaled(x)),
                    (Some(x), _) => Some(b.scaled(x)),
                    _ => None,
                }
            }
            _ => term(),
        }
    }

    /// Conditions `sum < limit` that hold together where a mask does; nothing if it says something else.
    fn limits(&self, mask: Var, is_known: &dyn Fn(Var) -> bool) -> Option<Vec<(Affine, i64)>> {
        let of = |v: Var| self.limits(v, is_known);
        let each = |v: Var, f: &dyn Fn(&Affine) -> Affine| {
            Some(of(v)?.iter().map(|(sum, limit)| (f(sum), *limit)).collect())
        };
        match self.defs[mask.index()]? {
            Inst::Broadcast(v, _) => of(*v),
            Inst::Expand(v, axis) => each(*v, &|sum| sum.expanded(*axis)),
            Inst::Transpose(v) => each(*v, &Affine::turned),
            Inst::Binary(Binary::And, a, b) => Some([of(*a)?, of(*b)?].concat()),
            Inst::Compare(Compare::Lt, a, b) => {
                let limit = self.affine(*b, is_known)?.constant()?;
                Some(vec![(self.affine(*a, is_known)?, limit)])
            }
            _ => None,
        }
    }

    /// The window of a load with this index and mask.
    ///
    /// Multiples of the pitch are rows, the rest is columns. Where that is not how the program means it, columns without a mask
    /// are not below the pitch ([`Start::is_below`]), or do not begin where the mask has them.
    pub(super) fn window(
        &self,
        index: Var,
        mask: Option<Var>,
        is_known: &dyn Fn(Var) -> bool,
    ) -> Option<Window> {
        let sum = self.affine(index, is_known)?;
        let fast = sum.axes.iter().position(|c| *c == 1)?;
        let pitch = sum.axes[1 - fast];
        if pitch <= 1 {
            return None;
        }
        let (mut rows, mut columns) = (Start::default(), Start::default());
        for (v, c) in &sum.start.terms {
            match c % pitch {
                0 => rows.terms.insert(*v, c / pitch),
                _ => columns.terms.insert(*v, *c),
            };
        }
        match sum.start.constant % pitch {
            0 => rows.constant = sum.start.constant / pitch,
            _ => columns.constant = sum.start.constant,
        }
        let mut most = [None; 2];
        for (at, limit) in mask.map_or(Some(Vec::new()), |m| self.limits(m, is_known))? {
            let axis = at.axes.iter().position(|c| *c == 1)?;
            let (which, start) = if axis == fast { (1, &columns) } else { (0, &rows) };
            if at.axes[1 - axis] != 0 || at.start != *start || most[which].is_some() {
                return None;
            }
            most[which] = Some(usize::try_from(limit).ok()?);
        }
        Some(Window { fast, pitch: pitch as usize, rows, columns, most })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cuda::Arch;
    use crate::tile::Builder;
    use crate::tile::ir::{Access, Elem};

    /// The window of a load from a matrix of 48 columns: rows `row · 16 + 0..16` below `limit`, columns from `column` on.
    fn window(apart: usize, turned: bool, limit: usize) -> Option<Window> {
        let mut b = Builder::new("p", "", [4, 4, 4], 4);
        let x = b.param("x", Elem::Bf16, 1 << 20, Access::Read);
        let pids = [0, 1, 2].map(|axis| b.program_id(axis));
        let start = |b: &mut Builder, pid| {
            let (range, start) = (b.range(16), b.times(pid, 16));
            b.add(range, start)
        };
        let (row, column) = (start(&mut b, pids[0]), start(&mut b, pids[1]));
        let (down, base) = (b.times(row, 48), b.times(pids[2], apart));
        let down = b.add(down, base);
        let mask = b.below(row, limit);
        let (down, column, mask) = (b.expand(down, 1), b.expand(column, 0), b.expand(mask, 1));
        let (index, mask) = (b.add(down, column), b.broadcast(mask, &[16, 16]));
        let (index, mask) = if turned { (b.transpose(index), b.transpose(mask)) } else { (index, mask) };
        b.load(x, index, Some(mask));
        let p = b.finish().unwrap();
        let plan = Plan::new(&p, Arch::Sm90a);
        plan.window(index, Some(mask), &|v| pids.contains(&v)).inspect(|w| {
            assert_eq!((w.pitch, w.most), (48, [Some(limit), None]));
            assert_eq!(w.columns.terms[&pids[1]], 16);
            // Columns 0, 16 and 32 are in a row, 48 is not; nor is anything after the beginning of another matrix.
            let below = |n: i64| w.columns.is_below(48 + 1 - 16, &|_| Some(n));
            assert_eq!((below(2), below(3)), (apart == 0, false));
        })
    }

    #[test]
    fn windows_have_rows_and_columns() {
        assert_eq!(window(0, false, 60).unwrap().fast, 1);
        assert_eq!(window(0, true, 60).unwrap().fast, 0);
        assert_eq!(window(0, false, 60).unwrap().rows.terms.values().copied().collect::<Vec<_>>(), [16]);
        // Rows of the whole buffer are counted on from matrix to matrix, those of the mask are not.
        assert_eq!(window(48 * 60, false, 60), None);
        // In the middle of a row.
        assert_eq!(window(50, false, 60).unwrap().columns.terms.len(), 2);
    }
}
