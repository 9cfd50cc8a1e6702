//! Matrix products in the layouts of forward (`nt`: `x·Wᵀ`) and backward (`nn`: `dy·W`, `tn`: `dyᵀ·x`). Floating-point
//! operations a second.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::operation::Operation;
use kfc_graph::DType;

/// Rows, columns and depth: square ones, a layer's, a head and its gradient, odd ones, few rows, one token.
const SHAPES: [(usize, usize, usize); 10] = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (1024, 512, 1376),
    (1024, 32000, 512),
    (1024, 512, 32000),
    (333, 777, 555),
    (128, 768, 768),
    (128, 32000, 768),
    (1024, 16, 2048),
    (1, 4096, 4096),
];

const LAYOUTS: [(&str, (bool, bool)); 3] =
    [("nt", (false, true)), ("nn", (false, false)), ("tn", (true, false))];

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("gemm");
    for dtype in [DType::F32, DType::Bf16] {
        for (m, n, k) in SHAPES {
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            for (layout, transposed) in LAYOUTS {
                let mut prepared = None;
                let id = BenchmarkId::new(format!("{dtype} {layout}"), format!("{m}x{n}x{k}"));
                group.bench_function(id, |b| {
                    let product = prepared.get_or_insert_with(|| {
                        let product = Operation::product((m, n, k), transposed, [dtype; 3]);
                        product.expect("memory").expect("operands that fit")
                    });
                    b.iter(|| product.run());
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
}
