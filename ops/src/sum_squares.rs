//! `sum_squares`: the squared norm of a tensor, for gradient clipping.

use crate::common::{Operands, f32, sample, square, take, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Operand: x of any float type and shape. Result `f32 [1]`: `Σ x²`.
pub struct SumSquares;

/// The definition.
pub static SUM_SQUARES: SumSquares = SumSquares;

const NAME: &str = "sum_squares";

/// `Σ x²`: `f32 [1]`.
///
/// # Errors
/// If x is not of a float type.
pub fn sum_squares(b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
    Ok(b.composite(&SUM_SQUARES, Attrs::new(), &[x])?[0])
}

impl OpDef for SumSquares {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        i.float("x")?;
        i.end()?;
        Ok(vec![TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x] = take(NAME, inputs)?;
        let x = f32(b, x)?;
        let x2 = square(b, x)?;
        Ok(vec![b.sum_all(x2)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2 * inputs[0].elements() as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        [(DType::F32, &[3usize, 7][..]), (DType::Bf16, &[3, 7]), (DType::F16, &[2, 3, 5]), (DType::F32, &[1])]
            .map(|(x, dims)| sample(Attrs::new(), vec![unit(x, dims)]))
            .into()
    }
}
