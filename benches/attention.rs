//! Causal attention, forward and backward, over lengths and head sizes. Floating-point operations a second of the visible
//! half of two and of five products.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::attention::Case;
use std::time::Duration;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for (pass, name, products) in [(0, "attention", 2), (1, "attention_bwd", 5)] {
        let mut group = criterion.benchmark_group(name);
        for case in Case::all() {
            group.throughput(Throughput::Elements(case.flops(2 * products) / 2));
            let mut prepared = None;
            let id = BenchmarkId::new(case.dtype.to_string(), format!("{}x{}", case.length, case.size));
            group.bench_function(id, |b| {
                let (plans, store) = prepared.get_or_insert_with(|| case.plans().expect("plans"));
                b.iter(|| plans[pass].run(store));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
