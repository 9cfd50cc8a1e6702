//! Linear layers with an adapter of rank 16 beside the plain products that they contain: forward beside `linear`, backward
//! (dx, dA, dB) beside dx alone. Floating-point operations of the plain product a second, so that rates compare as times do.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::lora::{LAYERS, flops, operation};
use kfc_graph::DType;

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("lora");
    for dtype in [DType::Bf16, DType::F32] {
        for (inputs, outputs) in LAYERS {
            group.throughput(Throughput::Elements(flops((inputs, outputs))));
            for what in ["linear", "lora_linear", "dx", "lora_linear_bwd"] {
                let id = BenchmarkId::new(format!("{what} {dtype}"), format!("{inputs}-{outputs}"));
                let mut prepared = None;
                group.bench_function(id, |b| {
                    let operation = prepared.get_or_insert_with(|| {
                        let made = operation(what, dtype, (inputs, outputs), 0.0);
                        made.expect("memory").expect("operands that fit")
                    });
                    b.iter(|| operation.run());
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
}
