//! Programs of every operation on a CUDA device against the tile interpreter: on the device that is there, and some of them on
//! the stand-in for the driver. `tools/gpu-check.sh` runs this on a machine with a GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../kernels/tests/common/mod.rs"]
mod common;
#[path = "../../kernels/tests/common/elements.rs"]
mod elements;
#[path = "../../kernels/tests/common/programs.rs"]
mod programs;
#[path = "../../kernels/tests/common/standin.rs"]
mod standin;
#[path = "../../kernels/tests/common/tile_cases.rs"]
mod tile_cases;

use elements::{difference, encode};
use kfc_graph::{Attrs, Composite, DType, Op, SampleInput, TensorType};
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::lower::program_json;
use kfc_kernels::tile::programs::{Sizes, emit_tiled};
use kfc_kernels::tile::tiling::Shape;
use kfc_kernels::tile::{Program, Tiling, Tilings, cuda, interp};
use kfc_ops::samples::fill;
use kfc_runtime::device::cuda::{CudaError, Gpu, Programs};
use kfc_runtime::nvrtc;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// Environment variable that says with what labels of cases begin; all without it.
const ONLY: &str = "KFC_DEVICE_CASES";

/// A launch with its buffers before and after.
struct Launch {
    label: String,
    program: usize,
    before: Vec<Vec<f64>>,
    after: Vec<Vec<f64>>,
}

/// Programs, each under a name of its own, and their launches.
fn collect(only: &str) -> (Vec<Program>, Vec<Launch>) {
    let (mut all, mut launches) = (Vec::new(), Vec::new());
    let mut known: HashMap<String, usize> = HashMap::new();
    let cases = [tile_cases::samples(), tile_cases::large(), tile_cases::prims()].concat();
    for case in cases.iter().filter(|c| c.label.starts_with(only)) {
        programs::check(case, &mut |label, launch, before, after| {
            let mut p = launch.program.clone();
            let program = *known.entry(cuda::print(&p, Arch::Sm90a).unwrap().text).or_insert_with(|| {
                p.name = format!("{}_{}", p.name, all.len());
                all.push(p);
                all.len() - 1
            });
            let (before, after) = (before.to_vec(), after.to_vec());
            launches.push(Launch { label: label.into(), program, before, after });
        });
    }
    for launch in products().into_iter().filter(|(_, l)| l.label.starts_with(only)) {
        let (mut p, mut launch) = launch;
        (p.name, launch.program) = (format!("{}_{}", p.name, all.len()), all.len());
        all.push(p);
        launches.push(launch);
    }
    (all, launches)
}

/// Products in tiles for `wgmma`, which shapes as small as those of samples are not cut into: on Hopper their operands are copied
/// in boxes, in rows that are not, by threads.
fn products() -> Vec<(Program, Launch)> {
    let (m, n, linear) = (136, 72, kfc_ops::registry().get("linear").unwrap());
    let op = Op::Composite(Composite { def: linear, attrs: Attrs::new().with("bias", true) });
    let mut all = Vec::new();
    for (x, k, tile) in [
        (DType::Bf16, 200, [128, 64, 64]),
        (DType::F16, 264, [64, 64, 32]),
        (DType::Bf16, 264, [64, 256, 64]),
        (DType::Bf16, 202, [128, 64, 64]),
    ] {
        let types = [[m, k].as_slice(), &[n, k], &[n]].map(|dims| TensorType::new(x, dims));
        let shape = Shape { kernel: "linear".into(), m, n, k, parts: 1, elem: x.into() };
        let mut tilings = Tilings::new();
        tilings.choose(shape, Tiling { m: tile[0], n: tile[1], k: tile[2], warps: 8, stages: 3 });
        let out = op.infer(&types).unwrap();
        let emitted = emit_tiled(&op, &types, &out, &Sizes::default(), &tilings).unwrap();
        let program = emitted.launches.into_iter().next().unwrap().program;
        let data = types.iter().zip(1..).map(|(t, i)| fill(t, &SampleInput::Uniform(-1.0, 1.0), i));
        let before: Vec<Vec<f64>> = data.chain([vec![0.0; m * n]]).collect();
        let mut after = before.clone();
        interp::run(&program, &mut after).unwrap();
        let is_copied = !cuda::print(&program, Arch::Sm90a).unwrap().maps.is_empty();
        assert_eq!(is_copied, k % 8 == 0);
        all.push((program, Launch { label: format!("product-{x:?}-{k}"), program: 0, before, after }));
    }
    all
}

#[test]
fn every_program_computes_the_same_on_a_device() {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(e @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => {
            assert!(std::env::var_os(ONLY).is_none(), "{e}");
            return eprintln!("skipped: {e}");
        }
        Err(e) => panic!("{e}"),
    };
    let (all, launches) = collect(&std::env::var(ONLY).unwrap_or_default());
    let loaded = Programs::load(&gpu, all.clone()).unwrap();
    let mut faults = String::new();
    for l in &launches {
        let params = &all[l.program].params;
        let bytes: Vec<Vec<u8>> = l.before.iter().zip(params).map(|(b, p)| encode(b, p.elem)).collect();
        let run = || {
            let mut buffers = bytes.clone();
            loaded
                .run(l.program, &mut buffers)
                .map(|_| buffers)
                .unwrap_or_else(|e| panic!("{}: {e}", l.label))
        };
        let (first, second) = (run(), run());
        if first != second {
            faults += &format!("{}: two runs differ\n", l.label);
        }
        for ((values, bytes), p) in l.after.iter().zip(&first).zip(params) {
            faults += &difference(&format!("{} of {}", p.name, l.label), values, bytes, p.elem);
        }
    }
    assert!(faults.is_empty(), "{faults}");
    assert!(!launches.is_empty());
    println!("{} launches of {} programs on {}", launches.len(), all.len(), gpu.info.name);
}

/// The test above through the stand-in, which knows the programs of a few operations.
#[test]
fn some_programs_compute_the_same_on_the_stand_in() {
    if standin::missing().is_none() {
        ["rms_norm", "product-"].into_iter().for_each(on_the_stand_in);
    }
}

fn on_the_stand_in(only: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("device-{only}"));
    let _ = std::fs::remove_dir_all(&folder);
    let kernels = folder.join("emitted/kernels");
    std::fs::create_dir_all(&kernels).unwrap();
    for (name, text) in cuda::HEADERS {
        std::fs::write(kernels.join(name), text).unwrap();
    }
    let folder_of_nvrtc = standin::nvrtc();
    kfc_kernels::cuda::Nvrtc::load_from(folder_of_nvrtc.clone()).unwrap();
    for p in collect(only).0 {
        let source = cuda::print(&p, Arch::Sm90a).unwrap();
        let cubin = nvrtc::compile(&source, &p.name, Arch::Sm90a).unwrap().cubin;
        std::fs::write(kernels.join(format!("{}.cu", p.name)), source.text).unwrap();
        std::fs::write(kernels.join(format!("{}.cubin", p.name)), cubin).unwrap();
        std::fs::write(kernels.join(format!("{}.json", p.name)), program_json(&p).to_string()).unwrap();
    }
    let standin = standin::Standin::new(folder.join("standin"), &folder.join("emitted"));
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "every_program_computes_the_same_on_a_device", "--nocapture"]).env(ONLY, only);
    again.env("KFC_NVRTC", folder_of_nvrtc.unwrap());
    let output = standin.on(&mut again, "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("programs on Stand-in"), "{said}");
}
