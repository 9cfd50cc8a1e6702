//! The output layer of student and teacher with cross-entropy and distillation, and the gradient of the student's hidden
//! states: the shapes of `small`. Tokens a second; `benches/peers/head.py` times the same with torch.
#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_benches::operation::Operation;
use kfc_benches::workloads::SMALL;
use kfc_graph::{Attrs, DType, TensorType};

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut group = criterion.benchmark_group("head");
    for dtype in [DType::Bf16, DType::F32] {
        for tokens in [1024, 128] {
            group.throughput(Throughput::Elements(tokens as u64));
            let mut prepared = None;
            group.bench_function(BenchmarkId::new(dtype.to_string(), tokens), |b| {
                let head = prepared.get_or_insert_with(|| {
                    let head = head(dtype, tokens);
                    eprintln!("workspace: {:.1} MB", head.workspace_bytes() as f64 / 1e6);
                    head
                });
                b.iter(|| head.run());
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

fn head(dtype: DType, tokens: usize) -> Operation {
    let teacher = SMALL.teacher.expect("a teacher");
    let (vocab, width) = (SMALL.vocab, SMALL.student.hidden);
    let attrs = Attrs::new()
        .with("kd", "logits")
        .with("temperature", 2.0)
        .with("divergence", "forward_kl")
        .with("need_dw", false);
    let of = |dims: &[usize]| TensorType::new(dtype, dims);
    let weights = TensorType::new(DType::F32, [1, tokens]);
    let inputs = [
        TensorType::scalar(),
        TensorType::scalar(),
        of(&[1, tokens, width]),
        of(&[vocab, width]),
        TensorType::new(DType::I32, [1, tokens]),
        weights.clone(),
        of(&[1, tokens, teacher.hidden]),
        of(&[vocab, teacher.hidden]),
        weights,
    ];
    Operation::composite("linear_cross_entropy_kd_fused", attrs, &inputs)
        .expect("an operation, and memory")
        .expect("operands that fit")
}
