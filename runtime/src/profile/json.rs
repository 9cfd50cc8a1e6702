//! A profile as JSON and back. Launches and blocks are arrays, since there are thousands of them.

use super::{Kind, Launch, Machine, Measured, PlanProfile, Profile};
use crate::calibration::Rates;
use crate::files::{FileError, read_json};
use kfc_graph::budget::Decision;
use kfc_graph::{Cost, Phase};
use kfc_kernels::timeline::Block;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Changes when older readers would misread the file.
const FORMAT: u64 = 2;

/// Items that a list may have.
const MOST: usize = 1 << 18;

impl Profile {
    /// For [`Profile::read`].
    pub fn to_json(&self) -> Value {
        let pairs =
            |items: &[(String, u64)]| items.iter().map(|(what, n)| json!([what, n])).collect::<Vec<_>>();
        json!({
            "format": FORMAT,
            "model": self.model,
            "shape": self.shape,
            "machine": {
                "cpu": self.machine.cpu, "isa": self.machine.isa, "threads": self.machine.threads,
                "version": self.machine.version,
            },
            "plans": self.plans.iter().map(plan_json).collect::<Vec<_>>(),
            "account": pairs(&self.account),
            "stated": self.stated.map(|r| r.to_json()),
            "measured": self.measured.as_ref().map(|m| json!({
                "steps": m.steps, "warmup": m.warmup, "wall_ns": m.wall_ns, "host": pairs(&m.host),
                "peak_bytes": m.peak_bytes, "startup": pairs(&m.startup),
            })),
        })
    }

    /// Reads what a run wrote.
    ///
    /// # Errors
    /// If the file cannot be read or is none of ours.
    pub fn read(path: &Path) -> Result<Profile, FileError> {
        let value = read_json(path)?;
        if value["format"].as_u64() != Some(FORMAT) {
            let m = "written by another version of kfc; run the job again with this one";
            return Err(FileError::invalid(path, m));
        }
        profile(&value).ok_or_else(|| FileError::invalid(path, "damaged; run the job again"))
    }
}

fn plan_json(p: &PlanProfile) -> Value {
    let kinds: Vec<Value> = p
        .kinds
        .iter()
        .map(|k| {
            json!({"op": k.op, "prim": k.prim, "attrs": k.attrs, "inputs": k.inputs, "outputs": k.outputs,
                   "flops": k.cost.flops, "bytes": k.cost.bytes})
        })
        .collect();
    let launches = p.launches.iter().map(|l| json!([l.kind, l.phase.name(), l.scope, l.inplace_bytes, l.ns]));
    let blocks = p.blocks.iter().map(|b| json!([b.offset, b.bytes, b.first, b.last, b.scratch]));
    let decisions = p.decisions.iter().map(|d| json!([d.value, d.bytes, d.recomputed, d.seconds]));
    json!({
        "name": p.name,
        "runs_per_step": p.runs_per_step,
        "arena_bytes": p.arena_bytes,
        "live_bytes": p.live_bytes,
        "kinds": kinds,
        "programs": p.programs,
        "launches": launches.collect::<Vec<_>>(),
        "blocks": blocks.collect::<Vec<_>>(),
        "decisions": decisions.collect::<Vec<_>>(),
    })
}

fn profile(v: &Value) -> Option<Profile> {
    let object = v.as_object()?;
    let shape = array(object, "shape")?;
    let machine = object.get("machine")?.as_object()?;
    let measured = match object.get("measured") {
        None | Some(Value::Null) => None,
        Some(m) => Some(measured(m.as_object()?)?),
    };
    Some(Profile {
        model: text(object, "model")?,
        shape: [size(shape.first()?)?, size(shape.get(1)?)?, size(shape.get(2)?)?],
        machine: Machine {
            cpu: text(machine, "cpu")?,
            isa: text(machine, "isa")?,
            threads: size(machine.get("threads")?)?,
            version: text(machine, "version")?,
        },
        plans: array(object, "plans")?.iter().map(plan).collect::<Option<_>>()?,
        account: pairs(array(object, "account")?)?,
        stated: object.get("stated").and_then(Rates::from_json),
        measured,
    })
}

fn measured(m: &Map<String, Value>) -> Option<Measured> {
    let number = |name: &str| m.get(name)?.as_u64();
    Some(Measured {
        steps: number("steps").filter(|n| *n > 0)?,
        warmup: number("warmup")?,
        wall_ns: number("wall_ns")?,
        host: pairs(array(m, "host")?)?,
        peak_bytes: number("peak_bytes")?,
        startup: m.get("startup").map_or(Some(Vec::new()), |_| pairs(array(m, "startup")?))?,
    })
}

fn plan(v: &Value) -> Option<PlanProfile> {
    let o = v.as_object()?;
    let number = |name: &str| size(o.get(name)?);
    let kinds: Vec<Kind> = array(o, "kinds")?.iter().map(kind).collect::<Option<_>>()?;
    let launches: Vec<Launch> = array(o, "launches")?.iter().map(launch).collect::<Option<_>>()?;
    let blocks: Vec<Block> = array(o, "blocks")?.iter().map(block).collect::<Option<_>>()?;
    // Older runs have none.
    let programs: Vec<Vec<String>> = match o.get("programs") {
        None => Vec::new(),
        Some(v) => v.as_array()?.iter().map(names).collect::<Option<_>>()?,
    };
    let fits = (programs.is_empty() || programs.len() == kinds.len())
        && launches.iter().all(|l| l.kind < kinds.len())
        && blocks.iter().all(|b| b.first <= b.last && b.last < launches.len());
    fits.then_some(PlanProfile {
        name: text(o, "name")?,
        runs_per_step: number("runs_per_step")?,
        arena_bytes: number("arena_bytes")?,
        live_bytes: number("live_bytes")?,
        kinds,
        programs,
        launches,
        blocks,
        decisions: array(o, "decisions")?.iter().map(decision).collect::<Option<_>>()?,
    })
}

fn kind(v: &Value) -> Option<Kind> {
    let o = v.as_object()?;
    let texts = |name: &str| -> Option<Vec<String>> {
        array(o, name)?.iter().map(|t| t.as_str().map(str::to_owned)).collect()
    };
    Some(Kind {
        op: text(o, "op")?,
        prim: o.get("prim")?.as_bool()?,
        attrs: text(o, "attrs")?,
        inputs: texts("inputs")?,
        outputs: texts("outputs")?,
        cost: Cost { flops: o.get("flops")?.as_u64()?, bytes: o.get("bytes")?.as_u64()? },
    })
}

fn names(v: &Value) -> Option<Vec<String>> {
    v.as_array()?.iter().map(|n| Some(n.as_str()?.to_owned())).collect()
}

fn launch(v: &Value) -> Option<Launch> {
    let [kind, phase, scope, inplace, ns] = v.as_array()?.as_slice() else { return None };
    let phase = phase.as_str()?;
    Some(Launch {
        kind: size(kind)?,
        phase: Phase::ALL.into_iter().find(|p| p.name() == phase)?,
        scope: scope.as_str()?.to_owned(),
        inplace_bytes: size(inplace)?,
        ns: size(ns)? as u64,
    })
}

fn block(v: &Value) -> Option<Block> {
    let [offset, bytes, first, last, scratch] = v.as_array()?.as_slice() else { return None };
    Some(Block {
        offset: size(offset)?,
        bytes: size(bytes)?,
        first: size(first)?,
        last: size(last)?,
        scratch: scratch.as_bool()?,
    })
}

fn decision(v: &Value) -> Option<Decision> {
    let [value, bytes, recomputed, seconds] = v.as_array()?.as_slice() else { return None };
    Some(Decision {
        value: value.as_str()?.to_owned(),
        bytes: size(bytes)?,
        recomputed: recomputed.as_bool()?,
        seconds: seconds.as_f64()?,
    })
}

fn pairs(items: &[Value]) -> Option<Vec<(String, u64)>> {
    items.iter().map(|i| Some((i.get(0)?.as_str()?.to_owned(), size(i.get(1)?)? as u64))).collect()
}

fn array<'a>(o: &'a Map<String, Value>, name: &str) -> Option<&'a Vec<Value>> {
    o.get(name)?.as_array().filter(|a| a.len() <= MOST)
}

fn text(o: &Map<String, Value>, name: &str) -> Option<String> {
    o.get(name)?.as_str().map(str::to_owned)
}

/// Sizes whose sums over [`MOST`] items cannot overflow, whatever the file says.
fn size(v: &Value) -> Option<usize> {
    v.as_u64().filter(|n| *n < 1 << 44).map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::testing::TempDir;

    fn sample() -> Profile {
        let kind = Kind {
            op: "linear".into(),
            prim: false,
            attrs: "bias=false".into(),
            inputs: vec!["f32[2,3]".into(), "f32[5,3]".into()],
            outputs: vec!["f32[2,5]".into()],
            cost: Cost { flops: 60, bytes: 124 },
        };
        let launch =
            Launch { kind: 0, phase: Phase::Backward, scope: "student.head".into(), inplace_bytes: 0, ns: 7 };
        Profile {
            model: "llama".into(),
            shape: [2, 16, 1],
            machine: Machine::this(),
            plans: vec![PlanProfile {
                name: "train".into(),
                runs_per_step: 1,
                arena_bytes: 64,
                live_bytes: 64,
                kinds: vec![kind],
                programs: vec![vec!["linear 2x5x3 f32".into()]],
                launches: vec![launch],
                blocks: vec![Block { offset: 0, bytes: 64, first: 0, last: 0, scratch: false }],
                decisions: vec![Decision {
                    value: "student.layers.0.mlp/swiglu.0".into(),
                    bytes: 64,
                    recomputed: true,
                    seconds: 1e-6,
                }],
            }],
            account: vec![("step data".into(), 64)],
            stated: Some(Rates { flops_f32: 1e9, flops_16: 2e9, bytes: 1e8 }),
            measured: Some(Measured {
                steps: 1,
                warmup: 0,
                wall_ns: 10,
                host: vec![("waiting for data".into(), 3)],
                peak_bytes: 1 << 20,
                startup: vec![("reading data".into(), 5), ("first step".into(), 4)],
            }),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let (dir, profile) = (TempDir::new("profile"), sample());
        let path = dir.path().join("profile.json");
        crate::files::write_json(&path, &profile.to_json()).unwrap();
        assert_eq!(Profile::read(&path).unwrap(), profile);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = TempDir::new("profile-damaged");
        let path = dir.path().join("profile.json");
        let mut other = sample();
        other.plans[0].launches[0].kind = 1;
        let mut newer = sample().to_json();
        newer["format"] = json!(99);
        for value in [
            other.to_json(),
            newer,
            json!({"format": FORMAT}),
            json!([]),
            json!({"format": FORMAT, "shape": []}),
        ] {
            crate::files::write_json(&path, &value).unwrap();
            assert!(Profile::read(&path).is_err(), "{value}");
        }
    }
}
