//! Runs a file of tests at every level of instructions.

use kfc_kernels::cpu::simd::{self, VARIABLE};
use std::process::Command;

/// Runs the tests of this binary but the one of that name in a process of its own for each lower level of this CPU, since a
/// process keeps to one. Where the environment chooses a level already, that is the only one.
pub fn at_lower_levels(this_test: &str) {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    for level in simd::available().into_iter().filter(|l| *l != simd::level()) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--skip", this_test])
            .env(VARIABLE, level.name())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{VARIABLE}={}\n{text}", level.name());
        assert!(!text.contains(" 0 passed"), "nothing ran\n{text}");
    }
}
