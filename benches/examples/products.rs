//! Matrix products as a share of what this machine can multiply in registers, the best run of each.
//!
//! `cargo run --release -p kfc-benches --example products -- [--threads N] [bf16|f32] [M,N,K...]`
#![allow(clippy::expect_used)]

use kfc_benches::limits::limits;
use kfc_benches::operation::Operation;
use kfc_graph::DType;
use std::time::{Duration, Instant};

/// How long a product is repeated.
const TIME: Duration = Duration::from_millis(400);

/// Rows, columns and depth where none are named.
const SHAPES: [[usize; 3]; 11] = [
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [1024, 1376, 512],
    [1024, 512, 1376],
    [1024, 32000, 512],
    [1024, 512, 32000],
    [333, 777, 555],
    [128, 768, 768],
    [128, 2048, 768],
    [128, 32000, 768],
    [128, 768, 32000],
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut threads, mut dtypes, mut shapes) = (2, vec![DType::Bf16, DType::F32], Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().ok_or("a number of threads")?.parse()?,
            "bf16" => dtypes = vec![DType::Bf16],
            "f32" => dtypes = vec![DType::F32],
            shape => {
                let extents = shape.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
                shapes.push(<[usize; 3]>::try_from(extents).map_err(|_| "three extents")?);
            }
        }
    }
    if shapes.is_empty() {
        shapes = SHAPES.to_vec();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| {
        limits();
        println!("{:<24}{:>12} {:>12} {:>12}", "% of the limit", "nt", "nn", "tn");
        for dtype in dtypes {
            for [m, n, k] in shapes.iter().copied() {
                print!("{:<24}", format!("{dtype} {m}x{n}x{k}"));
                for transposed in [(false, true), (false, false), (true, false)] {
                    let product = Operation::product((m, n, k), transposed, [dtype; 3]);
                    print!(
                        " {:>12}",
                        share(product.expect("memory").expect("operands that fit"), dtype, m * n * k)
                    );
                }
                println!();
            }
        }
    });
    Ok(())
}

/// Per cent of the limit, and GFLOP/s.
fn share(mut product: Operation, dtype: DType, work: usize) -> String {
    let (mut best, end) = (Duration::MAX, Instant::now() + TIME);
    while Instant::now() < end {
        let start = Instant::now();
        product.run();
        best = best.min(start.elapsed());
    }
    let limits = limits().all;
    let limit = if dtype == DType::Bf16 { limits.flops_bf16 } else { limits.flops_f32 };
    let rate = 2.0 * work as f64 / best.as_secs_f64();
    format!("{:.1} ({:.0})", 100.0 * rate / limit, rate * 1e-9)
}
