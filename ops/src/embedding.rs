//! `embedding`: rows of a table by token id.

use crate::common::{Operands, check_vjp, grad, integers, sample, take, unit};
use kfc_graph::{
    Attrs, Builder, Cost, DType, OpDef, Prim, Result, Sample, TensorType, ValueId, Vjp, VjpArgs,
};

/// Token embedding. Operands: table `[V,H]` of a float type, ids `i32 [B,T]` in `0..V`. Result `[B,T,H]` of
/// the table's type. The gradient of the table is `f32 [V,H]`.
pub struct Embedding;

/// The definition.
pub static EMBEDDING: Embedding = Embedding;

const NAME: &str = "embedding";

/// Rows of `table` `[V,H]` named by `ids` `i32 [B,T]`: `[B,T,H]`.
///
/// # Errors
/// If the operands do not fit.
pub fn embedding(b: &mut Builder<'_>, table: ValueId, ids: ValueId) -> Result<ValueId> {
    Ok(b.composite(&EMBEDDING, Attrs::new(), &[table, ids])?[0])
}

impl OpDef for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let table = i.float_rank("table", 2)?;
        let ids = i.ranked("ids", DType::I32, 2)?;
        i.end()?;
        Ok(vec![TensorType::new(table.dtype, [ids.dims[0], ids.dims[1], table.dims[1]])])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [table, ids] = take(NAME, inputs)?;
        Ok(vec![b.prim(Prim::Gather, &[table, ids])?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // Only the named rows of the table are read.
        Cost { flops: 0, bytes: (inputs[1].bytes() + 2 * outputs[0].bytes()) as u64 }
    }

    fn samples(&self) -> Vec<Sample> {
        [DType::F32, DType::Bf16, DType::F16]
            .map(|x| sample(Attrs::new(), vec![unit(x, &[7, 5]), integers(&[2, 6], 0, 7)]))
            .into()
    }
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0], 1)?;
    if !args.needs[0] {
        return Ok(vec![None, None]);
    }
    let rows = b.ty(args.inputs[0]).dims[0];
    let dy = grad(b, args, 0, DType::F32)?;
    Ok(vec![Some(b.prim(Prim::ScatterAdd { rows }, &[args.inputs[1], dy])?), None])
}
