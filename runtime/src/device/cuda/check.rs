//! Edited kernels tried on the device before anything uses them: against what their program means, and against themselves.

use super::CudaError;
use super::driver::Gpu;
use super::kernels::Loaded;
use super::room::Room;
use crate::error::{Result, RunError};
use kfc_kernels::tile::lower::{Kernel, Origin};
use kfc_kernels::tile::trial::Trial;
use std::sync::Arc;

/// Runs an edited kernel twice over random buffers, for each way in which launches share buffers; `from` says where it comes
/// from. Returns what was compared.
///
/// # Errors
/// If it breaks, writes where it may not, leaves other bits the second time, or something else than its program means; with
/// the first difference.
pub(super) fn check(
    gpu: &Arc<Gpu>,
    kernel: &Kernel,
    origin: &Origin,
    loaded: &Loaded,
    from: &str,
) -> Result<String> {
    let wrong = |what: String| RunError::Input(format!("{from}: {what}"));
    let p = &kernel.program;
    let bytes: Vec<usize> = p.params.iter().map(|b| b.len * b.elem.bytes()).collect();
    let mut said = String::new();
    for shared in &origin.shared {
        let trial = Trial::new(p, shared).map_err(|e| wrong(format!("no trial of it is possible: {e}")))?;
        let before: Vec<Vec<u8>> = (0..p.params.len()).map(|k| trial.bytes(k)).collect();
        let mut room = Room::new(gpu, &bytes, trial.shared())?;
        let mut run = || -> Result<Vec<Vec<u8>>> {
            room.fill(&before)?;
            // SAFETY: it takes as many pointers as its program (`kernels::place`). That it stays in its buffers nobody knows of
            // a kernel that a user wrote: this trial is how it is found out, before memory is allocated that matters.
            unsafe { room.run(loaded, 1) }.map_err(|e| match e {
                CudaError::Kernel { what, .. } => wrong(format!("it fails: {what}")),
                other => other.into(),
            })?;
            room.read()?.ok_or_else(|| wrong("it writes behind the end of a buffer".into()))
        };
        let (first, second) = (run()?, run()?);
        if let Some(difference) = trial.compare(&first, &|_, _| true) {
            return Err(wrong(format!("it does not compute what {} means: {difference}", kernel.name)));
        }
        if let Some(k) = first.iter().zip(&second).position(|(a, b)| a != b) {
            let n = p.params[k].elem.bytes();
            let at = first[k].iter().zip(&second[k]).position(|(a, b)| a != b).unwrap_or(0) / n;
            let name = &p.params[k].name;
            return Err(wrong(format!(
                "two runs leave different bits, first in {name}[{at}]: a run could not be repeated; sum in a fixed order, \
                 without atomics"
            )));
        }
        let (blocks, elements) = (trial.coverage(), trial.compared(&|_, _| true));
        said = format!("agrees with the original on {blocks}, {elements} elements, and twice in all bits");
    }
    Ok(said)
}
