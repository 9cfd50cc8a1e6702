//! What each primitive computes, on row-major `f64` tensors.

use super::Tensor;
use super::erf::erf;
use super::philox::uniform_block;
use crate::prim::{CmpOp, Prim};
use crate::types::{DType, TensorType};

/// One primitive; the error is a message without a place.
pub(super) fn eval(
    prim: &Prim,
    x: &[&Tensor],
    types: &[&TensorType],
    result: &TensorType,
) -> Result<Tensor, String> {
    let dims = result.dims.clone();
    let integer = result.dtype == DType::I32;
    let data = match prim {
        Prim::Const { value, .. } => vec![if integer { to_i32(*value) } else { *value }; result.elements()],
        Prim::Iota { axis, .. } => iota(&dims, *axis),
        Prim::Random { stream, .. } => random(x[0], *stream, result.elements()),
        Prim::Neg => unary(x[0], |a| -a),
        Prim::Exp => unary(x[0], f64::exp),
        Prim::Log => unary(x[0], f64::ln),
        Prim::Sqrt => unary(x[0], f64::sqrt),
        Prim::Sigmoid => unary(x[0], sigmoid),
        Prim::Erf => unary(x[0], erf),
        Prim::Cast(to) => cast(x[0], types[0].dtype, *to),
        Prim::Add if integer => binary(x, |a, b| wrap(a as i64 + b as i64)),
        Prim::Sub if integer => binary(x, |a, b| wrap(a as i64 - b as i64)),
        Prim::Mul if integer => binary(x, |a, b| wrap(a as i64 * b as i64)),
        Prim::Div if integer => integer_div(x)?,
        Prim::Add => binary(x, |a, b| a + b),
        Prim::Sub => binary(x, |a, b| a - b),
        Prim::Mul => binary(x, |a, b| a * b),
        Prim::Div => binary(x, |a, b| a / b),
        Prim::Max => binary(x, max),
        Prim::Compare(CmpOp::Eq) => binary(x, |a, b| f64::from(u8::from(a == b))),
        Prim::Compare(CmpOp::Lt) => binary(x, |a, b| f64::from(u8::from(a < b))),
        Prim::Compare(CmpOp::Le) => binary(x, |a, b| f64::from(u8::from(a <= b))),
        Prim::Select => select(x),
        Prim::Reshape { .. } => x[0].data.clone(),
        Prim::Transpose { perm } => {
            let from = strides(&x[0].dims);
            let permuted: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
            offsets(&dims, &permuted).map(|i| x[0].data[i]).collect()
        }
        Prim::Broadcast { .. } => {
            let from = repeating_strides(&x[0].dims);
            offsets(&dims, &from).map(|i| x[0].data[i]).collect()
        }
        Prim::Slice { axis, start, .. } => {
            let from = strides(&x[0].dims);
            let first = start * from[*axis];
            offsets(&dims, &from).map(|i| x[0].data[first + i]).collect()
        }
        Prim::Pad { axis, lo, .. } => {
            let mut out = vec![0.0; result.elements()];
            place(x[0], *axis, *lo, &dims, &mut out);
            out
        }
        Prim::Concat { axis } => {
            let mut out = vec![0.0; result.elements()];
            let mut at = 0;
            for part in x {
                place(part, *axis, at, &dims, &mut out);
                at += part.dims[*axis];
            }
            out
        }
        Prim::ReduceSum { .. } => reduce(x[0], &dims, 0.0, |acc, v| acc + v),
        Prim::ReduceMax { .. } => reduce(x[0], &dims, f64::NEG_INFINITY, max),
        Prim::MatMul { ta, tb, .. } => matmul(x[0], x[1], *ta, *tb, &dims),
        Prim::Gather => gather(x[0], x[1])?,
        Prim::ScatterAdd { rows } => scatter_add(x[0], x[1], *rows)?,
    };
    Ok(Tensor { dims, data })
}

fn unary(a: &Tensor, f: impl Fn(f64) -> f64) -> Vec<f64> {
    a.data.iter().map(|&v| f(v)).collect()
}

fn binary(x: &[&Tensor], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    x[0].data.iter().zip(&x[1].data).map(|(&a, &b)| f(a, b)).collect()
}

fn sigmoid(a: f64) -> f64 {
    // Both branches keep the exponent negative, so nothing overflows.
    if a >= 0.0 {
        1.0 / (1.0 + (-a).exp())
    } else {
        let e = a.exp();
        e / (1.0 + e)
    }
}

/// The larger of both; NaN if either is.
fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn to_i32(v: f64) -> f64 {
    // Saturating truncation, NaN to 0: Rust's `as`, and the saturating conversions of devices.
    f64::from(v as i32)
}

fn wrap(v: i64) -> f64 {
    f64::from(v as i32)
}

fn cast(a: &Tensor, from: DType, to: DType) -> Vec<f64> {
    if to == DType::I32 && from.is_float() { unary(a, to_i32) } else { a.data.clone() }
}

fn integer_div(x: &[&Tensor]) -> Result<Vec<f64>, String> {
    match x[1].data.contains(&0.0) {
        true => Err("integer division by zero".into()),
        false => Ok(binary(x, |a, b| wrap(a as i64 / b as i64))),
    }
}

fn select(x: &[&Tensor]) -> Vec<f64> {
    let branches = x[1].data.iter().zip(&x[2].data);
    x[0].data.iter().zip(branches).map(|(&c, (&a, &b))| if c != 0.0 { a } else { b }).collect()
}

fn iota(dims: &[usize], axis: usize) -> Vec<f64> {
    let mut step = vec![0; dims.len()];
    step[axis] = 1;
    offsets(dims, &step).map(|i| i as f64).collect()
}

fn random(seed: &Tensor, stream: u32, n: usize) -> Vec<f64> {
    let key = [seed.data[0] as i64 as u32, seed.data[1] as i64 as u32];
    let blocks = (0..n.div_ceil(8) as u64).flat_map(|block| uniform_block(key, stream, block));
    blocks.take(n).map(f64::from).collect()
}

/// Row-major strides.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i];
    }
    out
}

/// Row-major strides with 0 where the extent is 1, so that a larger extent repeats the element.
fn repeating_strides(dims: &[usize]) -> Vec<usize> {
    strides(dims).into_iter().zip(dims).map(|(s, &d)| if d == 1 { 0 } else { s }).collect()
}

/// `Σ index·stride` for every index of `dims` in row-major order.
fn offsets(dims: &[usize], strides: &[usize]) -> impl Iterator<Item = usize> {
    let n: usize = dims.iter().product();
    let mut index = vec![0; dims.len()];
    let mut offset = 0;
    (0..n).map(move |_| {
        let here = offset;
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            offset -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
        here
    })
}

/// Writes `part` into a tensor of shape `dims`, `at` elements along `axis`.
fn place(part: &Tensor, axis: usize, at: usize, dims: &[usize], out: &mut [f64]) {
    let to = strides(dims);
    let first = at * to[axis];
    for (i, &v) in offsets(&part.dims, &to).zip(&part.data) {
        out[first + i] = v;
    }
}

fn reduce(a: &Tensor, dims: &[usize], start: f64, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let mut out = vec![start; dims.iter().product()];
    for (i, &v) in offsets(&a.dims, &repeating_strides(dims)).zip(&a.data) {
        out[i] = f(out[i], v);
    }
    out
}

fn matmul(a: &Tensor, b: &Tensor, ta: bool, tb: bool, dims: &[usize]) -> Vec<f64> {
    let r = dims.len();
    let (m, n) = (dims[r - 2], dims[r - 1]);
    let k = if ta { a.dims[r - 2] } else { a.dims[r - 1] };
    let (a_row, a_col) = if ta { (1, m) } else { (k, 1) };
    let (b_row, b_col) = if tb { (1, k) } else { (n, 1) };
    let mut out = vec![0.0; dims.iter().product()];
    for (batch, c) in out.chunks_exact_mut((m * n).max(1)).enumerate() {
        let (a, b) = (&a.data[batch * m * k..][..m * k], &b.data[batch * k * n..][..k * n]);
        for (i, c) in c.chunks_exact_mut(n).enumerate() {
            for p in 0..k {
                let left = a[i * a_row + p * a_col];
                for (j, c) in c.iter_mut().enumerate() {
                    *c += left * b[p * b_row + j * b_col];
                }
            }
        }
    }
    out
}

fn row_of(id: f64, rows: usize) -> Result<usize, String> {
    if id >= 0.0 && (id as usize) < rows {
        Ok(id as usize)
    } else {
        Err(format!("id {id} is outside a table of {rows} rows"))
    }
}

fn gather(table: &Tensor, ids: &Tensor) -> Result<Vec<f64>, String> {
    let (rows, width) = (table.dims[0], table.dims[1]);
    let mut out = Vec::with_capacity(ids.data.len() * width);
    for &id in &ids.data {
        let row = row_of(id, rows)?;
        out.extend_from_slice(&table.data[row * width..][..width]);
    }
    Ok(out)
}

fn scatter_add(ids: &Tensor, src: &Tensor, rows: usize) -> Result<Vec<f64>, String> {
    let width = src.dims.last().copied().unwrap_or(1);
    let mut out = vec![0.0; rows * width];
    for (&id, src) in ids.data.iter().zip(src.data.chunks_exact(width.max(1))) {
        let row = row_of(id, rows)?;
        out[row * width..][..width].iter_mut().zip(src).for_each(|(o, s)| *o += s);
    }
    Ok(out)
}
