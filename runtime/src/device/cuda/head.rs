//! Heads of a plan that take other numbers of tokens at once: what would be launched in their place.

use super::CudaError;
use super::driver::{Gpu, Stream};
use super::kernels::{self, Loaded, Triton};
use super::trial::Written;
use crate::triton::Python;
use cudarc::driver::sys::CUdeviceptr;
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::chunk::Chunked;
use kfc_kernels::tile::ir::Access;
use kfc_kernels::tile::lower::{Address, Lowered, lower_chosen};
use kfc_kernels::tile::programs::{Arg, emit_tiled};
use kfc_kernels::tile::trial::tolerance;
use kfc_kernels::tile::{Choice, Choices, Tilings};
use rayon::prelude::*;
use std::sync::Arc;

/// A step of a plan that is a head.
#[derive(Clone)]
pub(crate) struct Head {
    /// What choices for it are known by.
    pub(crate) key: String,
    /// Which step of the plan.
    pub(crate) step: usize,
    /// The step's copies before its launches.
    pub(super) copies: usize,
    /// A plan of this step alone.
    plan: Plan,
    /// Addresses of the plan's inputs, and of its arena.
    inputs: Vec<CUdeviceptr>,
    arena: CUdeviceptr,
    /// What it leaves.
    pub(super) written: Vec<Written>,
}

/// Launches that stand for those of a step.
pub(crate) struct Calls {
    kernels: Vec<Loaded>,
    launches: Vec<(usize, Vec<CUdeviceptr>)>,
}

impl Calls {
    /// Starts them in order.
    ///
    /// # Errors
    /// If the driver refuses a launch.
    ///
    /// # Safety
    /// The memory of the plan that they were made for lives until the stream has passed this.
    pub(super) unsafe fn launch(&self, stream: &Stream, _: &[CUdeviceptr]) -> Result<(), CudaError> {
        // SAFETY: arguments are those that the plan's own launches have, cut otherwise; see the function's own condition.
        self.launches.iter().try_for_each(|(k, args)| unsafe { self.kernels[*k].launch(stream, args) })
    }
}

/// The heads of a plan, as far as there is another number of tokens to try. `input` gives the addresses of inputs.
pub(super) fn heads(plan: &Plan, input: &dyn Fn(usize) -> CUdeviceptr, arena: CUdeviceptr) -> Vec<Head> {
    let inputs: Vec<CUdeviceptr> = (0..plan.inputs.len()).map(input).collect();
    let head = |(i, step): (usize, &kfc_kernels::plan::Step)| {
        let (inputs_of, outputs_of) = (&step.input_types, &step.output_types);
        let chunked = Chunked::of(&step.op, inputs_of, outputs_of)?;
        if chunked.candidates().len() < 2 {
            return None;
        }
        let alone =
            Plan { steps: vec![step.clone()], epilogue: Vec::new(), outputs: Vec::new(), ..plan.clone() };
        let emitted = emit_tiled(
            &step.op,
            inputs_of,
            outputs_of,
            &Choices::default().sizes(&step.op, inputs_of, outputs_of),
            &Tilings::new(),
        )
        .ok()?;
        let written = step.outputs.iter().zip(outputs_of).enumerate().map(|(j, (place, ty))| {
            let elem = ty.dtype.into();
            let writers = emitted.launches.iter().filter(|l| {
                let mut params = l.args.iter().zip(&l.program.params);
                params.any(|(a, p)| *a == Arg::Output(j) && p.access != Access::Read)
            });
            // What is a sum over tokens is one in another order.
            let tolerance = writers.map(|l| tolerance(&l.program, elem)).fold(1e-4, f64::max);
            let at = match *place {
                kfc_kernels::plan::Place::Input(i) => inputs[i],
                kfc_kernels::plan::Place::Arena { offset, .. } => arena + offset as CUdeviceptr,
            };
            Written { at, bytes: ty.bytes(), elem, tolerance }
        });
        Some(Head {
            key: chunked.to_string(),
            step: i,
            copies: step.copies.len(),
            written: written.collect(),
            plan: alone,
            inputs: inputs.clone(),
            arena,
        })
    };
    plan.steps.iter().enumerate().filter_map(head).collect()
}

impl Head {
    /// What other numbers of tokens at once can be tried, the likeliest first.
    pub(crate) fn others(&self) -> Vec<Choice> {
        let tokens = Chunked::named(&self.key).map_or(Vec::new(), |c| c.candidates());
        let choice = |n: &usize| Choice { chunk: Some(*n), ..Choice::builtin(&self.key) };
        tokens.iter().skip(1).map(choice).collect()
    }

    /// What is launched where it takes so many tokens at once, compiled and loaded.
    ///
    /// # Errors
    /// Why it cannot run.
    pub(crate) fn calls(&self, gpu: &Arc<Gpu>, choice: Choice) -> Result<Calls, String> {
        let mut choices = Choices::default();
        choices.choose(&self.key, choice, false);
        let said = |e: CudaError| e.to_string();
        let plans = std::slice::from_ref(&self.plan);
        let Lowered { kernels, launches, .. } = lower_chosen(plans, &choices).map_err(|e| e.to_string())?;
        let triton = Triton::new(&Python::default());
        let compiled = kernels.par_iter().map(|k| kernels::compile(gpu, k, &triton));
        let compiled = compiled.collect::<Result<Vec<_>, _>>().map_err(said)?;
        let spilled: u64 = compiled.iter().map(|c| c.spill_bytes).sum();
        if spilled > 0 {
            return Err(format!("registers spill, {spilled} bytes"));
        }
        let load = kernels.iter().zip(&compiled).map(|(k, c)| kernels::load_one(gpu, k, c));
        let loaded = load.collect::<Result<_, _>>().map_err(said)?;
        let address = |a: &Address| a.input.map_or(self.arena, |i| self.inputs[i]) + a.offset as CUdeviceptr;
        let launches = launches.into_iter().flatten().flatten();
        let launches = launches.map(|l| (l.kernel, l.args.iter().map(address).collect())).collect();
        Ok(Calls { kernels: loaded, launches })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kfc_graph::{Attrs, Builder, DType, Graph, InputKind, TensorType};
    use kfc_kernels::compile::{Backend, CompileOptions, compile_with};

    /// Other chunks are compared in all that the head leaves: the gradient of a trained weight, a sum over chunks, is part of it,
    /// so that a search finds its other bits.
    #[test]
    fn all_that_a_head_leaves_is_compared() {
        for need_dw in [false, true] {
            let attrs = Attrs::new().with("kd", "none").with("temperature", 1.0);
            let attrs = attrs.with("divergence", "forward_kl").with("need_dw", need_dw);
            let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
            let labels = TensorType::new(DType::I32, [1, 64]);
            let types = [f(&[1]), f(&[1, 64, 16]), f(&[300, 16]), labels, f(&[1, 64])];
            let mut graph = Graph::new("g");
            let inputs: Vec<_> = (types.iter().enumerate())
                .map(|(i, t)| graph.add_input(format!("x{i}"), InputKind::Data, t.clone()))
                .collect();
            let def = kfc_ops::registry().get("linear_cross_entropy_kd_fused").unwrap();
            let results = Builder::new(&mut graph).composite(def, attrs, &inputs).unwrap();
            results.iter().enumerate().for_each(|(i, v)| graph.add_output(format!("y{i}"), *v, None));
            let expected: Vec<usize> = results.iter().map(|v| graph.ty(*v).bytes()).collect();
            let options = CompileOptions { backend: Backend::Tile, ..CompileOptions::default() };
            let plan = compile_with(&graph, &options, &mut |_, _| ()).unwrap().plan;
            let all = heads(&plan, &|i| i as CUdeviceptr, 0);
            let written: Vec<usize> = all[0].written.iter().map(|w| w.bytes).collect();
            assert_eq!((all.len(), &written), (1, &expected));
            assert_eq!(written.contains(&(300 * 16 * 4)), need_dw);
            let tokens: Vec<Option<usize>> = all[0].others().iter().map(|c| c.chunk).collect();
            assert_eq!(tokens, [Some(32), Some(16)]);
        }
    }
}
