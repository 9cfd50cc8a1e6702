//! What there is of an NVIDIA GPU: files, found by looking at paths, and what the driver says, if there is one.

use crate::config::format_bytes;
use kfc_runtime::device::cuda::{self, CudaError, Info};
use std::path::{Path, PathBuf};

/// Device files, the driver's version, libraries, and devices that the driver shows.
#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    /// `/dev/nvidia0` and so on.
    pub(crate) devices: Vec<String>,
    /// As the kernel module says it.
    pub(crate) driver: Option<String>,
    /// Libraries and where they are.
    pub(crate) libraries: Vec<(&'static str, Option<PathBuf>)>,
    /// What `--device cuda:N` can name, or why nothing.
    pub(crate) cuda: Result<Vec<Info>, CudaError>,
}

/// Libraries that a CUDA device needs, or can use; the name that files begin with.
const LIBRARIES: [&str; 3] = ["libcuda.so.1", "libnvrtc.so", OPTIONAL];

/// The one that is never needed.
const OPTIONAL: &str = "libcublasLt.so";

/// Where loaders look beside `LD_LIBRARY_PATH`.
const FOLDERS: [&str; 10] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/compat",
    "/opt/cuda/lib64",
];

/// Looks.
pub(crate) fn find() -> Gpu {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let numbered = |name: &String| {
        name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut devices: Vec<String> =
        names(Path::new("/dev")).into_iter().filter(numbered).map(|n| format!("/dev/{n}")).collect();
    devices.sort();
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let driver = version
        .and_then(|v| v.lines().next().map(|l| l.trim_start_matches("NVRM version:").trim().to_owned()));
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LD_LIBRARY_PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    folders.extend(std::env::var_os("KFC_CUBLASLT").map(PathBuf::from));
    folders.extend(FOLDERS.map(PathBuf::from));
    let locate = |library: &'static str| {
        let found = folders.iter().find_map(|folder| {
            let mut here: Vec<String> =
                names(folder).into_iter().filter(|n| n.starts_with(library)).collect();
            here.sort();
            here.first().map(|n| folder.join(n))
        });
        (library, found)
    };
    Gpu { devices, driver, libraries: LIBRARIES.map(locate).to_vec(), cuda: cuda::devices() }
}

impl Gpu {
    /// In words.
    pub(crate) fn text(&self) -> String {
        let mut parts = vec![match self.devices.len() {
            0 => "no NVIDIA device".to_string(),
            _ => self.devices.join(", "),
        }];
        parts.extend(self.driver.iter().map(|d| format!("driver {d}")));
        for (name, path) in &self.libraries {
            parts.push(match path {
                Some(path) => path.display().to_string(),
                None if *name == OPTIONAL => format!("no {name} (products are done by kfc's own kernels)"),
                None => format!("no {name}"),
            });
        }
        let usable = match &self.cuda {
            Ok(all) => all.iter().map(describe).collect::<Vec<_>>().join("; "),
            Err(CudaError::NoDriver | CudaError::NoDevice { .. }) => "none usable, --device cpu it is".into(),
            Err(e) => e.to_string(),
        };
        format!("{}; {usable}", parts.join(", "))
    }

    /// Whether training can run on one.
    pub(crate) fn is_usable(&self) -> bool {
        self.cuda.as_ref().is_ok_and(|all| all.iter().any(Info::is_supported))
    }
}

fn describe(i: &Info) -> String {
    let (major, minor) = i.capability;
    let note = if i.is_supported() { "" } else { ", for which no kernels are compiled" };
    format!(
        "cuda:{} is {} with {} and capability {major}.{minor}{note}",
        i.index,
        i.name,
        format_bytes(i.memory)
    )
}

/// What `--json` shows of a device.
pub(crate) fn to_json(i: &Info) -> serde_json::Value {
    serde_json::json!({
        "index": i.index, "name": i.name, "memory_bytes": i.memory, "multiprocessors": i.processors,
        "capability": format!("{}.{}", i.capability.0, i.capability.1), "usable": i.is_supported(),
    })
}
