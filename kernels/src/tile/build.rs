//! Writing programs: methods append instructions and infer types. The first misuse is kept and returned by
//! [`Builder::finish`], so that kernels read as straight lines.

use super::ir::{Access, Binary, Carried, Compare, Elem, Fold, Inst, Param, Program, Stmt, Ty, Unary, Var};
use super::plain::Plain;
use super::tiling::{STAGES, Tiled};
use super::{TileError, verify};

/// A buffer of the program under construction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffer(usize);

/// Appends instructions to a program.
pub struct Builder {
    program: Program,
    /// Open blocks, the innermost last; the first is the program's body.
    blocks: Vec<Vec<Stmt>>,
    error: Option<TileError>,
}

impl Builder {
    /// A program without instructions.
    pub fn new(name: impl Into<String>, doc: impl Into<String>, grid: [usize; 3], warps: usize) -> Builder {
        let program = Program {
            name: name.into(),
            doc: doc.into(),
            params: Vec::new(),
            grid,
            warps,
            stages: STAGES,
            tiled: None,
            plain: None,
            body: Vec::new(),
            types: Vec::new(),
        };
        Builder { program, blocks: vec![Vec::new()], error: None }
    }

    /// Says that the program is the product of matrices `[m, k]` and `[k, n]` in these buffers and nothing else: `parts` of
    /// them, one behind the other. Which of the factors are turned: kept as `[k, m]` or `[n, k]`.
    pub(super) fn plain(
        &mut self,
        extents: [usize; 3],
        parts: usize,
        buffers: [Buffer; 3],
        turned: [bool; 2],
        adds: bool,
    ) {
        let params = buffers.map(|b| b.0);
        let elems = [params[0], params[2]].map(|i| self.program.params[i].elem);
        self.program.plain = Some(Plain { extents, parts, params, turned, elems, adds });
    }

    /// Says how what the program multiplies is cut.
    pub fn tiled(&mut self, tiled: Tiled) {
        self.program.stages = tiled.tiling.stages;
        self.program.tiled = Some(tiled);
    }

    /// The finished program.
    ///
    /// # Errors
    /// If a method was given operands that do not fit.
    pub fn finish(mut self) -> Result<Program, TileError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.program.body = self.blocks.pop().unwrap_or_default();
        verify::verify(&self.program)?;
        Ok(self.program)
    }

    /// A buffer of `len` elements.
    pub fn param(
        &mut self,
        name: impl Into<String>,
        elem: impl Into<Elem>,
        len: usize,
        access: Access,
    ) -> Buffer {
        self.program.params.push(Param { name: name.into(), elem: elem.into(), len, access });
        Buffer(self.program.params.len() - 1)
    }

    /// Type of a value.
    pub fn ty(&self, v: Var) -> &Ty {
        self.program.ty(v)
    }

    fn fail(&mut self, message: String) {
        let program = self.program.name.clone();
        self.error.get_or_insert(TileError { program, message });
    }

    fn value(&mut self, ty: Ty) -> Var {
        self.program.types.push(ty);
        Var(self.program.types.len() as u32 - 1)
    }

    fn emit(&mut self, ty: Ty, inst: Inst) -> Var {
        let v = self.value(ty);
        self.statement(Stmt { result: Some(v), inst });
        v
    }

    fn statement(&mut self, s: Stmt) {
        if let Some(block) = self.blocks.last_mut() {
            block.push(s);
        }
    }

    /// Which program this is along an axis of the grid.
    pub fn program_id(&mut self, axis: usize) -> Var {
        self.emit(Ty::scalar(Elem::I32), Inst::ProgramId(axis))
    }

    /// An `i32` scalar.
    pub fn int(&mut self, value: usize) -> Var {
        self.emit(Ty::scalar(Elem::I32), Inst::Int(value as i64, Elem::I32))
    }

    /// An `i32` scalar of either sign.
    pub fn integer(&mut self, value: i32) -> Var {
        self.emit(Ty::scalar(Elem::I32), Inst::Int(i64::from(value), Elem::I32))
    }

    /// A `u32` scalar.
    pub fn bits(&mut self, value: u32) -> Var {
        self.emit(Ty::scalar(Elem::U32), Inst::Int(i64::from(value), Elem::U32))
    }

    /// An `f32` scalar.
    pub fn float(&mut self, value: f32) -> Var {
        self.emit(Ty::scalar(Elem::F32), Inst::Float(value))
    }

    /// `0, 1, …, n - 1`.
    pub fn range(&mut self, n: usize) -> Var {
        self.emit(Ty { elem: Elem::I32, dims: vec![n] }, Inst::Range(n))
    }

    /// A tile of one `f32` value.
    pub fn full(&mut self, value: f32, dims: &[usize]) -> Var {
        let v = self.float(value);
        self.splat(v, dims)
    }

    /// A scalar in every element.
    pub fn splat(&mut self, v: Var, dims: &[usize]) -> Var {
        if dims.is_empty() {
            return v;
        }
        let ty = Ty { elem: self.ty(v).elem, dims: dims.to_vec() };
        self.emit(ty, Inst::Splat(v, dims.to_vec()))
    }

    /// `[n]` as `[n, 1]` (axis 1) or `[1, n]` (axis 0).
    pub fn expand(&mut self, v: Var, axis: usize) -> Var {
        let mut ty = self.ty(v).clone();
        ty.dims.insert(axis.min(ty.dims.len()), 1);
        self.emit(ty, Inst::Expand(v, axis))
    }

    /// The transpose of a tile of two extents.
    pub fn transpose(&mut self, v: Var) -> Var {
        let mut ty = self.ty(v).clone();
        ty.dims.reverse();
        self.emit(ty, Inst::Transpose(v))
    }

    /// A function of each element.
    pub fn unary(&mut self, op: Unary, v: Var) -> Var {
        let ty = self.ty(v).clone();
        self.emit(ty, Inst::Unary(op, v))
    }

    /// Both operands with the extents of the larger one.
    fn aligned(&mut self, a: Var, b: Var) -> (Var, Var) {
        let (da, db) = (self.ty(a).dims.clone(), self.ty(b).dims.clone());
        if da == db {
            return (a, b);
        }
        if da.is_empty() || db.is_empty() {
            return (self.splat_to(a, &db), self.splat_to(b, &da));
        }
        if da.len() != db.len() || da.iter().zip(&db).any(|(x, y)| x != y && *x != 1 && *y != 1) {
            self.fail(format!("extents {da:?} and {db:?} do not fit"));
            return (a, a);
        }
        let dims: Vec<usize> = da.iter().zip(&db).map(|(x, y)| *x.max(y)).collect();
        (self.broadcast(a, &dims), self.broadcast(b, &dims))
    }

    fn splat_to(&mut self, v: Var, dims: &[usize]) -> Var {
        if self.ty(v).is_scalar() { self.splat(v, dims) } else { v }
    }

    /// Extents of 1 repeated up to `dims`; scalars splatted.
    pub fn broadcast(&mut self, v: Var, dims: &[usize]) -> Var {
        if self.ty(v).dims == dims {
            return v;
        }
        if self.ty(v).is_scalar() {
            return self.splat(v, dims);
        }
        let ty = Ty { elem: self.ty(v).elem, dims: dims.to_vec() };
        self.emit(ty, Inst::Broadcast(v, dims.to_vec()))
    }

    /// A function of each pair of elements; scalars and extents of 1 are repeated.
    pub fn binary(&mut self, op: Binary, a: Var, b: Var) -> Var {
        let (a, b) = self.aligned(a, b);
        let ty = self.ty(a).clone();
        self.emit(ty, Inst::Binary(op, a, b))
    }

    /// `a + b`
    pub fn add(&mut self, a: Var, b: Var) -> Var {
        self.binary(Binary::Add, a, b)
    }

    /// `a - b`
    pub fn sub(&mut self, a: Var, b: Var) -> Var {
        self.binary(Binary::Sub, a, b)
    }

    /// `a * b`
    pub fn mul(&mut self, a: Var, b: Var) -> Var {
        self.binary(Binary::Mul, a, b)
    }

    /// `a / b`
    pub fn div(&mut self, a: Var, b: Var) -> Var {
        self.binary(Binary::Div, a, b)
    }

    /// `a * value` for an `i32` tile.
    pub fn times(&mut self, a: Var, value: usize) -> Var {
        let b = self.int(value);
        self.mul(a, b)
    }

    /// Both hold.
    pub fn and(&mut self, a: Var, b: Var) -> Var {
        self.binary(Binary::And, a, b)
    }

    /// A comparison of each pair of elements.
    pub fn compare(&mut self, op: Compare, a: Var, b: Var) -> Var {
        let (a, b) = self.aligned(a, b);
        let ty = self.ty(a).with(Elem::Bool);
        self.emit(ty, Inst::Compare(op, a, b))
    }

    /// `a < limit` for an `i32` tile.
    pub fn below(&mut self, a: Var, limit: usize) -> Var {
        let limit = self.int(limit);
        self.compare(Compare::Lt, a, limit)
    }

    /// Elements of `a` where `condition` holds, else of `b`.
    pub fn select(&mut self, condition: Var, a: Var, b: Var) -> Var {
        let (a, b) = self.aligned(a, b);
        let dims = self.ty(condition).dims.clone();
        let (a, b) = (self.broadcast(a, &dims), self.broadcast(b, &dims));
        let ty = self.ty(a).clone();
        self.emit(ty, Inst::Select(condition, a, b))
    }

    /// Conversion of each element; nothing if they are of that type.
    pub fn cast(&mut self, v: Var, elem: Elem) -> Var {
        let ty = self.ty(v).with(elem);
        if *self.ty(v) == ty {
            return v;
        }
        self.emit(ty, Inst::Cast(v, elem))
    }

    /// Elements of a buffer; 0 where the mask does not hold.
    pub fn load(&mut self, buffer: Buffer, index: Var, mask: Option<Var>) -> Var {
        let ty = self.ty(index).with(self.program.params[buffer.0].elem);
        self.emit(ty, Inst::Load { param: buffer.0, index, mask })
    }

    /// [`Builder::load`] as `f32`.
    pub fn load_float(&mut self, buffer: Buffer, index: Var, mask: Option<Var>) -> Var {
        let v = self.load(buffer, index, mask);
        self.cast(v, Elem::F32)
    }

    /// Writes elements of a buffer, converted to its type.
    pub fn store(&mut self, buffer: Buffer, index: Var, value: Var, mask: Option<Var>) {
        let value = self.cast(value, self.program.params[buffer.0].elem);
        let dims = self.ty(index).dims.clone();
        let value = self.broadcast(value, &dims);
        self.statement(Stmt { result: None, inst: Inst::Store { param: buffer.0, index, value, mask } });
    }

    /// `acc + a · b`.
    pub fn dot(&mut self, a: Var, b: Var, acc: Var) -> Var {
        let ty = self.ty(acc).clone();
        self.emit(ty, Inst::Dot { a, b, acc })
    }

    /// A reduction over an axis.
    pub fn reduce(&mut self, op: Fold, v: Var, axis: usize) -> Var {
        let mut ty = self.ty(v).clone();
        if axis >= ty.dims.len() {
            self.fail(format!("no axis {axis} in {ty}"));
            return v;
        }
        ty.dims.remove(axis);
        self.emit(ty, Inst::Reduce(op, v, axis))
    }

    /// A loop over `from, from + step, …` below `to`. `body` gets the counter and the values carried in, and gives those
    /// carried on; the result are those after the last round.
    pub fn repeat(
        &mut self,
        from: Var,
        to: Var,
        step: usize,
        init: &[Var],
        body: impl FnOnce(&mut Builder, Var, &[Var]) -> Vec<Var>,
    ) -> Vec<Var> {
        let index = self.value(Ty::scalar(Elem::I32));
        let copies = |b: &mut Builder| -> Vec<Var> {
            init.iter()
                .map(|&v| b.ty(v).clone())
                .collect::<Vec<_>>()
                .into_iter()
                .map(|t| b.value(t))
                .collect()
        };
        let inner = copies(self);
        self.blocks.push(Vec::new());
        let next = body(self, index, &inner);
        let statements = self.blocks.pop().unwrap_or_default();
        if next.len() != init.len() {
            self.fail(format!("a loop carries {} values in and {} on", init.len(), next.len()));
            return init.to_vec();
        }
        let results = copies(self);
        let carried = (0..init.len())
            .map(|i| Carried { init: init[i], inner: inner[i], next: next[i], result: results[i] })
            .collect();
        let inst = Inst::For { index, from, to, step: step as i64, carried, body: statements };
        self.statement(Stmt { result: None, inst });
        results
    }
}
