//! Kernels that memory limits: their bytes a second beside those of a plain copy in the same run.

use criterion::{BenchmarkId, Criterion, Throughput};
use kfc_graph::{Builder, DType, Graph, InputKind, Op, SampleInput, TensorType};
use kfc_kernels::compile::compile;
use kfc_kernels::cpu;
use kfc_ops::samples::fill;
use kfc_runtime::exec::{BoundPlan, Store};
use kfc_runtime::models::write_f32;
use kfc_runtime::random::normal_tensor;
use kfc_runtime::session;
use rayon::prelude::*;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Thread counts that everything runs with.
pub const THREADS: [usize; 2] = [1, 2];

/// Bytes of one buffer of the copy: more than caches hold.
const COPY_BYTES: usize = 128 << 20;

/// Bytes that a task of the copy moves.
const COPY_GRAIN: usize = 64 << 10;

/// Elements of an operand before they repeat.
const PERIOD: usize = 1 << 16;

/// A criterion configuration for kernels of some milliseconds.
pub fn criterion() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(50), Duration::from_millis(400));
    Criterion::default()
        .sample_size(10)
        .warm_up_time(warm_up)
        .measurement_time(measurement)
        .configure_from_args()
}

/// Benches of one file, and the fastest time of each.
pub struct Bandwidth<'a> {
    criterion: &'a mut Criterion,
    pools: Vec<rayon::ThreadPool>,
    /// Bytes a second of a plain copy by thread count; zero where it was filtered out.
    copy: Vec<f64>,
    rows: Vec<String>,
}

impl<'a> Bandwidth<'a> {
    /// Measures the copy.
    ///
    /// # Errors
    /// If no threads can be started.
    pub fn new(criterion: &'a mut Criterion) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = |&n: &usize| rayon::ThreadPoolBuilder::new().num_threads(n).build();
        let pools = THREADS.iter().map(pool).collect::<Result<Vec<_>, _>>()?;
        let mut b = Bandwidth { criterion, pools, copy: vec![], rows: vec![] };
        let from = vec![1u8; COPY_BYTES];
        let mut to = vec![0u8; COPY_BYTES];
        b.measure("copy", "memory", 2 * COPY_BYTES as u64, &mut || {
            let parts = to.par_chunks_mut(COPY_GRAIN).zip(from.par_chunks(COPY_GRAIN));
            parts.with_max_len(1).for_each(|(to, from)| to.copy_from_slice(from));
        });
        Ok(b)
    }

    /// Runs `f`, which moves so many bytes, with each thread count.
    pub fn measure(&mut self, group: &str, name: &str, bytes: u64, f: &mut (dyn FnMut() + Send)) {
        let mut group_of = self.criterion.benchmark_group(group);
        group_of.throughput(Throughput::Bytes(bytes));
        let mut rates = vec![];
        for (pool, threads) in self.pools.iter().zip(THREADS) {
            let best = Cell::new(f64::INFINITY);
            group_of.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |bencher| {
                // Whatever the first run prepares is not timed.
                pool.install(&mut *f);
                bencher.iter_custom(|runs| {
                    let mut total = Duration::ZERO;
                    for _ in 0..runs {
                        let start = Instant::now();
                        pool.install(&mut *f);
                        let took = start.elapsed();
                        best.set(best.get().min(took.as_secs_f64()));
                        total += took;
                    }
                    total
                });
            });
            rates.push(bytes as f64 / best.get());
        }
        group_of.finish();
        if self.copy.is_empty() {
            self.copy.clone_from(&rates);
        }
        let beside = |(rate, copy): (&f64, &f64)| {
            format!("{:6.1} GB/s {:4.0} % of copy", rate / 1e9, 100.0 * rate / copy)
        };
        let columns: Vec<String> = rates.iter().zip(&self.copy).map(beside).collect();
        if rates.iter().any(|r| *r > 0.0) {
            self.rows.push(format!("{:40} {}", format!("{group}/{name}"), columns.join("   ")));
        }
    }

    /// Prints the fastest times as shares of the copy, for each thread count.
    pub fn finish(self) {
        println!("fastest run, {THREADS:?} threads");
        self.rows.iter().for_each(|r| println!("{r}"));
        self.criterion.final_summary();
    }
}

/// A plan, and the tensors it is bound to.
pub struct Prepared {
    plan: BoundPlan,
    store: Store,
}

impl Prepared {
    /// Runs the plan.
    pub fn run(&mut self) {
        self.plan.run(&mut self.store);
    }
}

/// One operation over random operands.
///
/// # Errors
/// If the operands do not fit the operation, or memory runs out.
pub fn operation(op: &Op, operands: &[(TensorType, SampleInput)]) -> anyhow::Result<Prepared> {
    let types: Vec<TensorType> = operands.iter().map(|(ty, _)| ty.clone()).collect();
    let inplace = cpu::build(op, &types, &op.infer(&types)?)?.inplace();
    let mut graph = Graph::new("one");
    let mut ids = vec![];
    for (i, ty) in types.iter().enumerate() {
        let updated = inplace.iter().any(|(operand, _)| *operand == i);
        let kind = if updated { InputKind::State } else { InputKind::Weight };
        ids.push(graph.add_input(i.to_string(), kind, ty.clone()));
    }
    let results = Builder::new(&mut graph).op(op.clone(), &ids)?;
    for (j, &v) in results.iter().enumerate() {
        let updates = inplace.iter().find(|(_, result)| *result == j).map(|(operand, _)| ids[*operand]);
        graph.add_output(format!("result {j}"), v, updates);
    }
    let mut store = Store::new();
    for (i, (ty, content)) in operands.iter().enumerate() {
        let name = i.to_string();
        let slot = store.allocate(&name, ty)?;
        match ty.dtype {
            DType::I32 => {
                let values: Vec<i32> = fill(ty, content, 1).into_iter().map(|v| v as i32).collect();
                store.slice_mut::<i32>(slot).copy_from_slice(&values);
            }
            dtype => {
                // A short random sequence again and again.
                let part = normal_tensor(i as u64, &name, ty.elements().min(PERIOD), 1.0);
                let to = store.slice_mut::<u8>(slot).chunks_mut(PERIOD * dtype.size());
                to.for_each(|to| write_f32(&part[..to.len() / dtype.size()], dtype, to));
            }
        }
    }
    prepare(&graph, store)
}

/// A graph whose floats are all inputs of this value and whose integers are 1.
///
/// # Errors
/// If the graph has no plan, or memory runs out.
pub fn bound(graph: &Graph, value: f32) -> anyhow::Result<Prepared> {
    let mut store = Store::new();
    for input in graph.inputs() {
        let ty = graph.ty(input.value);
        let slot = store.allocate(&input.name, ty)?;
        match ty.dtype {
            DType::I32 => store.slice_mut::<i32>(slot).fill(1),
            dtype => write_f32(&vec![value; ty.elements()], dtype, store.slice_mut::<u8>(slot)),
        }
    }
    prepare(graph, store)
}

/// Bytes that an operation over these operands reads and writes.
///
/// # Errors
/// If the operands do not fit.
pub fn bytes(op: &Op, operands: &[(TensorType, SampleInput)]) -> anyhow::Result<u64> {
    let types: Vec<TensorType> = operands.iter().map(|(ty, _)| ty.clone()).collect();
    let results = op.infer(&types)?;
    Ok(op.cost(&types, &results).bytes)
}

fn prepare(graph: &Graph, store: Store) -> anyhow::Result<Prepared> {
    let plan = compile(graph, &mut |_, _| ())?;
    let mut bound = session::bind(&[plan], &store)?;
    let plan = bound.pop().ok_or_else(|| anyhow::anyhow!("no plan"))?;
    Ok(Prepared { plan, store })
}
