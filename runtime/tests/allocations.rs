//! Kernels allocate nothing: what they need is in the plan, or in tiles that each thread keeps.
#![allow(clippy::unwrap_used, unsafe_code)]

use kfc_graph::DType;
use kfc_runtime::config::*;
use kfc_runtime::train::{Trainer, data};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The system's allocator, counting what the threads of the pool ask for. The thread that drives the step and the one that
/// reads batches ahead are not of the pool.
struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ON.load(Ordering::Relaxed) && COUNTED.with(Cell::get) {
            CALLS.fetch_add(1, Ordering::Relaxed);
            BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// LoRA with dropout, a teacher, an aligned feature and a penalty.
fn job() -> JobConfig {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/parity/cases/llama");
    JobConfig {
        report: None,
        kernels: None,
        model: ModelSection {
            path: case.join("student"),
            init: ModelInit::Pretrained,
            dtype: Some(DType::F32),
        },
        lora: Some(LoraSection {
            r: 4,
            alpha: 8.0,
            dropout: 0.1,
            targets: LoraTargets::AllLinear,
            rslora: false,
            init: LoraInit::Path(case.join("adapter")),
        }),
        distill: Some(DistillSection {
            teacher: case.join("teacher"),
            alpha: 0.5,
            temperature: 2.0,
            divergence: Divergence::ForwardKl,
            general: Vec::new(),
            general_fraction: 0.25,
            top_k: 8,
            features: vec![FeatureSection {
                student_layer: 1,
                teacher_layer: 2,
                weight: 0.5,
                projector: None,
            }],
        }),
        ewc: Some(EwcSection {
            lambda: 0.1,
            mode: EwcMode::Adapter,
            fisher: case.join("fisher.safetensors"),
            anchor: None,
            important: Important::Keep,
            quantile: 0.99,
            slow_factor: 0.1,
        }),
        data: DataSection {
            train: vec![case.join("tokens.safetensors")],
            format: Some(DataFormat::Tokens),
            seq_len: None,
            packing: true,
            shuffle: true,
            tokenizer: None,
            on_error: OnError::Fail,
            long_rows: LongRows::Split,
            streaming: Streaming::Off,
            workers: 1,
            prefetch: 1,
            rank: 0,
            world: 1,
        },
        train: TrainSection {
            length: Length::Steps(100),
            batch: 2,
            accumulation: 2,
            lr: 1e-3,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 0.01,
            betas: (0.9, 0.999),
            eps: 1e-8,
            max_grad_norm: 1.0,
            seed: 1,
            loss_scale: None,
            save_every: 0,
            keep: 1,
            mem_budget: None,
            recompute: RecomputePolicy::Auto,
            embeddings: Embeddings::File,
        },
    }
}

#[test]
fn kernels_allocate_nothing_after_the_second_step() {
    // One thread: which of several first meets which tile is left to chance, and may be later than the second step.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let job = job();
    let model = kfc_runtime::models::Model::open(&job.model.path, None, ModelInit::Pretrained, 0).unwrap();
    let rows = data::load(&job, &model.config).unwrap();
    let mut trainer = Trainer::new(&job, data::loader(&job, rows).unwrap()).unwrap();
    rayon::broadcast(|_| COUNTED.with(|c| c.set(true)));
    ON.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        trainer.step().unwrap();
    }
    assert!(
        CALLS.swap(0, Ordering::SeqCst) > 0,
        "the first steps make each thread's tiles: nothing was counted"
    );
    BYTES.store(0, Ordering::SeqCst);
    for _ in 0..20 {
        trainer.step().unwrap();
    }
    let (calls, bytes) = (CALLS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    assert!(calls == 0, "{calls} allocations of {bytes} bytes in 20 steps");
}
