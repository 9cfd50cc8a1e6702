//! A stand-in for NVIDIA's driver (kernels/tests/cuda/driver.cc), which runs kernels on the CPU. Tests of several crates use
//! it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Its library and the kernels that it knows, in a folder.
pub struct Standin {
    folder: PathBuf,
}

/// The folder of C++ that it is made of.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("kernels/tests/cuda")
}

/// Why there can be none here, if so; CI does not accept that.
pub fn missing() -> Option<&'static str> {
    let why = if Command::new("g++").arg("--version").output().is_err() {
        "no g++"
    } else if nvrtc().is_none() {
        "no NVRTC; tools/gpu-toolchain.sh sets it up"
    } else {
        return None;
    };
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
    Some(why)
}

/// The folder of NVRTC.
pub fn nvrtc() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join(".gpu-toolchain/lib");
    let folders = std::fs::read_dir(python).ok()?.filter_map(Result::ok);
    let mut folders = folders.map(|p| p.path().join("site-packages/nvidia/cu13/lib"));
    folders.find(|f| f.join("libnvrtc.so.13").exists())
}

fn compile(arguments: &[&std::ffi::OsStr]) {
    let options =
        ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-w"];
    let output = Command::new("g++").args(options).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a binary is known by, as in driver.cc.
pub fn hash(bytes: &[u8]) -> String {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

impl Standin {
    /// Builds it in `folder` for the kernels that `kfc compile --target cuda:…` wrote into `emitted`.
    pub fn new(folder: PathBuf, emitted: &Path) -> Standin {
        Standin::with(folder, emitted, &[])
    }

    /// [`Standin::new`], with more kernels: files like those of `emitted`, without their endings.
    pub fn with(folder: PathBuf, emitted: &Path, more: &[PathBuf]) -> Standin {
        std::fs::create_dir_all(&folder).unwrap();
        let kernels = emitted.join("kernels");
        let files =
            std::fs::read_dir(&kernels).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = files.filter_map(|n| n.strip_suffix(".cu").map(String::from)).collect();
        names.sort();
        let files: Vec<PathBuf> = names.iter().map(|n| kernels.join(n)).chain(more.iter().cloned()).collect();
        let mut source = String::from("#include \"host.h\"\n#include \"hopper.cuh\"\n");
        let (mut calls, mut labels, mut parameters) = (String::new(), String::new(), String::new());
        let mut all_maps = String::new();
        for (i, file) in files.iter().enumerate() {
            let name = file.file_name().unwrap().to_str().unwrap();
            let about = json(&file.with_extension("json"));
            let text = std::fs::read_to_string(file.with_extension("cu")).unwrap();
            let text = text.replace("extern \"C\" __global__", "static");
            let _ = writeln!(source, "namespace k{i} {{\n{text}}}");
            let list = about["parameters"].as_array().unwrap();
            let argument = |(j, p): (usize, &serde_json::Value)| {
                let ty = match p["type"].as_str().unwrap() {
                    "f32" => "float",
                    "bf16" => "kfc_bf16",
                    "f16" => "kfc_f16",
                    "i32" => "int",
                    "u32" => "unsigned",
                    other => panic!("{other}"),
                };
                format!("({ty} *)a[{j}]")
            };
            let mut list_of: Vec<String> = list.iter().enumerate().map(argument).collect();
            let maps = text.matches("kfc_map map").count();
            list_of.extend((0..maps).map(|j| format!("*(const kfc_map *)a[{}]", list.len() + j)));
            let function = about["function"].as_str().unwrap();
            let _ = writeln!(calls, "    [](void **a) {{ k{i}::{function}({}); }},", list_of.join(", "));
            let _ = writeln!(labels, "    \"{name}\",");
            let _ = writeln!(parameters, "    {},", list.len() + maps);
            let _ = writeln!(all_maps, "    {maps},");
        }
        let _ = write!(
            source,
            "static void (*const KERNELS[])(void **) = {{\n{calls}}};\nstatic const char *const NAMES[] = {{\n{labels}}};\n\
             static const unsigned PARAMETERS[] = {{\n{parameters}}};\nstatic const unsigned MAPS[] = {{\n{all_maps}}};\n#include \"library.h\"\n"
        );
        std::fs::write(folder.join("kernels.cc"), source).unwrap();
        let (here, shim) = (sources(), kernels.as_os_str());
        compile(&[
            "-o".as_ref(),
            folder.join("kernels.so").as_os_str(),
            "-I".as_ref(),
            here.as_os_str(),
            "-I".as_ref(),
            shim,
            folder.join("kernels.cc").as_os_str(),
        ]);
        compile(&[
            "-o".as_ref(),
            folder.join("libcuda.so.1").as_os_str(),
            here.join("driver.cc").as_os_str(),
            "-ldl".as_ref(),
        ]);
        std::fs::write(folder.join("index"), "").unwrap();
        let standin = Standin { folder };
        standin.know_files(&files, 0);
        standin
    }

    /// Builds it in `folder` for all kernels that NVRTC has compiled into the cache `cache`; `emitted` is for their sources.
    pub fn of_cache(folder: PathBuf, cache: &Path, emitted: &Path) -> Standin {
        let (kept, kernels) = (cache.join("kfc/kernels"), emitted.join("kernels"));
        let _ = std::fs::remove_dir_all(&folder);
        let _ = std::fs::remove_dir_all(emitted);
        std::fs::create_dir_all(&kernels).unwrap();
        let headers = kfc_kernels::tile::cuda::HEADERS;
        headers.iter().for_each(|(name, text)| std::fs::write(kernels.join(name), text).unwrap());
        let headers: String = headers.iter().map(|(_, text)| *text).collect();
        for entry in std::fs::read_dir(kept).unwrap().map(|e| e.unwrap().path()) {
            if entry.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let key = json(&entry)["key"].as_str().unwrap().to_string();
            let Some((_, text)) = key.split_once(&format!("{headers}\n")) else { continue };
            let name = entry.file_stem().unwrap();
            let signature = text.split_once("__global__").unwrap().1.split_once('{').unwrap().0;
            let (before, list) = signature.rsplit_once('(').unwrap();
            let function = before.split_whitespace().last().unwrap();
            let list = list.trim().trim_end_matches(')').split(',').filter(|p| !p.contains("kfc_map"));
            let parameters = list.map(|p| {
                let words = p.replace('*', " ");
                let is = |ty: &str| words.split_whitespace().any(|w| w == ty);
                let known = [
                    ("float", "f32"),
                    ("kfc_bf16", "bf16"),
                    ("kfc_f16", "f16"),
                    ("int", "i32"),
                    ("unsigned", "u32"),
                ];
                let found = known.iter().find(|(c, _)| is(c)).unwrap_or_else(|| panic!("{p}"));
                serde_json::json!({"type": found.1})
            });
            let about =
                serde_json::json!({"function": function, "parameters": parameters.collect::<Vec<_>>()});
            std::fs::write(kernels.join(name).with_extension("cu"), text).unwrap();
            std::fs::write(kernels.join(name).with_extension("json"), about.to_string()).unwrap();
            std::fs::copy(entry.with_extension("cubin"), kernels.join(name).with_extension("cubin")).unwrap();
        }
        Standin::new(folder, emitted)
    }

    /// Puts a stand-in for cuBLASLt beside it (kernels/tests/cuda/cublaslt.cc). Returns the library's path.
    pub fn with_cublaslt(&self) -> PathBuf {
        let path = self.folder.join("libcublasLt.so.13");
        let source = sources().join("cublaslt.cc");
        compile(&["-o".as_ref(), path.as_os_str(), source.as_os_str(), "-ldl".as_ref()]);
        path
    }

    /// Only the library: for what goes wrong before a kernel is loaded.
    pub fn empty(folder: PathBuf) -> Standin {
        std::fs::create_dir_all(&folder).unwrap();
        compile(&[
            "-o".as_ref(),
            folder.join("libcuda.so.1").as_os_str(),
            sources().join("driver.cc").as_os_str(),
            "-ldl".as_ref(),
        ]);
        Standin { folder }
    }

    /// Lets binaries of `emitted` stand for the kernels of the same names; they take `hidden` more parameters.
    pub fn know(&self, emitted: &Path, names: &[String], hidden: usize) {
        let files: Vec<PathBuf> = names.iter().map(|n| emitted.join("kernels").join(n)).collect();
        self.know_files(&files, hidden);
    }

    /// Lets binaries of `other` stand for the kernels of the same names in `emitted`, which it knows; they take `hidden` more
    /// parameters.
    pub fn know_instead(&self, emitted: &Path, other: &Path, hidden: usize) {
        let mut index = std::fs::read_to_string(self.folder.join("index")).unwrap();
        let known: std::collections::HashMap<String, String> = index
            .lines()
            .filter_map(|l| l.split_once(' '))
            .map(|(hash, rest)| (hash.into(), rest.into()))
            .collect();
        for entry in std::fs::read_dir(other.join("kernels")).unwrap().map(|e| e.unwrap().path()) {
            if entry.extension().is_none_or(|e| e != "cubin") {
                continue;
            }
            let original = std::fs::read(emitted.join("kernels").join(entry.file_name().unwrap())).unwrap();
            let Some((launch, _)) = known.get(&hash(&original)).and_then(|l| l.rsplit_once(' ')) else {
                continue;
            };
            let _ = writeln!(index, "{} {launch} {hidden}", hash(&std::fs::read(&entry).unwrap()));
        }
        std::fs::write(self.folder.join("index"), index).unwrap();
    }

    fn know_files(&self, files: &[PathBuf], hidden: usize) {
        let mut index = std::fs::read_to_string(self.folder.join("index")).unwrap();
        for (i, file) in files.iter().enumerate() {
            let bytes = std::fs::read(file.with_extension("cubin")).unwrap();
            let about = json(&file.with_extension("json"));
            let _ = writeln!(index, "{} {i} {} {hidden}", hash(&bytes), about["function"].as_str().unwrap());
        }
        std::fs::write(self.folder.join("index"), index).unwrap();
    }

    /// Makes a command use it, with these settings.
    pub fn on<'a>(&self, command: &'a mut Command, settings: &str) -> &'a mut Command {
        command
            .env("LD_LIBRARY_PATH", &self.folder)
            .env("KFC_STANDIN", &self.folder)
            .env("KFC_STANDIN_SET", settings)
            .env("KFC_STANDIN_LOG", self.folder.join("log"))
    }

    /// What it did since this was asked last, a line each.
    pub fn log(&self) -> Vec<String> {
        let path = self.folder.join("log");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text.lines().map(String::from).collect()
    }
}
