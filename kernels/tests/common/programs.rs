//! Every tile program of every sample, run on the tile interpreter.

use crate::common::{self, decode, encode};
use kfc_graph::{Composite, Op, TensorType};
use kfc_kernels::tile::interp;
use kfc_kernels::tile::ir::Elem;
use kfc_kernels::tile::programs::{Arg, Launch, NAMES, emit};
use kfc_ops::samples::fill;

/// Calls `f` with each launch: a label that is unique, and its buffers before and after. Panics where results differ from
/// those of the graph's interpreter.
pub(crate) fn each(mut f: impl FnMut(&str, &Launch, &[Vec<f64>], &[Vec<f64>])) {
    for name in NAMES {
        let def = kfc_ops::registry().get(name).unwrap();
        for (s, sample) in def.samples().into_iter().enumerate() {
            let composite = Composite { def, attrs: sample.attrs.clone() };
            let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            let outputs = def.infer(&sample.attrs, &types).unwrap();
            // Values that the operands' types hold.
            let inputs: Vec<Vec<f64>> = sample
                .inputs
                .iter()
                .enumerate()
                .map(|(i, (t, c))| decode(t, &encode(t, &fill(t, c, (s * 100 + i) as u64))))
                .collect();
            let exact = common::run_interp(&Op::Composite(composite.clone()), &types, &inputs);
            let emitted = emit(&composite, &types, &outputs).unwrap();
            let mut results: Vec<Vec<f64>> = outputs.iter().map(|t| vec![0.0; t.elements()]).collect();
            let mut work: Vec<Vec<f64>> = emitted.workspaces.iter().map(|w| vec![0.0; w.1]).collect();
            for (l, launch) in emitted.launches.iter().enumerate() {
                let take = |arg: &Arg| match *arg {
                    Arg::Input(i) => inputs[i].clone(),
                    Arg::Output(j) => results[j].clone(),
                    Arg::Work(k) => work[k].clone(),
                };
                let before: Vec<Vec<f64>> = launch.args.iter().map(take).collect();
                let mut after = before.clone();
                interp::run(&launch.program, &mut after).unwrap();
                f(&format!("{name}-{s}-{l}"), launch, &before, &after);
                for (arg, buffer) in launch.args.iter().zip(after) {
                    match *arg {
                        Arg::Input(_) => {}
                        Arg::Output(j) => results[j] = buffer,
                        Arg::Work(k) => work[k] = buffer,
                    }
                }
            }
            for (j, ((got, exact), ty)) in results.iter().zip(&exact).zip(&outputs).enumerate() {
                compare(&format!("{name} sample {s} result {j}"), got, exact, Elem::from(ty.dtype));
            }
        }
    }
}

fn compare(what: &str, got: &[f64], exact: &[f64], elem: Elem) {
    let scale = exact.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    let tolerance = match elem {
        Elem::Bf16 => 1e-2,
        Elem::F16 => 2e-3,
        _ => 1e-5,
    };
    for (i, (g, e)) in got.iter().zip(exact).enumerate() {
        assert!((g - e).abs() <= tolerance * scale, "{what} element {i}: {g} instead of {e}");
    }
}
