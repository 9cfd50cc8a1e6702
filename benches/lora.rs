//! Linear layers with an adapter of rank 16 beside the plain products that they contain: forward beside `linear`, backward
//! (dx, dA, dB) beside dx alone. Floating-point operations of the plain product a second, so that rates compare as times do.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::operation::Operation;
use kfc_graph::{Attrs, DType, TensorType};

const ROWS: usize = 1024;
const RANK: usize = 16;

/// Inputs and outputs of the layers of `small`, and of a projection of the 8B model.
const LAYERS: [(usize, usize); 5] = [(768, 768), (768, 256), (768, 2048), (2048, 768), (4096, 4096)];

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("lora");
    for dtype in [DType::Bf16, DType::F32] {
        for (inputs, outputs) in LAYERS {
            group.throughput(Throughput::Elements((2 * ROWS * inputs * outputs) as u64));
            for what in ["linear", "lora_linear", "dx", "lora_linear_bwd"] {
                let id = BenchmarkId::new(format!("{what} {dtype}"), format!("{inputs}-{outputs}"));
                let mut prepared = None;
                group.bench_function(id, |b| {
                    let operation = prepared.get_or_insert_with(|| operation(what, dtype, inputs, outputs));
                    b.iter(|| operation.run());
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
}

fn operation(what: &str, dtype: DType, inputs: usize, outputs: usize) -> Operation {
    let of = |rows, columns| TensorType::new(dtype, [rows, columns]);
    let f32 = |rows, columns| TensorType::new(DType::F32, [rows, columns]);
    let (x, w, dy) = (of(ROWS, inputs), of(outputs, inputs), of(ROWS, outputs));
    let (a, b, s) = (f32(RANK, inputs), f32(outputs, RANK), f32(ROWS, RANK));
    let plain = Attrs::new().with("bias", false);
    let attrs = plain.clone().with("scale", 2.0).with("dropout", 0.0).with("stream", 0usize);
    let made = match what {
        "linear" => Operation::composite(what, plain, &[x, w]),
        "lora_linear" => Operation::composite(what, attrs, &[x, w, a, b]),
        "dx" => Operation::product((ROWS, inputs, outputs), (false, false), [dtype; 3]),
        _ => Operation::composite(what, attrs.with("need_dx", true), &[dy, x, w, a, b, s]),
    };
    made.expect("an operation, and memory").expect("operands that fit")
}
