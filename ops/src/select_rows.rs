//! `select_rows`: one position of each sequence, such as the last one before decoding.

use crate::common::{Operands, exact, sample, take, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Prim, Result, Sample, TensorType, ValueId, Vjp};

/// Operands: x `[B,T,H]` of a float type, idx `i32 [B]` in `0..T`. Result `[B,1,H]`: row `idx[b]` of each b.
pub struct SelectRows;

/// The definition.
pub static SELECT_ROWS: SelectRows = SelectRows;

const NAME: &str = "select_rows";

/// Row `idx[b]` of each sequence of x `[B,T,H]`: `[B,1,H]`.
///
/// # Errors
/// If the operands do not fit.
pub fn select_rows(b: &mut Builder<'_>, x: ValueId, idx: ValueId) -> Result<ValueId> {
    Ok(b.composite(&SELECT_ROWS, Attrs::new(), &[x, idx])?[0])
}

impl OpDef for SelectRows {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let x = i.float_rank("x", 3)?;
        i.exact("idx", DType::I32, &[x.dims[0]])?;
        i.end()?;
        Ok(vec![TensorType::new(x.dtype, [x.dims[0], 1, x.dims[2]])])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, idx] = take(NAME, inputs)?;
        let dims = b.ty(x).dims.clone();
        let (batch, t) = (dims[0], dims[1]);
        let first = b.iota(&[batch, 1], 0)?;
        let first = b.scale(first, t as f64)?;
        let idx = b.reshape(idx, &[batch, 1])?;
        let ids = b.add(first, idx)?;
        let table = b.reshape(x, &[batch * t, dims[2]])?;
        Ok(vec![b.prim(Prim::Gather, &[table, ids])?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost { flops: 0, bytes: (inputs[1].bytes() + 2 * outputs[0].bytes()) as u64 }
    }

    fn samples(&self) -> Vec<Sample> {
        [DType::F32, DType::Bf16, DType::F16]
            .map(|x| {
                sample(Attrs::new(), vec![unit(x, &[3, 4, 5]), exact(DType::I32, &[3], &[3.0, 0.0, 1.0])])
            })
            .into()
    }
}
