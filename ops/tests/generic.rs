//! Every operation and every sample: types, meaning and gradients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

mod reference;

use kfc_graph::autodiff::backward;
use kfc_graph::interp::{self, Tensor};
use kfc_graph::verify::verify;
use kfc_graph::{Builder, DType, Graph, GraphError, InputKind, OpDef, Sample, TensorType, ValueId, Vjp};
use kfc_ops::registry;
use kfc_ops::samples::{fill, materialise};
use reference::{REFERENCES, Reference};

/// Whether a graph applies the operation itself or its decomposition.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Composite,
    Decomposed,
}

/// Runs `check` on every sample of every operation.
fn each_sample(mut check: impl FnMut(&'static dyn OpDef, &Reference, &Sample, &str)) {
    for def in registry().iter() {
        let reference = REFERENCES.iter().find(|r| r.name == def.name()).expect("listed");
        for (i, sample) in def.samples().iter().enumerate() {
            check(def, reference, sample, &format!("{} sample {i} {:?}", def.name(), sample.attrs));
        }
    }
}

/// A graph with the sample's operands as inputs; returns operands and results.
fn apply(def: &'static dyn OpDef, sample: &Sample, form: Form) -> (Graph, Vec<ValueId>, Vec<ValueId>) {
    let mut graph = Graph::new(def.name());
    let operands: Vec<ValueId> = sample
        .inputs
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| graph.add_input(format!("x{i}"), InputKind::Data, ty.clone()))
        .collect();
    let mut b = Builder::new(&mut graph);
    let results = match form {
        Form::Composite => b.composite(def, sample.attrs.clone(), &operands).unwrap(),
        Form::Decomposed => def.decompose(&mut b, &sample.attrs, &operands).unwrap(),
    };
    (graph, operands, results)
}

fn types_of(sample: &Sample) -> Vec<TensorType> {
    sample.inputs.iter().map(|(ty, _)| ty.clone()).collect()
}

fn close(got: &Tensor, want: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.dims, want.dims, "{what}: shape");
    let scale = want.data.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.data.iter().zip(&want.data).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}: element {i} is {g}, should be {w}");
    }
}

/// Adds a scalar loss: the sum of the main results, weighted with fixed numbers.
fn add_loss(graph: &mut Graph, results: &[ValueId]) -> ValueId {
    let mut b = Builder::new(graph);
    let mut loss = b.scalar(0.0).unwrap();
    for (k, &r) in results.iter().enumerate() {
        let n = b.ty(r).elements();
        let r = b.cast(r, DType::F32).unwrap();
        let r = b.reshape(r, &[n]).unwrap();
        // Weights 1, 1.1, 1.2, ... so that errors do not cancel.
        let index = b.iota(&[n], 0).unwrap();
        let index = b.cast(index, DType::F32).unwrap();
        let weights = b.scale(index, 0.1).unwrap();
        let weights = b.shift(weights, 1.0 + k as f64).unwrap();
        let weighted = b.mul(r, weights).unwrap();
        let sum = b.sum_all(weighted).unwrap();
        loss = b.add(loss, sum).unwrap();
    }
    loss
}

/// Gradients of the loss with respect to these operands; None where nothing flows.
fn gradients(
    def: &'static dyn OpDef,
    reference: &Reference,
    sample: &Sample,
    form: Form,
    wrt: &[usize],
    inputs: &[Tensor],
) -> Result<Vec<Option<Tensor>>, GraphError> {
    let (mut graph, operands, results) = apply(def, sample, form);
    let loss = add_loss(&mut graph, &results[..reference.main_results]);
    let seed = Builder::new(&mut graph).scalar(1.0)?;
    let wrt: Vec<ValueId> = wrt.iter().map(|&i| operands[i]).collect();
    let grads = backward(&mut graph, &[(loss, seed)], &wrt)?;
    for (i, g) in grads.iter().enumerate() {
        if let Some(g) = *g {
            graph.add_output(format!("g{i}"), g, None);
        }
    }
    verify(&graph)?;
    let mut tensors = interp::run(&graph, inputs)?.into_iter();
    Ok(grads.iter().map(|g| g.map(|_| tensors.next().unwrap())).collect())
}

#[test]
fn every_operation_has_samples_and_a_reference() {
    for def in registry().iter() {
        assert!(!def.samples().is_empty(), "{} has no samples", def.name());
        let entries = REFERENCES.iter().filter(|r| r.name == def.name()).count();
        assert_eq!(entries, 1, "{} must stand once in tests/reference/mod.rs", def.name());
    }
    assert_eq!(
        registry().iter().count(),
        REFERENCES.len(),
        "a reference of an operation that does not exist"
    );
}

#[test]
fn decompositions_have_the_inferred_types() {
    each_sample(|def, _, sample, what| {
        let inferred = def.infer(&sample.attrs, &types_of(sample)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (mut graph, _, results) = apply(def, sample, Form::Decomposed);
        let types: Vec<TensorType> = results.iter().map(|&r| graph.ty(r).clone()).collect();
        assert_eq!(types, inferred, "{what}");
        for (i, &r) in results.iter().enumerate() {
            graph.add_output(format!("y{i}"), r, None);
        }
        verify(&graph).unwrap_or_else(|e| panic!("{what}: {e}"));
    });
}

#[test]
fn decompositions_agree_with_plain_loops() {
    each_sample(|def, reference, sample, what| {
        let inputs = materialise(sample, 1);
        let (mut graph, _, results) = apply(def, sample, Form::Decomposed);
        results.iter().enumerate().for_each(|(i, &r)| graph.add_output(format!("y{i}"), r, None));
        let got = interp::run(&graph, &inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
        let want = (reference.run)(&sample.attrs, &inputs);
        assert_eq!(got.len(), want.len(), "{what}: number of results");
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            close(g, w, 1e-12, &format!("{what}, result {i}"));
        }
    });
}

#[test]
fn gradients_of_decompositions_agree_with_finite_differences() {
    const STEP: f64 = 1e-5;
    each_sample(|def, reference, sample, what| {
        // The interpreter does not round, so samples of narrower types would show the same.
        let narrow = sample.inputs.iter().any(|(ty, _)| matches!(ty.dtype, DType::Bf16 | DType::F16));
        if narrow || matches!(def.vjp(), Vjp::Zero) {
            return;
        }
        let inputs = materialise(sample, 2);
        let floats: Vec<usize> = (0..inputs.len()).filter(|&i| sample.inputs[i].0.dtype.is_float()).collect();
        let grads = gradients(def, reference, sample, Form::Decomposed, &floats, &inputs)
            .unwrap_or_else(|e| panic!("{what}: {e}"));

        let (mut graph, _, results) = apply(def, sample, Form::Decomposed);
        let loss = add_loss(&mut graph, &results[..reference.main_results]);
        graph.add_output("loss", loss, None);
        let loss_at = |operand: usize, element: usize, step: f64| {
            let mut moved = inputs.clone();
            moved[operand].data[element] += step;
            interp::run(&graph, &moved).unwrap()[0].data[0]
        };
        for (&operand, grad) in floats.iter().zip(&grads) {
            let slopes: Vec<f64> = (0..inputs[operand].data.len())
                .map(|e| (loss_at(operand, e, STEP) - loss_at(operand, e, -STEP)) / (2.0 * STEP))
                .collect();
            let slopes = Tensor::new(inputs[operand].dims.clone(), slopes);
            let grad = grad.clone().unwrap_or_else(|| Tensor::full(&slopes.dims, 0.0));
            close(&grad, &slopes, 1e-7, &format!("{what}, gradient of operand {operand}"));
        }
    });
}

#[test]
fn explicit_gradients_agree_with_those_of_the_decomposition() {
    each_sample(|def, reference, sample, what| {
        if !matches!(def.vjp(), Vjp::Explicit(_)) {
            return;
        }
        let inputs = materialise(sample, 3);
        let is_float = |i: &usize| sample.inputs.get(*i).is_some_and(|(ty, _)| ty.dtype.is_float());
        let all: Vec<usize> = reference.differentiable.iter().copied().filter(is_float).collect();
        assert!(!all.is_empty(), "{what}: nothing to differentiate");
        // All operands at once, then each alone: other branches of the same gradient.
        let mut subsets = vec![all.clone()];
        subsets.extend(all.iter().map(|&i| vec![i]));
        for wrt in subsets {
            let what = format!("{what}, operands {wrt:?}");
            let [got, want] = [Form::Composite, Form::Decomposed].map(|form| {
                gradients(def, reference, sample, form, &wrt, &inputs)
                    .unwrap_or_else(|e| panic!("{what}: {e}"))
            });
            for (g, w) in got.iter().zip(&want) {
                close(g.as_ref().expect("a gradient"), w.as_ref().expect("a gradient"), 1e-11, &what);
            }
        }
    });
}

#[test]
fn gradients_that_are_not_defined_are_refused() {
    each_sample(|def, reference, sample, what| {
        if !matches!(def.vjp(), Vjp::Explicit(_)) {
            return;
        }
        let inputs = materialise(sample, 4);
        for i in (0..inputs.len()).filter(|&i| sample.inputs[i].0.dtype.is_float()) {
            let refused = gradients(def, reference, sample, Form::Composite, &[i], &inputs).is_err();
            assert_eq!(refused, !reference.differentiable.contains(&i), "{what}, operand {i}");
        }
        if def.name() == "linear_cross_entropy_kd" {
            return;
        }
        let (mut graph, operands, results) = apply(def, sample, Form::Composite);
        for &saved in &results[reference.main_results..] {
            let seed = Builder::new(&mut graph).full_like(saved, 1.0).unwrap();
            let refused = backward(&mut graph, &[(saved, seed)], &operands[..1]).is_err();
            assert!(refused, "{what}: a saved value took a gradient");
        }
    });
}

#[test]
fn weight_gradients_are_f32_and_activation_gradients_keep_their_type() {
    let weights = [
        ("linear", 1),
        ("lora_linear", 1),
        ("rms_norm", 1),
        ("embedding", 0),
        ("linear_cross_entropy_kd", 1),
    ];
    each_sample(|def, reference, sample, what| {
        let Vjp::Explicit(_) = def.vjp() else { return };
        for &i in reference.differentiable.iter().filter(|&&i| i < sample.inputs.len()) {
            let own = sample.inputs[i].0.dtype;
            if !own.is_float() {
                continue;
            }
            let (mut graph, operands, results) = apply(def, sample, Form::Composite);
            let seed = Builder::new(&mut graph).full_like(results[0], 1.0).unwrap();
            let g = backward(&mut graph, &[(results[0], seed)], &[operands[i]]).unwrap()[0].unwrap();
            let is_bias = matches!((def.name(), i), ("linear", 2) | ("lora_linear", 4));
            let want = if weights.contains(&(def.name(), i)) || is_bias { DType::F32 } else { own };
            assert_eq!(graph.ty(g).dtype, want, "{what}, operand {i}");
        }
    });
}

#[test]
fn wrong_operands_are_errors_and_never_panics() {
    each_sample(|def, _, sample, what| {
        let types = types_of(sample);
        for i in 0..types.len() {
            let mut fewer = types.clone();
            fewer.remove(i);
            assert!(def.infer(&sample.attrs, &fewer).is_err(), "{what}: fits without operand {i}");
            let changes: [fn(&mut TensorType); 5] = [
                |t| t.dims[0] += 1,
                |t| t.dims.push(1),
                |t| t.dims.insert(0, 0),
                |t| t.dims.clear(),
                |t| t.dtype = if t.dtype == DType::I32 { DType::F32 } else { DType::I32 },
            ];
            for (c, change) in changes.iter().enumerate() {
                let mut other = types.clone();
                change(&mut other[i]);
                let result = def.infer(&sample.attrs, &other);
                assert!(result.is_err() || c < 2, "{what}: operand {i} accepted as {}", other[i]);
            }
        }
        let mut more = types.clone();
        more.push(TensorType::scalar());
        assert!(def.infer(&sample.attrs, &more).is_err(), "{what}: accepts another operand");
    });
}

#[test]
fn costs_count_traffic_once() {
    each_sample(|def, _, sample, what| {
        let inputs = types_of(sample);
        let outputs = def.infer(&sample.attrs, &inputs).unwrap();
        let cost = def.cost(&sample.attrs, &inputs, &outputs);
        let all: usize = inputs.iter().chain(&outputs).map(TensorType::bytes).sum();
        let gathered: usize = outputs.iter().map(TensorType::bytes).sum();
        assert!(cost.bytes > 0 && cost.bytes <= (all + gathered) as u64, "{what}: {cost:?}");
    });
}

#[test]
fn samples_are_representable_and_reproducible() {
    each_sample(|_, _, sample, what| {
        let (a, b) = (materialise(sample, 7), materialise(sample, 7));
        assert_eq!(a, b, "{what}");
        for (t, (ty, content)) in a.iter().zip(&sample.inputs) {
            assert_eq!(t.dims, ty.dims, "{what}");
            assert_eq!(t.data.len(), fill(ty, content, 0).len(), "{what}");
            for &v in &t.data {
                assert_eq!(kfc_ops::samples::round_to(ty.dtype, v), v, "{what}: {v} is no {}", ty.dtype);
            }
        }
    });
}
