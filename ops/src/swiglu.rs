//! `swiglu` and `swiglu_bwd`: the gated activation `silu(gate)·up` (Shazeer, 2020).

use crate::common::{Operands, check_vjp, f32, grad, sample, take, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Forward. Operands: gate, up of one float type and shape. Result of the same type.
pub struct Swiglu;

/// Backward. Operands: dy, gate, up. Results: dgate, dup.
pub struct SwigluBwd;

/// The definition of the forward operation.
pub static SWIGLU: Swiglu = Swiglu;
/// The definition of the backward operation.
pub static SWIGLU_BWD: SwigluBwd = SwigluBwd;

const NAME: &str = "swiglu";
const BWD: &str = "swiglu_bwd";
const SHAPES: [(DType, &[usize]); 4] =
    [(DType::F32, &[2, 3, 7]), (DType::Bf16, &[2, 3, 7]), (DType::F16, &[2, 3, 7]), (DType::F32, &[67])];

/// `silu(gate)·up` with `silu(g) = g·sigmoid(g)`.
///
/// # Errors
/// If the operands do not fit.
pub fn swiglu(b: &mut Builder<'_>, gate: ValueId, up: ValueId) -> Result<ValueId> {
    Ok(b.composite(&SWIGLU, Attrs::new(), &[gate, up])?[0])
}

impl OpDef for Swiglu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let gate = i.float("gate")?;
        i.exact("up", gate.dtype, &gate.dims)?;
        i.end()?;
        Ok(vec![gate.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [gate, up] = take(NAME, inputs)?;
        let dtype = b.ty(gate).dtype;
        let (gate, up) = (f32(b, gate)?, f32(b, up)?);
        let sigmoid = b.sigmoid(gate)?;
        let silu = b.mul(gate, sigmoid)?;
        let y = b.mul(silu, up)?;
        Ok(vec![b.cast(y, dtype)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(5 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        SHAPES.map(|(x, dims)| sample(Attrs::new(), vec![unit(x, dims), unit(x, dims)])).into()
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1], 1)?;
    let dtype = b.ty(args.inputs[0]).dtype;
    let dy = grad(b, args, 0, dtype)?;
    let results = b.composite(&SWIGLU_BWD, Attrs::new(), &[dy, args.inputs[0], args.inputs[1]])?;
    Ok((0..2).map(|i| Some(results[i]).filter(|_| args.needs[i])).collect())
}

impl OpDef for SwigluBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(BWD, inputs);
        let dy = i.float("dy")?;
        i.exact("gate", dy.dtype, &dy.dims)?;
        i.exact("up", dy.dtype, &dy.dims)?;
        i.end()?;
        Ok(vec![dy.clone(), dy.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [dy, gate, up] = take(BWD, inputs)?;
        let dtype = b.ty(dy).dtype;
        let (dy, gate, up) = (f32(b, dy)?, f32(b, gate)?, f32(b, up)?);
        let s = b.sigmoid(gate)?;
        let silu = b.mul(gate, s)?;
        let dup = b.mul(dy, silu)?;
        // silu'(g) = s · (1 + g·(1−s)) = s + silu·(1−s)
        let one = b.full_like(s, 1.0)?;
        let rest = b.sub(one, s)?;
        let slope = b.mul(silu, rest)?;
        let slope = b.add(s, slope)?;
        let dgate = b.mul(dy, up)?;
        let dgate = b.mul(dgate, slope)?;
        Ok(vec![b.cast(dgate, dtype)?, b.cast(dup, dtype)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(10 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        SHAPES.map(|(x, dims)| sample(Attrs::new(), vec![unit(x, dims), unit(x, dims), unit(x, dims)])).into()
    }
}
