//! Which arithmetic of indices may leave 32 bits. It wraps then, as the tile language says, and is printed so; where it
//! cannot, it is printed as plain `int`, which compilers make better addresses of.

use crate::tile::ir::{Binary, Elem, Inst, Program, Stmt, Var};

/// Least and largest value of integers; `None` for any `i32`.
type Range = Option<(i64, i64)>;

/// Ranges of all `i32` values of a program.
pub(super) struct Ranges(Vec<Range>);

impl Ranges {
    pub(super) fn of(p: &Program) -> Ranges {
        let mut ranges = Ranges(vec![None; p.values()]);
        ranges.block(p, &p.body);
        ranges
    }

    /// Whether the result of an instruction may have to wrap.
    pub(super) fn may_wrap(&self, inst: &Inst) -> bool {
        let Inst::Binary(op @ (Binary::Add | Binary::Sub | Binary::Mul), a, b) = inst else { return false };
        binary(*op, self.at(*a), self.at(*b)).is_none()
    }

    fn at(&self, v: Var) -> Range {
        self.0[v.index()]
    }

    fn block(&mut self, p: &Program, statements: &[Stmt]) {
        for s in statements {
            if let Inst::For { index, from, to, body, .. } = &s.inst {
                let ends = self.at(*from).zip(self.at(*to));
                self.0[index.index()] = ends.map(|((first, _), (_, end))| (first, (end - 1).max(first)));
                self.block(p, body);
            } else if let Some(r) = s.result.filter(|r| p.ty(*r).elem == Elem::I32) {
                self.0[r.index()] = self.value(p, &s.inst);
            }
        }
    }

    fn value(&self, p: &Program, inst: &Inst) -> Range {
        match inst {
            Inst::ProgramId(axis) => Some((0, p.grid[*axis] as i64 - 1)),
            Inst::Int(x, _) => Some((*x, *x)),
            Inst::Range(n) => Some((0, *n as i64 - 1)),
            Inst::Splat(v, _) | Inst::Expand(v, _) | Inst::Broadcast(v, _) | Inst::Transpose(v) => {
                self.at(*v)
            }
            Inst::Binary(op, a, b) => binary(*op, self.at(*a), self.at(*b)),
            Inst::Select(_, a, b) => {
                let ((a, b), (c, d)) = self.at(*a).zip(self.at(*b))?;
                Some((a.min(c), b.max(d)))
            }
            Inst::Cast(v, _) if p.ty(*v).elem == Elem::Bool => Some((0, 1)),
            _ => None,
        }
    }
}

/// The range of a result; `None` if it may leave 32 bits.
fn binary(op: Binary, a: Range, b: Range) -> Range {
    let ((a, b), (c, d)) = a.zip(b)?;
    let corners = |f: &dyn Fn(i64, i64) -> i64| {
        let all = [f(a, c), f(a, d), f(b, c), f(b, d)];
        (all.iter().copied().min().unwrap_or(0), all.iter().copied().max().unwrap_or(0))
    };
    let range = match op {
        Binary::Add => (a + c, b + d),
        Binary::Sub => (a - d, b - c),
        Binary::Mul => corners(&|x, y| x * y),
        Binary::Div if c > 0 => corners(&|x, y| x / y),
        Binary::Rem if c > 0 => (if a < 0 { 1 - d } else { 0 }, (d - 1).min(b.max(0))),
        Binary::Max => (a.max(c), b.max(d)),
        Binary::Min => (a.min(c), b.min(d)),
        Binary::And if a >= 0 && c >= 0 => (0, b.min(d)),
        _ => return None,
    };
    let fits = |x: i64| i32::try_from(x).is_ok();
    (fits(range.0) && fits(range.1)).then_some(range)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::cuda::Arch;
    use crate::tile::cuda::print;
    use crate::tile::{Builder, ir::Access, ir::Elem};

    /// A program that writes to index `base + row * pitch + column` of a large buffer.
    fn source(rows: usize, pitch: i32) -> String {
        let mut b = Builder::new("wide", "Writes ones.", [rows, 1, 1], 1);
        let to = b.param("to", Elem::F32, i32::MAX as usize, Access::Write);
        let row = b.program_id(0);
        let width = b.integer(pitch);
        let start = b.mul(row, width);
        let columns = b.range(64);
        let index = b.add(start, columns);
        let mask = b.below(index, i32::MAX as usize);
        let ones = b.full(1.0, &[64]);
        b.store(to, index, ones, Some(mask));
        print(&b.finish().unwrap(), Arch::Sm80).unwrap().text
    }

    #[test]
    fn what_may_leave_32_bits_wraps_and_the_rest_is_plain() {
        let plain = source(1000, 4096);
        assert!(!plain.contains("kfc_mul") && !plain.contains("kfc_add"), "{plain}");
        let wide = source(70_000, 65_536);
        assert!(wide.contains("kfc_mul(") && wide.contains("kfc_add("), "{wide}");
    }

    #[test]
    fn ranges_of_quotients_hold_both_signs() {
        use super::{Binary, binary};
        assert_eq!(binary(Binary::Rem, Some((-5, 9)), Some((4, 4))), Some((-3, 3)));
        assert_eq!(binary(Binary::Div, Some((-9, 9)), Some((2, 3))), Some((-4, 4)));
        assert_eq!(binary(Binary::Div, Some((0, 9)), Some((0, 3))), None);
        assert_eq!(binary(Binary::Sub, Some((0, 9)), Some((0, 20))), Some((-20, 9)));
    }

    /// A program of 8 warps that adds 1 to 64 elements, some held by several threads.
    fn small(len: usize) -> String {
        let mut b = Builder::new("small", "Adds 1.", [1, 1, 1], 8);
        let from = b.param("from", Elem::F32, len, Access::Read);
        let to = b.param("to", Elem::F32, 64, Access::Write);
        let index = b.range(64);
        let x = b.load_float(from, index, None);
        let one = b.full(1.0, &[64]);
        let y = b.add(x, one);
        b.store(to, index, y, None);
        print(&b.finish().unwrap(), Arch::Sm80).unwrap().text
    }

    #[test]
    fn what_several_threads_hold_is_read_by_all_before_it_is_overwritten() {
        let text = small(64);
        let (barrier, store) = (text.find("__syncthreads"), text.rfind("to_ptr"));
        assert!(barrier.is_some() && barrier < store, "{text}");
        // The planner shares memory of results and operands of one size only.
        assert!(!small(65).contains("__syncthreads"));
    }
}
