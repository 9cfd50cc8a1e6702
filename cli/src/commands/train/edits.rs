//! Edited kernels of a run: kept in its folder, so that a run that is resumed goes on with those that it began with.

use crate::error::input_error;
use crate::run_dir::{RunDir, write_atomically};
use anyhow::Context;
use kfc_runtime::device::Device;
use kfc_runtime::edited::Edit;
use std::path::Path;

/// The edited kernels that a run uses: those `given`, or if it is resumed those that it has.
///
/// # Errors
/// If a resumed run is given others.
pub(super) fn of_run(given: &[Edit], run_dir: &RunDir, resume: bool) -> anyhow::Result<Vec<Edit>> {
    if !resume {
        return Ok(given.to_vec());
    }
    let kept = kept(&run_dir.kernels())?;
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()));
    for edit in given {
        let same = kept.iter().find(|k| k.kernel == edit.kernel);
        if !same
            .map(|k| Ok::<_, anyhow::Error>(read(&k.file)? == read(&edit.file)?))
            .transpose()?
            .unwrap_or(false)
        {
            return Err(input_error(format!(
                "{edit}: this run was begun {}; leave --kernel out to go on with it, or begin another one",
                same.map_or("without it".into(), |k| format!("with {}", k.file.display()))
            )));
        }
    }
    Ok(kept)
}

/// Copies the edited kernels of a run into its folder.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn keep(device: &Device, run_dir: &RunDir) -> anyhow::Result<()> {
    let Device::Cuda { edits, .. } = device else { return Ok(()) };
    let folder = run_dir.kernels();
    for edit in edits.iter().filter(|e| !e.file.starts_with(&folder)) {
        std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let bytes =
            std::fs::read(&edit.file).with_context(|| format!("{}: cannot be read", edit.file.display()))?;
        let ending = edit.file.extension().unwrap_or_default();
        write_atomically(&folder.join(&edit.kernel).with_extension(ending), &bytes)?;
    }
    Ok(())
}

/// The kernels in a run's folder, by name.
fn kept(folder: &Path) -> anyhow::Result<Vec<Edit>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("{} cannot be read", folder.display()))?,
    };
    let edit = |path: &Path| {
        let is_source = path.extension().is_some_and(|e| e == "cu" || e == "py");
        let name = path.file_stem().filter(|_| is_source)?.to_string_lossy().into_owned();
        Some(Edit { kernel: name, file: path.to_path_buf() })
    };
    let mut edits: Vec<Edit> = entries.filter_map(|e| edit(&e.ok()?.path())).collect();
    edits.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(edits)
}
