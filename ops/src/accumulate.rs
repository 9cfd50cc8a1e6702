//! `accumulate` and `accumulate_square`: running sums of gradients and of their squares. Both update their
//! first operand.

use crate::common::{Operands, f32, fail, sample, square, take, times_scalar, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Operands: acc `f32 S` (state), g `S` of any float type. Result `f32 S`, which replaces acc: `acc + g`.
pub struct Accumulate;

/// Operands: acc `f32 S` (state), g `S` of any float type, weight `f32 [1]`. Result `f32 S`, which replaces
/// acc: `acc + weight·g²`, the estimate of a Fisher diagonal.
pub struct AccumulateSquare;

/// The definition of the plain sum.
pub static ACCUMULATE: Accumulate = Accumulate;
/// The definition of the sum of squares.
pub static ACCUMULATE_SQUARE: AccumulateSquare = AccumulateSquare;

const SUM: &str = "accumulate";
const SQUARE: &str = "accumulate_square";
const SHAPES: [(DType, &[usize]); 4] =
    [(DType::F32, &[3, 7]), (DType::Bf16, &[3, 7]), (DType::F16, &[3, 7]), (DType::F32, &[17])];

/// `acc + g`, to be written back over `acc`.
///
/// # Errors
/// If the operands do not fit.
pub fn accumulate(b: &mut Builder<'_>, acc: ValueId, g: ValueId) -> Result<ValueId> {
    Ok(b.composite(&ACCUMULATE, Attrs::new(), &[acc, g])?[0])
}

/// `acc + weight·g²`, to be written back over `acc`; weight is `f32 [1]`.
///
/// # Errors
/// If the operands do not fit.
pub fn accumulate_square(b: &mut Builder<'_>, acc: ValueId, g: ValueId, weight: ValueId) -> Result<ValueId> {
    Ok(b.composite(&ACCUMULATE_SQUARE, Attrs::new(), &[acc, g, weight])?[0])
}

fn check<'a>(op: &'static str, i: &mut Operands<'a>) -> Result<&'a TensorType> {
    let acc = i.any("acc")?;
    if acc.dtype != DType::F32 {
        return fail(op, format!("`acc` must be f32, is {acc}"));
    }
    i.float_dims("g", &acc.dims)?;
    Ok(acc)
}

impl OpDef for Accumulate {
    fn name(&self) -> &'static str {
        SUM
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(SUM, inputs);
        let acc = check(SUM, &mut i)?;
        i.end()?;
        Ok(vec![acc.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [acc, g] = take(SUM, inputs)?;
        let g = f32(b, g)?;
        Ok(vec![b.add(acc, g)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        SHAPES.map(|(g, dims)| sample(Attrs::new(), vec![unit(DType::F32, dims), unit(g, dims)])).into()
    }
}

impl OpDef for AccumulateSquare {
    fn name(&self) -> &'static str {
        SQUARE
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(SQUARE, inputs);
        let acc = check(SQUARE, &mut i)?;
        i.exact("weight", DType::F32, &[1])?;
        i.end()?;
        Ok(vec![acc.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [acc, g, weight] = take(SQUARE, inputs)?;
        let g = f32(b, g)?;
        let g2 = square(b, g)?;
        let weighted = times_scalar(b, g2, weight)?;
        Ok(vec![b.add(acc, weighted)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        SHAPES
            .map(|(g, dims)| {
                sample(Attrs::new(), vec![unit(DType::F32, dims), unit(g, dims), unit(DType::F32, &[1])])
            })
            .into()
    }
}
