//! Every tile program against the interpreter of graphs, on the samples of its operation.

mod common;

use common::{decode, encode};
use kfc_graph::{Composite, Op, TensorType};
use kfc_kernels::tile::interp;
use kfc_kernels::tile::ir::Elem;
use kfc_kernels::tile::programs::{Arg, Emitted, NAMES, emit};
use kfc_ops::samples::fill;

/// Runs the programs of an operation on the tile interpreter.
fn run(e: &Emitted, inputs: &[Vec<f64>], outputs: &[TensorType]) -> Vec<Vec<f64>> {
    let mut results: Vec<Vec<f64>> = outputs.iter().map(|t| vec![f64::NAN; t.elements()]).collect();
    let mut work: Vec<Vec<f64>> = e.workspaces.iter().map(|w| vec![f64::NAN; w.1]).collect();
    for launch in &e.launches {
        let take = |arg: &Arg| match *arg {
            Arg::Input(i) => inputs[i].clone(),
            Arg::Output(j) => results[j].clone(),
            Arg::Work(k) => work[k].clone(),
        };
        let mut buffers: Vec<Vec<f64>> = launch.args.iter().map(take).collect();
        interp::run(&launch.program, &mut buffers).unwrap();
        for (arg, buffer) in launch.args.iter().zip(buffers) {
            match *arg {
                Arg::Input(_) => {}
                Arg::Output(j) => results[j] = buffer,
                Arg::Work(k) => work[k] = buffer,
            }
        }
    }
    results
}

#[test]
fn samples_agree_with_the_interpreter() {
    for name in NAMES {
        let def = kfc_ops::registry().get(name).unwrap();
        for (s, sample) in def.samples().into_iter().enumerate() {
            let composite = Composite { def, attrs: sample.attrs.clone() };
            let types: Vec<TensorType> = sample.inputs.iter().map(|(t, _)| t.clone()).collect();
            let outputs = def.infer(&sample.attrs, &types).unwrap();
            // Values that the operands' types hold.
            let data: Vec<Vec<f64>> = sample
                .inputs
                .iter()
                .enumerate()
                .map(|(i, (t, c))| decode(t, &encode(t, &fill(t, c, (s * 100 + i) as u64))))
                .collect();
            let exact = common::run_interp(&Op::Composite(composite.clone()), &types, &data);
            let got = run(&emit(&composite, &types, &outputs).unwrap(), &data, &outputs);
            for (j, ((got, exact), ty)) in got.iter().zip(&exact).zip(&outputs).enumerate() {
                let scale = exact.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
                let tolerance = scale
                    * match Elem::from(ty.dtype) {
                        Elem::Bf16 => 1e-2,
                        Elem::F16 => 2e-3,
                        _ => 1e-5,
                    };
                for (i, (g, e)) in got.iter().zip(exact).enumerate() {
                    assert!(
                        (g - e).abs() <= tolerance,
                        "{name} sample {s} result {j} element {i}: {g}, not {e}"
                    );
                }
            }
        }
    }
}
