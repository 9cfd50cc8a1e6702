//! Buffers of programs as bytes, and how far bytes may be from what the interpreter computes.

use half::{bf16, f16};
use kfc_kernels::tile::ir::Elem;

/// Bytes of a buffer.
pub(crate) fn encode(values: &[f64], elem: Elem) -> Vec<u8> {
    let each = |&x: &f64| match elem {
        Elem::F32 => (x as f32).to_le_bytes().to_vec(),
        Elem::Bf16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        Elem::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
        Elem::I32 => (x as i32).to_le_bytes().to_vec(),
        Elem::U32 => (x as u32).to_le_bytes().to_vec(),
        Elem::Bool => vec![u8::from(x != 0.0)],
    };
    values.iter().flat_map(each).collect()
}

fn decode(bytes: &[u8], elem: Elem) -> Vec<f64> {
    let two = |b: &[u8]| [b[0], b[1]];
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    let each = |b: &[u8]| match elem {
        Elem::F32 => f64::from(f32::from_le_bytes(four(b))),
        Elem::Bf16 => bf16::from_le_bytes(two(b)).to_f64(),
        Elem::F16 => f16::from_le_bytes(two(b)).to_f64(),
        Elem::I32 => f64::from(i32::from_le_bytes(four(b))),
        Elem::U32 => f64::from(u32::from_le_bytes(four(b))),
        Elem::Bool => f64::from(b[0]),
    };
    bytes.chunks_exact(elem.bytes()).map(each).collect()
}

/// Largest error allowed, relative to the largest element.
fn tolerance(elem: Elem) -> f64 {
    match elem {
        Elem::F32 => 1e-5,
        Elem::Bf16 => 1e-2,
        Elem::F16 => 2e-3,
        _ => 0.0,
    }
}

/// Says how many elements of a buffer differ from those of the tile interpreter, and the first; nothing if none does.
pub(crate) fn difference(what: &str, values: &[f64], bytes: &[u8], elem: Elem) -> String {
    let finite = values.iter().filter(|v| v.is_finite());
    let scale = finite.fold(1e-3f64, |m, v| m.max(v.abs()));
    let got = decode(bytes, elem);
    let wrong = |(g, v): &(&f64, &f64)| {
        // Not a number: nobody wrote it.
        !((*g - *v).abs() <= tolerance(elem) * scale || g == v || v.is_nan())
    };
    let count = got.iter().zip(values).filter(wrong).count();
    match got.iter().zip(values).position(|p| wrong(&p)) {
        Some(i) => format!("{what}: {count} of {}; {i}: {} for {}\n", values.len(), got[i], values[i]),
        None => String::new(),
    }
}
