//! Resident memory of this process.

/// Highest resident size so far in bytes (`VmHWM`); 0 where the system does not say.
pub fn peak_resident() -> u64 {
    status_field("VmHWM:")
}

/// Resident size now in bytes (`VmRSS`); 0 where the system does not say.
pub fn resident() -> u64 {
    status_field("VmRSS:")
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
    let kib = status.lines().find_map(|l| l.strip_prefix(name)).and_then(|v| v.split_whitespace().next());
    kib.and_then(|v| v.parse::<u64>().ok()).map_or(0, |v| v * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn peak_covers_the_present() {
        let now = super::resident();
        assert!(now > 0 && super::peak_resident() >= now);
    }
}
