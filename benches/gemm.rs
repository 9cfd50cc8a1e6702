//! Matrix products through a compiled plan with one `linear`: `[m,k]·[n,k]ᵀ`. Floating-point operations a second.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_graph::{Builder, DType, Graph, InputKind, TensorType};
use kfc_ops::linear::linear;
use kfc_runtime::exec::{BoundPlan, Store};
use kfc_runtime::models::write_f32;
use kfc_runtime::random::normal_tensor;
use kfc_runtime::session;

/// Rows, columns and depth: square ones, a head, its gradient, an adapter's narrow side, an odd one, one token.
const SHAPES: [(usize, usize, usize); 7] = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (1024, 32000, 512),
    (1024, 512, 32000),
    (1024, 16, 2048),
    (333, 777, 555),
    (1, 4096, 4096),
];

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("gemm");
    for dtype in [DType::F32, DType::Bf16] {
        for (m, n, k) in SHAPES {
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            let mut prepared = None;
            group.bench_function(BenchmarkId::new(dtype.to_string(), format!("{m}x{n}x{k}")), |b| {
                let (plan, store) = prepared.get_or_insert_with(|| product(dtype, m, n, k));
                b.iter(|| plan.run(store));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

/// A plan that multiplies random matrices, and where they are.
fn product(dtype: DType, m: usize, n: usize, k: usize) -> (BoundPlan, Store) {
    let mut graph = Graph::new("gemm");
    let mut store = Store::new();
    let [x, w] = [("x", m), ("w", n)].map(|(name, rows)| {
        let ty = TensorType::new(dtype, [rows, k]);
        let slot = store.allocate(name, &ty).expect("memory");
        write_f32(&normal_tensor(0, name, rows * k, 1.0), dtype, store.slice_mut::<u8>(slot));
        graph.add_input(name, InputKind::Weight, ty)
    });
    let y = linear(&mut Builder::new(&mut graph), x, w, None).expect("a product");
    graph.add_output("y", y, None);
    let plan = session::bind(&session::compile_all(&[graph]).expect("a plan"), &store)
        .expect("bound")
        .pop()
        .expect("one plan");
    (plan, store)
}
