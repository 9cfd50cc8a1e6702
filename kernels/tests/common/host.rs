//! Printed CUDA kernels built for a CPU, in both orders of warps (`tests/cuda/host.h`).
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use super::elements::{self, encode};
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::Program;
use kfc_kernels::tile::cuda::{HEADERS, Source, TensorMap};
use kfc_kernels::tile::ir::Elem;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kernel: its program, the source, and what it is printed like that for.
pub struct Kernel {
    pub program: Program,
    pub source: Source,
    pub archs: Vec<Arch>,
}

impl Kernel {
    /// Whether it multiplies with `wgmma`.
    pub fn is_hopper(&self) -> bool {
        self.source.text.contains("hopper.cuh")
    }
}

/// A launch of a kernel, with its buffers before and after.
pub struct Case {
    pub label: String,
    pub kernel: usize,
    pub before: Vec<Vec<f64>>,
    pub after: Vec<Vec<f64>>,
}

/// Says that a test is skipped, which CI does not accept.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// All kernels as one C++ program for the CPU.
pub fn host_source(kernels: &[Kernel]) -> String {
    let mut t = String::from("#include \"host.h\"\n#include \"hopper.cuh\"\n");
    for k in kernels {
        t += &k.source.text.replace("extern \"C\" __global__", "static");
    }
    t += "static void (*const KERNELS[])(void **) = {\n";
    for k in kernels {
        let p = &k.program;
        let name = |elem: Elem| match elem {
            Elem::F32 => "float",
            Elem::Bf16 => "kfc_bf16",
            Elem::F16 => "kfc_f16",
            Elem::I32 => "int",
            Elem::U32 => "unsigned",
            Elem::Bool => "bool",
        };
        let mut args: Vec<String> =
            p.params.iter().enumerate().map(|(i, b)| format!("({} *)a[{i}]", name(b.elem))).collect();
        args.extend(k.source.maps.iter().map(host_map));
        let _ = writeln!(t, "    [](void **a) {{ {}({}); }},", p.name, args.join(", "));
    }
    t + "};\n#include \"main.h\"\n"
}

/// A tensor map of the buffers `a`, as the driver would encode it.
pub fn host_map(m: &TensorMap) -> String {
    let ([columns, rows], [c, r]) = (m.extents, m.tile);
    let (i, pitch, bytes, swizzle) = (m.param, m.pitch, m.elem.bytes(), m.swizzle);
    format!("kfc_host::map_of<kfc_map>(a[{i}], {columns}, {rows}, {pitch}, {c}, {r}, {bytes}, {swizzle})")
}

/// The launches as `main.h` reads them.
pub fn host_cases(kernels: &[Kernel], cases: &[Case]) -> Vec<u8> {
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
pub fn differences(kernels: &[Kernel], cases: &[Case], mut results: &[u8]) -> String {
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
pub struct Host {
    pub folder: PathBuf,
}

impl Host {
    /// Builds kernels in a folder of this name.
    pub fn new(name: &str, kernels: &[Kernel]) -> Host {
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
    pub fn run(&self, kernels: &[Kernel], cases: &[Case]) -> [(&'static str, Result<Vec<u8>, String>); 2] {
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

    /// [`Host::run`] of launches that have to leave what is expected. Returns what they leave in each order.
    pub fn run_right(&self, kernels: &[Kernel], cases: &[Case]) -> [(&'static str, Vec<u8>); 2] {
        self.run(kernels, cases).map(|(order, results)| {
            let results = results.unwrap_or_else(|e| panic!("{order}: {e}"));
            let faults = differences(kernels, cases, &results);
            assert!(faults.is_empty(), "{order}:\n{faults}");
            (order, results)
        })
    }

    /// The same of launches that do the same work cut in other ways: where `keeps` says so of a case, it has the first one's bits.
    #[allow(dead_code)] // not all tests of kernels cut
    pub fn run_cut(&self, kernels: &[Kernel], cases: &[Case], keeps: &dyn Fn(usize) -> bool) {
        for (order, results) in self.run_right(kernels, cases) {
            let each: Vec<&[u8]> = results.chunks_exact(results.len() / cases.len()).collect();
            for (i, (case, bytes)) in cases.iter().zip(&each).enumerate() {
                let is_same = *bytes == each[0];
                assert!(
                    is_same || !keeps(i),
                    "{order}: {} has other bits than {}",
                    case.label,
                    cases[0].label
                );
            }
        }
    }
}

/// Whether there is a compiler for the CPU; says that a test is skipped if not.
pub fn has_compiler() -> bool {
    let found = Command::new("g++").arg("--version").output().is_ok();
    if !found {
        skip("no g++");
    }
    found
}
