//! Kernels that a user wrote, in files, in place of those that kfc prints: read, looked at, and compiled. What is not known
//! of them is whether they are right: [`crate::device`] tries them on the device before the first step, and
//! [`crate::triton::interpret`] on Triton's interpreter where there is none.
//!
//! Invariant: what is used was compiled from the text that was looked at, without spills, and takes the parameters of the
//! program that it stands for.

mod signature;

use crate::triton::{Compiler, HIDDEN, Request};
use crate::{Result, RunError, files, nvrtc};
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::header::{self, Language, STAGES, Settings};
use kfc_kernels::tile::lower::Kernel;
use kfc_kernels::tile::{Program, cuda};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Largest source file.
const MOST: u64 = 4 << 20;

/// A kernel of a plan, and the file with the one that is used instead: `NAME=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The kernel, by its name in the plan.
    pub kernel: String,
    /// A file that ends in `.cu` or `.py`.
    pub file: PathBuf,
}

impl FromStr for Edit {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Edit, String> {
        match text.split_once('=') {
            Some((kernel, file)) if !kernel.is_empty() && !file.is_empty() => {
                let edit = Edit { kernel: kernel.into(), file: file.into() };
                language(&edit.file).map(|_| edit)
            }
            _ => Err("use NAME=FILE, with a file that ends in .cu or .py".into()),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--kernel {}={}", self.kernel, self.file.display())
    }
}

/// The language of a file, by its ending.
fn language(file: &Path) -> std::result::Result<Language, String> {
    match file.extension().and_then(|e| e.to_str()) {
        Some("cu") => Ok(Language::Cuda),
        Some("py") => Ok(Language::Triton),
        _ => Err(format!("{} must end in .cu (CUDA C++) or .py (Triton)", file.display())),
    }
}

/// The text of an edited kernel, whose parameters were compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Position of the kernel that it stands for.
    pub kernel: usize,
    /// The file.
    pub edit: Edit,
    /// Its language.
    pub language: Language,
    /// Its content.
    pub text: String,
    settings: Settings,
}

/// A compiled edited kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The binary.
    pub cubin: Vec<u8>,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory that are asked for at launch.
    pub dynamic_shared: usize,
    /// Null pointers after its parameters.
    pub hidden: usize,
    /// Matrices that it copies boxes of, each a parameter after the buffers if it takes them.
    pub maps: Vec<cuda::TensorMap>,
    /// Whether it was in the cache.
    pub found: bool,
    /// Registers, shared memory and the like.
    pub figures: Value,
}

/// Reads the files of `edits`.
///
/// # Errors
/// If a name is not among `kernels` or is there twice, or a file cannot be read or has other parameters.
pub fn read(edits: &[Edit], kernels: &[Kernel]) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    for edit in edits {
        let Some(kernel) = kernels.iter().position(|k| k.name == edit.kernel) else {
            return Err(unknown(edit, kernels));
        };
        if let Some(other) = sources.iter().find(|s| s.kernel == kernel) {
            return Err(RunError::Input(format!("{edit}: there is {} already", other.edit)));
        }
        sources.push(Source::read(edit, kernel, &kernels[kernel].program)?);
    }
    Ok(sources)
}

/// An error that says which kernels there are, those of a like name first.
fn unknown(edit: &Edit, kernels: &[Kernel]) -> RunError {
    RunError::Input(format!("{edit}: {}", no_such_kernel(&edit.kernel, kernels)))
}

/// How many names a message lists.
const LISTED: usize = 8;

/// Says that the plan has no kernel of a name, and which it has: those of a like name, or else the first.
pub fn no_such_kernel(name: &str, kernels: &[Kernel]) -> String {
    let stem = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_').to_string();
    let is_alike = |k: &&Kernel| {
        let (a, b) = (stem(&k.name), stem(name));
        !b.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    };
    let names = |all: Vec<&Kernel>| {
        let more = if all.len() > LISTED { ", …" } else { "" };
        all.iter().take(LISTED).map(|k| k.name.as_str()).collect::<Vec<_>>().join(", ") + more
    };
    let alike: Vec<&Kernel> = kernels.iter().filter(is_alike).collect();
    let (which, listed) = match alike.is_empty() {
        false => ("of a like name are", alike),
        true => ("there are", kernels.iter().collect()),
    };
    format!("the plan has no kernel of this name; {which} {} (kfc bench --list --device cuda)", names(listed))
}

impl Source {
    fn read(edit: &Edit, kernel: usize, program: &Program) -> Result<Source> {
        let wrong = |what: String| RunError::Input(format!("{edit}: {what}"));
        let language = language(&edit.file).map_err(wrong)?;
        let bytes = files::read_limited(&edit.file, MOST)?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is no text in UTF-8".into()))?;
        let settings = header::settings(&text, language, &program.name).map_err(wrong)?;
        if language == Language::Cuda {
            signature::check_cuda(&text, program).map_err(wrong)?;
        }
        Ok(Source { kernel, edit: edit.clone(), language, text, settings })
    }

    /// Compiles it for devices of `arch`, or finds it in the cache.
    ///
    /// # Errors
    /// If the compiler is missing or rejects it, or registers do not suffice.
    pub fn compile(&self, program: &Program, arch: Arch, compiler: &mut Compiler) -> Result<Compiled> {
        let wrong = |what: String| RunError::Input(format!("{}: {what}", self.edit));
        let compiled = match self.language {
            Language::Cuda => self.by_nvrtc(program, arch)?,
            Language::Triton => self.by_triton(program, arch.number(), compiler)?,
        };
        let bytes = |what: &str| compiled.figures[what].as_u64().unwrap_or(0);
        match bytes("spill_bytes").max(bytes("stack_bytes")) {
            0 => Ok(compiled),
            n => Err(wrong(format!(
                "each thread keeps {n} bytes of registers and arrays in memory, which is slow: use smaller tiles or more \
                 threads, and index arrays by constants"
            ))),
        }
    }

    fn by_nvrtc(&self, program: &Program, arch: Arch) -> Result<Compiled> {
        let wrong = |what: String| RunError::Input(format!("{}: {what}", self.edit));
        let original = cuda::print(program, arch).map_err(|e| wrong(e.to_string()))?;
        let source = cuda::Source {
            text: self.text.clone(),
            grid: self.settings.grid.unwrap_or(original.grid),
            threads: self.settings.width.unwrap_or(original.threads),
            dynamic_shared: self.settings.depth.unwrap_or(original.dynamic_shared),
            stages: original.stages,
            maps: original.maps,
        };
        let object =
            nvrtc::compile(&source, &program.name, arch).map_err(|e| wrong(first_lines(&e.to_string())))?;
        if object.registers == 0 {
            return Err(wrong(format!("it has no kernel {}: keep the function's name", program.name)));
        }
        let figures = object.to_json();
        Ok(Compiled {
            grid: source.grid,
            threads: source.threads,
            dynamic_shared: source.dynamic_shared,
            hidden: 0,
            maps: source.maps,
            found: object.found,
            figures,
            cubin: object.cubin,
        })
    }

    fn by_triton(&self, program: &Program, arch: u32, compiler: &mut Compiler) -> Result<Compiled> {
        let types: Vec<&str> = program.params.iter().map(|b| b.elem.name()).collect();
        let warps = self.settings.width.unwrap_or(program.warps);
        let stages = self.settings.depth.filter(|n| *n != STAGES);
        let request =
            Request { function: &program.name, source: &self.text, types: &types, warps, stages, arch };
        let before = compiler.found;
        let cubin = compiler.compile(&request).map_err(|e| match e {
            RunError::Failed(what) => RunError::Input(format!("{}: {}", self.edit, first_lines(&what))),
            other => other,
        })?;
        Ok(Compiled {
            grid: self.grid(program),
            threads: warps * 32,
            dynamic_shared: cubin.shared_bytes as usize,
            hidden: HIDDEN,
            maps: Vec::new(),
            found: compiler.found > before,
            figures: cubin.to_json(),
            cubin: cubin.bytes,
        })
    }

    /// Blocks that it is launched with, where the language is Triton.
    pub fn grid(&self, program: &Program) -> [usize; 3] {
        self.settings.grid.unwrap_or(program.grid)
    }

    /// Its file's name, for notes.
    pub fn file_name(&self) -> String {
        self.edit.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Lines of a compiler's message that fit into one of ours.
const LINES: usize = 16;

/// The beginning of a message, on one line.
fn first_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(LINES).collect();
    lines.join(" | ")
}
