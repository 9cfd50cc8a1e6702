//! Printed Triton kernels, compiled for GPUs and run on Triton's own interpreter; neither needs a GPU.
//!
//! Needs the Python that `tools/gpu-toolchain.sh` sets up. Without it, the tests say so and pass, except in CI.

#[path = "common/programs.rs"]
mod programs;

mod common;

use kfc_kernels::tile::triton;
use serde_json::json;
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

/// Writes every program of every sample, with the contents of its buffers before and after.
fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    programs::each(|label, launch, before, after| {
        let p = &launch.program;
        let params: Vec<_> = p
            .params
            .iter()
            .zip(before.iter().zip(after))
            .map(|(q, (b, a))| json!({"name": q.name, "elem": q.elem.name(), "before": b, "after": a}))
            .collect();
        let case = json!({"name": p.name, "grid": p.grid, "warps": p.warps, "params": params});
        std::fs::write(folder.join(format!("{label}.py")), triton::print(p)).unwrap();
        std::fs::write(folder.join(format!("{label}.json")), case.to_string()).unwrap();
    });
}

fn check(what: &str) {
    let Some(python) = python() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("triton-{what}"));
    write(&folder);
    let script = root().join("tools/triton_check.py");
    let output = Command::new(python).arg(script).arg(what).arg(&folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    eprintln!("{text}");
}

#[test]
fn kernels_compile_without_spills() {
    check("compile");
}

#[test]
fn kernels_compute_the_same_on_tritons_interpreter() {
    check("run");
}
