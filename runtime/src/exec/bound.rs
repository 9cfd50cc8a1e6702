//! A plan bound to memory: every buffer address is fixed, running it is a walk over a list of kernels.

use super::buffer::HostBuffer;
use super::store::{Store, StoreError};
use super::transposed::Held;
use crate::profile::Kind;
use crate::tuning::Tuning;
use bytemuck::Pod;
use kfc_kernels::KernelError;
use kfc_kernels::cpu::choice::{self, Also, Choice};
use kfc_kernels::cpu::{self, Buf, Call, Kernel};
use kfc_kernels::plan::{Place, Plan};
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// What can go wrong while a plan is bound.
#[derive(Debug, Error)]
pub enum ExecError {
    /// A named tensor does not fit.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step has no kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A step ready to run.
struct BoundStep {
    kernel: Box<dyn Kernel>,
    choice: Choice,
    copies: Vec<(Buf, Buf)>,
    inputs: Vec<Buf>,
    outputs: Vec<Buf>,
    workspace: Buf,
    /// A copy of one of its weights, for the choices that read it.
    transposed: Option<Buf>,
}

impl BoundStep {
    /// Runs the kernel as it is chosen.
    ///
    /// # Safety
    /// As [`Kernel::run`], for the buffers of the step.
    unsafe fn run(&self) {
        let call = Call {
            inputs: &self.inputs,
            outputs: &self.outputs,
            workspace: self.workspace,
            transposed: self.transposed.filter(|_| self.choice.transposed),
        };
        // SAFETY: by contract; a copy is of the size that the kernel named, and never written to.
        choice::with(self.choice, || unsafe { self.kernel.run(&call) });
    }
}

/// An operand of a step, and what it was.
pub(crate) struct Kept {
    at: Buf,
    content: Vec<u8>,
}

impl Kept {
    fn new(at: Buf) -> Kept {
        let mut content = vec![0; at.bytes];
        copy(at, Buf { ptr: content.as_mut_ptr(), bytes: at.bytes });
        Kept { at, content }
    }

    fn restore(&self) {
        let from = Buf { ptr: self.content.as_ptr().cast_mut(), bytes: self.content.len() };
        // SAFETY: a live buffer of the plan, which runs no step meanwhile, and memory of its own.
        unsafe { self.at.copy_from(from) }
    }
}

/// A plan bound to a store and an arena.
pub struct BoundPlan {
    steps: Vec<BoundStep>,
    /// Copies into updated states that no kernel wrote in place, when all steps are done.
    epilogue: Vec<(Buf, Buf)>,
    outputs: Vec<Buf>,
    names: Vec<String>,
    /// Nanoseconds spent in each step over all runs, and in the last run.
    spent: Vec<u64>,
    last: Vec<u64>,
    runs: u64,
    arena: Arc<HostBuffer>,
    _held: Held,
}

impl BoundPlan {
    /// Binds `plan` to the tensors of `store` and to `arena`, which must have at least `plan.arena_bytes`.
    ///
    /// The store must outlive the bound plan and must not replace tensors that it names; the session that owns both
    /// sees to that.
    ///
    /// # Errors
    /// If a tensor is missing or of another type, or a step has no kernel on this device.
    pub fn new(plan: &Plan, store: &Store, arena: &Arc<HostBuffer>) -> Result<BoundPlan, ExecError> {
        let updated: Vec<bool> = {
            let mut u = vec![false; plan.inputs.len()];
            plan.outputs.iter().filter_map(|o| o.updates).for_each(|i| u[i] = true);
            u
        };
        let inputs = plan
            .inputs
            .iter()
            .zip(&updated)
            .map(|(i, &updated)| store.bind(&i.name, &i.ty, updated))
            .collect::<Result<Vec<Buf>, StoreError>>()?;
        let base = arena.buf();
        let at = |place: &Place| match *place {
            Place::Input(i) => inputs[i],
            Place::Arena { offset, bytes } => {
                assert!(offset + bytes <= base.bytes, "the arena is smaller than the plan's");
                // SAFETY: inside the arena, as just checked.
                Buf { ptr: unsafe { base.ptr.add(offset) }, bytes }
            }
        };
        let mut steps = Vec::with_capacity(plan.steps.len());
        for s in &plan.steps {
            steps.push(BoundStep {
                kernel: cpu::build(&s.op, &s.input_types, &s.output_types)?,
                choice: Choice::BUILT_IN,
                copies: s.copies.iter().map(|(from, to)| (at(from), at(to))).collect(),
                inputs: s.inputs.iter().map(at).collect(),
                outputs: s.outputs.iter().map(at).collect(),
                workspace: at(&s.workspace),
                transposed: None,
            });
        }
        let epilogue = plan.epilogue.iter().map(|(from, to)| (at(from), at(to))).collect();
        let outputs = plan.outputs.iter().map(|o| at(&o.place)).collect();
        let names = plan.outputs.iter().map(|o| o.name.clone()).collect();
        let (spent, last) = (vec![0; steps.len()], vec![0; steps.len()]);
        Ok(BoundPlan {
            steps,
            epilogue,
            outputs,
            names,
            spent,
            last,
            runs: 0,
            arena: Arc::clone(arena),
            _held: Held::default(),
        })
    }

    /// Brings the arena into memory. What the plans that share it made last is lost.
    pub(crate) fn touch_arena(&mut self) {
        // SAFETY: plans of one arena run one after the other, this one not now, and none needs what an earlier run left.
        unsafe { self.arena.touch() }
    }

    /// Gives the arena's memory back; what plans made last is lost. A later run brings it in again, page by page.
    pub(crate) fn release_arena(&mut self) {
        // SAFETY: as in `touch_arena`.
        unsafe { self.arena.release() }
    }

    /// Runs every step in order.
    pub fn run(&mut self, _store: &mut Store) {
        cpu::team::lead(|| self.run_steps(self.steps.len()));
        self.runs += 1;
        for (from, to) in &self.epilogue {
            copy(*from, *to);
        }
    }

    /// The first `count` steps.
    fn run_steps(&mut self, count: usize) {
        let mut before = Instant::now();
        for ((step, spent), last) in self.steps.iter().zip(&mut self.spent).zip(&mut self.last).take(count) {
            for (from, to) in &step.copies {
                copy(*from, *to);
            }
            // SAFETY: the memory plan gives every live value its own bytes, the buffers have the sizes of the types the
            // kernel was built for, and in-place results hold their operand's content.
            unsafe { step.run() };
            let now = Instant::now();
            *last = now.duration_since(before).as_nanos() as u64;
            *spent += *last;
            before = now;
        }
    }

    /// Runs so far, and nanoseconds that each step of the plan took over all of them.
    pub fn times(&self) -> (u64, &[u64]) {
        (self.runs, &self.spent)
    }

    /// Runs the plan up to a step, and without it: its operands are there then.
    pub(crate) fn run_up_to(&mut self, step: usize) {
        cpu::team::lead(|| self.run_steps(step));
        for (from, to) in &self.steps[step].copies {
            copy(*from, *to);
        }
    }

    /// Operands of a step, after [`BoundPlan::run_up_to`], that it writes over, with what they are.
    pub(crate) fn overwritten(&self, step: usize) -> Vec<Kept> {
        let BoundStep { inputs, outputs, .. } = &self.steps[step];
        let is_written = |x: &&Buf| outputs.iter().any(|y| overlap(**x, *y));
        inputs.iter().filter(is_written).map(|x| Kept::new(*x)).collect()
    }

    /// Runs a step `n` times: nanoseconds of all. Before each run, in time that does not count, `kept` becomes what it was.
    pub(crate) fn run_again(&mut self, step: usize, n: u64, kept: &[Kept]) -> u64 {
        let step = &self.steps[step];
        let run = |n: u64| {
            let start = Instant::now();
            for _ in 0..n {
                // SAFETY: as in `run_steps`; operands that share a place with results hold what was kept of them.
                unsafe { step.run() };
            }
            start.elapsed().as_nanos() as u64
        };
        let restored = |_| {
            kept.iter().for_each(Kept::restore);
            run(1)
        };
        cpu::team::lead(|| if kept.is_empty() { run(n) } else { (0..n).map(restored).sum() })
    }

    /// Nanoseconds that each step took in the last run.
    pub(crate) fn last_times(&self) -> &[u64] {
        &self.last
    }

    /// How a step cuts its work from now on.
    pub(crate) fn choose(&mut self, step: usize, choice: Choice) {
        self.steps[step].choice = choice;
    }

    /// What may be chosen for a step beside tiles and threads.
    pub(crate) fn also(&self, step: usize) -> Also {
        let step = &self.steps[step];
        Also { transposed: step.transposed.is_some(), chunk: step.kernel.chunk() }
    }

    /// The copy that a step may read.
    pub(crate) fn transposed(&self, step: usize) -> Option<Buf> {
        self.steps[step].transposed
    }

    /// Lets the steps of `plan`, the one that this is bound from, read copies of weights.
    pub(crate) fn hold(&mut self, plan: &Plan, held: &Held) {
        for (bound, s) in self.steps.iter_mut().zip(&plan.steps) {
            let Some(of) = bound.kernel.transposed() else { continue };
            if let Place::Input(i) = s.inputs[of.operand] {
                bound.transposed = held.get(&plan.inputs[i].name, &of);
            }
        }
        self._held = held.clone();
    }

    /// Takes the choices that were found for the steps of `plan`, the one that this is bound from; what was found with a copy
    /// that is not held runs as built in.
    pub(crate) fn tune(&mut self, plan: &Plan, tuning: &Tuning) {
        if tuning.is_empty() {
            return;
        }
        for (bound, s) in self.steps.iter_mut().zip(&plan.steps) {
            let choice = tuning.choice(&Kind::of(&s.op, &s.input_types, &s.output_types).signature());
            let is_there = bound.transposed.is_some() || !choice.transposed;
            bound.choice = if is_there { choice } else { Choice::BUILT_IN };
        }
    }

    /// Forgets the times so far (those of warm-up).
    pub fn reset_times(&mut self) {
        self.runs = 0;
        self.spent.fill(0);
    }

    /// Position of the output of this name, for [`BoundPlan::output`].
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Contents of an output after a run, until another plan of the same arena runs.
    pub fn output<T: Pod>(&self, index: usize) -> &[T] {
        let b = self.outputs[index];
        // SAFETY: the output's buffer lives in the arena or the store; arena offsets are 64-byte aligned.
        unsafe { std::slice::from_raw_parts(b.ptr.cast::<T>(), b.bytes / size_of::<T>()) }
    }

    /// First element of an `f32` output; NaN if there is no such output.
    pub fn scalar(&self, index: Option<usize>) -> f32 {
        index.and_then(|i| self.output::<f32>(i).first().copied()).unwrap_or(f32::NAN)
    }
}

/// Whether two buffers share bytes.
fn overlap(a: Buf, b: Buf) -> bool {
    let [a, b] = [a, b].map(|x| (x.ptr.addr(), x.ptr.addr() + x.bytes));
    a.0 < b.1 && b.0 < a.1
}

fn copy(from: Buf, to: Buf) {
    // SAFETY: both are live buffers of the plan with at least this many bytes; `copy` allows overlap.
    unsafe { std::ptr::copy(from.ptr, to.ptr, from.bytes.min(to.bytes)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::session;
    use kfc_graph::{DType, TensorType, text};

    const GRAPH: &str = r#"graph g {
  %0: f32[4] = state "p"
  %1: f32[4] = data "g"
  %2: f32[4] = add(%1, %1) @update ""
  %3: f32[4] = accumulate(%0, %2) @update ""
  output "p" = %3 updates %0
}
"#;

    #[test]
    fn operands_that_a_step_writes_over_are_kept_and_restored() {
        let graph = text::parse(GRAPH, &kfc_ops::registry()).unwrap();
        let plans = session::compile_all(&[graph]).unwrap();
        let mut store = Store::default();
        let ty = TensorType::new(DType::F32, [4]);
        let p = store.insert("p", &ty, &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        store.insert("g", &ty, &[0.5f32, 0.0, -1.0, 2.0]).unwrap();
        let mut bound = session::bind(&plans, &store).unwrap().pop().unwrap();
        let last = bound.steps.len() - 1;
        bound.run_up_to(last);
        let kept = bound.overwritten(last);
        assert_eq!(kept.len(), 1);
        let once = [2.0f32, 2.0, 1.0, 8.0];
        for runs in [1, 3] {
            bound.run_again(last, runs, &kept);
            assert_eq!(store.slice_mut::<f32>(p), once, "{runs} runs");
        }
        bound.run_again(last, 2, &[]);
        assert_eq!(store.slice_mut::<f32>(p), [4.0, 2.0, -3.0, 16.0], "two more, nothing restored");
        // The first step reads `g` alone, which it leaves as it is.
        assert!(bound.overwritten(0).is_empty());
    }
}
