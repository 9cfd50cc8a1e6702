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

use super::kept::{self, file, named};
use super::{PlanEntry, other_file, recompute};
use crate::Result;
use crate::files::{self, write_json};
use crate::profile::Machine;
use crate::triton::Python;
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
    /// The choice that is to be taken if steps with it, and with what else is found, are faster and have the bits that they
    /// should have: a search was ended before it knew.
    pub leads: Option<Choice>,
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

    /// What another search goes on from.
    fn leading(mut self) -> Entry {
        self.choice = self.leads.take().unwrap_or(self.choice);
        self
    }

    /// What is kept of it while a search goes on: what runs is what ran before, unless that has been found to gain nothing.
    fn so_far(&self, before: Choice, builtin: Choice) -> Entry {
        let mut entry = self.clone();
        if entry.choice == before {
            return entry;
        }
        let out = entry.tried(before).and_then(|t| t.out.as_deref());
        let runs = if out.is_none_or(|why| why == SLOWER) { before } else { builtin };
        entry.leads = Some(entry.choice).filter(|leads| *leads != runs);
        entry.run(runs);
        entry
    }

    /// Takes a choice whatever is faster.
    fn run(&mut self, choice: Choice) {
        self.choice = choice;
        if let Some(t) = self.tried.iter_mut().find(|t| t.choice == choice) {
            t.out.take_if(|why| why == SLOWER);
        }
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
    /// What ran before a search began; as built in where there is nothing.
    before: BTreeMap<String, Choice>,
}

impl DeviceTuning {
    /// Nothing known.
    pub fn empty(machine: Machine) -> DeviceTuning {
        let compiler = compiler().unwrap_or_default();
        let (kernels, plans) = (BTreeMap::new(), BTreeMap::new());
        DeviceTuning {
            machine,
            compiler,
            kernels,
            plans,
            forgotten: BTreeSet::new(),
            before: BTreeMap::new(),
        }
    }

    /// What was found on a device like this one with this compiler; empty if nothing was, or it cannot be read. Where there is
    /// no compiler, what was found with any: its kernels are in the cache.
    pub fn load(machine: &Machine) -> DeviceTuning {
        DeviceTuning::open(machine).unwrap_or_else(|_| DeviceTuning::empty(machine.clone()))
    }

    /// The same; empty if nothing was found.
    ///
    /// # Errors
    /// If there is a file that cannot be used: what it is, and why.
    pub fn open(machine: &Machine) -> std::result::Result<DeviceTuning, String> {
        let Some(path) = file(machine).filter(|path| path.exists()) else {
            return Ok(DeviceTuning::empty(machine.clone()));
        };
        let kept = files::read_json(&path).map_err(|e| e.to_string())?;
        let mut found = from_json(&kept, machine).map_err(|why| format!("{}: {why}", path.display()))?;
        if let Some(compiler) = compiler().filter(|c| *c != found.compiler) {
            let was = &found.compiler;
            return Err(format!(
                "{}: it was found with compiler {was}, and this is {compiler}: tune here",
                path.display()
            ));
        }
        found.before = found.kernels.iter().map(|(key, e)| (key.clone(), e.choice)).collect();
        Ok(found)
    }

    /// What a user should know if there is a file that is not used.
    pub fn unused(machine: &Machine) -> Option<String> {
        let why = DeviceTuning::open(machine).err()?;
        Some(format!("nothing that `kfc tune` found is used: {why}"))
    }

    /// What earlier searches found, for another one, or of that only what must never be launched again; and why that cannot be
    /// used if there is a file that it replaces.
    ///
    /// # Errors
    /// If nothing that is found could be kept: a search would be in vain.
    pub fn of_earlier_searches(machine: &Machine, is_fresh: bool) -> Result<(DeviceTuning, Option<String>)> {
        let known = match DeviceTuning::open(machine) {
            Err(why) if named().is_some() => return Err(other_file(&why)),
            known => known,
        };
        kept::try_place(machine)?;
        let replaced = known.as_ref().err().cloned();
        let known = known.unwrap_or_else(|_| DeviceTuning::empty(machine.clone()));
        Ok((if is_fresh { known.forget() } else { known }, replaced))
    }

    /// Nothing known but what must never be launched again.
    fn forget(self) -> DeviceTuning {
        let mut tuning = DeviceTuning { before: BTreeMap::new(), ..self };
        tuning.forgotten = tuning.kernels.keys().chain(tuning.plans.keys()).cloned().collect();
        for (key, entry) in &mut tuning.kernels {
            entry.tried.retain(|t| t.out.as_deref() == Some(BROKE));
            entry.settled = false;
            (entry.choice, entry.leads) = (Choice::builtin(key), None);
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
        self.write(&self.kernels)
    }

    /// Keeps what was found so far by a search that goes on. What runs stays what it was before.
    ///
    /// # Errors
    /// As [`DeviceTuning::save`].
    fn save_so_far(&self) -> Result<PathBuf> {
        let so_far = |(key, entry): (&String, &Entry)| {
            let builtin = Choice::builtin(key);
            (key.clone(), entry.so_far(self.before.get(key).copied().unwrap_or(builtin), builtin))
        };
        self.write(&self.kernels.iter().map(so_far).collect())
    }

    fn write(&self, kernels: &BTreeMap<String, Entry>) -> Result<PathBuf> {
        let path = self.place()?;
        kept::alone(&path, || {
            let mut all = match DeviceTuning::open(&self.machine) {
                Ok(all) => all,
                Err(why) if named().is_some() => return Err(other_file(&why)),
                Err(_) => DeviceTuning::empty(self.machine.clone()),
            };
            all.kernels.retain(|key, _| !self.forgotten.contains(key));
            all.plans.retain(|key, _| !self.forgotten.contains(key));
            all.kernels.extend(kernels.clone());
            all.plans.extend(self.plans.clone());
            write_json(&path, &to_json(&all))?;
            Ok(())
        })?;
        Ok(path)
    }

    /// The file, whose folder is there.
    fn place(&self) -> Result<PathBuf> {
        kept::place(&self.machine)
    }

    /// What is chosen that is not built in.
    pub fn choices(&self) -> Choices {
        let mut choices = Choices::default();
        for (key, entry) in self.kernels.iter().filter(|(key, e)| e.choice != Choice::builtin(key)) {
            choices.choose(key, entry.choice, entry.other_bits());
        }
        choices
    }

    /// What is chosen for heads by a search that goes on, and not built in.
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
        let Some(entry) = self.kernels.get_mut(key) else { return };
        let has_other_bits = |c: Choice| entry.tried(c).is_some_and(|t| t.other_bits);
        let is_chosen = has_other_bits(entry.choice);
        if !is_chosen && !entry.leads.is_some_and(has_other_bits) {
            return;
        }
        if is_chosen {
            entry.run(Choice::builtin(key));
        }
        (entry.leads, entry.settled) = (None, false);
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
        let none = || Entry { choice: builtin, leads: None, settled: false, tried: Vec::new() };
        let entry = self.kernels.entry(key.into()).or_insert_with(none);
        if entry.choice == choice {
            entry.run(builtin);
        }
        entry.leads.take_if(|leads| *leads == choice);
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
        let value = json!({
            "choice": e.choice.to_string(), "leads": e.leads.map(|c| c.to_string()), "settled": e.settled,
            "other_bits": e.other_bits(), "tried": tried,
        });
        (name.clone(), value)
    };
    let kernels: Map<String, Value> = t.kernels.iter().map(entry).collect();
    let plans: Map<String, Value> = t.plans.iter().map(|(k, e)| (k.clone(), recompute::to_json(e))).collect();
    let m = &t.machine;
    json!({
        "format": FORMAT, "device": m.cpu, "arch": m.isa, "multiprocessors": m.threads, "version": m.version,
        "compiler": t.compiler, "kernels": kernels, "plans": plans,
    })
}

/// What a file holds, or why it cannot be used.
fn from_json(v: &Value, machine: &Machine) -> std::result::Result<DeviceTuning, String> {
    if v["format"] != FORMAT {
        return Err("it is of something else than kernels of a GPU, or of another version of kfc".into());
    }
    let Machine { cpu, isa, threads, version } = machine;
    let same = [
        ("device", "device", json!(cpu)),
        ("arch", "architecture", json!(isa)),
        ("multiprocessors", "multiprocessors", json!(threads)),
        ("version", "version of kfc", json!(version)),
    ];
    if let Some((key, name, own)) = same.iter().find(|(key, _, own)| v[key] != *own) {
        return Err(format!("it was found with {name} {}, and this is {own}: tune here", v[key]));
    }
    found(v, machine).ok_or_else(|| "it is damaged: tune again".into())
}

/// `None` if it is damaged; so that nothing is launched that never could be.
fn found(v: &Value, machine: &Machine) -> Option<DeviceTuning> {
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
        let leads = match &e["leads"] {
            Value::Null => None,
            leads => Some(Choice::named(leads.as_str()?)?),
        };
        let entry = Entry {
            choice,
            leads,
            settled: e["settled"].as_bool()?,
            tried: e["tried"].as_array()?.iter().map(tried).collect::<Option<_>>()?,
        };
        let is_legal = |choice: Choice| match (Shape::named(name), choice.tiling) {
            (shape, None) if choice.library.is_some() => shape.is_some(),
            (Some(shape), Some(tiling)) => candidates(&shape, arch).contains(&tiling),
            (shape, tiling) => shape.is_none() && tiling.is_none(),
        } && match (Chunked::named(name), choice.chunk) {
            (Some(chunked), Some(tokens)) => chunked.candidates().contains(&tokens),
            (chunked, tokens) => chunked.is_none() && tokens.is_none(),
        };
        let is_fine = |c: Choice| is_legal(c) && entry.tried(c).is_none_or(|t| t.out.is_none());
        let says_so = e["other_bits"].as_bool() == Some(entry.other_bits());
        (is_fine(choice) && leads.is_none_or(is_fine) && says_so).then(|| (name.clone(), entry))
    };
    let kernels = v["kernels"].as_object()?.iter().map(entry).collect::<Option<_>>()?;
    let plan = |(key, e): (&String, &Value)| Some((key.clone(), recompute::from_json(e)?));
    let plans = v["plans"].as_object()?.iter().map(plan).collect::<Option<_>>()?;
    let compiler = v["compiler"].as_str()?.into();
    Some(DeviceTuning { compiler, kernels, plans, ..DeviceTuning::empty(machine.clone()) })
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
        tuning.insert(KEY.into(), Entry { choice, leads: None, settled: true, tried: all });
        let other = Choice { tiling: None, language: Language::Triton, chunk: None, library: None };
        let all = vec![Tried { other_bits: true, ..tried(other, None) }, tried(Choice::builtin(NORM), None)];
        tuning.insert(NORM.into(), Entry { choice: other, leads: None, settled: true, tried: all });
        tuning.insert_plan("0123, no budget".into(), PlanEntry::default());
        (tuning, choice)
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_foreign_damaged_or_illegal_does_not() {
        let (tuning, choice) = known();
        let kept = to_json(&tuning);
        assert_eq!(from_json(&kept, &tuning.machine), Ok(tuning.clone()));
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
            (format!("{at}/leads"), json!("Triton")),
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
            assert!(from_json(&changed, &tuning.machine).is_err(), "{at}");
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
    fn while_a_search_goes_on_runs_go_on_as_before() {
        let (tuning, choice) = known();
        let builtin = Choice::builtin(KEY);
        let entry = tuning.entry(KEY).unwrap();
        // Another choice is beaten, and not dropped before the better one has won in whole steps.
        let other =
            Choice { tiling: Some(candidates(&Shape::named(KEY).unwrap(), Arch::Sm90a)[8]), ..builtin };
        let mut found = entry.clone();
        found.tried.push(Tried { out: Some(SLOWER.into()), ..Tried::new(other) });
        let so_far = found.so_far(other, builtin);
        assert_eq!((so_far.choice, so_far.leads), (other, Some(choice)));
        assert!(so_far.tried(other).unwrap().out.is_none());
        let mut kept = tuning.clone();
        kept.kernels.insert(KEY.into(), so_far.clone());
        assert_eq!(from_json(&to_json(&kept), &kept.machine).unwrap(), kept);
        // The search that goes on takes it; one that is wrong is dropped at once.
        assert_eq!((so_far.clone().leading().choice, so_far.leading().leads), (choice, None));
        found.tried.last_mut().unwrap().out = Some("wrong results".into());
        let so_far = found.so_far(other, builtin);
        assert_eq!((so_far.choice, so_far.leads), (builtin, Some(choice)));
        // What breaks the device does not lead any more.
        kept.refuse(KEY, choice);
        assert_eq!(kept.entry(KEY).unwrap().leads, None);
        assert_eq!(entry.so_far(choice, builtin), *entry);
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
