//! Kernels of a GPU, compiled and written: source, binary, figures.

use crate::args::{CompileArgs, Global, Target};
use crate::output;
use kfc_kernels::cuda::{self, Arch};
use kfc_kernels::tile::lower::{Lowered, program_json};
use kfc_kernels::tile::{self, Program, triton};
use kfc_runtime::device::cuda::source_hash;
use kfc_runtime::files::write_json;
use kfc_runtime::triton::{Compiler, Request};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is written of a kernel.
struct Kernel {
    /// Its source, and the ending of the file's name.
    source: (String, &'static str),
    cubin: Vec<u8>,
    spill_bytes: u64,
    /// Registers and the like.
    figures: Map<String, Value>,
}

/// Compiles every kernel for the target of `args` and writes it into `folder`. Returns a word about it for people.
///
/// # Errors
/// If the compiler is missing or rejects a kernel, or a file cannot be written.
pub(super) fn write(
    args: &CompileArgs,
    lowered: &Lowered,
    folder: &Path,
    global: &Global,
) -> anyhow::Result<String> {
    std::fs::create_dir_all(folder)?;
    let mut compiler = Compiler::new(args.python.clone());
    if let Target::Cuda(_) = args.target {
        std::fs::write(folder.join("kfc.cuh"), tile::cuda::HEADER)?;
    }
    for kernel in &lowered.kernels {
        let (p, name) = (&kernel.program, &kernel.name);
        let compiled = match args.target {
            Target::Cuda(arch) => by_nvrtc(p, arch)?,
            Target::Triton(arch) => by_triton(&mut compiler, p, arch)?,
            Target::Cpu => continue,
        };
        if compiled.spill_bytes > 0 && !global.quiet {
            output::stderr_line(&format!("note: {name} spills {} bytes of registers", compiled.spill_bytes));
        }
        let mut about = program_json(p);
        if let Some(about) = about.as_object_mut() {
            about.insert("launches".into(), json!(kernel.launches));
            about.insert("source_hash".into(), json!(source_hash(&compiled.source.0)));
            about.extend(compiled.figures);
        }
        let (source, ending) = compiled.source;
        std::fs::write(folder.join(format!("{name}.{ending}")), source)?;
        std::fs::write(folder.join(format!("{name}.cubin")), &compiled.cubin)?;
        write_json(&folder.join(format!("{name}.json")), &about)?;
    }
    let count = lowered.kernels.len();
    Ok(match args.target {
        Target::Triton(_) => format!("{count} ({} cached)", compiler.found),
        _ => count.to_string(),
    })
}

fn by_nvrtc(p: &Program, arch: Arch) -> anyhow::Result<Kernel> {
    let compiled = cuda::compile(p, arch)?;
    let sass =
        compiled.sass.map(|s| json!({"instructions": s.instructions, "HMMA": s.hmma, "HGMMA": s.hgmma}));
    let figures = json!({
        "target": arch.name(), "registers": compiled.registers, "spill_bytes": compiled.spill_bytes,
        "stack_bytes": compiled.stack_bytes, "shared_bytes": compiled.shared_bytes, "sass": sass,
        "grid": compiled.source.grid, "threads": compiled.source.threads,
        "dynamic_shared_bytes": compiled.source.dynamic_shared,
    });
    Ok(Kernel {
        source: (compiled.source.text, "cu"),
        cubin: compiled.cubin,
        spill_bytes: compiled.spill_bytes as u64,
        figures: object(figures),
    })
}

fn by_triton(compiler: &mut Compiler, p: &Program, arch: u32) -> anyhow::Result<Kernel> {
    let source = triton::print(p);
    let types: Vec<&str> = p.params.iter().map(|b| b.elem.name()).collect();
    let request = Request { function: &p.name, source: &source, types: &types, warps: p.warps, arch };
    let cubin = compiler.compile(&request)?;
    let mut figures = object(cubin.to_json());
    figures.insert("target".into(), json!(format!("sm_{arch}")));
    Ok(Kernel { source: (source, "py"), spill_bytes: cubin.spill_bytes, figures, cubin: cubin.bytes })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
