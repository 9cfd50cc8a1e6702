//! Kernels of a GPU, compiled and written: source, binary, figures. Those that the user edited come from their files.

use crate::args::{CompileArgs, Global, Target};
use crate::error::input_error;
use crate::output;
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::header::{self, Language, STAGES, Settings};
use kfc_kernels::tile::lower::{Lowered, program_json};
use kfc_kernels::tile::{self, Program, triton};
use kfc_runtime::device::cuda::source_hash;
use kfc_runtime::edited::{self, Source};
use kfc_runtime::files::{FileError, write_json};
use kfc_runtime::nvrtc;
use kfc_runtime::triton::{Compiler, Python, Request, interpret};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is written of a kernel.
struct Kernel {
    /// Its source without a header: what it is known by.
    source: String,
    launch: Settings,
    cubin: Vec<u8>,
    spill_bytes: u64,
    /// Whether it was in the cache.
    found: bool,
    /// Registers and the like.
    figures: Map<String, Value>,
}

/// Compiles every kernel for the target of `args` and writes it into `folder`. Returns a word about it for people, and what is
/// to be said of each edited one.
///
/// # Errors
/// If the compiler is missing or rejects a kernel, an edited one is wrong, or a file cannot be written.
pub(super) fn write(
    args: &CompileArgs,
    lowered: &Lowered,
    python: &Python,
    folder: &Path,
    global: &Global,
) -> anyhow::Result<(String, Vec<(String, String)>)> {
    let (language, arch) = match args.target {
        Target::Cuda(arch) => (Language::Cuda, Some(arch)),
        Target::Triton(number) => (Language::Triton, Arch::ALL.into_iter().find(|a| a.number() == number)),
        Target::Cpu => return Ok((String::new(), Vec::new())),
    };
    let arch = arch.ok_or_else(|| input_error("no such architecture"))?;
    std::fs::create_dir_all(folder).map_err(|e| FileError::io("create", folder, e))?;
    let mut compiler = Compiler::new(python.clone());
    let (mut found, mut said) = (0, Vec::new());
    if language == Language::Cuda {
        for (name, text) in tile::cuda::HEADERS {
            super::write_file(&folder.join(name), text)?;
        }
    }
    let sources = edited::read(&args.edits, &lowered.kernels)?;
    for (k, kernel) in lowered.kernels.iter().enumerate() {
        let (p, name) = (&kernel.program, &kernel.name);
        let mut about = program_json(p);
        let (text, cubin) = if let Some(source) = sources.iter().find(|s| s.kernel == k) {
            let compiled = edited(source, p, language, arch, &mut compiler, &mut about)?;
            let checked = match language {
                Language::Triton => interpret::check(source, kernel, &lowered.origins[k], python)?,
                Language::Cuda => {
                    "compiles without spills; its numbers are compared with the original's on the device, \
                                   before the first step of a run"
                        .into()
                }
            };
            if !global.quiet {
                output::stderr_line(&format!("{}: {checked}", source.edit));
            }
            said.push((name.clone(), checked));
            compiled
        } else {
            let compiled = match args.target {
                Target::Triton(arch) => by_triton(&mut compiler, p, arch)?,
                _ => by_nvrtc(p, arch)?,
            };
            if compiled.spill_bytes > 0 && !global.quiet {
                output::stderr_line(&format!(
                    "note: {name} spills {} bytes of registers",
                    compiled.spill_bytes
                ));
            }
            found += usize::from(compiled.found);
            add(&mut about, json!({"source_hash": source_hash(&compiled.source)}));
            add(&mut about, Value::Object(compiled.figures));
            let origin = &lowered.origins[k];
            (header::with_header(kernel, origin, language, compiled.launch, &compiled.source), compiled.cubin)
        };
        add(&mut about, json!({"launches": kernel.launches}));
        super::write_file(&folder.join(format!("{name}.{}", language.ending())), text)?;
        super::write_file(&folder.join(format!("{name}.cubin")), &cubin)?;
        write_json(&folder.join(format!("{name}.json")), &about)?;
    }
    let edited = if sources.is_empty() { String::new() } else { format!(", {} edited", sources.len()) };
    Ok((format!("{} ({found} cached{edited})", lowered.kernels.len()), said))
}

/// Text and binary of an edited kernel. It stands for the one that it replaces, by whose source it is found.
fn edited(
    source: &Source,
    p: &Program,
    language: Language,
    arch: Arch,
    compiler: &mut Compiler,
    about: &mut Value,
) -> anyhow::Result<(String, Vec<u8>)> {
    if source.language != language {
        return Err(input_error(format!(
            "{}: it is {}, and the target needs {}",
            source.edit,
            source.language.name(),
            language.name()
        )));
    }
    let compiled = source.compile(p, arch, compiler)?;
    let original = match language {
        Language::Cuda => tile::cuda::print(p, arch)?.text,
        Language::Triton => triton::print(p),
    };
    add(about, compiled.figures);
    add(
        about,
        json!({
            "source_hash": source_hash(&original), "edited": source.file_name(), "grid": compiled.grid,
            "warps": compiled.threads / 32, "threads": compiled.threads, "dynamic_shared_bytes": compiled.dynamic_shared,
            "target": if language == Language::Cuda { arch.name().to_string() } else { format!("sm_{}", arch.number()) },
        }),
    );
    Ok((source.text.clone(), compiled.cubin))
}

fn by_nvrtc(p: &Program, arch: Arch) -> anyhow::Result<Kernel> {
    let source = tile::cuda::print(p, arch)?;
    let object = nvrtc::compile(&source, &p.name, arch)?;
    let sass = object.sass(&p.name).map(
        |s| json!({"instructions": s.instructions, "HMMA": s.hmma, "HGMMA": s.hgmma, "UTMALDG": s.utmaldg}),
    );
    let mut figures = self::object(object.to_json());
    figures.extend(self::object(json!({
        "target": arch.name(), "sass": sass, "grid": source.grid, "threads": source.threads,
        "dynamic_shared_bytes": source.dynamic_shared,
    })));
    Ok(Kernel {
        launch: Settings {
            grid: Some(source.grid),
            width: Some(source.threads),
            depth: Some(source.dynamic_shared),
        },
        source: source.text,
        spill_bytes: object.spill_bytes,
        found: object.found,
        cubin: object.cubin,
        figures,
    })
}

fn by_triton(compiler: &mut Compiler, p: &Program, arch: u32) -> anyhow::Result<Kernel> {
    let source = triton::print(p);
    let types: Vec<&str> = p.params.iter().map(|b| b.elem.name()).collect();
    let request =
        Request { function: &p.name, source: &source, types: &types, warps: p.warps, stages: None, arch };
    let before = compiler.found;
    let cubin = compiler.compile(&request)?;
    let found = compiler.found > before;
    let mut figures = object(cubin.to_json());
    figures.insert("target".into(), json!(format!("sm_{arch}")));
    let launch = Settings { grid: Some(p.grid), width: Some(p.warps), depth: Some(STAGES) };
    Ok(Kernel { source, launch, spill_bytes: cubin.spill_bytes, found, figures, cubin: cubin.bytes })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Adds the members of one object to another.
fn add(to: &mut Value, from: Value) {
    if let Some(to) = to.as_object_mut() {
        to.extend(object(from));
    }
}
