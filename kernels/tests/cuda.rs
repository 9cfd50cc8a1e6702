//! Printed CUDA kernels, compiled for GPUs and run on a CPU; neither needs a GPU.
//!
//! Compiling needs what `tools/gpu-toolchain.sh` sets up, running needs g++. Without them the tests say so and pass, except
//! in CI.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/programs.rs"]
mod programs;
#[path = "common/tile_cases.rs"]
mod tile_cases;

mod common;
#[path = "common/elements.rs"]
mod elements;
#[path = "common/host.rs"]
mod host;

use host::{Case, Host, Kernel, has_compiler, skip};
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_kernels::cuda::{Arch, Nvrtc};
use kfc_kernels::tile::cuda::{Source, print};
use kfc_kernels::tile::ir::{Elem, Inst, Stmt};
use kfc_kernels::tile::programs::{Sizes, emit};
use kfc_kernels::tile::tiling::candidates;
use kfc_kernels::tile::{Program, Tiling, Tilings};
use kfc_ops::samples::fill;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Environment variable that says with what labels of cases begin; all without it.
const ONLY: &str = "KFC_CUDA_CASES";

/// Programs whose source differs, each under a name of its own, and their launches.
fn collect() -> (Vec<Kernel>, Vec<Case>) {
    let (mut kernels, mut cases) = (Vec::<Kernel>::new(), Vec::new());
    let only = std::env::var(ONLY).unwrap_or_default();
    let mut known: HashMap<String, usize> = HashMap::new();
    let (samples, large, prims) = (tile_cases::samples(), tile_cases::large(), tile_cases::prims());
    let all = [samples, large, aligned(), prims].concat();
    for case in all.iter().filter(|c| c.label.starts_with(&only)) {
        programs::check(case, &mut |label, launch, before, after| {
            let mut last = None;
            for arch in Arch::ALL {
                let mut p = launch.program.clone();
                let text = print(&p, arch).unwrap().text;
                let kernel = *known.entry(text).or_insert_with(|| {
                    p.name = format!("{}_{}", p.name, kernels.len());
                    let source = print(&p, arch).unwrap();
                    kernels.push(Kernel { program: p, source, archs: Vec::new() });
                    kernels.len() - 1
                });
                let k = &mut kernels[kernel];
                if !k.archs.contains(&arch) {
                    k.archs.push(arch);
                }
                // Sources for different architectures are mostly the same.
                if last != Some(kernel) && (arch != Arch::Sm100a) {
                    let (before, after) = (before.to_vec(), after.to_vec());
                    cases.push(Case { label: format!("{label} for {arch}"), kernel, before, after });
                }
                last = Some(kernel);
            }
        });
    }
    (kernels, cases)
}

/// Operands whose rows are multiples of 16 bytes, so that loads, stores and copies take several elements, and that several
/// warps share.
fn aligned() -> Vec<programs::Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, attrs: Attrs, dtype: DType, shapes: &[&[usize]], floats: usize| {
        let ty = |(i, dims): (usize, &&[usize])| {
            TensorType::new(if i < floats { dtype } else { DType::F32 }, *dims)
        };
        let types: Vec<TensorType> = shapes.iter().enumerate().map(ty).collect();
        let data = (types.iter().enumerate())
            .map(|(i, t)| fill(t, &SampleInput::Uniform(-1.0, 1.0), i as u64 + 1))
            .collect();
        let def = kfc_ops::registry().get(name).unwrap();
        cases.push(programs::Case {
            label: format!("aligned-{name}-{dtype:?}"),
            op: Op::Composite(Composite { def, attrs }),
            types,
            data,
            sizes: Sizes::default(),
        });
    };
    for x in [DType::F32, DType::Bf16, DType::F16] {
        let bias = Attrs::new().with("bias", true);
        add("linear", bias, x, &[&[96, 128], &[160, 128], &[160]], 3);
        let dw = Attrs::new().with("need_dw", true);
        let row: &[usize] = &[3, 2048];
        add("rms_norm", Attrs::new().with("eps", 1e-5), x, &[row, &[2048]], 2);
        add("rms_norm_bwd", dw, x, &[row, row, &[2048], &[3, 1]], 3);
        add("swiglu", Attrs::new(), x, &[&[5, 1024], &[5, 1024]], 2);
    }
    for x in [DType::Bf16, DType::F16] {
        let lora = Attrs::new().with("scale", 2.0).with("dropout", 0.0).with("stream", 3usize);
        let lora = lora.with("bias", false).with("need_dx", true);
        let adapter: [&[usize]; 3] = [&[256, 128], &[16, 128], &[256, 16]];
        let (inputs, outputs): (&[usize], &[usize]) = (&[192, 128], &[192, 256]);
        add("lora_linear", lora.clone(), x, &[&[inputs], &adapter[..]].concat(), 2);
        let s: &[usize] = &[192, 16];
        add("lora_linear_bwd", lora, x, &[&[outputs, inputs], &adapter[..], &[s]].concat(), 3);
    }
    for (x, d) in [(DType::Bf16, 64), (DType::Bf16, 128), (DType::F16, 64), (DType::F16, 128)] {
        let attrs = Attrs::new().with("heads", 2usize).with("kv_heads", 1usize).with("scale", 0.1);
        cases.push(tile_cases::causal(x, attrs, 192, 2 * d, d));
    }
    cases
}

/// The folder of NVRTC in the toolchain.
fn toolchain() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join(".gpu-toolchain/lib");
    let versions = std::fs::read_dir(python).ok()?.filter_map(Result::ok);
    versions
        .map(|v| v.path().join("site-packages/nvidia/cu13/lib"))
        .find(|f| f.join("libnvrtc.so.13").exists())
}

/// Whether there is a dot.
fn has_dot(statements: &[Stmt]) -> bool {
    statements.iter().any(|s| match &s.inst {
        Inst::Dot { .. } => true,
        Inst::For { body, .. } => has_dot(body),
        _ => false,
    })
}

/// Whether a program multiplies 16-bit tiles.
fn has_tensor_dot(p: &Program, statements: &[Stmt]) -> bool {
    statements.iter().any(|s| match &s.inst {
        Inst::Dot { a, .. } => p.ty(*a).elem != Elem::F32,
        Inst::For { body, .. } => has_tensor_dot(p, body),
        _ => false,
    })
}

/// Several kernels in one source, compiled at once: the compiler takes longer to start than to compile one.
const BATCH: usize = 24;

/// What is wrong with these kernels for an architecture.
fn compile(nvrtc: &Nvrtc, batch: &[&Kernel], arch: Arch) -> String {
    let mut faults = String::new();
    let text: String = batch.iter().map(|k| k.source.text.as_str()).collect();
    let object = nvrtc.compile(&text, arch).unwrap_or_else(|e| panic!("{e}"));
    let sass = if batch.iter().any(|k| has_tensor_dot(&k.program, &k.program.body)) {
        nvrtc.sass_counts(&object.cubin).expect("cuobjdump")
    } else {
        HashMap::new()
    };
    for warning in object.warnings {
        let _ = writeln!(faults, "{arch}: {warning}");
    }
    for k in batch {
        let p = &k.program;
        let r = object.reports.iter().find(|r| r.kernel == p.name).expect("a report");
        if r.spill_bytes + r.stack_bytes > 0 || r.registers == 0 {
            let _ = writeln!(faults, "{arch}: {r:?}");
        }
        let Some(sass) = sass.get(&p.name).filter(|_| has_tensor_dot(p, &p.body)) else { continue };
        // Four warps' products or one warp's, not both.
        let is_copied = (sass.utmaldg > 0) == k.source.maps.is_empty();
        if (sass.hgmma > 0) != k.is_hopper() || (sass.hmma > 0) == k.is_hopper() || is_copied {
            let _ = writeln!(faults, "{arch}: {} does not use the tensor cores it should: {sass:?}", p.name);
        }
    }
    faults
}

#[test]
fn kernels_compile_without_spills() {
    let Some(folder) = toolchain() else { return skip("no NVRTC; tools/gpu-toolchain.sh sets it up") };
    let nvrtc = Nvrtc::load_from(Some(folder)).unwrap();
    let (kernels, _) = collect();
    let mut batches = Vec::new();
    for arch in Arch::ALL {
        let chosen = kernels.iter().filter(|k| k.archs.contains(&arch));
        let (dots, others): (Vec<_>, Vec<_>) =
            chosen.partition(|k| has_tensor_dot(&k.program, &k.program.body));
        batches.extend(dots.chunks(BATCH).chain(others.chunks(BATCH)).map(|b| (arch, b.to_vec())));
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut faults = String::new();
        while let Some((arch, batch)) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults += &compile(&nvrtc, batch, *arch);
        }
        faults
    };
    let faults: String = std::thread::scope(|s| {
        let threads: Vec<_> = (0..2).map(|_| s.spawn(work)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{faults}");
    let hopper = kernels.iter().filter(|k| k.is_hopper()).count();
    eprintln!("{} kernels compiled for the architectures that have them, {hopper} with wgmma", kernels.len());
}

/// What was learnt of the kernels of operations at the extents of a model.
#[test]
fn kernels_of_a_model_compile_without_spills() {
    let Some(folder) = toolchain() else { return skip("no NVRTC; tools/gpu-toolchain.sh sets it up") };
    let nvrtc = Nvrtc::load_from(Some(folder)).unwrap();
    let mut programs: Vec<Program> = Vec::new();
    for (op, types) in tile_cases::realistic() {
        let emitted = emit(&op, &types, &op.infer(&types).unwrap()).unwrap();
        let dots = emitted.launches.into_iter().map(|l| l.program).filter(|p| has_dot(&p.body));
        for mut p in dots {
            if programs.iter().all(|q| (&q.body, &q.params) != (&p.body, &p.params)) {
                p.name = format!("{}_{}", p.name, programs.len());
                programs.push(p);
            }
        }
    }
    let work = &|arch: Arch| {
        let sources: Vec<Source> = programs.iter().map(|p| print(p, arch).unwrap()).collect();
        let text: String = sources.iter().map(|s| s.text.as_str()).collect();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-model");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{arch}.cu")), &text).unwrap();
        let object = nvrtc.compile(&text, arch).unwrap_or_else(|e| panic!("{e}"));
        let sass = nvrtc.sass_counts(&object.cubin).expect("cuobjdump");
        let (mut faults, mut table) = (object.warnings.join("\n"), String::new());
        for (p, s) in programs.iter().zip(&sources) {
            let r = object.reports.iter().find(|r| r.kernel == p.name).expect("a report");
            let c = sass[&p.name];
            let shared = r.shared_bytes + s.dynamic_shared;
            let _ = writeln!(
                table,
                "{arch:<8} {:<24} {:>5} blocks of {:>3}: {:>3} registers, {shared:>6} bytes shared, {} stages, {:>5} \
                 instructions, {:>3} HMMA, {:>3} HGMMA, {:>3} LDSM, {} UTMALDG, {} spilled",
                p.name,
                s.grid.iter().product::<usize>(),
                s.threads,
                r.registers,
                s.stages,
                c.instructions,
                c.hmma,
                c.hgmma,
                c.ldsm,
                c.utmaldg,
                r.spill_bytes
            );
            let is_hopper = s.text.contains("hopper.cuh");
            let is_copied = (c.utmaldg > 0) == s.maps.is_empty();
            if (c.hgmma > 0) != is_hopper || is_hopper && c.hmma > 0 || is_copied {
                let _ = writeln!(faults, "{arch}: {} does not use the tensor cores it should: {c:?}", p.name);
            }
            if r.spill_bytes + r.stack_bytes > 0 || r.registers * s.threads > 1 << 16 {
                let _ = writeln!(faults, "{arch}: {r:?}, {} threads", s.threads);
            }
        }
        (faults, table)
    };
    let all: Vec<(String, String)> = std::thread::scope(|s| {
        let threads: Vec<_> = Arch::ALL.map(|a| s.spawn(move || work(a))).into_iter().collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    all.iter().for_each(|(_, table)| eprint!("{table}"));
    let faults: String = all.into_iter().map(|(faults, _)| faults).collect();
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn kernels_compute_the_same_on_a_cpu() {
    if !has_compiler() {
        return;
    }
    let (kernels, cases) = collect();
    let host = Host::new("cuda", &kernels);
    host.run_right(&kernels, &cases);
    eprintln!("{} launches of {} kernels in both orders", cases.len(), kernels.len());
}

/// A launch of attention in each of some tilings, the built-in one first.
fn attention_cuts(case: &programs::Case, name: &str, arch: Arch) -> (Vec<Tiling>, Vec<Kernel>, Vec<Case>) {
    let mut shape = None;
    programs::check(case, &mut |_, launch, _, _| {
        shape = shape.take().or(launch.program.tiled.clone().map(|t| t.shape).filter(|s| s.kernel == name));
    });
    let Some(shape) = shape else { return Default::default() };
    let all = candidates(&shape, arch);
    let mut cuts: Vec<Tiling> = all.iter().step_by(all.len().div_ceil(4)).copied().collect();
    // Searches for queries exchange one value a round through shared memory: each round has to wait for the last one's readers.
    let is_exchanging = |t: &&Tiling| (t.m, t.n, t.warps) == (128, 32, 4) && !cuts.contains(t);
    cuts.extend(all.iter().find(is_exchanging).copied());
    let (mut kernels, mut cases) = (Vec::new(), Vec::new());
    for (i, cut) in cuts.iter().enumerate() {
        let mut tilings = Tilings::new();
        tilings.choose(shape.clone(), *cut);
        programs::check_cut(case, &tilings, &mut |_, launch, before, after| {
            let mut p = launch.program.clone();
            if p.name != name {
                return;
            }
            assert_eq!(p.tiled.as_ref().map(|t| t.tiling), Some(*cut));
            p.name = format!("{name}_{i}");
            let source = print(&p, arch).unwrap();
            kernels.push(Kernel { program: p, source, archs: vec![arch] });
            let (before, after) = (before.to_vec(), after.to_vec());
            cases.push(Case { label: format!("{name} {cut}"), kernel: i, before, after });
        });
    }
    (cuts, kernels, cases)
}

#[test]
fn attention_is_right_in_other_tilings_and_gradients_keep_their_bits() {
    if !has_compiler() {
        return;
    }
    for (x, arch) in [(DType::F32, Arch::Sm80), (DType::Bf16, Arch::Sm80), (DType::Bf16, Arch::Sm90a)] {
        for case in tile_cases::attention(x) {
            for name in ["attention", "attention_dkv", "attention_dq"] {
                let (cuts, kernels, cases) = attention_cuts(&case, name, arch);
                if cuts.is_empty() {
                    continue;
                }
                assert!(cuts.len() > 2, "{name} on {arch}: {cuts:?}");
                let host = Host::new(&format!("cuda-{name}-{x:?}-{arch}"), &kernels);
                // The forward kernel scales its sums once a tile of keys, and adds up what warps have of a row.
                let has_rows = |t: &Tiling| t.m >= 16 * t.warps;
                let keeps = |cut: &Tiling| {
                    name != "attention" || cut.n == cuts[0].n && has_rows(cut) && has_rows(&cuts[0])
                };
                host.run_cut(&kernels, &cases, &|i| keeps(&cuts[i]));
            }
        }
    }
}
