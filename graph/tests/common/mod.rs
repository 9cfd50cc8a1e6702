//! Shared by the integration tests: small composites and a random generator.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod ops;
mod plans;
mod random;

pub use ops::defs;
pub use plans::{check_order, check_plan, facts, no_facts};
pub use random::{random_graph, random_training};

use kfc_graph::interp::Tensor;
use kfc_graph::{DType, Graph, TensorType};

/// SplitMix64: a small seeded generator.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn uniform(&mut self, dims: &[usize], lo: f64, hi: f64) -> Tensor {
        let n: usize = dims.iter().product();
        let data: Vec<f64> =
            (0..n).map(|_| lo + (hi - lo) * (self.next() >> 11) as f64 / (1u64 << 53) as f64).collect();
        Tensor::new(dims, data)
    }
}

/// Contents for every input of a graph: floats in [-1, 1), integers in 0..2.
pub fn random_inputs(g: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = Rng(seed);
    let mut fill = |ty: &TensorType| match ty.dtype {
        DType::I32 => {
            let t = rng.uniform(&ty.dims, 0.0, 2.0);
            Tensor::new(t.dims, t.data.into_iter().map(f64::floor).collect::<Vec<_>>())
        }
        _ => rng.uniform(&ty.dims, -1.0, 1.0),
    };
    g.inputs().iter().map(|i| fill(g.ty(i.value))).collect()
}
