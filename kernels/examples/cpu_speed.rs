//! Times CPU kernels: `cargo run --release -p kfc-kernels --example cpu_speed`.

use kfc_graph::{Attrs, Composite, DType, Op, Prim, TensorType};
use kfc_kernels::cpu::{self, Buf, Call};
use std::time::Instant;

/// Median seconds of a call on operands of zeros and small numbers.
fn time(
    op: &Op,
    inputs: &[TensorType],
    set: &dyn Fn(usize, &mut [u8]),
) -> Result<f64, Box<dyn std::error::Error>> {
    let outputs = op.infer(inputs)?;
    let kernel = cpu::build(op, inputs, &outputs)?;
    let alloc = |bytes: usize| vec![0u64; bytes.div_ceil(8) + 16];
    let buf = |v: &mut Vec<u64>, bytes: usize| {
        let ptr = v.as_mut_ptr().cast::<u8>();
        Buf { ptr: ptr.wrapping_add(ptr.align_offset(64)), bytes }
    };
    let mut ins: Vec<_> = inputs.iter().map(|t| alloc(t.bytes())).collect();
    let mut outs: Vec<_> = outputs.iter().map(|t| alloc(t.bytes())).collect();
    let mut work = alloc(kernel.workspace_bytes());
    let in_bufs: Vec<Buf> = ins.iter_mut().zip(inputs).map(|(v, t)| buf(v, t.bytes())).collect();
    let out_bufs: Vec<Buf> = outs.iter_mut().zip(&outputs).map(|(v, t)| buf(v, t.bytes())).collect();
    for (i, b) in in_bufs.iter().enumerate() {
        // SAFETY: the buffer was just made.
        set(i, unsafe { std::slice::from_raw_parts_mut(b.ptr, b.bytes) });
    }
    let call =
        Call { inputs: &in_bufs, outputs: &out_bufs, workspace: buf(&mut work, kernel.workspace_bytes()) };
    let mut seconds: Vec<f64> = Vec::new();
    let start = Instant::now();
    while seconds.len() < 3 || (start.elapsed().as_secs_f64() < 0.4 && seconds.len() < 2000) {
        let t = Instant::now();
        // SAFETY: buffers have the sizes of their types and do not overlap.
        unsafe { kernel.run(&call) };
        seconds.push(t.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

fn composite(name: &str, attrs: Attrs) -> Result<Op, String> {
    let def = kfc_ops::registry().get(name).ok_or(format!("no {name}"))?;
    Ok(Op::Composite(Composite { def, attrs }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nothing = |_: usize, _: &mut [u8]| {};
    for x in [DType::F32, DType::Bf16] {
        for (m, n, k) in [
            (1024, 1024, 1024),
            (2048, 2048, 2048),
            (1152, 128, 128),
            (1152, 384, 128),
            (1024, 32000, 512),
            (1024, 512, 32000),
            (1024, 16, 2048),
            (96, 96, 64),
            (1, 4096, 4096),
        ] {
            let types = [TensorType::new(x, [m, k]), TensorType::new(x, [n, k])];
            let s = time(&Op::Prim(Prim::MatMul { ta: false, tb: true, out: x }), &types, &nothing)?;
            let gflops = 2.0 * (m * n * k) as f64 / s / 1e9;
            println!("matmul {x} {m}x{n}x{k}: {:9.1} us {gflops:6.1} GFLOP/s", s * 1e6);
        }
        for (b, t, heads, kv, d) in [(1, 1024, 8, 8, 64), (96, 12, 4, 4, 32), (4, 512, 16, 8, 64)] {
            let attrs = Attrs::new().with("heads", heads).with("kv_heads", kv).with("scale", 0.1);
            let f = |h: usize| TensorType::new(x, [b, t, h * d]);
            let rows = TensorType::new(DType::I32, [b, t]);
            // Positions count up; segments are all 0.
            let positions = |base: usize| {
                move |i: usize, bytes: &mut [u8]| {
                    if i == base + 1 || i == base + 3 {
                        for (j, p) in bytes.chunks_exact_mut(4).enumerate() {
                            p.copy_from_slice(&((j % t) as i32).to_le_bytes());
                        }
                    }
                }
            };
            let types = [&[f(heads), f(kv), f(kv)][..], &vec![rows.clone(); 4]].concat();
            let forward = time(&composite("attention", attrs.clone())?, &types, &positions(3))?;
            let lse = TensorType::new(DType::F32, [b, heads, t]);
            let types = [&[f(heads), f(heads), f(kv), f(kv), f(heads), lse][..], &vec![rows; 4]].concat();
            let backward = time(&composite("attention_bwd", attrs)?, &types, &positions(6))?;
            // Causal: half of the pairs.
            let flops = 2.0 * (b * heads * t * t * d) as f64;
            println!(
                "attention {x} {b}x{t} {heads}/{kv}x{d}: forward {:9.1} us {:6.1} GFLOP/s, backward {:9.1} us {:6.1} GFLOP/s",
                forward * 1e6,
                flops / forward / 1e9,
                backward * 1e6,
                2.5 * flops / backward / 1e9
            );
        }
        let (n, v, h) = (1024, 32000, 512);
        let attrs = Attrs::new()
            .with("kd", "logits")
            .with("temperature", 2.0)
            .with("divergence", "forward_kl")
            .with("need_dw", false);
        let f = |dims: &[usize]| TensorType::new(x, dims);
        let (one, w) = (TensorType::scalar(), TensorType::new(DType::F32, [1, n]));
        let types = [
            one.clone(),
            one,
            f(&[1, n, h]),
            f(&[v, h]),
            TensorType::new(DType::I32, [1, n]),
            w.clone(),
            f(&[1, n, h]),
            f(&[v, h]),
            w,
        ];
        let ones = |i: usize, bytes: &mut [u8]| {
            if i == 5 || i == 8 {
                bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&1.0f32.to_le_bytes()));
            }
        };
        let s = time(&composite("linear_cross_entropy_kd_fused", attrs)?, &types, &ones)?;
        println!(
            "head {x} {n}x{v}x{h}: {:9.1} ms {:6.1} GFLOP/s",
            s * 1e3,
            6.0 * (n * v * h) as f64 / s / 1e9
        );
    }
    let n = 16 << 20;
    let f = |dims: &[usize]| TensorType::new(DType::F32, dims);
    let s = f(&[n]);
    let one = f(&[1]);
    let attrs = Attrs::new()
        .with("params", 1usize)
        .with("beta1", 0.9)
        .with("beta2", 0.999)
        .with("eps", 1e-8)
        .with("weight_decay", 0.01)
        .with("lr_scale", false)
        .with("cast", "none");
    let types = [
        s.clone(),
        s.clone(),
        s.clone(),
        s.clone(),
        one.clone(),
        one,
        f(&[2]),
        TensorType::new(DType::I32, [1]),
    ];
    let ok = |i: usize, bytes: &mut [u8]| {
        if i >= 4 {
            bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&1.0f32.to_le_bytes()));
        }
    };
    let t = time(&composite("adamw", attrs)?, &types, &ok)?;
    println!("adamw {n}: {:6.1} GB/s", 7.0 * 4.0 * n as f64 / t / 1e9);
    let t = time(&Op::Prim(Prim::Add), &[s.clone(), s.clone()], &nothing)?;
    println!("add {n}: {:6.1} GB/s", 3.0 * 4.0 * n as f64 / t / 1e9);
    let t = time(&Op::Prim(Prim::Exp), &[s], &nothing)?;
    println!("exp {n}: {:6.1} GB/s, {:6.2} G/s", 2.0 * 4.0 * n as f64 / t / 1e9, n as f64 / t / 1e9);
    Ok(())
}
