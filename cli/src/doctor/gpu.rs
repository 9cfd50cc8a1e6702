//! What there is of an NVIDIA GPU, found by looking at paths: nothing is loaded.

use std::path::{Path, PathBuf};

/// Device files, the driver's version, libraries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gpu {
    /// `/dev/nvidia0` and so on.
    pub(crate) devices: Vec<String>,
    /// As the kernel module says it.
    pub(crate) driver: Option<String>,
    /// Libraries and where they are.
    pub(crate) libraries: Vec<(&'static str, Option<PathBuf>)>,
}

/// Libraries that a CUDA device needs, or can use; the name that files begin with.
const LIBRARIES: [&str; 3] = ["libcuda.so.1", "libnvrtc.so", "libcublasLt.so"];

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
    Gpu { devices, driver, libraries: LIBRARIES.map(locate).to_vec() }
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
                None => format!("no {name}"),
            });
        }
        format!("{}; this build runs on the CPU only and uses none of it", parts.join(", "))
    }
}
