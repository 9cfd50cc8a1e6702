//! Activation functions, written as primitives: fused groups compute them in one pass.
//!
//! They compute in f32 and round to the type of the operand once.

use crate::common::f32;
use kfc_graph::{Builder, Prim, Result, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·Φ(x)` with the normal distribution's Φ (Hendrycks and Gimpel, 2016).
    Gelu,
    /// The same with Φ approximated by a hyperbolic tangent, as that paper gives it.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x/(1 + e^-x)`
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Names that [`Activation::named`] knows.
    pub const NAMES: &'static str = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu, swish, tanh";

    /// The function that transformers calls `name`.
    pub fn named(name: &str) -> Option<Activation> {
        Some(match name {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }

    /// Appends the function of `x`, of any float type.
    ///
    /// # Errors
    /// If `x` is no float tensor.
    pub fn apply(self, b: &mut Builder<'_>, x: ValueId) -> Result<ValueId> {
        let dtype = b.ty(x).dtype;
        let x = f32(b, x)?;
        let y = match self {
            Activation::Gelu => {
                let scaled = b.scale(x, FRAC_1_SQRT_2)?;
                let erf = b.erf(scaled)?;
                let twice = b.shift(erf, 1.0)?;
                let phi = b.scale(twice, 0.5)?;
                b.mul(x, phi)?
            }
            Activation::GeluTanh => {
                // ½(1 + tanh u) = σ(2u), with u = √(2/π)·(x + 0.044715·x³).
                let square = b.mul(x, x)?;
                let cubic = b.scale(square, 0.044_715)?;
                let factor = b.shift(cubic, 1.0)?;
                let inner = b.mul(x, factor)?;
                let u2 = b.scale(inner, SQRT_2 * FRAC_2_SQRT_PI)?;
                let phi = b.sigmoid(u2)?;
                b.mul(x, phi)?
            }
            Activation::Relu => {
                let zero = b.full_like(x, 0.0)?;
                b.prim(Prim::Max, &[x, zero])?
            }
            Activation::Silu => {
                let s = b.sigmoid(x)?;
                b.mul(x, s)?
            }
            Activation::Tanh => {
                // tanh x = 2σ(2x) − 1
                let twice = b.scale(x, 2.0)?;
                let s = b.sigmoid(twice)?;
                let doubled = b.scale(s, 2.0)?;
                b.shift(doubled, -1.0)?
            }
        };
        b.cast(y, dtype)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use kfc_graph::interp::{Tensor, run};
    use kfc_graph::{DType, Graph, InputKind, TensorType};

    fn at(activation: Activation, xs: &[f64]) -> Vec<f64> {
        let mut graph = Graph::new("activation");
        let x = graph.add_input("x", InputKind::Data, TensorType::new(DType::Bf16, [xs.len()]));
        let y = activation.apply(&mut Builder::new(&mut graph), x).unwrap();
        assert_eq!(graph.ty(y).dtype, DType::Bf16);
        graph.add_output("y", y, None);
        run(&graph, &[Tensor::new([xs.len()], xs)]).unwrap().remove(0).data
    }

    #[test]
    fn values_are_those_of_the_definitions() {
        let xs = [-9.0, -3.0, -1.0, -0.125, 0.0, 0.5, 1.0, 2.0, 7.0];
        // The normal distribution by a sum over its density, so that nothing is shared with the implementation.
        let phi = |x: f64| {
            let steps = 200_000;
            let width = (x + 12.0) / f64::from(steps);
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (0..steps).map(|i| density(-12.0 + (f64::from(i) + 0.5) * width) * width).sum::<f64>()
        };
        let tanh_phi =
            |x: f64| 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        let cases: [(Activation, &dyn Fn(f64) -> f64); 5] = [
            (Activation::Gelu, &|x| x * phi(x)),
            (Activation::GeluTanh, &|x| x * tanh_phi(x)),
            (Activation::Relu, &|x| x.max(0.0)),
            (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
            (Activation::Tanh, &f64::tanh),
        ];
        for (activation, exact) in cases {
            for (x, y) in xs.iter().zip(at(activation, &xs)) {
                assert!((y - exact(*x)).abs() < 1e-9, "{activation:?}({x}) = {y}, not {}", exact(*x));
            }
        }
    }

    #[test]
    fn every_listed_name_is_known() {
        assert!(Activation::NAMES.split(", ").all(|name| Activation::named(name).is_some()));
        assert_eq!(Activation::named("gelu_10"), None);
    }
}
