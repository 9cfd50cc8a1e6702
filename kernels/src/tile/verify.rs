//! What holds of every program: types fit, values are defined before they are used and once.

use super::TileError;
use super::ir::{Access, Binary, Elem, Inst, Program, Stmt, Ty, Unary, Var};

/// Largest number of elements of a tile.
const TILE: usize = 1 << 16;

/// Checks a program.
///
/// # Errors
/// The first thing that does not hold.
pub(super) fn verify(p: &Program) -> Result<(), TileError> {
    let mut check = Check { p, defined: vec![false; p.values()] };
    let fail = |m: &str| Err(TileError { program: p.name.clone(), message: m.into() });
    if p.programs() == 0 || p.warps == 0 || !p.warps.is_power_of_two() || p.warps > 32 {
        return fail("the grid is empty, or the warps are not a power of two up to 32");
    }
    if p.params.iter().any(|b| b.len > i32::MAX as usize) {
        return fail("a buffer has more elements than i32 counts");
    }
    check.block(&p.body)
}

struct Check<'a> {
    p: &'a Program,
    defined: Vec<bool>,
}

impl Check<'_> {
    fn fail<T>(&self, s: &Stmt, message: &str) -> Result<T, TileError> {
        Err(TileError { program: self.p.name.clone(), message: format!("{message}: {:?}", s.inst) })
    }

    fn block(&mut self, statements: &[Stmt]) -> Result<(), TileError> {
        statements.iter().try_for_each(|s| self.statement(s))
    }

    fn define(&mut self, s: &Stmt, v: Var) -> Result<(), TileError> {
        if std::mem::replace(&mut self.defined[v.index()], true) {
            return self.fail(s, "a value is defined twice");
        }
        Ok(())
    }

    /// The type of an operand, which must be defined.
    fn ty(&self, s: &Stmt, v: Var) -> Result<Ty, TileError> {
        if self.defined[v.index()] {
            Ok(self.p.ty(v).clone())
        } else {
            self.fail(s, "an operand is not defined here")
        }
    }

    fn statement(&mut self, s: &Stmt) -> Result<(), TileError> {
        let ty = self.infer(s)?;
        if let (Some(v), Some(ty)) = (s.result, &ty) {
            let fits = ty.dims.len() <= 2 && ty.dims.iter().all(|d| d.is_power_of_two()) && ty.len() <= TILE;
            if !fits {
                return self
                    .fail(s, "extents must be powers of two, at most two of them, and 65,536 elements");
            }
            if self.p.ty(v) != ty {
                return self.fail(s, "the result has another type");
            }
            self.define(s, v)?;
        }
        if s.result.is_some() != ty.is_some() {
            return self.fail(s, "a result is missing, or there is none");
        }
        Ok(())
    }

    /// The result's type, if there is a result.
    fn infer(&mut self, s: &Stmt) -> Result<Option<Ty>, TileError> {
        let ty = |v: Var| self.ty(s, v);
        Ok(Some(match &s.inst {
            Inst::ProgramId(axis) if *axis < 3 => Ty::scalar(Elem::I32),
            Inst::ProgramId(_) => return self.fail(s, "the grid has three axes"),
            Inst::Int(_, elem @ (Elem::I32 | Elem::U32)) => Ty::scalar(*elem),
            Inst::Int(..) => return self.fail(s, "an integer of another type"),
            Inst::Float(_) => Ty::scalar(Elem::F32),
            Inst::Range(n) => Ty { elem: Elem::I32, dims: vec![*n] },
            Inst::Splat(v, dims) => match ty(*v)? {
                t if t.is_scalar() => Ty { elem: t.elem, dims: dims.clone() },
                _ => return self.fail(s, "not a scalar"),
            },
            Inst::Expand(v, axis) => match ty(*v)? {
                mut t if t.dims.len() == 1 && *axis < 2 => {
                    t.dims.insert(*axis, 1);
                    t
                }
                _ => return self.fail(s, "not a tile of one extent"),
            },
            Inst::Broadcast(v, dims) => {
                let t = ty(*v)?;
                let fits =
                    t.dims.len() == dims.len() && t.dims.iter().zip(dims).all(|(a, b)| a == b || *a == 1);
                if !fits {
                    return self.fail(s, "extents do not fit");
                }
                Ty { elem: t.elem, dims: dims.clone() }
            }
            Inst::Transpose(v) => {
                let mut t = ty(*v)?;
                if t.dims.len() != 2 {
                    return self.fail(s, "not a tile of two extents");
                }
                t.dims.reverse();
                t
            }
            Inst::Unary(op, v) => {
                let t = ty(*v)?;
                let fits = match op {
                    Unary::Not => t.elem == Elem::Bool,
                    Unary::Neg => matches!(t.elem, Elem::F32 | Elem::I32),
                    _ => t.elem == Elem::F32,
                };
                if fits { t } else { return self.fail(s, "not for this type") }
            }
            Inst::Binary(op, a, b) => {
                let t = ty(*a)?;
                let fits = match op {
                    Binary::And | Binary::Or => matches!(t.elem, Elem::Bool | Elem::I32 | Elem::U32),
                    Binary::Xor | Binary::Shl | Binary::Shr => matches!(t.elem, Elem::I32 | Elem::U32),
                    Binary::Rem => matches!(t.elem, Elem::I32 | Elem::U32),
                    Binary::MulHigh => t.elem == Elem::U32,
                    _ => t.elem.is_number(),
                };
                if !fits || ty(*b)? != t {
                    return self.fail(s, "operands do not fit");
                }
                t
            }
            Inst::Compare(_, a, b) => {
                let t = ty(*a)?;
                if !t.elem.is_number() || ty(*b)? != t {
                    return self.fail(s, "operands do not fit");
                }
                t.with(Elem::Bool)
            }
            Inst::Select(c, a, b) => {
                let t = ty(*a)?;
                if ty(*c)? != t.with(Elem::Bool) || ty(*b)? != t {
                    return self.fail(s, "operands do not fit");
                }
                t
            }
            Inst::Cast(v, elem) => ty(*v)?.with(*elem),
            Inst::Load { param, index, mask } => {
                let t = self.access(s, *param, *index, *mask)?;
                if self.p.params[*param].access == Access::Write {
                    return self.fail(s, "the buffer is not read");
                }
                t
            }
            Inst::Store { param, index, value, mask } => {
                let t = self.access(s, *param, *index, *mask)?;
                if self.p.params[*param].access == Access::Read || ty(*value)? != t {
                    return self.fail(s, "the buffer is not written, or has another type");
                }
                return Ok(None);
            }
            Inst::Dot { a, b, acc } => {
                let (a, b, acc) = (ty(*a)?, ty(*b)?, ty(*acc)?);
                let fits = a.elem == b.elem
                    && a.elem.is_float()
                    && acc.elem == Elem::F32
                    && [&a, &b, &acc].iter().all(|t| t.dims.len() == 2 && t.dims.iter().all(|d| *d >= 16))
                    && a.dims[1] == b.dims[0]
                    && acc.dims == [a.dims[0], b.dims[1]];
                if !fits {
                    return self.fail(s, "operands do not fit; extents are at least 16");
                }
                acc
            }
            Inst::Reduce(_, v, axis) => {
                let mut t = ty(*v)?;
                if *axis >= t.dims.len() || !matches!(t.elem, Elem::F32 | Elem::I32) {
                    return self.fail(s, "no such axis, or not numbers");
                }
                t.dims.remove(*axis);
                t
            }
            Inst::For { .. } => {
                self.repeat(s)?;
                return Ok(None);
            }
        }))
    }

    fn access(&self, s: &Stmt, param: usize, index: Var, mask: Option<Var>) -> Result<Ty, TileError> {
        let index = self.ty(s, index)?;
        let mask_fits = mask.map_or(Ok(true), |m| Ok(self.ty(s, m)? == index.with(Elem::Bool)))?;
        match self.p.params.get(param) {
            Some(p) if index.elem == Elem::I32 && mask_fits => Ok(index.with(p.elem)),
            _ => self.fail(s, "no such buffer, or index or mask do not fit"),
        }
    }

    fn repeat(&mut self, s: &Stmt) -> Result<(), TileError> {
        let Inst::For { index, from, to, step, carried, body } = &s.inst else { return Ok(()) };
        let scalar = Ty::scalar(Elem::I32);
        if self.ty(s, *from)? != scalar || self.ty(s, *to)? != scalar || *step <= 0 {
            return self.fail(s, "limits must be i32 scalars, and the step positive");
        }
        self.define(s, *index)?;
        for c in carried {
            self.ty(s, c.init)?;
            self.define(s, c.inner)?;
        }
        let outside = self.defined.clone();
        self.block(body)?;
        for c in carried {
            let ty = self.ty(s, c.next)?;
            if [c.init, c.inner, c.result].iter().any(|&v| *self.p.ty(v) != ty) {
                return self.fail(s, "a carried value changes its type");
            }
        }
        // What the loop defines is not seen after it.
        self.defined = outside;
        carried.iter().try_for_each(|c| self.define(s, c.result))
    }
}
