//! `sum_squares`: the squared norm of a list of tensors, for gradient clipping.

use crate::common::{Operands, f32, sample, square, unit};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Attribute `tensors`, how many. Operands: tensors of any float type and shape, at least one. Result `f32 [1]`: `Σ x²` over all of them.
pub struct SumSquares;

/// The definition.
pub static SUM_SQUARES: SumSquares = SumSquares;

const NAME: &str = "sum_squares";

/// `Σ x²` over all tensors: `f32 [1]`.
///
/// # Errors
/// If there is none, or one is not of a float type.
pub fn sum_squares(b: &mut Builder<'_>, tensors: &[ValueId]) -> Result<ValueId> {
    Ok(b.composite(&SUM_SQUARES, Attrs::new().with("tensors", tensors.len()), tensors)?[0])
}

/// `Σ x²` of one tensor in primitives.
pub(crate) fn of_one(b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
    let x = f32(b, x)?;
    let x2 = square(b, x)?;
    b.sum_all(x2)
}

/// The sum of `f32 [1]` values.
pub(crate) fn total(b: &mut Builder<'_>, parts: &[ValueId]) -> Result<ValueId> {
    let Some((&first, rest)) = parts.split_first() else { return b.scalar(0.0) };
    rest.iter().try_fold(first, |sum, &part| b.add(sum, part))
}

impl OpDef for SumSquares {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        for _ in 0..attrs.usize("tensors")?.max(1) {
            i.float("x")?;
        }
        i.end()?;
        Ok(vec![TensorType::scalar()])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let parts = inputs.iter().map(|&x| of_one(b, x)).collect::<Result<Vec<_>>>()?;
        Ok(vec![total(b, &parts)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs.iter().map(|t| 2 * t.elements() as u64).sum(), inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let one = [
            (DType::F32, &[3usize, 7][..]),
            (DType::Bf16, &[3, 7]),
            (DType::F16, &[2, 3, 5]),
            (DType::F32, &[1]),
        ];
        let of = |tensors: &[(DType, &[usize])]| {
            let operands: Vec<_> = tensors.iter().map(|(x, dims)| unit(*x, dims)).collect();
            sample(Attrs::new().with("tensors", operands.len()), operands)
        };
        let mut samples: Vec<Sample> = one.iter().map(|x| of(&[*x])).collect();
        samples.push(of(&one));
        samples
    }
}
