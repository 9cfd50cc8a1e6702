//! The machine that this process runs on: CPU, memory, and what of it the process may use.

use std::path::{Path, PathBuf};

/// The CPU's name, as the system gives it.
pub fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// Instruction sets that kernels can make use of, and whether this CPU has them.
pub fn features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        vec![
            ("avx2", has!("avx2")),
            ("fma", has!("fma")),
            ("f16c", has!("f16c")),
            ("avx512f", has!("avx512f")),
            ("avx512bw", has!("avx512bw")),
            ("avx512bf16", has!("avx512bf16")),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        vec![("neon", has!("neon")), ("bf16", has!("bf16"))]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// Cores that this process may run on.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory in bytes; 0 where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the machine has.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
    /// What the machine can put on disk instead.
    pub swap: u64,
    /// What the control group of this process may hold, and what of it is left; `None` without a limit.
    pub group: Option<(u64, u64)>,
}

impl Memory {
    /// What a new program can take: the smaller of what the machine and the control group have left.
    pub fn usable(&self) -> u64 {
        self.group.map_or(self.available, |(_, left)| left.min(self.available))
    }

    /// What no program can take more of, however much the others give up; 0 where the system does not say.
    pub fn limit(&self) -> u64 {
        self.group.map_or(self.total, |(limit, _)| limit.min(self.total)) + self.swap
    }
}

/// Memory of the machine and the limit on this process.
pub fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|v| v.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    let total = field("MemTotal:");
    let groups = group_folders().into_iter().filter_map(|g| group_memory(&g));
    let group = groups.filter(|(limit, _)| *limit < total).min_by_key(|(_, left)| *left);
    Memory { total, available: field("MemAvailable:"), swap: field("SwapTotal:"), group }
}

/// Folders of this process's control group and of all above it.
fn group_folders() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/sys/fs/cgroup/memory")];
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            c if c.split(',').any(|c| c == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        folders.extend(Path::new(path.trim_start_matches('/')).ancestors().map(|p| root.join(p)));
    }
    folders
}

/// Limit of a control group and what is left of it; file caches count as free.
fn group_memory(folder: &Path) -> Option<(u64, u64)> {
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")).and_then(|v| v.parse().ok());
    Some((limit, limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)))))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_machine_has_memory_and_a_cpu() {
        let m = super::memory();
        assert!(m.usable() > 0 && m.usable() <= m.total, "{m:?}");
        assert!(m.usable() <= m.limit(), "{m:?}");
        assert!(!super::cpu_model().is_empty() && super::cores() > 0);
    }
}
