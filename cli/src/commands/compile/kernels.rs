//! Kernels of a GPU, compiled and written: source, binary, figures.

use crate::args::{CompileArgs, Global, Target};
use crate::output;
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::lower::{Lowered, program_json};
use kfc_kernels::tile::{self, Program, triton};
use kfc_runtime::device::cuda::source_hash;
use kfc_runtime::files::write_json;
use kfc_runtime::nvrtc;
use kfc_runtime::triton::{Compiler, Request};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is written of a kernel.
struct Kernel {
    /// Its source, and the ending of the file's name.
    source: (String, &'static str),
    cubin: Vec<u8>,
    spill_bytes: u64,
    /// Whether it was in the cache.
    found: bool,
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
    let mut found = 0;
    if let Target::Cuda(_) = args.target {
        for (name, text) in tile::cuda::HEADERS {
            std::fs::write(folder.join(name), text)?;
        }
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
        found += usize::from(compiled.found);
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
    Ok(format!("{} ({found} cached)", lowered.kernels.len()))
}

fn by_nvrtc(p: &Program, arch: Arch) -> anyhow::Result<Kernel> {
    let source = tile::cuda::print(p, arch)?;
    let object = nvrtc::compile(&source, &p.name, arch)?;
    let sass = object
        .sass(&p.name)
        .map(|s| json!({"instructions": s.instructions, "HMMA": s.hmma, "HGMMA": s.hgmma}));
    let mut figures = self::object(object.to_json());
    figures.extend(self::object(json!({
        "target": arch.name(), "sass": sass, "grid": source.grid, "threads": source.threads,
        "dynamic_shared_bytes": source.dynamic_shared,
    })));
    Ok(Kernel {
        source: (source.text, "cu"),
        spill_bytes: object.spill_bytes,
        found: object.found,
        cubin: object.cubin,
        figures,
    })
}

fn by_triton(compiler: &mut Compiler, p: &Program, arch: u32) -> anyhow::Result<Kernel> {
    let source = triton::print(p);
    let types: Vec<&str> = p.params.iter().map(|b| b.elem.name()).collect();
    let request = Request { function: &p.name, source: &source, types: &types, warps: p.warps, arch };
    let before = compiler.found;
    let cubin = compiler.compile(&request)?;
    let found = compiler.found > before;
    let mut figures = object(cubin.to_json());
    figures.insert("target".into(), json!(format!("sm_{arch}")));
    Ok(Kernel { source: (source, "py"), spill_bytes: cubin.spill_bytes, found, figures, cubin: cubin.bytes })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
