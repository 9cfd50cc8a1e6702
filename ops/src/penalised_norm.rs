//! `penalised_norm`: an EWC penalty on a list of parameters, and the squared norm of their gradients with the penalty's, in
//! one pass. Neither gradient is stored: `adamw` adds the penalty's again.

use crate::common::{Operands, Values, fail, sample, uniform, unit};
use crate::ewc::{EWC_PENALTY_BWD, check_fisher, ewc_penalty};
use crate::sum_squares::{of_one, total};
use kfc_graph::{Attrs, Builder, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp};

/// Operands: the penalty's weight `f32 [1]`, then for each parameter, at least one, g and theta `f32 S`, fisher `S` (f32 or
/// bf16), anchor `f32 S`. Results, each `f32 [1]`: `Σ (g + weight·F·(θ−θ*))²` and `½ Σ F·(θ−θ*)²` over all parameters.
pub struct PenalisedNorm;

/// The definition.
pub static PENALISED_NORM: PenalisedNorm = PenalisedNorm;

const NAME: &str = "penalised_norm";

/// Operands of one parameter.
const EACH: usize = 4;

/// A penalised parameter of shape S.
#[derive(Clone, Copy, Debug)]
pub struct Penalised {
    /// Gradient without the penalty's, `f32 S`.
    pub g: ValueId,
    /// Parameter `f32 S`.
    pub theta: ValueId,
    /// Fisher diagonal `S`, f32 or bf16.
    pub fisher: ValueId,
    /// Anchor `f32 S`.
    pub anchor: ValueId,
}

/// The squared norm of the gradients with those of the penalty, which has this weight, and the penalty without it.
///
/// # Errors
/// If there is no parameter, or operands do not fit.
pub fn penalised_norm(
    b: &mut Builder<'_>,
    weight: ValueId,
    params: &[Penalised],
) -> Result<(ValueId, ValueId)> {
    let mut inputs = vec![weight];
    inputs.extend(params.iter().flat_map(|p| [p.g, p.theta, p.fisher, p.anchor]));
    let r = b.composite(&PENALISED_NORM, Attrs::new(), &inputs)?;
    Ok((r[0], r[1]))
}

impl OpDef for PenalisedNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, _: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let mut i = Operands::new(NAME, inputs);
        i.exact("weight", DType::F32, &[1])?;
        for _ in 0..inputs.len().div_ceil(EACH).saturating_sub(1).max(1) {
            let g = i.any("g")?;
            if g.dtype != DType::F32 {
                return fail(NAME, format!("`g` must be f32, is {g}"));
            }
            i.exact("theta", DType::F32, &g.dims)?;
            check_fisher(NAME, &mut i, &g.dims)?;
            i.exact("anchor", DType::F32, &g.dims)?;
        }
        i.end()?;
        Ok(vec![TensorType::scalar(); 2])
    }

    fn decompose(&self, b: &mut Builder<'_>, _: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut operands = Values::new(NAME, inputs);
        let weight = operands.next()?;
        let (mut squares, mut penalties) = (vec![], vec![]);
        for _ in 0..inputs.len() / EACH {
            let (g, theta) = (operands.next()?, operands.next()?);
            let (fisher, anchor) = (operands.next()?, operands.next()?);
            let pull = b.composite(&EWC_PENALTY_BWD, Attrs::new(), &[weight, theta, fisher, anchor])?[0];
            let g = b.add(g, pull)?;
            squares.push(of_one(b, g)?);
            penalties.push(ewc_penalty(b, theta, fisher, anchor)?);
        }
        Ok(vec![total(b, &squares)?, total(b, &penalties)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, _: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let elements: usize = inputs.iter().skip(1).step_by(EACH).map(TensorType::elements).sum();
        Cost::streaming(8 * elements as u64, inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        let param = |fisher: DType, dims: &[usize]| {
            let f32 = || unit(DType::F32, dims);
            [f32(), f32(), uniform(fisher, dims, 0.0, 2.0), f32()]
        };
        let of = |params: &[(DType, &[usize])]| {
            let mut inputs = vec![uniform(DType::F32, &[1], 0.1, 1.0)];
            inputs.extend(params.iter().flat_map(|(fisher, dims)| param(*fisher, dims)));
            sample(Attrs::new(), inputs)
        };
        vec![
            of(&[(DType::F32, &[5, 7])]),
            of(&[(DType::Bf16, &[19])]),
            of(&[(DType::F32, &[3]), (DType::Bf16, &[5, 7]), (DType::F32, &[2, 33])]),
        ]
    }
}
