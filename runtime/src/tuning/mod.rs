//! Choices of how kernels cut their work, found by trying them (`search`), and the file that keeps them.
//!
//! A tuning belongs to a CPU, a level of instructions, a number of threads and a version of kfc; kernels are kept by the
//! signature of their work, with all that was tried and its times. No choice changes a bit of a result
//! ([`kfc_kernels::cpu::choice`]), so that a run need not record what it used; nor does a choice of what is made again
//! (`recompute`), which is kept by graph and budget. Nothing here ever fails a run: without a file, or with one that is
//! damaged or of another machine, kernels run as built in, and a note says so.

pub mod device;
mod kept;
mod recompute;
mod search;
mod turns;

pub use recompute::{Make, PlanEntry, Plans, TriedPlan, prove, recompute};
pub use search::{Report, Status, search, verify};

use crate::files;
use crate::profile::Machine;
use crate::{Result, RunError};
use kept::{file, named};
use kfc_kernels::cpu::choice::Choice;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Of the file's layout.
const FORMAT: u64 = 1;

/// The environment variable that names another file, or is `off`.
pub const VARIABLE: &str = "KFC_TUNING";

/// A choice that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The choice.
    pub choice: Choice,
    /// Median nanoseconds of a launch; 0 if it was never run.
    pub ns: f64,
    /// Launches timed.
    pub samples: usize,
    /// Why it is out, if it is.
    pub out: Option<String>,
}

/// What was found for a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The operation.
    pub op: String,
    /// How it runs.
    pub choice: Choice,
    /// Whether every choice that is not out was timed often enough.
    pub settled: bool,
    /// Everything that was tried, the fastest first.
    pub tried: Vec<Tried>,
}

/// What was found on a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    machine: Machine,
    kernels: BTreeMap<String, Entry>,
    plans: BTreeMap<String, PlanEntry>,
    /// Kernels and plans whose entries in the file are not kept.
    forgotten: BTreeSet<String>,
}

impl Tuning {
    /// Nothing known.
    pub fn empty(machine: Machine) -> Tuning {
        Tuning { machine, kernels: BTreeMap::new(), plans: BTreeMap::new(), forgotten: BTreeSet::new() }
    }

    /// Nothing known, and what is known now is not kept either.
    pub fn forget(self) -> Tuning {
        let forgotten = self.kernels.into_keys().chain(self.plans.into_keys()).collect();
        Tuning { forgotten, ..Tuning::empty(self.machine) }
    }

    /// What was found on a machine like this one; empty if nothing was, or it cannot be used.
    pub fn load(machine: &Machine) -> Tuning {
        Tuning::open(machine).unwrap_or_else(|_| Tuning::empty(machine.clone()))
    }

    /// What was found on a machine like this one; empty if nothing was.
    ///
    /// # Errors
    /// If there is a file that cannot be used: what it is, and why.
    pub fn open(machine: &Machine) -> std::result::Result<Tuning, String> {
        let Some(path) = file(machine).filter(|path| path.exists()) else {
            return Ok(Tuning::empty(machine.clone()));
        };
        let kept = files::read_json(&path).map_err(|e| e.to_string())?;
        from_json(&kept, machine).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// What a user should know if there is a file that is not used.
    pub fn unused(machine: &Machine) -> Option<String> {
        let why = Tuning::open(machine).err()?;
        Some(format!("nothing that `kfc tune` found is used: {why}"))
    }

    /// Keeps what is known, beside what was found for other kernels meanwhile. Returns the file.
    ///
    /// # Errors
    /// If there is no place for it, it cannot be written, or the environment names a file that is not of this machine.
    pub fn save(&self) -> Result<PathBuf> {
        let path = kept::place(&self.machine)?;
        kept::alone(&path, || {
            let mut all = match Tuning::open(&self.machine) {
                Ok(all) => all,
                // One in the cache is replaced; what a user named may be of use elsewhere.
                Err(why) if named().is_some() => return Err(other_file(&why)),
                Err(_) => Tuning::empty(self.machine.clone()),
            };
            all.kernels.retain(|key, _| !self.forgotten.contains(key));
            all.plans.retain(|key, _| !self.forgotten.contains(key));
            all.kernels.extend(self.kernels.clone());
            all.plans.extend(self.plans.clone());
            files::write_json(&path, &to_json(&all))?;
            Ok(())
        })?;
        Ok(path)
    }

    /// What earlier searches found, for another one, and why that cannot be used if there is a file that it replaces.
    ///
    /// # Errors
    /// If nothing that is found could be kept: a search would be in vain.
    pub fn of_earlier_searches(machine: &Machine) -> Result<(Tuning, Option<String>)> {
        let known = match Tuning::open(machine) {
            Err(why) if named().is_some() => return Err(other_file(&why)),
            known => known,
        };
        kept::try_place(machine)?;
        Ok(match known {
            Ok(known) => (known, None),
            Err(why) => (Tuning::empty(machine.clone()), Some(why)),
        })
    }

    /// Whether nothing is known of kernels.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
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

    /// How the kernel of this signature runs.
    pub fn choice(&self, signature: &str) -> Choice {
        self.kernels.get(signature).map_or(Choice::BUILT_IN, |entry| entry.choice)
    }

    /// What is known of the kernel of this signature.
    pub fn entry(&self, signature: &str) -> Option<&Entry> {
        self.kernels.get(signature)
    }

    /// Takes in what was found for a kernel.
    pub(crate) fn insert(&mut self, signature: String, entry: Entry) {
        self.kernels.insert(signature, entry);
    }
}

impl Entry {
    /// What was tried of a choice.
    pub fn tried(&self, choice: Choice) -> Option<&Tried> {
        self.tried.iter().find(|t| t.choice == choice)
    }
}

/// Of a file that a user named and that cannot be used, for this reason.
fn other_file(why: &str) -> RunError {
    RunError::Input(format!("{why}; {VARIABLE} names it: name another file"))
}

fn to_json(t: &Tuning) -> Value {
    let tried =
        |t: &Tried| json!({"choice": t.choice.name(), "ns": t.ns, "samples": t.samples, "out": t.out});
    let entry = |(signature, e): (&String, &Entry)| {
        let tried: Vec<Value> = e.tried.iter().map(tried).collect();
        let value = json!({"op": e.op, "choice": e.choice.name(), "settled": e.settled, "tried": tried});
        (signature.clone(), value)
    };
    let kernels: Map<String, Value> = t.kernels.iter().map(entry).collect();
    let plans: Map<String, Value> = t.plans.iter().map(|(k, e)| (k.clone(), recompute::to_json(e))).collect();
    let m = &t.machine;
    json!({
        "format": FORMAT, "cpu": m.cpu, "isa": m.isa, "threads": m.threads, "version": m.version, "kernels": kernels,
        "plans": plans,
    })
}

/// What a file holds, or why it cannot be used.
fn from_json(v: &Value, machine: &Machine) -> std::result::Result<Tuning, String> {
    if v["format"] != FORMAT {
        return Err("it is no file of `kfc tune`, or one of another version".into());
    }
    let Machine { cpu, isa, threads, version } = machine;
    let same =
        [("cpu", json!(cpu)), ("isa", json!(isa)), ("threads", json!(threads)), ("version", json!(version))];
    if let Some((what, own)) = same.iter().find(|(what, own)| v[what] != *own) {
        let name = if *what == "version" { "version of kfc" } else { what };
        return Err(format!("it was found with {name} {}, and this is {own}: tune here", v[what]));
    }
    found(v, machine).ok_or_else(|| "it is damaged: tune again".into())
}

/// `None` if it is damaged.
fn found(v: &Value, machine: &Machine) -> Option<Tuning> {
    let tried = |t: &Value| {
        Some(Tried {
            choice: Choice::named(t["choice"].as_str()?)?,
            ns: t["ns"].as_f64().filter(|x| x.is_finite() && *x >= 0.0)?,
            samples: t["samples"].as_u64()? as usize,
            out: t["out"].as_str().map(Into::into),
        })
    };
    let entry = |(signature, e): (&String, &Value)| {
        let entry = Entry {
            op: e["op"].as_str()?.into(),
            choice: Choice::named(e["choice"].as_str()?)?,
            settled: e["settled"].as_bool()?,
            tried: e["tried"].as_array()?.iter().map(tried).collect::<Option<_>>()?,
        };
        Some((signature.clone(), entry))
    };
    let kernels = v["kernels"].as_object()?.iter().map(entry).collect::<Option<_>>()?;
    // Older files have none.
    let plans = match v.get("plans") {
        None => BTreeMap::new(),
        Some(all) => {
            let plan = |(key, e): (&String, &Value)| Some((key.clone(), recompute::from_json(e)?));
            all.as_object()?.iter().map(plan).collect::<Option<_>>()?
        }
    };
    Some(Tuning { machine: machine.clone(), kernels, plans, forgotten: BTreeSet::new() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kfc_graph::ValueId;

    fn known() -> Tuning {
        let machine = Machine { cpu: "c".into(), isa: "portable".into(), threads: 2, version: "1".into() };
        let choice = Choice { turned: true, ..Choice::BUILT_IN };
        let tried = [(choice, None), (Choice::BUILT_IN, Some("slower"))];
        let tried =
            tried.map(|(choice, out)| Tried { choice, ns: 5.0, samples: 3, out: out.map(Into::into) });
        let mut tuning = Tuning::empty(machine);
        let entry = Entry { op: "linear".into(), choice, settled: true, tried: tried.to_vec() };
        tuning.insert("linear {}".into(), entry);
        let plan = |name: Option<&str>| TriedPlan {
            name: name.map(Into::into),
            dropped: [ValueId(3), ValueId(7)].into(),
            ms: 2.0,
            peak: 9,
            arena: 5,
            out: None,
        };
        let tried = vec![plan(None), plan(Some("none"))];
        tuning.insert_plan("job".into(), PlanEntry { choice: Some(1), leads: None, tried });
        tuning
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_foreign_or_damaged_does_not() {
        let tuning = known();
        let kept = to_json(&tuning);
        assert_eq!(from_json(&kept, &tuning.machine), Ok(tuning.clone()));
        assert!(tuning.choice("linear {}").turned && tuning.choice("other") == Choice::BUILT_IN);
        assert_eq!(tuning.plan("job").unwrap().chosen().unwrap().name.as_deref(), Some("none"));
        let changes: [(&str, Value, &str); 11] = [
            ("/plans/job/leads", json!(2), "damaged"),
            ("/plans/job/tried/0/ms", json!(-1), "damaged"),
            ("/plans/job/choice", json!(2), "damaged"),
            ("/plans/job/tried/1/values/0", json!(-3), "damaged"),
            ("/cpu", json!("d"), "cpu \"d\", and this is \"c\""),
            ("/threads", json!(3), "threads 3, and this is 2"),
            ("/version", json!("0"), "version of kfc"),
            ("/format", json!(99), "another version"),
            ("/kernels/linear {}/choice", json!("warp 9"), "damaged"),
            ("/kernels/linear {}/tried/0/ns", json!(-1), "damaged"),
            ("/kernels", json!([]), "damaged"),
        ];
        for (at, value, why) in changes {
            let mut changed = kept.clone();
            *changed.pointer_mut(at).unwrap() = value;
            let refused = from_json(&changed, &tuning.machine).unwrap_err();
            assert!(refused.contains(why), "{at}: {refused}");
        }
    }
}
