//! Linear layers with an adapter of rank 16: their time over that of the plain product, forward (`linear`) and backward (`dx`),
//! without and with dropout. The operations of a line take turns, so that what disturbs one disturbs all; the best counts.
//!
//! `cargo run --release -p kfc-benches --example lora -- [--threads N] [bf16|f32] [INPUTS-OUTPUTS...]`
#![allow(clippy::expect_used)]

use kfc_benches::lora::{LAYERS, flops, operation};
use kfc_graph::DType;
use std::time::{Duration, Instant};

/// How long the operations of a line are repeated.
const TIME: Duration = Duration::from_millis(1500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut threads, mut dtypes, mut layers) = (2, vec![DType::Bf16, DType::F32], Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().ok_or("a number of threads")?.parse()?,
            "bf16" => dtypes = vec![DType::Bf16],
            "f32" => dtypes = vec![DType::F32],
            layer => {
                let (inputs, outputs) = layer.split_once('-').ok_or("INPUTS-OUTPUTS")?;
                layers.push((inputs.parse()?, outputs.parse()?));
            }
        }
    }
    if layers.is_empty() {
        layers = LAYERS.to_vec();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    println!(
        "{:<16}{:>9} {:>7} {:>7}{:>9} {:>7} {:>7}",
        "", "GFLOP/s", "lora", "dropout", "GFLOP/s", "lora", "dropout"
    );
    for dtype in dtypes {
        for layer in layers.iter().copied() {
            let cases = [("linear", 0.0), ("lora_linear", 0.0), ("lora_linear", 0.1)].into_iter().chain([
                ("dx", 0.0),
                ("lora_linear_bwd", 0.0),
                ("lora_linear_bwd", 0.1),
            ]);
            let mut operations = Vec::new();
            for (what, dropout) in cases {
                operations.push(operation(what, dtype, layer, dropout).ok_or("no memory")??);
            }
            let mut best = [Duration::MAX; 6];
            pool.install(|| {
                let end = Instant::now() + TIME;
                while Instant::now() < end {
                    for (best, operation) in best.iter_mut().zip(&mut operations) {
                        let start = Instant::now();
                        operation.run();
                        *best = start.elapsed().min(*best);
                    }
                }
            });
            let seconds = best.map(|b| b.as_secs_f64());
            let rate = |s: f64| flops(layer) as f64 / s * 1e-9;
            print!("{:<16}", format!("{dtype} {}-{}", layer.0, layer.1));
            for [plain, lora, dropout] in [[0, 1, 2], [3, 4, 5]].map(|c| c.map(|i| seconds[i])) {
                print!("{:9.0} {:7.3} {:7.3}", rate(plain), lora / plain, dropout / plain);
            }
            println!();
        }
    }
    Ok(())
}
