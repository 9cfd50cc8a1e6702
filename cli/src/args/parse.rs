//! Parsers of single argument values; their errors say what was expected.

use super::Device;
use crate::config;
use kfc_graph::DType;

/// `--threads N`
pub(super) fn threads(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("give a number of threads from 1 to 1024".into()),
    }
}

/// `--device D`
pub(super) fn device(text: &str) -> Result<Device, String> {
    let number = |n: &str| n.parse::<usize>().ok().filter(|n| *n < 1024);
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", n)) => number(n)
            .map(Device::Cuda)
            .ok_or_else(|| "after cuda: comes a device's number, as in cuda:1".into()),
        _ => Err("there is no such device; use --device cpu, cuda or cuda:N".into()),
    }
}

/// `--mem-budget SIZE`
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    config::parse_bytes(text)
}

/// A number of rows, tokens and the like.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count @ 1..=1_073_741_824) => Ok(count),
        _ => Err("give a whole number from 1 to 1073741824".into()),
    }
}

/// A place in a row or a file, from 0.
pub(super) fn index(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(index @ 0..1_073_741_824) => Ok(index),
        _ => Err("give a whole number from 0 to 1073741823".into()),
    }
}

/// `--seed N`
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("give a whole number from 0 to {}", u64::MAX))
}

/// `--temperature T`: 0 is greedy.
pub(super) fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("give a number of at least 0 (0 always takes the likeliest token)".into()),
    }
}

/// `--top-p P`
pub(super) fn top_p(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("give a number above 0 and at most 1".into()),
    }
}

/// `--dtype D` of written floats.
pub(super) fn dtype(text: &str) -> Result<DType, String> {
    match DType::from_name(text) {
        Some(dtype @ (DType::F32 | DType::Bf16)) => Ok(dtype),
        _ => Err("use f32 or bf16".into()),
    }
}
