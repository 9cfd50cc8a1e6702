//! One training step, as `kfc train` runs it: data, student, teacher, losses, backward, EWC, AdamW. Tokens a second.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::temp::TempFolder;
use kfc_benches::workloads::{SMALL, TINY};
use kfc_graph::DType;
use std::time::Duration;

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("step");
    group.warm_up_time(Duration::from_secs(1));
    for workload in [TINY, SMALL] {
        for dtype in [DType::Bf16, DType::F32] {
            group.throughput(Throughput::Elements(workload.tokens() as u64));
            let id = BenchmarkId::new(workload.name, dtype);
            // Made once, and only if this benchmark is asked for.
            let mut prepared = None;
            group.bench_function(id, |b| {
                let (_, trainer) = prepared.get_or_insert_with(|| {
                    let folder =
                        TempFolder::new(&format!("{}-{dtype}", workload.name)).expect("a temporary folder");
                    let trainer = workload.trainer(&folder, dtype, None).expect("a trainer");
                    (folder, trainer)
                });
                b.iter(|| trainer.step().expect("a step"));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
