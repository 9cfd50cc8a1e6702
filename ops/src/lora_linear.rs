//! `lora_linear` and `lora_linear_bwd`: a linear layer with a low-rank adapter (Hu et al., 2021).
//!
//! `y = x·wᵀ + scale · s·bᵀ (+ bias)` with `s = dropout(x)·aᵀ`. The adapter is computed in f32 whatever the
//! type of x. The dropout mask is never stored: element `i` (row-major in x) is kept iff the `i`-th number of
//! the stream, a multiple of 2^-16, is at least the dropout probability, so the backward pass draws the same mask again.

use crate::common::{Operands, Values, check_vjp, exact, f32, fail, gemm_flops, grad, rows2d, sample, unit};
use crate::linear::{add_bias, bias_grad, check_weight, weight_grad, with_last};
use kfc_graph::{
    Attrs, Builder, CmpOp, Cost, DType, OpDef, Prim, Result, Sample, TensorType, ValueId, Vjp, VjpArgs,
};

/// Forward. Attributes `bias`, `scale`, `dropout` (in `[0, `[`MOST_DROPOUT`]`]`), `stream`. Operands: x `[..,I]` X, w `[O,I]`
/// X, a `f32 [r,I]`, b `f32 [O,r]`, (bias `[O]` X), (seed `i32 [2]` if dropout > 0). Results: y `[..,O]` X
/// and s `f32 [..,r]`, unscaled. Only y carries a gradient; those of a, b, w and bias are `f32`.
pub struct LoraLinearDef;

/// Backward. Attributes `scale`, `dropout`, `stream`, `need_dx`. Operands: dy `[..,O]`, x, w, a, b, s,
/// (seed). Results: (dx X if `need_dx`), da `f32 [r,I]`, db `f32 [O,r]`.
pub struct LoraLinearBwd;

/// The definition of the forward operation.
pub static LORA_LINEAR: LoraLinearDef = LoraLinearDef;
/// The definition of the backward operation.
pub static LORA_LINEAR_BWD: LoraLinearBwd = LoraLinearBwd;

const NAME: &str = "lora_linear";
const BWD: &str = "lora_linear_bwd";

/// Dropout of an adapter's input.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability of dropping an element, in `(0,1)`.
    pub p: f64,
    /// `i32 [2]`, different in every step and micro-batch.
    pub seed: ValueId,
    /// Distinguishes the layers that share the seed.
    pub stream: u32,
}

/// Arguments of [`lora_linear`].
#[derive(Clone, Copy, Debug)]
pub struct LoraLinear {
    /// `[..,I]`.
    pub x: ValueId,
    /// Frozen or trained weight `[O,I]`, of the type of x.
    pub w: ValueId,
    /// `f32 [r,I]`.
    pub a: ValueId,
    /// `f32 [O,r]`.
    pub b: ValueId,
    /// `[O]`, of the type of x.
    pub bias: Option<ValueId>,
    /// `alpha / r`, or `alpha / √r` for rank-stabilised adapters.
    pub scale: f64,
    /// None while evaluating.
    pub dropout: Option<Dropout>,
}

/// `x·wᵀ + scale·dropout(x)·aᵀ·bᵀ (+ bias)`: `[..,O]`.
///
/// # Errors
/// If the operands do not fit.
pub fn lora_linear(b: &mut Builder<'_>, l: &LoraLinear) -> Result<ValueId> {
    let attrs = Attrs::new()
        .with("bias", l.bias.is_some())
        .with("scale", l.scale)
        .with("dropout", l.dropout.map_or(0.0, |d| d.p))
        .with("stream", l.dropout.map_or(0, |d| d.stream as usize));
    let mut inputs = vec![l.x, l.w, l.a, l.b];
    inputs.extend(l.bias);
    inputs.extend(l.dropout.map(|d| d.seed));
    Ok(b.composite(&LORA_LINEAR, attrs, &inputs)?[0])
}

/// The largest dropout probability: numbers are multiples of 2^-16, the largest of which would be below a larger one, too, and
/// nothing would be kept.
pub const MOST_DROPOUT: f64 = 65535.0 / 65536.0;

/// The dropout probability, checked.
fn probability(op: &str, attrs: &Attrs) -> Result<f64> {
    let p = attrs.f64("dropout")?;
    if (0.0..=MOST_DROPOUT).contains(&p) {
        Ok(p)
    } else {
        fail(op, format!("`dropout` must be in [0,{MOST_DROPOUT}], is {p}"))
    }
}

fn stream(op: &str, attrs: &Attrs) -> Result<u32> {
    let s = attrs.usize("stream")?;
    u32::try_from(s).or_else(|_| fail(op, format!("`stream` must fit 32 bits, is {s}")))
}

/// Checks a `f32 [r,I]` and b `f32 [O,r]`; returns `r`.
fn check_adapter(op: &'static str, i: &mut Operands<'_>, o: usize, inner: usize) -> Result<usize> {
    let a = i.ranked("a", DType::F32, 2)?;
    if a.dims[1] != inner {
        return fail(op, format!("`a` must be f32[r,{inner}], is {a}"));
    }
    i.exact("b", DType::F32, &[o, a.dims[0]])?;
    Ok(a.dims[0])
}

/// `1/(1-p)` where an element of `x` is kept and 0 elsewhere, shaped like x; `None` without dropout.
fn keep_mask(
    b: &mut Builder<'_>,
    op: &str,
    attrs: &Attrs,
    x: ValueId,
    seed: Option<ValueId>,
) -> Result<Option<ValueId>> {
    let Some(seed) = seed else { return Ok(None) };
    let p = probability(op, attrs)?;
    let dims = b.ty(x).dims.clone();
    let u = b.prim(Prim::Random { dims, stream: stream(op, attrs)? }, &[seed])?;
    let p_all = b.full_like(u, p)?;
    let keep = b.compare(CmpOp::Le, p_all, u)?;
    let (kept, dropped) = (b.full_like(u, 1.0 / (1.0 - p))?, b.full_like(u, 0.0)?);
    b.select(keep, kept, dropped).map(Some)
}

/// `dropout(x)` as `f32 [M,I]`.
fn dropped_rows(b: &mut Builder<'_>, x: ValueId, mask: Option<ValueId>) -> Result<ValueId> {
    let mut x = f32(b, x)?;
    if let Some(mask) = mask {
        x = b.mul(x, mask)?;
    }
    rows2d(b, x)
}

impl OpDef for LoraLinearDef {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        stream(NAME, attrs)?;
        let mut i = Operands::new(NAME, inputs);
        let x = i.float("x")?;
        let o = check_weight(NAME, &mut i, x)?;
        let r = check_adapter(NAME, &mut i, o, x.last())?;
        if attrs.bool("bias")? {
            i.exact("bias", x.dtype, &[o])?;
        }
        if probability(NAME, attrs)? > 0.0 {
            i.exact("seed", DType::I32, &[2])?;
        }
        i.end()?;
        Ok(vec![with_last(x, x.dtype, o), with_last(x, DType::F32, r)])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut v = Values::new(NAME, inputs);
        let (x, w, lora_a, lora_b) = (v.next()?, v.next()?, v.next()?, v.next()?);
        let bias = v.next_if(attrs.bool("bias")?)?;
        let seed = v.next_if(probability(NAME, attrs)? > 0.0)?;
        let y_ty = with_last(b.ty(x), b.ty(x).dtype, b.ty(w).dims[0]);
        let s_ty = with_last(b.ty(x), DType::F32, b.ty(lora_a).dims[0]);

        let mask = keep_mask(b, NAME, attrs, x, seed)?;
        let xd = dropped_rows(b, x, mask)?;
        let s = b.matmul(xd, lora_a, false, true, DType::F32)?;
        let low_rank = b.matmul(s, lora_b, false, true, DType::F32)?;
        let low_rank = b.scale(low_rank, attrs.f64("scale")?)?;
        let x2 = rows2d(b, x)?;
        let base = b.matmul(x2, w, false, true, DType::F32)?;
        let mut y = b.add(base, low_rank)?;
        if let Some(bias) = bias {
            y = add_bias(b, y, bias)?;
        }
        let y = b.cast(y, y_ty.dtype)?;
        Ok(vec![b.reshape(y, &y_ty.dims)?, b.reshape(s, &s_ty.dims)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (m, o, i, r) = (inputs[0].rows(), inputs[1].dims[0], inputs[1].dims[1], inputs[2].dims[0]);
        let flops = gemm_flops(m, o, i) + gemm_flops(m, r, i) + gemm_flops(m, o, r);
        Cost::streaming(flops, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for (bias, dropout) in [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.1)] {
                let attrs = Attrs::new()
                    .with("bias", bias)
                    .with("scale", 1.5)
                    .with("dropout", dropout)
                    .with("stream", 3usize);
                let mut inputs = vec![
                    unit(dtype, &[2, 3, 5]),
                    unit(dtype, &[7, 5]),
                    unit(DType::F32, &[2, 5]),
                    unit(DType::F32, &[7, 2]),
                ];
                if bias {
                    inputs.push(unit(dtype, &[7]));
                }
                if dropout > 0.0 {
                    inputs.push(exact(DType::I32, &[2], &[12345.0, -7.0]));
                }
                samples.push(sample(attrs, inputs));
            }
        }
        samples.push(longer_sample());
        samples
    }
}

/// Rows longer than a vector register and no multiple of one.
fn longer_sample() -> Sample {
    let attrs =
        Attrs::new().with("bias", false).with("scale", 2.0).with("dropout", 0.2).with("stream", 5usize);
    let inputs = vec![
        unit(DType::F32, &[9, 33]),
        unit(DType::F32, &[19, 33]),
        unit(DType::F32, &[3, 33]),
        unit(DType::F32, &[19, 3]),
        exact(DType::I32, &[2], &[7.0, 9.0]),
    ];
    sample(attrs, inputs)
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    let has_bias = args.attrs.bool("bias")?;
    let differentiable: &[usize] = if has_bias { &[0, 1, 2, 3, 4] } else { &[0, 1, 2, 3] };
    check_vjp(NAME, args, differentiable, 1)?;
    let (x, w) = (args.inputs[0], args.inputs[1]);
    let dtype = b.ty(x).dtype;
    let dy = grad(b, args, 0, dtype)?;
    let mut grads = vec![None; args.inputs.len()];

    let need_dx = args.needs[0];
    if need_dx || args.needs[2] || args.needs[3] {
        let attrs = Attrs::new()
            .with("scale", args.attrs.f64("scale")?)
            .with("dropout", args.attrs.f64("dropout")?)
            .with("stream", args.attrs.usize("stream")?)
            .with("need_dx", need_dx);
        let mut inputs = vec![dy, x, w, args.inputs[2], args.inputs[3], args.outputs[1]];
        if args.attrs.f64("dropout")? > 0.0 {
            inputs.extend(args.inputs.last());
        }
        let results = b.composite(&LORA_LINEAR_BWD, attrs, &inputs)?;
        let mut r = Values::new(BWD, &results);
        grads[0] = r.next_if(need_dx)?;
        grads[2] = Some(r.next()?).filter(|_| args.needs[2]);
        grads[3] = Some(r.next()?).filter(|_| args.needs[3]);
    }
    if args.needs[1] {
        grads[1] = Some(weight_grad(b, dy, x)?);
    }
    if has_bias && args.needs[4] {
        grads[4] = Some(bias_grad(b, dy)?);
    }
    Ok(grads)
}

impl OpDef for LoraLinearBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        stream(BWD, attrs)?;
        let mut i = Operands::new(BWD, inputs);
        let dy = i.float("dy")?;
        let x = i.float("x")?;
        let o = check_weight(BWD, &mut i, x)?;
        if *dy != with_last(x, x.dtype, o) {
            return fail(BWD, format!("`dy` must be {}, is {dy}", with_last(x, x.dtype, o)));
        }
        let r = check_adapter(BWD, &mut i, o, x.last())?;
        i.exact("s", DType::F32, &with_last(x, DType::F32, r).dims)?;
        if probability(BWD, attrs)? > 0.0 {
            i.exact("seed", DType::I32, &[2])?;
        }
        i.end()?;
        let mut results = Vec::new();
        if attrs.bool("need_dx")? {
            results.push(x.clone());
        }
        results.extend([TensorType::new(DType::F32, [r, x.last()]), TensorType::new(DType::F32, [o, r])]);
        Ok(results)
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut v = Values::new(BWD, inputs);
        let (dy, x, w) = (v.next()?, v.next()?, v.next()?);
        let (lora_a, lora_b, s) = (v.next()?, v.next()?, v.next()?);
        let seed = v.next_if(probability(BWD, attrs)? > 0.0)?;
        let x_ty = b.ty(x).clone();

        let mask = keep_mask(b, BWD, attrs, x, seed)?;
        let xd = dropped_rows(b, x, mask)?;
        let dy2 = rows2d(b, dy)?;
        let dy2 = f32(b, dy2)?;
        let scaled = b.scale(dy2, attrs.f64("scale")?)?;
        let s = rows2d(b, s)?;
        let ds = b.matmul(scaled, lora_b, false, false, DType::F32)?;
        let da = b.matmul(ds, xd, true, false, DType::F32)?;
        let db = b.matmul(scaled, s, true, false, DType::F32)?;
        if !attrs.bool("need_dx")? {
            return Ok(vec![da, db]);
        }
        let mut through_adapter = b.matmul(ds, lora_a, false, false, DType::F32)?;
        if let Some(mask) = mask {
            let mask = rows2d(b, mask)?;
            through_adapter = b.mul(through_adapter, mask)?;
        }
        let through_base = b.matmul(dy2, w, false, false, DType::F32)?;
        let dx = b.add(through_base, through_adapter)?;
        let dx = b.cast(dx, x_ty.dtype)?;
        Ok(vec![b.reshape(dx, &x_ty.dims)?, da, db])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (m, o, i, r) = (inputs[1].rows(), inputs[2].dims[0], inputs[2].dims[1], inputs[3].dims[0]);
        // ds, db; da.
        let mut flops = 2 * gemm_flops(m, o, r) + gemm_flops(m, r, i);
        let mut read: Vec<TensorType> = inputs.to_vec();
        if attrs.bool("need_dx") == Ok(true) {
            flops += gemm_flops(m, o, i) + gemm_flops(m, r, i);
        } else {
            // The weight is only read for dx.
            read.remove(2);
        }
        Cost::streaming(flops, &read, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for (need_dx, dropout) in [(true, 0.0), (false, 0.0), (true, 0.3), (false, 0.1)] {
                let attrs = Attrs::new()
                    .with("scale", 0.75)
                    .with("dropout", dropout)
                    .with("stream", 3usize)
                    .with("need_dx", need_dx);
                let mut inputs = vec![
                    unit(dtype, &[2, 3, 7]),
                    unit(dtype, &[2, 3, 5]),
                    unit(dtype, &[7, 5]),
                    unit(DType::F32, &[2, 5]),
                    unit(DType::F32, &[7, 2]),
                    unit(DType::F32, &[2, 3, 2]),
                ];
                if dropout > 0.0 {
                    inputs.push(exact(DType::I32, &[2], &[12345.0, -7.0]));
                }
                samples.push(sample(attrs, inputs));
            }
        }
        samples
    }
}
