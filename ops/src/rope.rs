//! `rope`: rotary position embedding (Su et al., 2021) in the half-split layout of transformers' llama.

use crate::common::{Operands, check_vjp, f32, fail, grad, integers, sample, take, unit};
use kfc_graph::{
    Attrs, Builder, Cost, DType, OpDef, Prim, Result, Sample, TensorType, ValueId, Vjp, VjpArgs,
};

/// Rotation. Attributes `head_dim` = D (even), `inverse`. Operands: x `[B,T,C]` X with C a multiple of D, cos
/// and sin `f32 [P,D/2]`, pos `i32 [B,T]` in `0..P`. Result `[B,T,C]` X: in each head elements i and i+D/2
/// are rotated by the angle of their position; `inverse` rotates back (which is also the transpose).
pub struct Rope;

/// The definition.
pub static ROPE: Rope = Rope;

const NAME: &str = "rope";

/// Rotates the heads of `x` `[B,T,heads·head_dim]` by the angles of `pos` `i32 [B,T]` in the tables `cos`,
/// `sin` `f32 [P,head_dim/2]`.
///
/// # Errors
/// If the operands do not fit.
pub fn rope(
    b: &mut Builder<'_>,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    pos: ValueId,
    head_dim: usize,
) -> Result<ValueId> {
    let attrs = Attrs::new().with("head_dim", head_dim).with("inverse", false);
    Ok(b.composite(&ROPE, attrs, &[x, cos, sin, pos])?[0])
}

impl OpDef for Rope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.bool("inverse")?;
        let d = attrs.usize("head_dim")?;
        let mut i = Operands::new(NAME, inputs);
        let x = i.float_rank("x", 3)?;
        if d == 0 || d % 2 != 0 || x.last() % d != 0 {
            return fail(
                NAME,
                format!("`head_dim` must be even and divide the last extent of `x` {x}, is {d}"),
            );
        }
        let cos = i.ranked("cos", DType::F32, 2)?;
        if cos.last() != d / 2 {
            return fail(NAME, format!("`cos` must be f32[P,{}], is {cos}", d / 2));
        }
        i.exact("sin", DType::F32, &cos.dims)?;
        i.exact("pos", DType::I32, &x.dims[..2])?;
        i.end()?;
        Ok(vec![x.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, cos, sin, pos] = take(NAME, inputs)?;
        let ty = b.ty(x).clone();
        let (rows, d) = (ty.rows(), attrs.usize("head_dim")?);
        let half = [rows, ty.last() / d, d / 2];

        let x = f32(b, x)?;
        let x = b.reshape(x, &[rows, ty.last() / d, d])?;
        let (x1, x2) = (b.slice(x, 2, 0, d / 2)?, b.slice(x, 2, d / 2, d)?);
        let cos = table_rows(b, cos, pos, half)?;
        let sin = table_rows(b, sin, pos, half)?;
        let sin = if attrs.bool("inverse")? { b.neg(sin)? } else { sin };
        let (x1c, x2s) = (b.mul(x1, cos)?, b.mul(x2, sin)?);
        let (x2c, x1s) = (b.mul(x2, cos)?, b.mul(x1, sin)?);
        let (y1, y2) = (b.sub(x1c, x2s)?, b.add(x2c, x1s)?);
        let y = b.concat(&[y1, y2], 2)?;
        let y = b.cast(y, ty.dtype)?;
        Ok(vec![b.reshape(y, &ty.dims)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let x = &inputs[0];
        // One row of each table a token.
        let tables = x.rows() as u64 * attrs.usize("head_dim").unwrap_or(0) as u64 * 4;
        let bytes = (x.bytes() + inputs[3].bytes() + outputs[0].bytes()) as u64 + tables;
        Cost { flops: 3 * x.elements() as u64, bytes }
    }

    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for x in [DType::F32, DType::Bf16, DType::F16] {
            for inverse in [false, true] {
                samples.push(sample(
                    Attrs::new().with("head_dim", 6usize).with("inverse", inverse),
                    vec![
                        unit(x, &[2, 3, 18]),
                        unit(DType::F32, &[11, 3]),
                        unit(DType::F32, &[11, 3]),
                        integers(&[2, 3], 0, 11),
                    ],
                ));
            }
        }
        samples
    }
}

/// Rows of a table `f32 [P,D/2]` by position, for every head: `[B·T,heads,D/2]`.
fn table_rows(b: &mut Builder<'_>, table: ValueId, pos: ValueId, half: [usize; 3]) -> Result<ValueId> {
    let rows = b.prim(Prim::Gather, &[table, pos])?;
    let rows = b.reshape(rows, &[half[0], 1, half[2]])?;
    b.broadcast(rows, &half)
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0], 1)?;
    let dtype = b.ty(args.inputs[0]).dtype;
    let dy = grad(b, args, 0, dtype)?;
    let attrs = args.attrs.clone().with("inverse", !args.attrs.bool("inverse")?);
    let dx = b.composite(&ROPE, attrs, &[dy, args.inputs[1], args.inputs[2], args.inputs[3]])?[0];
    Ok(vec![Some(dx), None, None, None])
}
