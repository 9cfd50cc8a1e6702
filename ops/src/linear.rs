//! `linear`: `x·wᵀ + b` with a weight that is trained or frozen as a whole.

use crate::common::{Operands, Values, check_vjp, f32, fail, gemm_flops, grad, rows2d, sample, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Linear layer. Attribute `bias`. Operands: x `[..,I]`, w `[O,I]`, (bias `[O]`), all of one float type.
/// Result `[..,O]` of that type. Gradients of w and bias are `f32`.
pub struct Linear;

/// The definition.
pub static LINEAR: Linear = Linear;

const NAME: &str = "linear";

/// `x·wᵀ (+ bias)` for x `[..,I]`, w `[O,I]`, bias `[O]`: `[..,O]`.
///
/// # Errors
/// If the operands do not fit.
pub fn linear(b: &mut Builder<'_>, x: ValueId, w: ValueId, bias: Option<ValueId>) -> Result<ValueId> {
    let mut inputs = vec![x, w];
    inputs.extend(bias);
    Ok(b.composite(&LINEAR, Attrs::new().with("bias", bias.is_some()), &inputs)?[0])
}

/// Checks w `[O,I]` against x `[..,I]`; returns `O`.
pub(crate) fn check_weight(op: &'static str, i: &mut Operands<'_>, x: &TensorType) -> Result<usize> {
    let w = i.float_rank("w", 2)?;
    if w.dtype != x.dtype || w.dims[1] != x.last() {
        return fail(op, format!("`w` must be {}[O,{}] to fit `x` {x}, is {w}", x.dtype, x.last()));
    }
    Ok(w.dims[0])
}

/// `x` with its last extent replaced.
pub(crate) fn with_last(x: &TensorType, dtype: DType, last: usize) -> TensorType {
    let mut dims = x.dims.clone();
    if let Some(l) = dims.last_mut() {
        *l = last;
    }
    TensorType::new(dtype, dims)
}

impl OpDef for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let x = i.float("x")?;
        let o = check_weight(NAME, &mut i, x)?;
        if attrs.bool("bias")? {
            i.exact("bias", x.dtype, &[o])?;
        }
        i.end()?;
        Ok(vec![with_last(x, x.dtype, o)])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut v = Values::new(NAME, inputs);
        let (x, w) = (v.next()?, v.next()?);
        let bias = v.next_if(attrs.bool("bias")?)?;
        let out = with_last(b.ty(x), b.ty(x).dtype, b.ty(w).dims[0]);
        let x2 = rows2d(b, x)?;
        let mut y = b.matmul(x2, w, false, true, if bias.is_some() { DType::F32 } else { out.dtype })?;
        if let Some(bias) = bias {
            y = add_bias(b, y, bias)?;
        }
        let y = b.cast(y, out.dtype)?;
        Ok(vec![b.reshape(y, &out.dims)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (x, w) = (&inputs[0], &inputs[1]);
        Cost::streaming(gemm_flops(x.rows(), w.dims[0], w.dims[1]), inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for bias in [false, true] {
                let mut inputs = vec![unit(dtype, &[2, 3, 5]), unit(dtype, &[7, 5])];
                if bias {
                    inputs.push(unit(dtype, &[7]));
                }
                samples.push(sample(Attrs::new().with("bias", bias), inputs));
            }
        }
        // Longer than a vector register and no multiple of one.
        samples.push(sample(
            Attrs::new().with("bias", false),
            vec![unit(DType::F32, &[9, 33]), unit(DType::F32, &[19, 33])],
        ));
        samples
    }
}

/// `y + bias` in f32, for y `f32 [M,O]`.
pub(crate) fn add_bias(b: &mut Builder<'_>, y: ValueId, bias: ValueId) -> Result<ValueId> {
    let dims = b.ty(y).dims.clone();
    let bias = f32(b, bias)?;
    let bias = b.broadcast_trailing(bias, &dims)?;
    b.add(y, bias)
}

/// Gradient of a weight: `dyᵀ·x` as `f32 [O,I]`.
pub(crate) fn weight_grad(b: &mut Builder<'_>, dy: ValueId, x: ValueId) -> Result<ValueId> {
    let (dy, x) = (rows2d(b, dy)?, rows2d(b, x)?);
    b.matmul(dy, x, true, false, DType::F32)
}

/// Gradient of a bias: column sums of `dy` as `f32 [O]`.
pub(crate) fn bias_grad(b: &mut Builder<'_>, dy: ValueId) -> Result<ValueId> {
    let dy = rows2d(b, dy)?;
    let dy = f32(b, dy)?;
    let sum = b.reduce_sum(dy, &[0])?;
    let o = b.ty(sum).last();
    b.reshape(sum, &[o])
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1, 2], 1)?;
    let (x, w) = (args.inputs[0], args.inputs[1]);
    let x_ty = b.ty(x).clone();
    let dy = grad(b, args, 0, x_ty.dtype)?;
    let mut grads = vec![None; args.inputs.len()];
    if args.needs[0] {
        let dy2 = rows2d(b, dy)?;
        let dx = b.matmul(dy2, w, false, false, x_ty.dtype)?;
        grads[0] = Some(b.reshape(dx, &x_ty.dims)?);
    }
    if args.needs[1] {
        grads[1] = Some(weight_grad(b, dy, x)?);
    }
    if args.needs.get(2) == Some(&true) {
        grads[2] = Some(bias_grad(b, dy)?);
    }
    Ok(grads)
}
