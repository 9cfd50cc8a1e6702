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

use elements::encode;
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_kernels::cuda::{Arch, Nvrtc};
use kfc_kernels::tile::cuda::{HEADERS, Source, print};
use kfc_kernels::tile::ir::{Elem, Inst, Stmt};
use kfc_kernels::tile::programs::{Sizes, emit, emit_tiled};
use kfc_kernels::tile::tiling::{Shape, candidates};
use kfc_kernels::tile::{Program, Tiling, Tilings, interp};
use kfc_ops::samples::fill;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Environment variable that says with what labels of cases begin; all without it.
const ONLY: &str = "KFC_CUDA_CASES";

/// A kernel: its program, the source, and what it is printed like that for.
struct Kernel {
    program: Program,
    source: Source,
    archs: Vec<Arch>,
    /// Compiled for each of them, not for one in turn.
    everywhere: bool,
}

impl Kernel {
    /// Whether it multiplies with `wgmma`.
    fn is_hopper(&self) -> bool {
        self.source.text.contains("hopper.cuh")
    }
}

/// A launch of a kernel, with its buffers before and after.
struct Case {
    label: String,
    kernel: usize,
    before: Vec<Vec<f64>>,
    after: Vec<Vec<f64>>,
}

/// Programs whose source differs, each under a name of its own, and their launches. Those of large and aligned operands of
/// operations that steps spend their time in are compiled everywhere.
fn collect() -> (Vec<Kernel>, Vec<Case>) {
    let (mut kernels, mut cases) = (Vec::<Kernel>::new(), Vec::new());
    let only = std::env::var(ONLY).unwrap_or_default();
    let mut known: HashMap<String, usize> = HashMap::new();
    let (samples, large, prims) = (tile_cases::samples(), tile_cases::large(), tile_cases::prims());
    let many = [large, aligned()].concat();
    let all = [(samples, false), (many, true), (prims, false)];
    let all = all.iter().flat_map(|(cases, large)| cases.iter().map(move |c| (c, *large)));
    for (case, is_large) in all.filter(|(c, _)| c.label.starts_with(&only)) {
        programs::check(case, &mut |label, launch, before, after| {
            let mut last = None;
            for arch in Arch::ALL {
                let mut p = launch.program.clone();
                let text = print(&p, arch).unwrap().text;
                let kernel = *known.entry(text).or_insert_with(|| {
                    p.name = format!("{}_{}", p.name, kernels.len());
                    let source = print(&p, arch).unwrap();
                    kernels.push(Kernel { program: p, source, archs: Vec::new(), everywhere: false });
                    kernels.len() - 1
                });
                let k = &mut kernels[kernel];
                k.everywhere |= is_large && tile_cases::is_heavy(&case.op);
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

/// Says that a test is skipped, which CI does not accept.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
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
        if std::env::var_os(ONLY).is_some() {
            eprintln!(
                "{arch} {}: {} registers, {} bytes, {sass:?}",
                p.name, r.registers, k.source.dynamic_shared
            );
        }
        // Four warps' products or one warp's, not both.
        if (sass.hgmma > 0) != k.is_hopper() || (sass.hmma > 0) == k.is_hopper() {
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
        // There are many: most are compiled for one of the architectures in turn.
        let is_chosen = |(i, k): &(usize, &Kernel)| {
            k.archs.contains(&arch) && (k.everywhere || k.archs[i % k.archs.len()] == arch)
        };
        let chosen = kernels.iter().enumerate().filter(is_chosen);
        let (dots, others): (Vec<_>, Vec<_>) =
            chosen.map(|(_, k)| k).partition(|k| has_tensor_dot(&k.program, &k.program.body));
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
    let count = |f: &dyn Fn(&Kernel) -> bool| kernels.iter().filter(|k| f(k)).count();
    let (everywhere, hopper) = (count(&|k| k.everywhere), count(&Kernel::is_hopper));
    eprintln!(
        "{} kernels compiled, {everywhere} for all their architectures, {hopper} with wgmma",
        kernels.len()
    );
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
                 instructions, {:>3} HMMA, {:>3} HGMMA, {:>3} LDSM, {} spilled",
                p.name,
                s.grid.iter().product::<usize>(),
                s.threads,
                r.registers,
                s.stages,
                c.instructions,
                c.hmma,
                c.hgmma,
                c.ldsm,
                r.spill_bytes
            );
            let is_hopper = s.text.contains("hopper.cuh");
            if (c.hgmma > 0) != is_hopper || is_hopper && c.hmma > 0 {
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

/// All kernels as one C++ program for the CPU.
fn host_source(kernels: &[Kernel]) -> String {
    let mut t = String::from("#include \"host.h\"\n#include \"hopper.cuh\"\n");
    for k in kernels {
        t += &k.source.text.replace("extern \"C\" __global__", "static");
    }
    t += "static void (*const KERNELS[])(void **) = {\n";
    for p in kernels.iter().map(|k| &k.program) {
        let name = |elem: Elem| match elem {
            Elem::F32 => "float",
            Elem::Bf16 => "kfc_bf16",
            Elem::F16 => "kfc_f16",
            Elem::I32 => "int",
            Elem::U32 => "unsigned",
            Elem::Bool => "bool",
        };
        let args: Vec<String> =
            p.params.iter().enumerate().map(|(i, b)| format!("({} *)a[{i}]", name(b.elem))).collect();
        let _ = writeln!(t, "    [](void **a) {{ {}({}); }},", p.name, args.join(", "));
    }
    t + "};\n#include \"main.h\"\n"
}

/// The launches as `main.h` reads them.
fn host_cases(kernels: &[Kernel], cases: &[Case]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let put = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as u32).to_le_bytes());
    for c in cases {
        let Kernel { program: p, source, .. } = &kernels[c.kernel];
        put(&mut bytes, c.label.len());
        bytes.extend(c.label.as_bytes());
        put(&mut bytes, c.kernel);
        source.grid.iter().chain([&source.threads, &c.before.len()]).for_each(|&n| put(&mut bytes, n));
        for (values, param) in c.before.iter().zip(&p.params) {
            let data = encode(values, param.elem);
            put(&mut bytes, data.len());
            bytes.extend(data);
        }
    }
    bytes
}

/// Results that differ from those of the tile interpreter.
fn differences(kernels: &[Kernel], cases: &[Case], mut results: &[u8]) -> String {
    let mut faults = String::new();
    for c in cases {
        for (values, param) in c.after.iter().zip(&kernels[c.kernel].program.params) {
            let (bytes, rest) = results.split_at(values.len() * param.elem.bytes());
            results = rest;
            faults +=
                &elements::difference(&format!("{} of {}", param.name, c.label), values, bytes, param.elem);
        }
    }
    assert!(results.is_empty(), "{} bytes too many", results.len());
    faults
}

/// Kernels and launches built for the CPU.
struct Host {
    folder: PathBuf,
}

impl Host {
    /// Builds kernels in a folder of this name.
    fn new(name: &str, kernels: &[Kernel]) -> Host {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("kernels.cc"), host_source(kernels)).unwrap();
        for (name, text) in HEADERS {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
        let options = ["-std=c++17", "-O0", "-g1", "-fsanitize=address", "-Wno-unknown-pragmas", "-o"];
        let built = Command::new("g++")
            .args(options)
            .arg(folder.join("kernels"))
            .arg("-I")
            .arg(&shim)
            .arg(folder.join("kernels.cc"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Host { folder }
    }

    /// Runs launches in both orders of warps: bytes of all buffers, or what went wrong.
    fn run(&self, kernels: &[Kernel], cases: &[Case]) -> [(&'static str, Result<Vec<u8>, String>); 2] {
        std::fs::write(self.folder.join("cases"), host_cases(kernels, cases)).unwrap();
        let runs = ["asc", "desc"].map(|order| {
            let mut run = Command::new(self.folder.join("kernels"));
            run.arg(self.folder.join("cases")).arg(self.folder.join(order)).arg(order).stderr(Stdio::piped());
            (order, run.spawn().unwrap())
        });
        runs.map(|(order, run)| {
            let run = run.wait_with_output().unwrap();
            let error = || Err(String::from_utf8_lossy(&run.stderr).into_owned());
            let read = || Ok(std::fs::read(self.folder.join(order)).unwrap());
            (order, if run.status.success() { read() } else { error() })
        })
    }
}

/// Whether there is a compiler for the CPU; says that a test is skipped if not.
fn has_compiler() -> bool {
    let found = Command::new("g++").arg("--version").output().is_ok();
    if !found {
        skip("no g++");
    }
    found
}

#[test]
fn kernels_compute_the_same_on_a_cpu() {
    if !has_compiler() {
        return;
    }
    let (kernels, cases) = collect();
    let host = Host::new("cuda", &kernels);
    for (order, results) in host.run(&kernels, &cases) {
        let results = results.unwrap_or_else(|e| panic!("{order}: {e}"));
        let faults = differences(&kernels, &cases, &results);
        assert!(faults.is_empty(), "{order}:\n{faults}");
    }
    eprintln!("{} launches of {} kernels in both orders", cases.len(), kernels.len());
}

/// `y = x·wᵀ + bias` of several tiles and rounds, cut in these ways: kernels and a launch of each.
fn products(x: DType, cuts: &[Tiling], arch: Arch) -> (Vec<Kernel>, Vec<Case>) {
    let (m, n, k) = (80, 160, 200);
    let types = [[m, k].as_slice(), &[n, k], &[n]].map(|dims| TensorType::new(x, dims));
    let data: Vec<Vec<f64>> = (types.iter().enumerate())
        .map(|(i, t)| fill(t, &SampleInput::Uniform(-1.0, 1.0), i as u64 + 1))
        .collect();
    let def = kfc_ops::registry().get("linear").unwrap();
    let op = Op::Composite(Composite { def, attrs: Attrs::new().with("bias", true) });
    let shape = Shape { kernel: "linear".into(), m, n, k, parts: 1, elem: x.into() };
    let (mut kernels, mut cases) = (Vec::new(), Vec::new());
    for (i, cut) in cuts.iter().enumerate() {
        let mut tilings = Tilings::new();
        tilings.choose(shape.clone(), *cut);
        let out = op.infer(&types).unwrap();
        let emitted = emit_tiled(&op, &types, &out, &Sizes::default(), &tilings).unwrap();
        let mut p = emitted.launches.into_iter().next().unwrap().program;
        assert_eq!(p.tiled.as_ref().map(|t| (&t.shape, t.tiling)), Some((&shape, *cut)));
        p.name = format!("linear_{i}");
        let before = [&data[..], &[vec![0.0; m * n]]].concat();
        let mut after = before.clone();
        interp::run(&p, &mut after).unwrap();
        let source = print(&p, arch).unwrap();
        assert_eq!(source.stages, cut.stages.min(k.div_ceil(cut.k)));
        kernels.push(Kernel { program: p, source, archs: vec![arch], everywhere: false });
        cases.push(Case { label: format!("{x:?} {cut:?}"), kernel: i, before, after });
    }
    (kernels, cases)
}

#[test]
fn every_tiling_gives_the_same_bits() {
    if !has_compiler() {
        return;
    }
    let archs = [(DType::F32, Arch::Sm80), (DType::Bf16, Arch::Sm80), (DType::Bf16, Arch::Sm90a)];
    for (x, arch) in archs {
        let shape = Shape { kernel: "linear".into(), m: 80, n: 160, k: 200, parts: 1, elem: x.into() };
        let mut all = candidates(&shape, arch);
        if arch == Arch::Sm90a {
            // Its built-in tiling has too few rows for instructions of four warps: those that have enough.
            let tall = Shape { m: 1 << 20, ..shape };
            all = candidates(&tall, arch).into_iter().filter(|t| t.m <= 128 && t.n <= 256).collect();
        }
        let mut cuts: Vec<Tiling> = all.iter().step_by(all.len().div_ceil(12)).copied().collect();
        cuts.extend((2..=5).map(|stages| Tiling { stages, ..all[0] }));
        cuts.push(Tiling { stages: 1, ..all[0] });
        let (kernels, cases) = products(x, &cuts, arch);
        let host = Host::new(&format!("cuda-tilings-{x:?}-{arch}"), &kernels);
        for (order, results) in host.run(&kernels, &cases) {
            let results = results.unwrap_or_else(|e| panic!("{order}: {e}"));
            let faults = differences(&kernels, &cases, &results);
            assert!(faults.is_empty(), "{order}:\n{faults}");
            let each: Vec<&[u8]> = results.chunks_exact(results.len() / cuts.len()).collect();
            for (cut, bytes) in cuts.iter().zip(&each) {
                assert!(*bytes == each[0], "{order}: {x:?}: {cut:?} gives other bits than {:?}", cuts[0]);
            }
        }
    }
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
            kernels.push(Kernel { program: p, source, archs: vec![arch], everywhere: false });
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
                for (order, results) in host.run(&kernels, &cases) {
                    let results = results.unwrap_or_else(|e| panic!("{order}: {e}"));
                    let faults = differences(&kernels, &cases, &results);
                    assert!(faults.is_empty(), "{order}:\n{faults}");
                    let each: Vec<&[u8]> = results.chunks_exact(results.len() / cuts.len()).collect();
                    for (cut, bytes) in cuts.iter().zip(&each) {
                        // The forward kernel scales its sums once a tile of keys, and adds up what warps have of a row.
                        let has_rows = |t: &Tiling| t.m >= 16 * t.warps;
                        let keeps =
                            name != "attention" || cut.n == cuts[0].n && has_rows(cut) && has_rows(&cuts[0]);
                        assert!(!keeps || *bytes == each[0], "{order} {arch} {x:?} {name} {cut}");
                    }
                }
            }
        }
    }
}

/// Whether each of these changes of a source makes a product go wrong, and the source as it is does not. A change is what is
/// replaced by what.
fn is_seen(name: &str, arch: Arch, cut: Tiling, changes: &[(String, String)]) {
    let (mut kernels, cases) = products(DType::Bf16, &vec![cut; changes.len() + 1], arch);
    for (k, (from, to)) in kernels[1..].iter_mut().zip(changes) {
        assert!(k.source.text.contains(from), "{from}\n{}", k.source.text);
        k.source.text = k.source.text.replace(from, to);
    }
    let host = Host::new(name, &kernels);
    for (i, case) in cases.iter().enumerate() {
        let runs = host.run(&kernels, std::slice::from_ref(case));
        let is_right = runs.into_iter().all(|(_, results)| {
            results.is_ok_and(|r| differences(&kernels, std::slice::from_ref(case), &r).is_empty())
        });
        assert_eq!(is_right, i == 0, "change {i}");
    }
}

/// Name of the slot that a kernel reads, and what fills another one.
fn slots(cut: Tiling, arch: Arch) -> (String, String) {
    let text = products(DType::Bf16, &[cut], arch).0.remove(0).source.text;
    let start = text.find("int slot").unwrap() + 4;
    let slot = text[start..].split(' ').next().unwrap().to_string();
    (format!("{slot} == 0 ? 2 : {slot} - 1;\n"), format!("{slot};\n"))
}

#[test]
fn a_wait_or_barrier_that_is_missing_is_seen() {
    if !has_compiler() {
        return;
    }
    let cut = Tiling { m: 64, n: 64, k: 32, warps: 4, stages: 3 };
    let changes = [
        ("kfc_copy_wait_but<1>();".into(), "kfc_copy_wait_but<2>();".into()),
        ("kfc_copy_wait_but<1>();\n        __syncthreads();".into(), "kfc_copy_wait_but<1>();".into()),
        // The slot that is read is filled, before all have read it.
        slots(cut, Arch::Sm80),
    ];
    is_seen("cuda-missing", Arch::Sm80, cut, &changes);
}

#[test]
fn what_is_wrong_with_products_of_four_warps_is_seen() {
    if !has_compiler() {
        return;
    }
    let cut = Tiling { m: 128, n: 64, k: 64, warps: 8, stages: 3 };
    let changes = [
        ("kfc_copy_wait_but<1>();", "kfc_copy_wait_but<2>();"),
        ("kfc_fence_shared();\n        __syncthreads();", "kfc_fence_shared();"),
        ("kfc_fence_shared();", ""),
        ("kfc_wgmma_wait<32>(v", "kfc_keep<32>(v"),
        // Rows swizzled in another way than the descriptors say, and descriptors that say so.
        ("kfc_swizzled<128, 128>", "kfc_swizzled<64, 128>"),
        ("true, 128, 128, true, 128, 64>", "true, 128, 128, true, 64, 64>"),
        ("true, 128, 128, true, 128, 64>", "true, 128, 128, false, 128, 64>"),
    ];
    let mut changes = changes.map(|(from, to)| (from.to_string(), to.to_string())).to_vec();
    changes.push(slots(cut, Arch::Sm90a));
    is_seen("cuda-groups", Arch::Sm90a, cut, &changes);
}
