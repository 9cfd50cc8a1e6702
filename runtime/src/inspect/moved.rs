//! How far an adapter moves each weight: ‖s·B·A‖ beside ‖W‖, from products of r × r, never making B·A.

use crate::error::Result;
use crate::hf::LoraPair;
use crate::inference::Served;
use rayon::prelude::*;

/// What an adapter does to one weight. Norms are Frobenius norms.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// Module path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// ‖s·B·A‖.
    pub change: f64,
    /// ‖W‖.
    pub weight: f64,
    /// How many of the r directions carry the change: (Σσ²)² / Σσ⁴ of its singular values, between 1 and r; 0 if nothing
    /// moved.
    pub effective_rank: f64,
}

/// The modules of the adapter in order of use; none without an adapter.
///
/// # Errors
/// If a weight of the model is missing or damaged.
pub fn moved(served: &Served) -> Result<Vec<Moved>> {
    let Some(adapter) = served.adapter() else { return Ok(Vec::new()) };
    let scale = adapter.config.scale();
    let modules = served.model.config.modules();
    modules
        .iter()
        .filter_map(|m| Some((m, adapter.modules.get(&m.path)?)))
        .map(|(m, pair)| {
            let dims = [m.out_features, m.in_features];
            let weight = served.model.frobenius_norm(&format!("{}.weight", m.path), &dims)?;
            let (sum2, sum4) = spectrum(pair);
            Ok(Moved {
                module: m.path.clone(),
                change: scale.abs() * sum2.max(0.0).sqrt(),
                weight: weight.unwrap_or(f64::NAN),
                effective_rank: if sum4 > 0.0 { sum2 * sum2 / sum4 } else { 0.0 },
            })
        })
        .collect()
}

/// Σσ² and Σσ⁴ of the singular values of B·A: the traces of G and G² with G = (BᵀB)(AAᵀ).
fn spectrum(pair: &LoraPair) -> (f64, f64) {
    let r = pair.r;
    let row = |i: usize| &pair.a[i * pair.inputs..(i + 1) * pair.inputs];
    let column = |i: usize| pair.b.iter().skip(i).step_by(r);
    let entry = |i: usize| (i / r, i % r);
    let aa: Vec<f64> = (0..r * r)
        .into_par_iter()
        .map(|at| {
            let (i, j) = entry(at);
            row(i).iter().zip(row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        })
        .collect();
    let bb: Vec<f64> = (0..r * r)
        .into_par_iter()
        .map(|at| {
            let (i, j) = entry(at);
            column(i).zip(column(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        })
        .collect();
    let g = |i: usize, j: usize| (0..r).map(|k| bb[i * r + k] * aa[k * r + j]).sum::<f64>();
    let product: Vec<f64> = (0..r * r).map(|at| g(at / r, at % r)).collect();
    let trace = (0..r).map(|i| product[i * r + i]).sum();
    let trace2 = (0..r * r).map(|at| product[at] * product[(at % r) * r + at / r]).sum();
    (trace, trace2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B·A in full, its norm, and Σσ⁴ = ‖(BA)(BA)ᵀ‖².
    fn direct(p: &LoraPair) -> (f64, f64) {
        let at = |o: usize, i: usize| -> f64 {
            (0..p.r).map(|k| f64::from(p.b[o * p.r + k]) * f64::from(p.a[k * p.inputs + i])).sum()
        };
        let sum2 = (0..p.outputs)
            .flat_map(|o| (0..p.inputs).map(move |i| (o, i)))
            .map(|(o, i)| at(o, i).powi(2))
            .sum();
        let gram = |x: usize, y: usize| -> f64 { (0..p.inputs).map(|i| at(x, i) * at(y, i)).sum() };
        let sum4 = (0..p.outputs)
            .flat_map(|x| (0..p.outputs).map(move |y| (x, y)))
            .map(|(x, y)| gram(x, y).powi(2))
            .sum();
        (sum2, sum4)
    }

    #[test]
    fn norms_from_small_products_are_those_of_the_whole() {
        let (r, inputs, outputs) = (3, 7, 5);
        let values =
            |n: usize, seed: usize| (0..n).map(|i| ((i * 37 + seed) % 19) as f32 / 9.5 - 1.0).collect();
        let pair = LoraPair { r, inputs, outputs, a: values(r * inputs, 3), b: values(outputs * r, 8) };
        let ((sum2, sum4), (want2, want4)) = (spectrum(&pair), direct(&pair));
        assert!((sum2 - want2).abs() < 1e-12 * want2 && (sum4 - want4).abs() < 1e-12 * want4);
        let still = LoraPair { b: vec![0.0; outputs * r], ..pair };
        assert_eq!(spectrum(&still), (0.0, 0.0));
    }
}
