//! Composites that stand for the shapes of real ones: decomposed, explicit, nested, without gradient, state, head.

use kfc_graph::*;

/// Every test composite.
pub fn defs() -> Registry {
    Registry::new(&[
        &Gate { name: "gate", explicit: false },
        &Gate { name: "gate_explicit", explicit: true },
        &Nested,
        &Accumulate { name: "accumulate" },
        &Accumulate { name: "no_gradient" },
        &Head(Part::Forward),
        &Head(Part::Backward),
        &Head(Part::Fused),
    ])
}

fn same(op: &str, inputs: &[TensorType], n: usize) -> Result<()> {
    match inputs.len() == n && inputs.iter().all(|t| t.dims == inputs[0].dims) {
        true => Ok(()),
        false => Err(GraphError::ty(op, format!("takes {n} operands of one shape"))),
    }
}

/// `scale · sigmoid(a) · b`, and `sigmoid(a)`.
struct Gate {
    name: &'static str,
    explicit: bool,
}

impl OpDef for Gate {
    fn name(&self) -> &'static str {
        self.name
    }
    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        same(self.name, inputs, 2)?;
        Ok(vec![inputs[0].clone(); 2])
    }
    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, x: &[ValueId]) -> Result<Vec<ValueId>> {
        let s = b.sigmoid(x[0])?;
        let y = b.mul(s, x[1])?;
        Ok(vec![b.scale(y, attrs.f64("scale")?)?, s])
    }
    fn vjp(&self) -> Vjp {
        if self.explicit { Vjp::Explicit(gate_vjp) } else { Vjp::ViaDecompose }
    }
    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(6 * inputs[0].elements() as u64, inputs, outputs)
    }
    fn samples(&self) -> Vec<Sample> {
        let x = || (TensorType::new(DType::F32, [3]), SampleInput::Uniform(-1.0, 1.0));
        vec![Sample { attrs: Attrs::new().with("scale", 2.0), inputs: vec![x(), x()] }]
    }
}

fn gate_vjp(b: &mut Builder<'_>, a: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    let (s, scale) = (a.outputs[1], a.attrs.f64("scale")?);
    let mut ds = a.grads[1];
    let mut db = None;
    if let Some(dy) = a.grads[0] {
        let dy = b.scale(dy, scale)?;
        let through = b.mul(dy, a.inputs[1])?;
        ds = Some(match ds {
            Some(g) => b.add(g, through)?,
            None => through,
        });
        if a.needs[1] {
            db = Some(b.mul(dy, s)?);
        }
    }
    let da = match ds {
        Some(ds) if a.needs[0] => {
            let one = b.full_like(s, 1.0)?;
            let rest = b.sub(one, s)?;
            let slope = b.mul(s, rest)?;
            Some(b.mul(ds, slope)?)
        }
        _ => None,
    };
    Ok(vec![da, db])
}

/// Two gates in a row: a decomposition that holds composites.
struct Nested;

impl OpDef for Nested {
    fn name(&self) -> &'static str {
        "nested"
    }
    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        same("nested", inputs, 2)?;
        Ok(vec![inputs[0].clone()])
    }
    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, x: &[ValueId]) -> Result<Vec<ValueId>> {
        static INNER: Gate = Gate { name: "gate", explicit: false };
        let attrs = Attrs::new().with("scale", 0.5);
        let first = b.composite(&INNER, attrs.clone(), x)?;
        Ok(vec![b.composite(&INNER, attrs, &[first[0], x[0]])?[0]])
    }
    fn vjp(&self) -> Vjp {
        Vjp::ViaDecompose
    }
    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(12 * inputs[0].elements() as u64, inputs, outputs)
    }
    fn samples(&self) -> Vec<Sample> {
        Gate { name: "gate", explicit: false }.samples()
    }
}

/// `acc + g` (one operand: `acc + 1`); no gradient.
struct Accumulate {
    name: &'static str,
}

impl OpDef for Accumulate {
    fn name(&self) -> &'static str {
        self.name
    }
    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        same(self.name, inputs, inputs.len().clamp(1, 2))?;
        if inputs[0].dtype != DType::F32 {
            return Err(GraphError::ty(self.name, "accumulates in f32"));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, x: &[ValueId]) -> Result<Vec<ValueId>> {
        match x {
            [acc, g] => {
                let g = b.cast(*g, DType::F32)?;
                Ok(vec![b.add(*acc, g)?])
            }
            _ => Ok(vec![b.shift(x[0], 1.0)?]),
        }
    }
    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }
    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].elements() as u64, inputs, outputs)
    }
    fn samples(&self) -> Vec<Sample> {
        let x = (TensorType::new(DType::F32, [3]), SampleInput::Uniform(-1.0, 1.0));
        vec![Sample { attrs: Attrs::new(), inputs: vec![x.clone(), x] }]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Forward,
    Backward,
    Fused,
}

/// A head in the operand order of the real one, over `ce = Σ w_ce · (h·wᵀ)` without labels.
struct Head(Part);

impl Head {
    fn grads(&self, attrs: &Attrs) -> Result<usize> {
        Ok(if self.0 == Part::Forward { 0 } else { 1 + usize::from(attrs.str("kd")? != "none") })
    }
}

impl OpDef for Head {
    fn name(&self) -> &'static str {
        match self.0 {
            Part::Forward => "linear_cross_entropy_kd",
            Part::Backward => "linear_cross_entropy_kd_bwd",
            Part::Fused => "linear_cross_entropy_kd_fused",
        }
    }
    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [h, w, _labels, ..] = &inputs[self.grads(attrs)?.min(inputs.len())..] else {
            return Err(GraphError::ty(self.name(), "takes h, w, labels, w_ce"));
        };
        let mut out = vec![];
        if self.0 != Part::Backward {
            out.extend(vec![TensorType::scalar(); if attrs.str("kd")? == "none" { 2 } else { 3 }]);
        }
        if self.0 != Part::Forward {
            out.push(h.clone());
            if attrs.bool("need_dw")? {
                out.push(TensorType::new(DType::F32, w.dims.clone()));
            }
        }
        Ok(out)
    }
    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, x: &[ValueId]) -> Result<Vec<ValueId>> {
        let (g, x) = x.split_at(self.grads(attrs)?);
        let hs = b.sum_all(x[0])?;
        let ws = b.sum_all(x[1])?;
        let kd = attrs.str("kd")? != "none";
        let mut out = vec![];
        if self.0 != Part::Backward {
            out.push(b.mul(hs, ws)?);
            if kd {
                out.push(b.add(hs, ws)?);
            }
            out.push(b.sum_all(x[3])?);
        }
        if self.0 != Part::Forward {
            for (i, &other) in [ws, hs].iter().enumerate().take(1 + usize::from(attrs.bool("need_dw")?)) {
                let mut d = b.mul(g[0], other)?;
                if kd {
                    d = b.add(d, g[1])?;
                }
                let dims = b.ty(x[i]).dims.clone();
                out.push(b.broadcast_trailing(d, &dims)?);
            }
        }
        Ok(out)
    }
    fn vjp(&self) -> Vjp {
        if self.0 == Part::Forward { Vjp::Explicit(head_vjp) } else { Vjp::Zero }
    }
    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0, inputs, outputs)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![]
    }
}

fn head_vjp(b: &mut Builder<'_>, a: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    let terms = 1 + usize::from(a.attrs.str("kd")? != "none");
    let mut inputs = vec![];
    for grad in &a.grads[..terms] {
        inputs.push(match grad {
            Some(g) => *g,
            None => b.scalar(0.0)?,
        });
    }
    inputs.extend(a.inputs);
    let out = b.composite(&Head(Part::Backward), a.attrs.clone().with("need_dw", a.needs[1]), &inputs)?;
    let mut grads = vec![None; a.inputs.len()];
    out.iter().enumerate().for_each(|(i, &v)| grads[i] = Some(v));
    Ok(grads)
}
