//! Fused groups: a register machine over blocks that stay in L1.
//!
//! Registers are blocks of [`BLOCK`] elements. Each instruction is the loop that the primitive's own kernel runs
//! ([`pointwise::apply`]), from registers and operands to a register or a result, so that fused and unfused graphs give the
//! same bits. Sums of rows add up their blocks as [`reduce`] does.

use crate::cpu::elem::of_type;
use crate::cpu::fill::bits;
use crate::cpu::float::{BLOCK, Dst};
use crate::cpu::pointwise::{self, Apply, MOST_OPERANDS};
use crate::cpu::reduce::{self, Kind};
use crate::cpu::strided::Strided;
use crate::cpu::{Call, Kernel, KernelError, par, scratch};
use crate::over;
use kfc_graph::{DType, Graph, Group, Op, Prim, ValueId};

/// Bytes of a register.
const REGISTER: usize = BLOCK * size_of::<f32>();

/// Where an instruction reads.
#[derive(Clone, Copy)]
enum Loc {
    /// The block's elements of an operand of the group's shape, by position and bytes of an element.
    Operand(usize, usize),
    Register(usize),
}

/// What makes one value of the body.
enum Instr {
    /// A primitive, from its operands to a register.
    Apply { apply: Apply, x: [Loc; MOST_OPERANDS], to: usize },
    /// A constant in every element.
    Fill { bits: u32, size: usize, to: usize },
    /// The block's elements of a broadcast operand.
    Spread { operand: usize, view: Strided, size: usize, to: usize },
}

/// What becomes of a value at the end of a block.
enum Finish {
    /// Its elements are the result's.
    Store { from: Loc, size: usize },
    /// They are reduced with those of their row.
    Reduce { from: Loc, dtype: DType, kind: Kind },
}

/// The kernel of a group.
pub(crate) struct GroupKernel {
    program: Vec<Instr>,
    finish: Vec<Finish>,
    registers: usize,
    /// Rows, and elements of one: the last axis where there is a reduction, else one row of everything.
    rows: usize,
    width: usize,
    /// Partial results of a row.
    partials: usize,
    /// Leading operands that the result may be written over.
    over: usize,
}

impl GroupKernel {
    pub(crate) fn new(group: &Group) -> Result<GroupKernel, KernelError> {
        let body = group.body();
        let mut c = Compiler::new(body);
        for (i, node) in body.nodes().iter().enumerate() {
            if let Op::Prim(p) = &node.op {
                c.instruction(i, p)?;
            }
        }
        let finish: Vec<Finish> = body.outputs().iter().map(|o| c.finish(o.value)).collect();
        let elements: usize = group.dims().iter().product();
        let reduces = finish.iter().any(|f| matches!(f, Finish::Reduce { .. }));
        let width = if reduces { group.dims().last().copied().unwrap_or(1) } else { elements };
        let rows = elements / width.max(1);
        let partials = if reduces { reduce::partials_of(rows, width) } else { 1 };
        let over = match (&finish[..], body.outputs()) {
            ([Finish::Store { size, .. }], [_]) => {
                let fits = |i: &&kfc_graph::Input| {
                    body.ty(i.value).dims == group.dims() && body.ty(i.value).dtype.size() == *size
                };
                body.inputs().iter().take_while(fits).count()
            }
            _ => 0,
        };
        Ok(GroupKernel { program: c.program, finish, registers: c.registers, rows, width, partials, over })
    }

    /// Computes `n` elements from `start` on (at most a block) into registers.
    ///
    /// # Safety
    /// As [`Kernel::run`]; `registers` has room for all.
    unsafe fn block(&self, call: &Call<'_>, start: usize, n: usize, registers: *mut u8) {
        // SAFETY: by contract; registers are as large as a block of any type, and an instruction's result is none of
        // its operands.
        unsafe {
            for instr in &self.program {
                match instr {
                    Instr::Apply { apply, x, to } => {
                        let x = x.map(|loc| loc.at(call, start, registers));
                        apply(&x, registers.add(to * REGISTER), n);
                    }
                    Instr::Fill { bits, size, to } => fill(*bits, *size, registers.add(to * REGISTER), n),
                    Instr::Spread { operand, view, size, to } => {
                        let from = call.inputs[*operand].ptr.cast_const();
                        let to = registers.add(to * REGISTER);
                        match size {
                            2 => view.copy::<u16>(
                                from.cast(),
                                start,
                                std::slice::from_raw_parts_mut(to.cast(), n),
                            ),
                            _ => view.copy::<u32>(
                                from.cast(),
                                start,
                                std::slice::from_raw_parts_mut(to.cast(), n),
                            ),
                        }
                    }
                }
            }
        }
    }

    /// One part of a row: its blocks in order. Reductions go to `totals`, one an output.
    ///
    /// # Safety
    /// As [`GroupKernel::block`]; the elements are this task's alone.
    unsafe fn part(&self, call: &Call<'_>, start: usize, n: usize, registers: *mut u8, totals: &mut [f64]) {
        for at in (start..start + n).step_by(BLOCK) {
            let n = BLOCK.min(start + n - at);
            // SAFETY: by contract.
            unsafe {
                self.block(call, at, n, registers);
                for (j, finish) in self.finish.iter().enumerate() {
                    match finish {
                        Finish::Store { from, size } => {
                            let to = call.outputs[j].ptr.add(at * size);
                            std::ptr::copy(from.at(call, at, registers), to, n * size);
                        }
                        Finish::Reduce { from, dtype, kind } => {
                            let x = from.at(call, at, registers);
                            totals[j] = kind.join(
                                totals[j],
                                of_type!(*dtype, T => {
                                    kind.of_block(std::slice::from_raw_parts(x.cast::<T>(), n))
                                }),
                            );
                        }
                    }
                }
            }
        }
    }

    /// A group without reductions: one row of everything.
    unsafe fn run_flat(&self, call: &Call<'_>) {
        par::ranges(self.width, par::GRAIN, |r| {
            scratch::with(self.registers * BLOCK, |s| {
                // SAFETY: by contract of `run`; ranges are disjoint.
                unsafe { self.part(call, r.start, r.len(), s.as_mut_ptr().cast(), &mut []) }
            });
        });
    }

    /// Rows, or parts of long ones, with a partial result of each reduction.
    unsafe fn run_rows(&self, call: &Call<'_>) {
        let (results, parts) = (self.finish.len(), self.partials);
        let part = if parts > 1 { reduce::PARTIAL } else { self.width };
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let totals = unsafe { call.work::<f64>(0, self.rows * parts * results) };
        let shared = par::Shared::new(totals);
        par::ranges(self.rows * parts, par::rows_grain(part), |r| {
            scratch::with(self.registers * BLOCK, |s| {
                for task in r {
                    let (row, from) = (task / parts, task % parts * part);
                    let n = part.min(self.width - from);
                    // SAFETY: by contract of `run`; each part is one task's.
                    unsafe {
                        let totals = shared.slice(task * results, results);
                        for (total, finish) in totals.iter_mut().zip(&self.finish) {
                            *total = finish.identity();
                        }
                        self.part(call, row * self.width + from, n, s.as_mut_ptr().cast(), totals);
                    }
                }
            });
        });
        for (j, finish) in self.finish.iter().enumerate() {
            let Finish::Reduce { dtype, kind, .. } = finish else { continue };
            let out = Dst::new(call.outputs[j].ptr, *dtype);
            for row in 0..self.rows {
                // SAFETY: by contract of `run`; all tasks are done.
                unsafe {
                    let of_row = call.work::<f64>(row * parts * results * size_of::<f64>(), parts * results);
                    let total = of_row.iter().skip(j).step_by(results);
                    let total = total.fold(kind.identity(), |t, &p| kind.join(t, p));
                    out.store(row, &[total as f32]);
                }
            }
        }
    }

    fn reduces(&self) -> bool {
        self.finish.iter().any(|f| matches!(f, Finish::Reduce { .. }))
    }
}

impl Kernel for GroupKernel {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe { if self.reduces() { self.run_rows(call) } else { self.run_flat(call) } }
    }

    fn workspace_bytes(&self) -> usize {
        if self.reduces() { self.rows * self.partials * self.finish.len() * size_of::<f64>() } else { 0 }
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        over::leading(self.over)
    }
}

impl Loc {
    /// Address of the block that begins with element `start`.
    ///
    /// # Safety
    /// In bounds.
    unsafe fn at(self, call: &Call<'_>, start: usize, registers: *mut u8) -> *const u8 {
        // SAFETY: by contract.
        unsafe {
            match self {
                Loc::Operand(i, size) => call.inputs[i].ptr.add(start * size).cast_const(),
                Loc::Register(r) => registers.add(r * REGISTER).cast_const(),
            }
        }
    }
}

impl Finish {
    fn identity(&self) -> f64 {
        match self {
            Finish::Reduce { kind, .. } => kind.identity(),
            Finish::Store { .. } => 0.0,
        }
    }
}

/// # Safety
/// Room for `n` elements of that size, aligned.
unsafe fn fill(bits: u32, size: usize, to: *mut u8, n: usize) {
    // SAFETY: by contract.
    unsafe {
        match size {
            2 => std::slice::from_raw_parts_mut(to.cast::<u16>(), n).fill(bits as u16),
            _ => std::slice::from_raw_parts_mut(to.cast::<u32>(), n).fill(bits),
        }
    }
}

/// Gives values registers; one is free again when its value was read for the last time.
struct Compiler<'g> {
    body: &'g Graph,
    program: Vec<Instr>,
    loc: Vec<Option<Loc>>,
    /// Position of the last node that reads each value.
    last_read: Vec<usize>,
    free: Vec<usize>,
    registers: usize,
}

impl<'g> Compiler<'g> {
    fn new(body: &'g Graph) -> Compiler<'g> {
        let mut last_read = vec![0; body.value_count()];
        for (i, node) in body.nodes().iter().enumerate() {
            let stays = matches!(node.op, Op::Prim(Prim::ReduceSum { .. } | Prim::ReduceMax { .. }));
            // What is reduced or stored is read when the block is done.
            let at = if stays { usize::MAX } else { i };
            node.inputs.iter().for_each(|v| last_read[v.index()] = last_read[v.index()].max(at));
        }
        body.outputs().iter().for_each(|o| last_read[o.value.index()] = usize::MAX);
        let mut loc = vec![None; body.value_count()];
        for (i, input) in body.inputs().iter().enumerate() {
            loc[input.value.index()] = Some(Loc::Operand(i, body.ty(input.value).dtype.size()));
        }
        Compiler { body, program: vec![], loc, last_read, free: vec![], registers: 0 }
    }

    fn instruction(&mut self, position: usize, prim: &Prim) -> Result<(), KernelError> {
        let node = &self.body.nodes()[position];
        let result = node.outputs[0];
        let ty = self.body.ty(result);
        let instr = match prim {
            Prim::ReduceSum { .. } | Prim::ReduceMax { .. } => return Ok(()),
            Prim::Const { ty, value } => {
                Instr::Fill { bits: bits(ty.dtype, *value), size: ty.dtype.size(), to: self.register() }
            }
            Prim::Broadcast { dims } => {
                let from = self.body.ty(node.inputs[0]);
                let view = Strided::broadcast(from, dims);
                let operand = node.inputs[0].index();
                Instr::Spread { operand, view, size: ty.dtype.size(), to: self.register() }
            }
            p => {
                let types: Vec<DType> = node.inputs.iter().map(|&v| self.body.ty(v).dtype).collect();
                let apply = pointwise::apply(p, &types);
                let apply = apply.ok_or_else(|| KernelError::Unclaimed(p.name().to_string()))?;
                let mut x = [Loc::Register(0); MOST_OPERANDS];
                x.iter_mut().zip(&node.inputs).for_each(|(x, &v)| *x = self.read(v));
                Instr::Apply { apply, x, to: self.register() }
            }
        };
        let (Instr::Apply { to, .. } | Instr::Fill { to, .. } | Instr::Spread { to, .. }) = instr;
        self.program.push(instr);
        self.loc[result.index()] = Some(Loc::Register(to));
        // Only now: an instruction never writes over what it reads.
        for (k, v) in node.inputs.iter().enumerate() {
            if let Some(Loc::Register(r)) = self.loc[v.index()]
                && self.last_read[v.index()] == position
                && !node.inputs[..k].contains(v)
            {
                self.free.push(r);
            }
        }
        Ok(())
    }

    fn register(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.registers += 1;
            self.registers - 1
        })
    }

    /// Where a value is. A body is in topological order, so it is somewhere.
    fn read(&self, v: ValueId) -> Loc {
        self.loc[v.index()].unwrap_or(Loc::Register(0))
    }

    fn finish(&self, v: ValueId) -> Finish {
        let dtype = self.body.ty(v).dtype;
        let maker = self.body.nodes().iter().find(|n| n.outputs[0] == v);
        let reduced = maker.and_then(|n| match n.op {
            Op::Prim(Prim::ReduceSum { .. }) => Some((Kind::Sum, n.inputs[0])),
            Op::Prim(Prim::ReduceMax { .. }) => Some((Kind::Max, n.inputs[0])),
            _ => None,
        });
        match reduced {
            Some((kind, from)) => Finish::Reduce { from: self.read(from), dtype, kind },
            None => Finish::Store { from: self.read(v), size: dtype.size() },
        }
    }
}
