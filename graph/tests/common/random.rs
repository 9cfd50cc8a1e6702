//! Random valid graphs for the property tests.

use super::{Rng, defs};
use kfc_graph::*;

const SHAPES: [[usize; 2]; 4] = [[2, 3], [3, 2], [1, 3], [4, 4]];

/// A graph of about `size` nodes over a few shapes and types, with states that are updated. The same seed gives the
/// same graph.
pub fn random_graph(seed: u64, size: usize) -> Graph {
    let mut rng = Rng(seed);
    let mut g = Graph::new(format!("random {seed}"));
    let mut values = vec![];
    let mut states = vec![];
    for i in 0..6 {
        let kind = InputKind::ALL[rng.below(3)];
        let dtype = if i == 0 { DType::Bf16 } else { DType::F32 };
        let v = g.add_input(format!("x{i}"), kind, TensorType::new(dtype, SHAPES[rng.below(4)]));
        values.push(v);
        if kind == InputKind::State {
            states.push(v);
        }
    }
    let seed_value = g.add_input("seed", InputKind::Data, TensorType::new(DType::I32, [2]));
    for i in 0..size {
        let mut b = Builder::new(&mut g);
        b.phase = Phase::ALL[rng.below(4)];
        b.set_scope(["", "a", "layers.1"][rng.below(3)]);
        if let Some(v) = random_node(&mut b, &mut rng, &values, seed_value) {
            values.extend(v);
        }
        // States in the middle of the graph, so that reads before and after exist.
        if i == size / 2 {
            for s in states.clone() {
                let Some(&x) = values.iter().rev().find(|v| g.ty(**v).dims == g.ty(s).dims && **v != s)
                else {
                    continue;
                };
                let mut b = Builder::new(&mut g);
                let new = b.composite(defs().get("accumulate").unwrap(), Attrs::new(), &[s, x]);
                if let Ok(new) = new {
                    values.push(new[0]);
                }
            }
        }
    }
    for (i, s) in states.into_iter().enumerate() {
        let new = values.iter().rev().find(|v| {
            let chained = matches!(g.def(**v), Def::Node(n, _) if g.node(n).inputs.contains(&s));
            g.ty(**v) == g.ty(s) && chained
        });
        if let Some(&new) = new {
            g.add_output(format!("s{i}"), new, Some(s));
        }
    }
    for i in 0..3 {
        let v = values[values.len() - 1 - rng.below(values.len().min(8))];
        let updated = g.outputs().iter().any(|o| o.updates == Some(v));
        if !updated {
            g.add_output(format!("y{i}"), v, None);
        }
    }
    g
}

/// Appends one operation; `None` if the drawn operands do not fit it.
fn random_node(
    b: &mut Builder<'_>,
    rng: &mut Rng,
    values: &[ValueId],
    seed: ValueId,
) -> Option<Vec<ValueId>> {
    let x = values[rng.below(values.len())];
    let ty = b.ty(x).clone();
    let float = ty.dtype.is_float();
    let alike: Vec<ValueId> = values.iter().copied().filter(|&v| *b.ty(v) == ty).collect();
    let y = alike[rng.below(alike.len())];
    let swapped = vec![ty.dims[1], ty.dims[0]];
    let one = match rng.below(19) {
        0 => b.add(x, y),
        1 => b.mul(x, y),
        2 => b.sub(x, y),
        3 => b.prim(Prim::Max, &[x, y]),
        4 if float => b.neg(x),
        5 if float => b.sigmoid(x),
        6 => b.cast(x, DType::ALL[rng.below(3)]),
        7 => b.reshape(x, &swapped),
        8 => b.transpose(x, &[1, 0]),
        9 if float => b.reduce_sum(x, &[0]),
        10 => b.broadcast(x, &[if ty.dims[0] == 1 { 2 } else { ty.dims[0] }, ty.dims[1]]),
        11 if float => b.matmul(x, y, false, true, DType::F32),
        12 => b.constant(ty, [0.0, 1.0, -1.0, 2.0, 3.0][rng.below(5)]),
        13 => b.compare(CmpOp::Le, x, y),
        14 => b.prim(Prim::Random { dims: ty.dims, stream: rng.below(2) as u32 }, &[seed]),
        15 => b.slice(x, 1, 0, ty.dims[1].min(2)),
        16 if float => {
            return b.composite(defs().get("nested").unwrap(), Attrs::new(), &[x, y]).ok();
        }
        17 if float => {
            let attrs = Attrs::new().with("scale", 1.25);
            return b.composite(defs().get("gate").unwrap(), attrs, &[x, y]).ok();
        }
        18 if ty.dtype == DType::F32 => {
            return b.composite(defs().get("accumulate").unwrap(), Attrs::new(), &[x, y]).ok();
        }
        _ => return None,
    };
    one.ok().map(|v| vec![v])
}

/// A random forward pass in two layers, and its gradient with respect to every float input; every seed gives some.
pub fn random_training(seed: u64, size: usize) -> Graph {
    let mut rng = Rng(seed);
    let mut g = Graph::new(format!("training {seed}"));
    let ty = TensorType::new(DType::F32, [4, 4]);
    let seed_value = g.add_input("seed", InputKind::Data, TensorType::new(DType::I32, [2]));
    let inputs: Vec<ValueId> =
        (0..3).map(|i| g.add_input(format!("x{i}"), InputKind::Weight, ty.clone())).collect();
    let mut b = Builder::new(&mut g);
    let mut values = inputs.clone();
    for i in 0..size {
        b.set_scope(&format!("layers.{}.{}", 3 * i / size, ["attn", "mlp"][6 * i / size % 2]));
        let (x, y) = (values[rng.below(values.len())], values[values.len() - 1]);
        let new = match rng.below(7) {
            0 => b.add(x, y),
            1 => b.mul(x, y),
            2 => b.sigmoid(y),
            3 => b.matmul(x, y, false, true, DType::F32),
            4 => b.prim(Prim::Random { dims: vec![4, 4], stream: i as u32 }, &[seed_value]),
            5 => b.reshape(y, &[2, 8]).and_then(|r| b.sigmoid(r)).and_then(|r| b.reshape(r, &[4, 4])),
            _ => {
                let attrs = Attrs::new().with("scale", 1.25);
                let def = defs().get("gate_explicit").unwrap();
                b.composite(def, attrs, &[x, y]).map(|v| v[0])
            }
        };
        values.push(new.unwrap());
    }
    b.set_scope("loss");
    let mut loss = values[values.len() - 1];
    for &x in &inputs {
        loss = b.add(loss, x).unwrap();
    }
    let one = b.full_like(loss, 1.0).unwrap();
    g.add_output("loss", loss, None);
    let grads = autodiff::backward(&mut g, &[(loss, one)], &inputs).unwrap();
    let mut seen = vec![loss];
    for (i, grad) in grads.into_iter().enumerate() {
        let Some(grad) = grad.filter(|v| !seen.contains(v)) else { continue };
        seen.push(grad);
        g.add_output(format!("d{i}"), grad, None);
    }
    g
}
