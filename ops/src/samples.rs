//! Contents of sample operands: the same numbers for every test, on every machine.

use kfc_graph::interp::Tensor;
use kfc_graph::{DType, Sample, SampleInput, TensorType};

/// All operands of a sample, exactly representable in their types. Equal seeds give equal contents.
pub fn materialise(sample: &Sample, seed: u64) -> Vec<Tensor> {
    let operand = |(i, (ty, content)): (usize, &(TensorType, SampleInput))| {
        // Far apart starting points for the operands.
        Tensor::new(ty.dims.clone(), fill(ty, content, mix(seed ^ mix(i as u64 + 1))))
    };
    sample.inputs.iter().enumerate().map(operand).collect()
}

/// Elements of one operand, row-major, exactly representable in its type.
pub fn fill(ty: &TensorType, content: &SampleInput, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state)
    };
    let n = ty.elements();
    match content {
        SampleInput::Uniform(lo, hi) => (0..n)
            .map(|_| {
                let u = (next() >> 11) as f64 / (1u64 << 53) as f64;
                round_to(ty.dtype, lo + (hi - lo) * u)
            })
            .collect(),
        SampleInput::Integers(lo, hi) => {
            let span = hi.saturating_sub(*lo).max(1) as u64;
            (0..n).map(|_| (lo + (next() % span) as i64) as f64).collect()
        }
        SampleInput::Exact(values) => values.iter().map(|&v| round_to(ty.dtype, v)).collect(),
    }
}

/// SplitMix64's output function (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The nearest value of this element type (ties to even); integers truncate. Samples stay far from overflow.
pub fn round_to(dtype: DType, v: f64) -> f64 {
    let (fraction_bits, least_exponent) = match dtype {
        DType::I32 => return v.trunc(),
        DType::F32 => return f64::from(v as f32),
        DType::Bf16 => (7, -126),
        DType::F16 => (10, -14),
    };
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    let exponent = (((v.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(least_exponent);
    let step = f64::powi(2.0, exponent - fraction_bits);
    (v / step).round_ties_even() * step
}
