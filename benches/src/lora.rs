//! Linear layers with an adapter of rank 16, and the plain products that they contain: `linear` in the forward pass, `dx`
//! in the backward one.

use crate::operation::Operation;
use kfc_graph::{Attrs, DType, TensorType};
use kfc_kernels::KernelError;

/// Tokens.
pub const ROWS: usize = 1024;

/// Rank of the adapter.
const RANK: usize = 16;

/// Inputs and outputs of the layers of `small`, and of a projection of the 8B model.
pub const LAYERS: [(usize, usize); 5] = [(768, 768), (768, 256), (768, 2048), (2048, 768), (4096, 4096)];

/// Floating-point operations of the plain product of a layer.
pub fn flops((inputs, outputs): (usize, usize)) -> u64 {
    (2 * ROWS * inputs * outputs) as u64
}

/// One of `linear`, `lora_linear`, `dx` and `lora_linear_bwd`. `None` without the memory.
///
/// # Errors
/// If there is no kernel.
pub fn operation(
    what: &str,
    dtype: DType,
    (inputs, outputs): (usize, usize),
    dropout: f64,
) -> Option<Result<Operation, KernelError>> {
    let of = |rows, columns| TensorType::new(dtype, [rows, columns]);
    let f32 = |rows, columns| TensorType::new(DType::F32, [rows, columns]);
    let (x, w, dy) = (of(ROWS, inputs), of(outputs, inputs), of(ROWS, outputs));
    let (a, b, s) = (f32(RANK, inputs), f32(outputs, RANK), f32(ROWS, RANK));
    let seed = (dropout > 0.0).then(|| TensorType::new(DType::I32, [2]));
    let plain = Attrs::new().with("bias", false);
    let attrs = plain.clone().with("scale", 2.0).with("dropout", dropout).with("stream", 0usize);
    let of = |operands: &[TensorType]| operands.iter().cloned().chain(seed.clone()).collect::<Vec<_>>();
    match what {
        "linear" => Operation::composite(what, plain, &[x, w]),
        "lora_linear" => Operation::composite(what, attrs, &of(&[x, w, a, b])),
        "dx" => Operation::product((ROWS, inputs, outputs), (false, false), [dtype; 3]),
        _ => Operation::composite(what, attrs.with("need_dx", true), &of(&[dy, x, w, a, b, s])),
    }
}
