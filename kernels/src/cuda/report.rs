//! What compilers and disassemblers say about a kernel.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

/// What `ptxas -v` says about one kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Its name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes spilled and read back.
    pub spill_bytes: usize,
    /// Bytes of a thread's stack.
    pub stack_bytes: usize,
    /// Bytes of static shared memory.
    pub shared_bytes: usize,
}

/// Tensor core instructions in machine code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SassCounts {
    /// All instructions.
    pub instructions: usize,
    /// Of a warp: `mma.sync`.
    pub hmma: usize,
    /// Of four warps: `wgmma`.
    pub hgmma: usize,
    /// Copies of boxes into shared memory that the hardware makes: TMA.
    pub utmaldg: usize,
    /// Operands from shared memory for `mma.sync`: `ldmatrix`.
    pub ldsm: usize,
}

/// The number before `what` in a line.
fn before(line: &str, what: &str) -> Option<usize> {
    let head = line[..line.find(what)?].trim_end();
    head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The kernels that a log of `ptxas -v` tells of.
pub(super) fn kernels(log: &str) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            reports.push(Report { kernel, ..Report::default() });
        }
        let Some(r) = reports.last_mut() else { continue };
        if let Some(n) = before(line, " bytes stack frame") {
            r.stack_bytes = n;
            r.spill_bytes = before(line, " bytes spill stores").unwrap_or(0)
                + before(line, " bytes spill loads").unwrap_or(0);
        }
        if let Some(n) = before(line, " registers") {
            r.registers = n;
            r.shared_bytes = before(line, " bytes smem").unwrap_or(0);
        }
    }
    reports
}

/// Lines of a log that warn.
pub(super) fn warnings(log: &str) -> Vec<String> {
    let warns = |l: &&str| l.contains("warning") || l.contains("(C75");
    log.lines().filter(warns).map(|l| l.trim().to_string()).collect()
}

/// Tensor core instructions of each kernel of a cubin, from `cuobjdump` beside NVRTC's folder or on the path.
pub(super) fn sass_counts(cubin: &[u8], folder: Option<&Path>) -> Option<HashMap<String, SassCounts>> {
    let beside = folder.and_then(|f| f.parent()).map(|f| f.join("bin"));
    let tool = match &beside {
        Some(bin) if bin.join("cuobjdump").exists() => bin.join("cuobjdump"),
        _ => "cuobjdump".into(),
    };
    let unique = format!("kfc-{}-{:p}.cubin", std::process::id(), cubin.as_ptr());
    let file = std::env::temp_dir().join(unique);
    std::fs::write(&file, cubin).ok()?;
    let mut command = Command::new(tool);
    if let Some(bin) = beside {
        // It runs nvdisasm, which lies beside it.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(bin).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(paths).ok()?);
    }
    let output = command.arg("-sass").arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let output = output.ok().filter(|o| o.status.success())?;
    let mut counts: HashMap<String, SassCounts> = HashMap::new();
    let mut kernel = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            kernel = name.trim().to_string();
            counts.entry(kernel.clone()).or_default();
        } else if let (Some(c), true) = (counts.get_mut(&kernel), line.contains("/*") && line.contains(';')) {
            c.instructions += 1;
            c.hmma += usize::from(line.contains(" HMMA."));
            c.hgmma += usize::from(line.contains(" HGMMA."));
            c.utmaldg += usize::from(line.contains(" UTMALDG."));
            c.ldsm += usize::from(line.contains(" LDSM."));
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
                   ptxas info    : Function properties for a\n\
                   \x20   16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 40 registers, used 1 barriers, 16 bytes stack, 5120 bytes smem, 372 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
                   ptxas info    : Used 8 registers, used 0 barriers\n\
                   ptxas info    : (C7511) Potential Performance Loss: wgmma serialized\n";
        let a = Report {
            kernel: "a".into(),
            registers: 40,
            spill_bytes: 20,
            stack_bytes: 16,
            shared_bytes: 5120,
        };
        let b = Report { kernel: "b".into(), registers: 8, ..Report::default() };
        assert_eq!(kernels(log), [a, b]);
        assert_eq!(warnings(log).len(), 1);
    }
}
