//! What is known about integers and truths along each axis of a tile: where they are consecutive, equal, divisible. It
//! tells which loads and stores can take several elements at once.

use crate::tile::ir::{Binary, Compare, Elem, Inst, Program, Stmt, Unary, Var};

/// Bound on what is counted.
const MANY: u64 = 1 << 24;

/// Along an axis, in groups of a size that start at its multiples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Size of groups in which each element is the one before it plus 1.
    pub run: u64,
    /// Size of groups of equal elements.
    pub same: u64,
    /// A power of two that divides the first element of each group of `run`.
    pub div: u64,
}

impl Axis {
    const UNKNOWN: Axis = Axis { run: 1, same: 1, div: 1 };

    /// What divides every element.
    fn each(self) -> u64 {
        if self.run > 1 { 1 } else { self.div }
    }

    /// What divides the first element of each group of `n`, a part of a run.
    pub(super) fn starts(self, n: u64) -> u64 {
        if n < self.run { self.div.min(n) } else { self.div }
    }
}

/// What is known about a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// Along each axis; one entry for a scalar.
    pub axes: Vec<Axis>,
    value: Option<i64>,
    /// No element is negative.
    positive: bool,
}

fn low_bit(x: i64) -> u64 {
    if x == 0 { MANY } else { (x.unsigned_abs() & x.unsigned_abs().wrapping_neg()).min(MANY) }
}

fn scalar(div: u64, value: Option<i64>, positive: bool) -> Info {
    Info { axes: vec![Axis { run: 1, same: MANY, div }], value, positive }
}

/// What is known about each value of a program.
pub(super) fn analyse(p: &Program) -> Vec<Info> {
    let unknown = |v: usize| Info {
        axes: vec![Axis::UNKNOWN; p.types[v].dims.len().max(1)],
        value: None,
        positive: false,
    };
    let mut infos: Vec<Info> = (0..p.values()).map(unknown).collect();
    block(p, &p.body, &mut infos);
    infos
}

fn block(p: &Program, statements: &[Stmt], infos: &mut [Info]) {
    for s in statements {
        if let Inst::For { index, from, step, body, .. } = &s.inst {
            let start = &infos[from.index()];
            let div = start.axes[0].each().min(low_bit(*step));
            infos[index.index()] = scalar(div, None, start.positive);
            block(p, body, infos);
        } else if let (Some(v), Some(info)) = (s.result, value(p, &s.inst, infos)) {
            infos[v.index()] = info;
        }
    }
}

fn value(p: &Program, inst: &Inst, infos: &[Info]) -> Option<Info> {
    let of = |v: Var| &infos[v.index()];
    Some(match inst {
        Inst::ProgramId(_) => scalar(1, None, true),
        Inst::Int(x, _) => scalar(low_bit(*x), Some(*x), *x >= 0),
        Inst::Range(n) => {
            Info { axes: vec![Axis { run: *n as u64, same: 1, div: MANY }], value: None, positive: true }
        }
        Inst::Splat(v, dims) => {
            let x = of(*v);
            let axis = Axis { run: 1, same: MANY, div: x.axes[0].each() };
            Info { axes: vec![axis; dims.len()], ..x.clone() }
        }
        Inst::Expand(v, axis) => {
            let mut x = of(*v).clone();
            x.axes.insert(*axis, Axis { run: 1, same: MANY, div: x.axes[0].each() });
            x
        }
        Inst::Broadcast(v, _) => {
            let mut x = of(*v).clone();
            for (axis, extent) in x.axes.iter_mut().zip(&p.ty(*v).dims) {
                if *extent == 1 {
                    *axis = Axis { run: 1, same: MANY, div: axis.each() };
                }
            }
            x
        }
        Inst::Transpose(v) => {
            let mut x = of(*v).clone();
            x.axes.reverse();
            x
        }
        Inst::Unary(Unary::Not, v) => equal(&[of(*v)]),
        Inst::Binary(op, a, b) if p.ty(*a).elem == Elem::I32 => binary(*op, of(*a), of(*b)),
        Inst::Binary(_, a, b) => equal(&[of(*a), of(*b)]),
        Inst::Compare(op, a, b) if p.ty(*a).elem == Elem::I32 => compare(*op, of(*a), of(*b)),
        Inst::Select(c, a, b) => equal(&[of(*c), of(*a), of(*b)]),
        _ => return None,
    })
}

/// Equal where all operands are.
fn equal(operands: &[&Info]) -> Info {
    let same = |i: usize| operands.iter().map(|x| x.axes[i].same).min().unwrap_or(1);
    let axes = (0..operands[0].axes.len()).map(|i| Axis { run: 1, same: same(i), div: 1 }).collect();
    Info { axes, value: None, positive: false }
}

fn binary(op: Binary, a: &Info, b: &Info) -> Info {
    let positive = a.positive && b.positive;
    let with = |f: &dyn Fn(Axis, Axis) -> Axis, positive: bool| Info {
        axes: a.axes.iter().zip(&b.axes).map(|(&x, &y)| f(x, y)).collect(),
        value: None,
        positive,
    };
    match (op, a.value, b.value) {
        (Binary::Mul | Binary::Div, _, Some(1)) => return a.clone(),
        (Binary::Mul, Some(1), _) => return b.clone(),
        _ => {}
    }
    match op {
        Binary::Add => with(&sum, positive),
        Binary::Sub => with(&|x, y| if y.run > 1 { Axis { run: 1, ..sum(x, y) } } else { sum(x, y) }, false),
        Binary::Mul => with(
            &|x, y| Axis {
                run: 1,
                same: x.same.min(y.same),
                div: x.each().saturating_mul(y.each()).min(MANY),
            },
            positive,
        ),
        Binary::Div if a.positive && b.value.is_some_and(|d| d > 0) => {
            let low = b.value.map_or(1, low_bit);
            let group = |x: Axis| if x.run > 1 { x.run.min(low).min(x.div) } else { x.same };
            with(&|x, _| Axis { run: 1, same: group(x), div: 1 }, true)
        }
        Binary::Rem if a.positive && b.value.is_some_and(|d| d > 0) => {
            let low = b.value.map_or(1, low_bit);
            let rest = |x: Axis| {
                let run = x.run.min(low).min(x.div);
                Axis { run, same: x.same, div: x.starts(run).min(low) }
            };
            with(&|x, _| if x.run > 1 { rest(x) } else { Axis { div: x.div.min(low), ..x } }, true)
        }
        Binary::Min | Binary::Max => Info { positive, ..equal(&[a, b]) },
        _ => equal(&[a, b]),
    }
}

fn sum(x: Axis, y: Axis) -> Axis {
    let (left, right) = (x.run.min(y.same), y.run.min(x.same));
    if left.max(right) <= 1 {
        return Axis { run: 1, same: x.same.min(y.same), div: x.each().min(y.each()) };
    }
    if left >= right {
        Axis { run: left, same: 1, div: x.starts(left).min(y.each()) }
    } else {
        Axis { run: right, same: 1, div: y.starts(right).min(x.each()) }
    }
}

fn compare(op: Compare, a: &Info, b: &Info) -> Info {
    let mut info = equal(&[a, b]);
    for (i, axis) in info.axes.iter_mut().enumerate() {
        let (x, y) = (a.axes[i], b.axes[i]);
        // A run that starts at a multiple of its length does not cross a limit that is one.
        let (run, limit) = match op {
            Compare::Lt => (x, y),
            Compare::Le => (y, x),
            Compare::Eq => continue,
        };
        if run.run > 1 && limit.run == 1 {
            axis.same = axis.same.max(run.run.min(limit.same).min(run.div).min(limit.div));
        }
    }
    info
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tile::Builder;
    use crate::tile::ir::Access;

    /// How many elements at once the index and the mask of the only load allow along the last axis.
    fn wide(write: impl FnOnce(&mut Builder) -> (Var, Var)) -> (u64, u64) {
        let mut b = Builder::new("p", "", [64, 1, 1], 4);
        let x = b.param("x", Elem::F32, 1 << 20, Access::Read);
        let (index, mask) = write(&mut b);
        b.load(x, index, Some(mask));
        let p = b.finish().unwrap();
        let infos = analyse(&p);
        let (i, m) = (infos[index.index()].axes.last().copied().unwrap(), &infos[mask.index()]);
        (i.run.min(i.div), m.axes.last().unwrap().same)
    }

    #[test]
    fn rows_are_as_wide_as_their_stride_allows() {
        let row = |h: usize| {
            wide(|b| {
                let (pid, range) = (b.program_id(0), b.range(128));
                let start = b.times(pid, h);
                (b.add(range, start), b.below(range, h))
            })
        };
        assert_eq!(row(128), (128, 128));
        assert_eq!(row(100), (4, 4));
        assert_eq!(row(33), (1, 1));
    }

    #[test]
    fn halves_of_heads_are_runs() {
        let (run, _) = wide(|b| {
            let (range, half) = (b.range(256), b.int(24));
            let (head, i) = (b.binary(Binary::Div, range, half), b.binary(Binary::Rem, range, half));
            let head = b.times(head, 48);
            (b.add(head, i), b.below(range, 240))
        });
        assert_eq!(run, 8);
    }

    #[test]
    fn matrices_run_along_the_axis_of_stride_one() {
        let (run, same) = wide(|b| {
            let (i, j) = (b.range(32), b.range(64));
            let mask = b.below(j, 48);
            let i = b.times(i, 40);
            let (i, j, mask) = (b.expand(i, 1), b.expand(j, 0), b.expand(mask, 0));
            (b.add(i, j), b.broadcast(mask, &[32, 64]))
        });
        assert_eq!((run, same), (8, 16));
    }
}
