//! `feature_alignment`: squared distance between projected student features and teacher features.

use crate::common::{
    Operands, check_vjp, f32, fail, gemm_flops, grad, rows2d, sample, spread, square, take, unit,
};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs};

/// Operands: hs `[B,T,Hs]`, p `f32 [Ht,Hs]`, ht `[B,T,Ht]`, w `f32 [B,T]`. Result `f32 [1]`:
/// `Σ_i w_i Σ_d (P·hs_i − ht_i)_d²`. The gradient of p is `f32`.
pub struct FeatureAlignment;

/// The definition.
pub static FEATURE_ALIGNMENT: FeatureAlignment = FeatureAlignment;

const NAME: &str = "feature_alignment";

/// `Σ_i w_i ‖P·hs_i − ht_i‖²` for hs `[B,T,Hs]`, p `f32 [Ht,Hs]`, ht `[B,T,Ht]`, w `f32 [B,T]`: `f32 [1]`.
///
/// # Errors
/// If the operands do not fit.
pub fn feature_alignment(
    b: &mut Builder<'_>,
    hs: ValueId,
    p: ValueId,
    ht: ValueId,
    w: ValueId,
) -> Result<ValueId> {
    Ok(b.composite(&FEATURE_ALIGNMENT, Attrs::new(), &[hs, p, ht, w])?[0])
}

/// `P·hs − ht` as `f32 [B·T,Ht]`.
fn difference(b: &mut Builder<'_>, hs: ValueId, p: ValueId, ht: ValueId) -> Result<ValueId> {
    let (hs, ht) = (rows2d(b, hs)?, rows2d(b, ht)?);
    let (hs, ht) = (f32(b, hs)?, f32(b, ht)?);
    let projected = b.matmul(hs, p, false, true, DType::F32)?;
    b.sub(projected, ht)
}

/// Row weights `f32 [B,T]` as `[B·T,extent]`.
fn row_weights(b: &mut Builder<'_>, w: ValueId, extent: usize) -> Result<ValueId> {
    let rows = b.ty(w).elements();
    let w = b.reshape(w, &[rows, 1])?;
    spread(b, w, extent)
}

impl OpDef for FeatureAlignment {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let hs = i.float_rank("hs", 3)?;
        let p = i.ranked("p", DType::F32, 2)?;
        if p.dims[1] != hs.last() {
            return fail(NAME, format!("`p` must be f32[Ht,{}], is {p}", hs.last()));
        }
        i.float_dims("ht", &[hs.dims[0], hs.dims[1], p.dims[0]])?;
        i.exact("w", DType::F32, &hs.dims[..2])?;
        i.end()?;
        Ok(vec![TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [hs, p, ht, w] = take(NAME, inputs)?;
        let diff = difference(b, hs, p, ht)?;
        let squares = square(b, diff)?;
        let extent = b.ty(diff).last();
        let w = row_weights(b, w, extent)?;
        let weighted = b.mul(squares, w)?;
        Ok(vec![b.sum_all(weighted)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (m, hs, ht) = (inputs[0].rows(), inputs[1].dims[1], inputs[1].dims[0]);
        Cost::streaming(gemm_flops(m, ht, hs) + 4 * (m * ht) as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [
            (DType::F32, DType::F32),
            (DType::Bf16, DType::Bf16),
            (DType::F16, DType::F32),
            (DType::F32, DType::Bf16),
        ]
        .map(|(s, t)| {
            sample(
                Attrs::new(),
                vec![
                    unit(s, &[2, 3, 5]),
                    unit(DType::F32, &[7, 5]),
                    unit(t, &[2, 3, 7]),
                    unit(DType::F32, &[2, 3]),
                ],
            )
        })
        .into()
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1, 2], 1)?;
    let [hs, p, ht, w] = take(NAME, args.inputs)?;
    let (hs_ty, ht_ty) = (b.ty(hs).clone(), b.ty(ht).clone());
    let g = grad(b, args, 0, DType::F32)?;

    // d = 2·g·w·(P·hs − ht), the gradient of the projected features.
    let diff = difference(b, hs, p, ht)?;
    let w = row_weights(b, w, ht_ty.last())?;
    let d = b.mul(diff, w)?;
    let d = b.scale(d, 2.0)?;
    let g = b.broadcast_trailing(g, &[ht_ty.rows(), ht_ty.last()])?;
    let d = b.mul(d, g)?;

    let mut grads = vec![None; 4];
    if args.needs[0] {
        let dhs = b.matmul(d, p, false, false, DType::F32)?;
        let dhs = b.cast(dhs, hs_ty.dtype)?;
        grads[0] = Some(b.reshape(dhs, &hs_ty.dims)?);
    }
    if args.needs[1] {
        let hs = rows2d(b, hs)?;
        let hs = f32(b, hs)?;
        grads[1] = Some(b.matmul(d, hs, true, false, DType::F32)?);
    }
    if args.needs[2] {
        let dht = b.neg(d)?;
        let dht = b.cast(dht, ht_ty.dtype)?;
        grads[2] = Some(b.reshape(dht, &ht_ty.dims)?);
    }
    Ok(grads)
}
