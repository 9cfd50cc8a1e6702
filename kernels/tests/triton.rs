//! Printed Triton kernels, compiled for GPUs and run on Triton's own interpreter; neither needs a GPU.
//!
//! Needs the Python that `tools/gpu-toolchain.sh` sets up. Without it, the tests say so and pass, except in CI.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/programs.rs"]
mod programs;
#[path = "common/tile_cases.rs"]
mod tile_cases;

mod common;

use kfc_graph::DType;
use kfc_kernels::tile::programs::emit;
use kfc_kernels::tile::triton;
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Python with Triton.
fn python() -> Option<PathBuf> {
    let path = root().join(".gpu-toolchain/bin/python");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "tools/gpu-toolchain.sh has not been run");
    eprintln!("skipped: no Triton; tools/gpu-toolchain.sh sets it up");
    None
}

/// Elements of a buffer; 0 where nobody has written yet.
fn written(buffer: &[f64]) -> Vec<f64> {
    buffer.iter().map(|&v| if v.is_nan() { 0.0 } else { v }).collect()
}

/// Compute capabilities, without the point.
const ARCHS: [usize; 3] = [80, 90, 100];

/// Writes every program of operations at the extents of a model, for compilation alone.
fn write_realistic(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    let mut seen = HashSet::new();
    for (n, (op, types)) in tile_cases::realistic().into_iter().enumerate() {
        let emitted = emit(&op, &types, &op.infer(&types).unwrap()).unwrap();
        for (l, launch) in emitted.launches.iter().enumerate() {
            let (p, source) = (&launch.program, triton::print(&launch.program));
            if seen.insert(source.clone()) {
                let params: Vec<_> =
                    p.params.iter().map(|q| json!({"name": q.name, "elem": q.elem.name()})).collect();
                let case = json!({
                    "name": p.name, "grid": p.grid, "warps": p.warps, "params": params, "archs": ARCHS,
                });
                let stem = format!("{n:02}-{l:02}-{}", p.name);
                std::fs::write(folder.join(format!("{stem}.py")), source).unwrap();
                std::fs::write(folder.join(format!("{stem}.json")), case.to_string()).unwrap();
            }
        }
    }
}

/// Writes every program of these cases once, with the contents of its buffers before and after.
fn write(cases: &[programs::Case], folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
    let mut seen = HashSet::new();
    for case in cases {
        programs::check(case, &mut |label, launch, before, after| {
            let p = &launch.program;
            let source = triton::print(p);
            if !seen.insert(source.clone()) {
                return;
            }
            let params: Vec<_> = p
                .params
                .iter()
                .zip(before.iter().zip(after))
                .map(|(q, (b, a))| json!({"name": q.name, "elem": q.elem.name(), "before": written(b), "after": written(a)}))
                .collect();
            let case = json!({"name": p.name, "grid": p.grid, "warps": p.warps, "params": params});
            std::fs::write(folder.join(format!("{label}.py")), source).unwrap();
            std::fs::write(folder.join(format!("{label}.json")), case.to_string()).unwrap();
        });
    }
}

fn check(what: &str, folder: &Path) {
    let Some(python) = python() else { return };
    let script = root().join("tools/triton_check.py");
    let output = Command::new(python).arg(script).arg(what).arg(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    eprintln!("{text}");
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("triton-{name}"))
}

#[test]
fn kernels_compile_without_spills() {
    let folder = folder("compile");
    write_realistic(&folder);
    check("compile", &folder);
}

#[test]
fn kernels_compute_the_same_on_tritons_interpreter() {
    // In f32 alone where the types make no other program than those of the samples.
    let mut others = [tile_cases::large(), tile_cases::prims()].concat();
    others.retain(|case| case.types.iter().all(|t| !matches!(t.dtype, DType::F16 | DType::Bf16)));
    let cases = [tile_cases::samples(), others].concat();
    let folder = folder("run");
    write(&cases, &folder);
    check("run", &folder);
}
