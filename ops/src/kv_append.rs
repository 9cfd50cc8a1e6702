//! `kv_append`: writes new keys or values into a cache. It updates its first operand.

use crate::common::{Operands, and, at_least, at_most_int, exact, fail, sample, take, unit};
use kfc_graph::{Attrs, Builder, CmpOp, Cost, DType, OpDef, Prim, Result, Sample, TensorType, ValueId, Vjp};

/// Operands: cache `[B,C,W]` (state), new `[B,T,W]` of the same float type, start `i32 [B]`. Result: the
/// cache with rows `start[b]..start[b]+T` replaced; rows outside `0..C` are dropped.
pub struct KvAppend;

/// The definition.
pub static KV_APPEND: KvAppend = KvAppend;

const NAME: &str = "kv_append";

/// `cache` with `new` written from row `start[b]` on, to be written back over `cache`.
///
/// # Errors
/// If the operands do not fit.
pub fn kv_append(b: &mut Builder<'_>, cache: ValueId, new: ValueId, start: ValueId) -> Result<ValueId> {
    Ok(b.composite(&KV_APPEND, Attrs::new(), &[cache, new, start])?[0])
}

impl OpDef for KvAppend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        let cache = i.float_rank("cache", 3)?;
        let new = i.float_rank("new", 3)?;
        if new.dtype != cache.dtype || new.dims[0] != cache.dims[0] || new.dims[2] != cache.dims[2] {
            return fail(NAME, format!("`new` {new} does not fit `cache` {cache}"));
        }
        i.exact("start", DType::I32, &[cache.dims[0]])?;
        i.end()?;
        Ok(vec![cache.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [cache, new, start] = take(NAME, inputs)?;
        let dims = b.ty(cache).dims.clone();
        let (batch, rows, t) = (dims[0], dims[1], b.ty(new).dims[1]);

        // Which row of `new` would land in each row of the cache, and whether there is one.
        let row = b.iota(&[batch, rows], 1)?;
        let start = b.reshape(start, &[batch, 1])?;
        let start = b.broadcast(start, &[batch, rows])?;
        let from = b.sub(row, start)?;
        let not_before = at_least(b, from, 0.0)?;
        let end = b.full_like(from, t as f64)?;
        let before_end = b.compare(CmpOp::Lt, from, end)?;
        let written = and(b, not_before, before_end)?;

        let zero = b.full_like(from, 0.0)?;
        let from = b.max(from, zero)?;
        let from = at_most_int(b, from, t - 1)?;
        let first = b.iota(&[batch, rows], 0)?;
        let first = b.scale(first, t as f64)?;
        let ids = b.add(first, from)?;
        let table = b.reshape(new, &[batch * t, dims[2]])?;
        let candidates = b.prim(Prim::Gather, &[table, ids])?;
        let written = b.reshape(written, &[batch, rows, 1])?;
        let written = b.broadcast(written, &dims)?;
        Ok(vec![b.select(written, candidates, cache)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], _: &[TensorType]) -> Cost {
        // In place: only the new rows move.
        Cost { flops: 0, bytes: (2 * inputs[1].bytes() + inputs[2].bytes()) as u64 }
    }

    fn samples(&self) -> Vec<Sample> {
        let case = |x, start: &[f64]| {
            let n = start.len();
            sample(
                Attrs::new(),
                vec![unit(x, &[n, 5, 3]), unit(x, &[n, 2, 3]), exact(DType::I32, &[n], start)],
            )
        };
        vec![
            case(DType::F32, &[0.0, 3.0, 4.0]),
            case(DType::Bf16, &[1.0, 5.0]),
            case(DType::F16, &[2.0]),
            case(DType::F32, &[7.0, 0.0]),
        ]
    }
}
