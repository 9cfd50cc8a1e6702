//! Resident memory of this process.

use std::collections::HashSet;

/// Highest resident size so far in bytes (`VmHWM`); 0 where the system does not say.
pub fn peak_resident() -> u64 {
    status_field("VmHWM:")
}

/// Resident size now in bytes (`VmRSS`); 0 where the system does not say.
pub fn resident() -> u64 {
    status_field("VmRSS:")
}

/// What a process holds before a run fills its buffers, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The program and its libraries, as far as runs bring them in: a constant share of their length. What
    /// is resident now says less: it differs between processes (the system maps what lies around each page that is touched,
    /// and where a page lies is random), and grows as code is first run.
    pub code: u64,
    /// What the process wrote, and what it read of other files that it maps.
    pub data: u64,
}

/// Share of the program's code that is counted as resident. Runs of all kinds ended with 0.65 to 0.73 of it.
const SHARE_OF_CODE: (u64, u64) = (3, 4);

impl Held {
    /// What is held now; nothing where the system does not say (`/proc/self/smaps`).
    pub fn now() -> Held {
        Held::parse(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default())
    }

    /// Adds up mappings: those of files with code by a share of their length, all others by what of them is resident.
    fn parse(smaps: &str) -> Held {
        let mappings = mappings(smaps);
        let with_code: HashSet<&str> = mappings.iter().filter(|m| m.is_code).map(|m| m.path).collect();
        let mut held = Held::default();
        for m in &mappings {
            match !m.path.is_empty() && !m.is_written && with_code.contains(m.path) {
                true => held.code += m.len,
                false => held.data += m.resident,
            }
        }
        held.code = held.code * SHARE_OF_CODE.0 / SHARE_OF_CODE.1;
        held
    }
}

/// A mapping of `smaps`; sizes in bytes.
struct Mapping<'a> {
    path: &'a str,
    is_code: bool,
    is_written: bool,
    len: u64,
    resident: u64,
}

/// The format is that of proc_pid_smaps(5): a line of `address perms offset device inode path` (no path for memory without
/// a file), then lines of `Name: value kB`.
fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if !first.ends_with(':') {
            let mut fields = line.splitn(6, ' ');
            let perms = fields.nth(1).unwrap_or("");
            let path = fields.nth(3).unwrap_or("").trim_start();
            let (is_code, is_written) = (perms.contains('x'), perms.contains('w'));
            mappings.push(Mapping { path, is_code, is_written, len: 0, resident: 0 });
        } else if let Some(m) = mappings.last_mut() {
            match first {
                "Size:" => m.len = kib(line),
                "Rss:" => m.resident = kib(line),
                _ => {}
            }
        }
    }
    mappings
}

/// Starts a new peak, so that a later [`peak_resident`] covers only what follows. Returns whether the system did it.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Gives memory that was freed back to the system, where the allocator can: what is read afterwards is what is held.
pub fn release_unused() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc's call, which touches free blocks only; safe at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn status_field(name: &str) -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    status.lines().find(|l| l.starts_with(name)).map_or(0, kib)
}

/// The bytes of a line `Name: value kB`.
fn kib(line: &str) -> u64 {
    line.split_whitespace().nth(1).and_then(|v| v.parse::<u64>().ok()).map_or(0, |v| v * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::Held;

    #[test]
    fn peak_covers_the_present() {
        let now = super::resident();
        assert!(now > 0 && super::peak_resident() >= now);
    }

    #[test]
    fn a_share_of_files_with_code_is_held() {
        let smaps = "\
5a00-5b00 r--p 00000000 fe:00 12                         /opt/a b/kfc
Size:                 40 kB
Rss:                   4 kB
5b00-5c00 r-xp 00001000 fe:00 12                         /opt/a b/kfc
Size:                100 kB
Rss:                  12 kB
5c00-5d00 rw-p 00002000 fe:00 12                         /opt/a b/kfc
Size:                  8 kB
Rss:                   4 kB
VmFlags: rd wr mr mw me ac sd
6000-6100 rw-p 00000000 00:00 0
Size:               1000 kB
Rss:                 200 kB
6100-6200 r--s 00000000 fe:00 13                         /data/rows.safetensors
Size:               5000 kB
Rss:                  64 kB
7000-7100 r-xp 00000000 00:00 0                          [vdso]
Size:                  8 kB
Rss:                   4 kB
";
        assert_eq!(Held::parse(smaps), Held { code: 111 << 10, data: 268 << 10 });
        assert_eq!(Held::parse(""), Held::default());
    }

    #[test]
    fn a_process_holds_code_and_data() {
        let (held, all) = (Held::now(), super::resident());
        assert!(held.code > 1 << 20 && held.data > 0 && held.data < all, "{held:?} of {all}");
    }
}
