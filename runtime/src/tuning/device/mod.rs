//! How products are cut on a GPU, found by trying (`search`), and the file that keeps it.
//!
//! It belongs to a device by name, architecture and multiprocessors, a version of kfc and one of the compiler; products are
//! kept by kernel, extents and type, with all that was tried. A tiling is only kept if its kernel gave the built-in one's
//! bits, so that a run need not record what it used. A kernel that broke the device, or that ran when the process was ended,
//! is never launched again.

mod search;

pub use search::{Settings, search, verify};

use super::file;
use crate::files::{self, write_json};
use crate::profile::Machine;
use crate::{Result, RunError};
use kfc_kernels::cuda::{Arch, Nvrtc};
use kfc_kernels::tile::Tilings;
use kfc_kernels::tile::ir::Elem;
use kfc_kernels::tile::tiling::{Shape, Tiling, candidates};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Of the file's layout.
const FORMAT: &str = "tilings 1";

/// What is said of a tiling whose kernel broke the device or hung.
const BROKE: &str = "the device broke, or the process was ended, while it ran";

/// A tiling that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The tiling.
    pub tiling: Tiling,
    /// Median nanoseconds of a launch; 0 if it was never timed.
    pub ns: f64,
    /// Rounds timed.
    pub samples: usize,
    /// Registers of a thread and bytes of a block's shared memory, as compiled; 0 if it was not.
    pub uses: [u64; 2],
    /// Why it is out, if it is.
    pub out: Option<String>,
}

/// What was found for a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// How it is cut.
    pub tiling: Tiling,
    /// Whether every tiling that is not out was timed often enough.
    pub settled: bool,
    /// Everything that was tried, the fastest first.
    pub tried: Vec<Tried>,
}

impl Entry {
    /// What was tried of a tiling.
    pub fn tried(&self, tiling: Tiling) -> Option<&Tried> {
        self.tried.iter().find(|t| t.tiling == tiling)
    }
}

/// What was found on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceTuning {
    machine: Machine,
    /// Version of the compiler.
    compiler: String,
    products: BTreeMap<String, Entry>,
}

impl DeviceTuning {
    /// Nothing known.
    pub fn empty(machine: Machine) -> DeviceTuning {
        let compiler = compiler().unwrap_or_default();
        DeviceTuning { machine, compiler, products: BTreeMap::new() }
    }

    /// What was found on a device like this one with this compiler; empty if nothing was, or it cannot be read. Where there is
    /// no compiler, what was found with any: its kernels are in the cache.
    pub fn load(machine: &Machine) -> DeviceTuning {
        let read = || from_json(&files::read_json(&file(machine)?).ok()?, machine);
        let found = read().filter(|t| compiler().is_none_or(|c| c == t.compiler));
        found.unwrap_or_else(|| DeviceTuning::empty(machine.clone()))
    }

    /// Nothing known but what must never be launched again.
    pub fn fresh(machine: &Machine) -> DeviceTuning {
        let mut tuning = DeviceTuning::load(machine);
        for (name, entry) in &mut tuning.products {
            entry.tried.retain(|t| t.out.as_deref() == Some(BROKE));
            entry.settled = false;
            if let Some(shape) = shape_named(name) {
                entry.tiling = Tiling::builtin(&shape);
            }
        }
        tuning.products.retain(|_, entry| !entry.tried.is_empty());
        tuning
    }

    /// Keeps what is known, beside what was found for other products meanwhile. Returns the file.
    ///
    /// # Errors
    /// If there is no place for it, or it cannot be written.
    pub fn save(&self) -> Result<PathBuf> {
        let path = self.place()?;
        let mut all = DeviceTuning::load(&self.machine);
        all.products.extend(self.products.clone());
        write_json(&path, &to_json(&all))?;
        Ok(path)
    }

    /// The file, whose folder is there.
    fn place(&self) -> Result<PathBuf> {
        let Some(path) = file(&self.machine) else {
            return Err(RunError::Failed(format!(
                "no place for what was found: {} is off, or neither XDG_CACHE_HOME nor HOME is set",
                super::VARIABLE
            )));
        };
        if files::read_json(&path).is_ok_and(|v| v["format"] != FORMAT) {
            return Err(RunError::Input(format!(
                "{}: {} is of something else than tilings of a GPU; name another file",
                super::VARIABLE,
                path.display()
            )));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| files::FileError::io("create", folder, e))?;
        }
        Ok(path)
    }

    /// What products are to be cut as that is not built in.
    pub fn tilings(&self) -> Tilings {
        let mut tilings = Tilings::new();
        for (name, entry) in &self.products {
            let Some(shape) = shape_named(name) else { continue };
            if entry.tiling != Tiling::builtin(&shape) {
                tilings.choose(shape, entry.tiling);
            }
        }
        tilings
    }

    /// What is known of the product of this name ([`shape_name`]).
    pub fn entry(&self, product: &str) -> Option<&Entry> {
        self.products.get(product)
    }

    /// Takes in what was found for a product, beside what was tried of it before.
    fn insert(&mut self, shape: &Shape, mut entry: Entry) {
        let name = shape_name(shape);
        if let Some(before) = self.products.remove(&name) {
            let is_new = |t: &Tried| entry.tried(t.tiling).is_none();
            let others: Vec<Tried> = before.tried.into_iter().filter(is_new).collect();
            entry.tried.extend(others);
        }
        self.products.insert(name, entry);
    }

    /// Writes down that a tiling broke the device, whatever else was found.
    fn refuse(&mut self, shape: &Shape, tiling: Tiling) {
        let builtin = Tiling::builtin(shape);
        let none = || Entry { tiling: builtin, settled: false, tried: Vec::new() };
        let entry = self.products.entry(shape_name(shape)).or_insert_with(none);
        if entry.tiling == tiling {
            entry.tiling = builtin;
        }
        entry.tried.retain(|t| t.tiling != tiling);
        entry.tried.push(Tried { tiling, ns: 0.0, samples: 0, uses: [0; 2], out: Some(BROKE.into()) });
    }
}

fn compiler() -> Option<String> {
    Nvrtc::load().ok().map(|n| n.version())
}

/// The kernel, extents and type of a product: `linear 2048x4096x4096 bf16`.
pub fn shape_name(s: &Shape) -> String {
    format!("{} {}x{}x{} {}", s.kernel, s.m, s.n, s.k, s.elem.name())
}

fn shape_named(name: &str) -> Option<Shape> {
    let [kernel, extents, elem] = name.split(' ').collect::<Vec<_>>()[..] else { return None };
    let [m, n, k] = numbers(extents)?;
    let elem = [Elem::F32, Elem::Bf16, Elem::F16].into_iter().find(|e| e.name() == elem)?;
    Some(Shape { kernel: kernel.into(), m, n, k, elem })
}

/// A tiling in words: `tile 128x128x64, 8 warps, 3 stages`.
pub fn tiling_name(t: &Tiling) -> String {
    format!("tile {}x{}x{}, {} warps, {} stages", t.m, t.n, t.k, t.warps, t.stages)
}

fn tiling_named(name: &str) -> Option<Tiling> {
    let [tile, warps, stages] = name.split(", ").collect::<Vec<_>>()[..] else { return None };
    let [m, n, k] = numbers(tile.strip_prefix("tile ")?)?;
    let number = |text: &str, unit: &str| text.strip_suffix(unit)?.parse().ok();
    Some(Tiling { m, n, k, warps: number(warps, " warps")?, stages: number(stages, " stages")? })
}

fn numbers(text: &str) -> Option<[usize; 3]> {
    let all: Vec<usize> = text.split('x').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    all.try_into().ok()
}

fn to_json(t: &DeviceTuning) -> Value {
    let tried = |t: &Tried| {
        json!({
            "tiling": tiling_name(&t.tiling), "ns": t.ns, "samples": t.samples, "registers": t.uses[0],
            "shared_bytes": t.uses[1], "out": t.out,
        })
    };
    let entry = |(name, e): (&String, &Entry)| {
        let tried: Vec<Value> = e.tried.iter().map(tried).collect();
        (name.clone(), json!({"tiling": tiling_name(&e.tiling), "settled": e.settled, "tried": tried}))
    };
    let products: Map<String, Value> = t.products.iter().map(entry).collect();
    let m = &t.machine;
    json!({
        "format": FORMAT, "device": m.cpu, "arch": m.isa, "multiprocessors": m.threads, "version": m.version,
        "compiler": t.compiler, "products": products,
    })
}

/// `None` if it is of another layout or device, or damaged; so that nothing is launched that never could be.
fn from_json(v: &Value, machine: &Machine) -> Option<DeviceTuning> {
    let same = v["format"] == FORMAT
        && v["device"] == machine.cpu.as_str()
        && v["arch"] == machine.isa.as_str()
        && v["multiprocessors"] == machine.threads
        && v["version"] == machine.version.as_str();
    if !same {
        return None;
    }
    let arch: Arch = machine.isa.parse().ok()?;
    let tried = |t: &Value| {
        Some(Tried {
            tiling: tiling_named(t["tiling"].as_str()?)?,
            ns: t["ns"].as_f64().filter(|x| x.is_finite() && *x >= 0.0)?,
            samples: t["samples"].as_u64()? as usize,
            uses: [t["registers"].as_u64()?, t["shared_bytes"].as_u64()?],
            out: t["out"].as_str().map(Into::into),
        })
    };
    let entry = |(name, e): (&String, &Value)| {
        let tiling = tiling_named(e["tiling"].as_str()?)?;
        let entry = Entry {
            tiling,
            settled: e["settled"].as_bool()?,
            tried: e["tried"].as_array()?.iter().map(tried).collect::<Option<_>>()?,
        };
        let legal = candidates(&shape_named(name)?, arch).contains(&tiling);
        let is_out = entry.tried(tiling).is_some_and(|t| t.out.is_some());
        (legal && !is_out).then(|| (name.clone(), entry))
    };
    let products = v["products"].as_object()?.iter().map(entry).collect::<Option<_>>()?;
    let compiler = v["compiler"].as_str()?.into();
    Some(DeviceTuning { machine: machine.clone(), compiler, products })
}

/// What is being launched for the first time, in a file beside that of the tuning: it stays when the process is ended.
struct Diary {
    path: PathBuf,
}

impl Diary {
    fn of(tuning: &Path) -> Diary {
        Diary { path: tuning.with_extension("trying") }
    }

    /// Before a kernel runs, or after it. What cannot be written is not: it costs safety alone.
    fn write(&self, what: Option<(&Shape, Tiling)>) {
        let _ = match what {
            Some((shape, tiling)) => {
                std::fs::write(&self.path, format!("{}\n{}\n", shape_name(shape), tiling_name(&tiling)))
            }
            None => std::fs::remove_file(&self.path),
        };
    }

    /// What ran when an earlier process was ended.
    fn take(&self) -> Option<(Shape, Tiling)> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let mut lines = text.lines();
        let found = (shape_named(lines.next()?)?, tiling_named(lines.next()?)?);
        self.write(None);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn known() -> (DeviceTuning, Shape, Tiling) {
        let machine = Machine { cpu: "H100".into(), isa: "sm_90a".into(), threads: 132, version: "1".into() };
        let shape = Shape { kernel: "linear".into(), m: 2048, n: 4096, k: 4096, elem: Elem::Bf16 };
        let builtin = Tiling::builtin(&shape);
        let tiling = candidates(&shape, Arch::Sm90a)[7];
        let tried = [(tiling, None), (builtin, Some("slower"))].map(|(tiling, out)| Tried {
            tiling,
            ns: 5.0,
            samples: 3,
            uses: [90, 4096],
            out: out.map(Into::into),
        });
        let mut tuning = DeviceTuning::empty(machine);
        tuning.compiler = "13.0".into();
        tuning.insert(&shape, Entry { tiling, settled: true, tried: tried.to_vec() });
        (tuning, shape, tiling)
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_foreign_damaged_or_illegal_does_not() {
        let (tuning, shape, tiling) = known();
        let kept = to_json(&tuning);
        assert_eq!(from_json(&kept, &tuning.machine), Some(tuning.clone()));
        assert_eq!(tuning.tilings().of(&shape), tiling);
        let at = "/products/linear 2048x4096x4096 bf16";
        let changes = [
            ("/device".to_string(), json!("A100")),
            ("/multiprocessors".into(), json!(3)),
            ("/format".into(), json!("tilings 0")),
            (format!("{at}/tiling"), json!("tile 128x128x64, 8 warps")),
            // It would need more shared memory than there is.
            (format!("{at}/tiling"), json!("tile 256x256x64, 8 warps, 5 stages")),
            (format!("{at}/tried/0/ns"), json!(-1)),
            (format!("{at}/tried/0/out"), json!("other bits than built in")),
            ("/products".into(), json!([])),
        ];
        for (at, value) in changes {
            let mut changed = kept.clone();
            *changed.pointer_mut(&at).unwrap() = value;
            assert_eq!(from_json(&changed, &tuning.machine), None, "{at}");
        }
    }

    #[test]
    fn what_broke_the_device_is_refused_and_not_chosen() {
        let (mut tuning, shape, tiling) = known();
        tuning.refuse(&shape, tiling);
        assert_eq!(tuning.tilings().of(&shape), Tiling::builtin(&shape));
        let entry = tuning.entry(&shape_name(&shape)).unwrap();
        assert_eq!(entry.tried(tiling).unwrap().out.as_deref(), Some(BROKE));
        let folder = crate::data::testing::TempDir::new("diary");
        let diary = Diary::of(&folder.path().join("found.json"));
        diary.write(Some((&shape, tiling)));
        assert_eq!(diary.take(), Some((shape, tiling)));
        assert_eq!(diary.take(), None);
    }
}
