//! How kernels are made for a GPU, found by trying (`search`), and the file that keeps it.
//!
//! It belongs to a device by name, architecture and multiprocessors, a version of kfc and one of the compiler; kernels are
//! kept by key ([`kfc_kernels::tile::choice::key`]), with all that was tried. A choice is only taken if its kernel gave the
//! built-in one's bits, so that a run need not record what it used; or, where the user allowed it, nearly its results: such a
//! choice is marked, and a run's checkpoints record it. A kernel that broke the device, or that ran when the process was
//! ended, is never launched again.

mod heads;
mod search;

pub use heads::{Heads, search_heads};
pub use search::{search, verify};

use super::{PlanEntry, file, recompute};
use crate::files::{self, write_json};
use crate::profile::Machine;
use crate::triton::Python;
use crate::{Result, RunError};
use kfc_kernels::cuda::{Arch, Nvrtc};
use kfc_kernels::tile::chunk::Chunked;
use kfc_kernels::tile::tiling::{Shape, candidates};
use kfc_kernels::tile::{Choice, Choices};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Of the file's layout.
const FORMAT: &str = "kernels 1";

/// What is said of a choice whose kernel broke the device or hung.
const BROKE: &str = "the device broke, or the process was ended, while it ran";

/// What is said of a choice with other bits where they were not allowed.
const OTHER_BITS: &str = "other bits than built in; --allow-other-bits would let it win";

/// What is said of a choice that won alone and not in the step.
const WHOLE_STEP: &str = "the whole step is not faster";

/// What is said of a choice that lost.
pub(crate) const SLOWER: &str = "slower";

/// How a search goes.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Tilings of a kernel that are tried at most, the built-in one among them.
    pub tilings: usize,
    /// Whether kernels may win whose results have other bits, within the tolerance.
    pub takes_other_bits: bool,
    /// What compiles kernels in Triton.
    pub python: Python,
    /// About how long.
    pub budget: Duration,
    /// Set from outside to end it early.
    pub stop: &'a AtomicBool,
}

/// A choice that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The choice.
    pub choice: Choice,
    /// Median nanoseconds of a launch; 0 if it was never timed.
    pub ns: f64,
    /// Rounds timed.
    pub samples: usize,
    /// Registers of a thread and bytes of a block's shared memory, as compiled; 0 if it was not.
    pub uses: [u64; 2],
    /// Whether its results are the built-in kernel's only within the tolerance.
    pub other_bits: bool,
    /// Why it is out, if it is.
    pub out: Option<String>,
}

/// What was found for a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// How it is made.
    pub choice: Choice,
    /// Whether every choice that is not out was timed often enough.
    pub settled: bool,
    /// Everything that was tried, the fastest first.
    pub tried: Vec<Tried>,
}

impl Entry {
    /// What was tried of a choice.
    pub fn tried(&self, choice: Choice) -> Option<&Tried> {
        self.tried.iter().find(|t| t.choice == choice)
    }

    /// Whether its results have other bits than as built in.
    pub fn other_bits(&self) -> bool {
        self.tried(self.choice).is_some_and(|t| t.other_bits)
    }

    /// Whether there is something left to try for a search that takes other bits, or does not.
    fn is_open(&self, takes_other_bits: bool) -> bool {
        let is_held_back = |t: &Tried| t.out.as_deref() == Some(OTHER_BITS);
        !self.settled || takes_other_bits && self.tried.iter().any(is_held_back)
    }
}

/// What was found on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceTuning {
    machine: Machine,
    /// Version of the compiler.
    compiler: String,
    kernels: BTreeMap<String, Entry>,
    /// What jobs make again in the backward pass.
    plans: BTreeMap<String, PlanEntry>,
    /// Kernels and plans whose entries in the file are not kept.
    forgotten: BTreeSet<String>,
}

impl DeviceTuning {
    /// Nothing known.
    pub fn empty(machine: Machine) -> DeviceTuning {
        let compiler = compiler().unwrap_or_default();
        let (kernels, plans, forgotten) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        DeviceTuning { machine, compiler, kernels, plans, forgotten }
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
        tuning.forgotten = tuning.kernels.keys().chain(tuning.plans.keys()).cloned().collect();
        for (key, entry) in &mut tuning.kernels {
            entry.tried.retain(|t| t.out.as_deref() == Some(BROKE));
            entry.settled = false;
            entry.choice = Choice::builtin(key);
        }
        tuning.plans.clear();
        tuning.kernels.retain(|_, entry| !entry.tried.is_empty());
        tuning
    }

    /// Keeps what is known, beside what was found for other kernels meanwhile. Returns the file.
    ///
    /// # Errors
    /// If there is no place for it, or it cannot be written.
    pub fn save(&self) -> Result<PathBuf> {
        let path = self.place()?;
        let mut all = DeviceTuning::load(&self.machine);
        all.kernels.retain(|key, _| !self.forgotten.contains(key));
        all.plans.retain(|key, _| !self.forgotten.contains(key));
        all.kernels.extend(self.kernels.clone());
        all.plans.extend(self.plans.clone());
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
                "{}: {} is of something else than kernels of a GPU, or of another version of kfc; name another file",
                super::VARIABLE,
                path.display()
            )));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| files::FileError::io("create", folder, e))?;
        }
        Ok(path)
    }

    /// What is chosen that is not built in.
    pub fn choices(&self) -> Choices {
        let mut choices = Choices::default();
        for (key, entry) in self.kernels.iter().filter(|(key, e)| e.choice != Choice::builtin(key)) {
            choices.choose(key, entry.choice, entry.other_bits());
        }
        choices
    }

    /// What is chosen for heads that is not built in.
    pub fn heads(&self) -> Choices {
        let mut choices = Choices::default();
        let is_head =
            |(key, e): &(&String, &Entry)| e.choice.chunk.is_some() && e.choice != Choice::builtin(key);
        for (key, entry) in self.kernels.iter().filter(is_head) {
            choices.choose(key, entry.choice, entry.other_bits());
        }
        choices
    }

    /// What is known of the kernel of this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.kernels.get(key)
    }

    /// Whether anything is known of what jobs make again.
    pub fn has_plans(&self) -> bool {
        !self.plans.is_empty()
    }

    /// What is known of what the job of this key ([`crate::train::setup::plan_key`]) makes again.
    pub fn plan(&self, key: &str) -> Option<&PlanEntry> {
        self.plans.get(key)
    }

    /// Takes in what was found for a job.
    pub fn insert_plan(&mut self, key: String, entry: PlanEntry) {
        self.plans.insert(key, entry);
    }

    /// Takes in what was found for a kernel, beside what was tried of it before.
    fn insert(&mut self, key: String, mut entry: Entry) {
        if let Some(before) = self.kernels.remove(&key) {
            let is_new = |t: &Tried| entry.tried(t.choice).is_none();
            let others: Vec<Tried> = before.tried.into_iter().filter(is_new).collect();
            entry.tried.extend(others);
        }
        self.kernels.insert(key, entry);
    }

    /// Goes back to the built-in choice where one with other bits was taken. What was slower than that may win again.
    fn hold_back(&mut self, key: &str) {
        let Some(entry) = self.kernels.get_mut(key).filter(|e| e.other_bits()) else { return };
        (entry.choice, entry.settled) = (Choice::builtin(key), false);
        for t in &mut entry.tried {
            if t.other_bits {
                t.out.get_or_insert(OTHER_BITS.into());
            } else if t.out.as_deref() == Some(SLOWER) {
                t.out = None;
            }
        }
    }

    /// Writes down that a choice broke the device, whatever else was found.
    fn refuse(&mut self, key: &str, choice: Choice) {
        let builtin = Choice::builtin(key);
        let none = || Entry { choice: builtin, settled: false, tried: Vec::new() };
        let entry = self.kernels.entry(key.into()).or_insert_with(none);
        if entry.choice == choice {
            entry.choice = builtin;
        }
        entry.tried.retain(|t| t.choice != choice);
        entry.tried.push(Tried { out: Some(BROKE.into()), ..Tried::new(choice) });
    }
}

/// The time that a choice is sorted by.
fn never_last(t: &Tried) -> f64 {
    if t.samples == 0 { f64::INFINITY } else { t.ns }
}

impl Tried {
    /// Nothing known yet.
    fn new(choice: Choice) -> Tried {
        Tried { choice, ns: 0.0, samples: 0, uses: [0; 2], other_bits: false, out: None }
    }
}

fn compiler() -> Option<String> {
    Nvrtc::load().ok().map(|n| n.version())
}

fn to_json(t: &DeviceTuning) -> Value {
    let tried = |t: &Tried| {
        json!({
            "choice": t.choice.to_string(), "ns": t.ns, "samples": t.samples, "registers": t.uses[0],
            "shared_bytes": t.uses[1], "other_bits": t.other_bits, "out": t.out,
        })
    };
    let entry = |(name, e): (&String, &Entry)| {
        let tried: Vec<Value> = e.tried.iter().map(tried).collect();
        let (choice, other_bits) = (e.choice.to_string(), e.other_bits());
        (
            name.clone(),
            json!({"choice": choice, "settled": e.settled, "other_bits": other_bits, "tried": tried}),
        )
    };
    let kernels: Map<String, Value> = t.kernels.iter().map(entry).collect();
    let plans: Map<String, Value> = t.plans.iter().map(|(k, e)| (k.clone(), recompute::to_json(e))).collect();
    let m = &t.machine;
    json!({
        "format": FORMAT, "device": m.cpu, "arch": m.isa, "multiprocessors": m.threads, "version": m.version,
        "compiler": t.compiler, "kernels": kernels, "plans": plans,
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
            choice: Choice::named(t["choice"].as_str()?)?,
            ns: t["ns"].as_f64().filter(|x| x.is_finite() && *x >= 0.0)?,
            samples: t["samples"].as_u64()? as usize,
            uses: [t["registers"].as_u64()?, t["shared_bytes"].as_u64()?],
            other_bits: t["other_bits"].as_bool()?,
            out: t["out"].as_str().map(Into::into),
        })
    };
    let entry = |(name, e): (&String, &Value)| {
        let choice = Choice::named(e["choice"].as_str()?)?;
        let entry = Entry {
            choice,
            settled: e["settled"].as_bool()?,
            tried: e["tried"].as_array()?.iter().map(tried).collect::<Option<_>>()?,
        };
        let is_legal = match (Shape::named(name), choice.tiling) {
            (shape, None) if choice.library.is_some() => shape.is_some(),
            (Some(shape), Some(tiling)) => candidates(&shape, arch).contains(&tiling),
            (shape, tiling) => shape.is_none() && tiling.is_none(),
        } && match (Chunked::named(name), choice.chunk) {
            (Some(chunked), Some(tokens)) => chunked.candidates().contains(&tokens),
            (chunked, tokens) => chunked.is_none() && tokens.is_none(),
        };
        let is_out = entry.tried(choice).is_some_and(|t| t.out.is_some());
        let says_so = e["other_bits"].as_bool() == Some(entry.other_bits());
        (is_legal && !is_out && says_so).then(|| (name.clone(), entry))
    };
    let kernels = v["kernels"].as_object()?.iter().map(entry).collect::<Option<_>>()?;
    let plan = |(key, e): (&String, &Value)| Some((key.clone(), recompute::from_json(e)?));
    let plans = v["plans"].as_object()?.iter().map(plan).collect::<Option<_>>()?;
    let compiler = v["compiler"].as_str()?.into();
    Some(DeviceTuning { machine: machine.clone(), compiler, kernels, plans, forgotten: BTreeSet::new() })
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
    fn write(&self, what: Option<(&str, Choice)>) {
        let _ = match what {
            Some((key, choice)) => std::fs::write(&self.path, format!("{key}\n{choice}\n")),
            None => std::fs::remove_file(&self.path),
        };
    }

    /// What ran when an earlier process was ended.
    fn take(&self) -> Option<(String, Choice)> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let mut lines = text.lines();
        let found = (lines.next()?.to_string(), Choice::named(lines.next()?)?);
        self.write(None);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kfc_kernels::tile::header::Language;

    const KEY: &str = "linear 2048x4096x4096 bf16";
    const NORM: &str = "rms_norm #0123456789abcdef";

    /// A product that is cut otherwise, a norm in Triton with other bits.
    fn known() -> (DeviceTuning, Choice) {
        let machine = Machine { cpu: "H100".into(), isa: "sm_90a".into(), threads: 132, version: "1".into() };
        let builtin = Choice::builtin(KEY);
        let tiling = candidates(&Shape::named(KEY).unwrap(), Arch::Sm90a)[7];
        let choice = Choice { tiling: Some(tiling), ..builtin };
        let tried = |choice, out: Option<&str>| Tried {
            ns: 5.0,
            samples: 3,
            uses: [90, 4096],
            out: out.map(Into::into),
            ..Tried::new(choice)
        };
        let mut tuning = DeviceTuning::empty(machine);
        tuning.compiler = "13.0".into();
        let all = vec![tried(choice, None), tried(builtin, Some("slower"))];
        tuning.insert(KEY.into(), Entry { choice, settled: true, tried: all });
        let other = Choice { tiling: None, language: Language::Triton, chunk: None, library: None };
        let all = vec![Tried { other_bits: true, ..tried(other, None) }, tried(Choice::builtin(NORM), None)];
        tuning.insert(NORM.into(), Entry { choice: other, settled: true, tried: all });
        tuning.insert_plan("0123, no budget".into(), PlanEntry { choice: None, tried: Vec::new() });
        (tuning, choice)
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_foreign_damaged_or_illegal_does_not() {
        let (tuning, choice) = known();
        let kept = to_json(&tuning);
        assert_eq!(from_json(&kept, &tuning.machine), Some(tuning.clone()));
        let choices = tuning.choices();
        assert_eq!(choices.tilings.of(&Shape::named(KEY).unwrap()), choice.tiling.unwrap());
        assert_eq!(choices.language(NORM), Language::Triton);
        assert_eq!(choices.other_bits().keys().collect::<Vec<_>>(), [NORM]);
        let (at, norm) = (format!("/kernels/{KEY}"), format!("/kernels/{NORM}"));
        let changes = [
            ("/device".to_string(), json!("A100")),
            ("/multiprocessors".into(), json!(3)),
            ("/format".into(), json!("tilings 1")),
            (format!("{at}/choice"), json!("tile 128x128x64, 8 warps")),
            (format!("{at}/choice"), json!("Triton")),
            // It would need more shared memory than there is.
            (format!("{at}/choice"), json!("tile 256x256x64, 8 warps, 5 stages")),
            (format!("{at}/tried/0/ns"), json!(-1)),
            (format!("{at}/tried/0/out"), json!("other bits than built in")),
            (format!("{norm}/choice"), json!("tile 128x128x64, 8 warps, 3 stages")),
            (format!("{norm}/other_bits"), json!(false)),
            ("/kernels".into(), json!([])),
            ("/plans/0123, no budget/choice".into(), json!(1)),
        ];
        for (at, value) in changes {
            let mut changed = kept.clone();
            *changed.pointer_mut(&at).unwrap() = value;
            assert_eq!(from_json(&changed, &tuning.machine), None, "{at}");
        }
    }

    #[test]
    fn what_broke_the_device_is_refused_and_not_chosen() {
        let (mut tuning, choice) = known();
        tuning.refuse(KEY, choice);
        let entry = tuning.entry(KEY).unwrap();
        assert_eq!(entry.choice, Choice::builtin(KEY));
        assert_eq!(entry.tried(choice).unwrap().out.as_deref(), Some(BROKE));
        let folder = crate::data::testing::TempDir::new("diary");
        let diary = Diary::of(&folder.path().join("found.json"));
        diary.write(Some((KEY, choice)));
        assert_eq!(diary.take(), Some((KEY.into(), choice)));
        assert_eq!(diary.take(), None);
    }

    #[test]
    fn what_is_settled_is_open_again_where_other_bits_are_wanted_or_not() {
        let (tuning, _) = known();
        let open = |key: &str| [false, true].map(|takes| tuning.entry(key).unwrap().is_open(takes));
        assert_eq!(open(KEY), [false, false]);
        assert_eq!(open(NORM), [false, false]);
        let mut tuning = tuning;
        tuning.kernels.get_mut(NORM).unwrap().tried[1].out = Some(SLOWER.into());
        tuning.hold_back(NORM);
        tuning.hold_back(KEY);
        let entry = tuning.entry(NORM).unwrap();
        assert_eq!((entry.choice, entry.is_open(false)), (Choice::builtin(NORM), true));
        assert_eq!(entry.tried[0].out.as_deref(), Some(OTHER_BITS));
        assert_eq!(entry.tried[1].out, None);
        let settled = Entry { settled: true, ..entry.clone() };
        assert_eq!([false, true].map(|takes| settled.is_open(takes)), [false, true]);
        assert_ne!(tuning.entry(KEY).unwrap().choice, Choice::builtin(KEY));
    }
}
