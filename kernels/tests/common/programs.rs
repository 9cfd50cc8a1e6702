//! Programs of an operation, run on the tile interpreter and compared with the graph's.

use crate::common::{self, decode, encode};
use kfc_graph::{DType, Op, TensorType};
use kfc_kernels::tile::ir::Elem;
use kfc_kernels::tile::programs::{Arg, Launch, Sizes, emit_tiled};
use kfc_kernels::tile::{Tilings, interp};

/// An operation with its operands.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) label: String,
    pub(crate) op: Op,
    pub(crate) types: Vec<TensorType>,
    pub(crate) data: Vec<Vec<f64>>,
    pub(crate) sizes: Sizes,
}

/// A launch with its buffers before and after.
pub(crate) type Visit<'a> = dyn FnMut(&str, &Launch, &[Vec<f64>], &[Vec<f64>]) + 'a;

/// Runs the programs of a case; `visit` sees each launch with a label that is unique. Panics where results differ from those
/// of the graph's interpreter.
pub(crate) fn check(case: &Case, visit: &mut Visit<'_>) {
    check_cut(case, &Tilings::new(), visit);
}

/// [`check`] of programs that are cut as `tilings` say.
pub(crate) fn check_cut(case: &Case, tilings: &Tilings, visit: &mut Visit<'_>) {
    let (op, types, label) = (&case.op, &case.types, &case.label);
    let outputs = op.infer(types).unwrap();
    let exact = common::run_interp(op, types, &inputs(case));
    let results = run_cut(case, tilings, visit);
    for (j, ((got, exact), ty)) in results.iter().zip(&exact).zip(&outputs).enumerate() {
        compare(&format!("{label} result {j}"), got, exact, tolerance(op, types, ty));
    }
}

/// Values that the operands' types hold.
fn inputs(case: &Case) -> Vec<Vec<f64>> {
    case.types.iter().zip(&case.data).map(|(t, data)| decode(t, &encode(t, data))).collect()
}

/// What the programs of a case compute, cut as `tilings` say.
pub(crate) fn run_cut(case: &Case, tilings: &Tilings, visit: &mut Visit<'_>) -> Vec<Vec<f64>> {
    let (op, types, label) = (&case.op, &case.types, &case.label);
    let (outputs, inputs) = (op.infer(types).unwrap(), inputs(case));
    let emitted = emit_tiled(op, types, &outputs, &case.sizes, tilings).unwrap();
    // What nobody writes is seen.
    let mut results: Vec<Vec<f64>> = outputs.iter().map(|t| vec![f64::NAN; t.elements()]).collect();
    let mut work: Vec<Vec<f64>> = emitted.workspaces.iter().map(|w| vec![f64::NAN; w.1]).collect();
    emitted.updates.iter().for_each(|&(i, j)| results[j] = inputs[i].clone());
    for (l, launch) in emitted.launches.iter().enumerate() {
        let parts = || launch.args.iter().zip(launch.starts.iter().zip(&launch.program.params));
        let before: Vec<Vec<f64>> = parts()
            .map(|(arg, (&start, p))| {
                let all = match *arg {
                    Arg::Input(i) => &inputs[i],
                    Arg::Output(j) => &results[j],
                    Arg::Work(k) => &work[k],
                };
                assert!(start * p.elem.bytes() % 16 == 0, "{label}: {} begins at an odd address", p.name);
                all[start..start + p.len].to_vec()
            })
            .collect();
        let mut after = before.clone();
        interp::run(&launch.program, &mut after).unwrap_or_else(|e| panic!("{label}: {e}"));
        visit(&format!("{label}-{l}"), launch, &before, &after);
        for ((arg, (&start, _)), buffer) in parts().zip(after) {
            let all = match *arg {
                Arg::Input(_) => continue,
                Arg::Output(j) => &mut results[j],
                Arg::Work(k) => &mut work[k],
            };
            all[start..start + buffer.len()].copy_from_slice(&buffer);
        }
    }
    results
}

/// Largest error allowed, relative to the largest element. It depends on the result's type; gradients of logits are rounded
/// to bf16 where they are multiplied with such values, which the gradient of the output weight (`f32`) shows.
fn tolerance(op: &Op, operands: &[TensorType], result: &TensorType) -> f64 {
    let is_head = op.name().starts_with("linear_cross_entropy");
    let is_rounded = is_head && result.rank() == 2 && operands.iter().any(|t| t.dtype == DType::Bf16);
    match Elem::from(result.dtype) {
        Elem::Bf16 => 1e-2,
        Elem::F16 => 2e-3,
        _ if is_rounded => 1e-2,
        Elem::F32 => 1e-5,
        _ => 0.0,
    }
}

fn compare(what: &str, got: &[f64], exact: &[f64], tolerance: f64) {
    let scale = exact.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (g, e)) in got.iter().zip(exact).enumerate() {
        assert!(
            (g - e).abs() <= tolerance * scale || g == e,
            "{what} element {i}: {g} instead of {e} (largest {scale})"
        );
    }
}
