//! What a training step consists of, and how long each part took.
//!
//! A [`Profile`] describes the plans of a step launch by launch; when it comes from a run, with the times measured. It is
//! what `profile.json` of a run folder holds, and needs neither model nor data to be read. Launches of one operation with
//! the same attributes and types are one [`Kind`]: they do the same work.

mod clock;
mod json;
mod startup;

pub(crate) use clock::{Clock, Part};
pub(crate) use startup::{Stage, Startup};

use crate::accounting::Account;
use crate::calibration::Rates;
use kfc_graph::budget::Decision;
use kfc_graph::{Cost, Node, Op, Phase, TensorType};
use kfc_kernels::cpu::simd;
use kfc_kernels::cuda::Arch;
use kfc_kernels::plan::{Place, Plan, Step};
use kfc_kernels::timeline::{self, Block};
use std::collections::BTreeMap;

/// Name of the file in a run folder.
pub const FILE: &str = "profile.json";

/// A step: its plans, its memory, and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The student in a line.
    pub model: String,
    /// Rows of a micro-batch, tokens of a row, micro-batches of a step.
    pub shape: [usize; 3],
    /// Where it ran, or is to run.
    pub machine: Machine,
    /// The micro-batch plan and the update plan.
    pub plans: Vec<PlanProfile>,
    /// What the run holds in memory: item and bytes, the largest first.
    pub account: Vec<(String, u64)>,
    /// What a GPU says it can do at best; none of a CPU.
    pub stated: Option<Rates>,
    /// What was measured, if it ran.
    pub measured: Option<Measured>,
}

/// What times depend on beside the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The CPU's name, or the GPU's.
    pub cpu: String,
    /// The level of instructions that kernels use ([`simd::Level::name`]), or a GPU's architecture ([`Arch::name`]).
    pub isa: String,
    /// Threads of kernels, or multiprocessors of a GPU.
    pub threads: usize,
    /// Version of kfc.
    pub version: String,
}

impl Machine {
    /// A GPU that plans are weighed for when the one that they run on is not known: an H100.
    pub(crate) fn usual_gpu() -> Machine {
        let (cpu, isa) = ("H100".into(), Arch::Sm90a.name().into());
        Machine { cpu, isa, threads: 132, version: env!("CARGO_PKG_VERSION").into() }
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.isa.parse::<Arch>().is_ok()
    }

    /// This process's.
    pub fn this() -> Machine {
        Machine {
            cpu: crate::machine::cpu_model(),
            isa: simd::level().name().into(),
            threads: rayon::current_num_threads(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What a run measured over its steps, those of warm-up left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Steps covered.
    pub steps: u64,
    /// Steps before them that are left out.
    pub warmup: u64,
    /// Wall time of the covered steps and of what happened between them, nanoseconds.
    pub wall_ns: u64,
    /// Time on this side of the kernels: what, and nanoseconds over all covered steps.
    pub host: Vec<(String, u64)>,
    /// Highest resident memory of the process.
    pub peak_bytes: u64,
    /// From opening the job to the end of its first step: what, and nanoseconds. Empty in profiles of older runs.
    pub startup: Vec<(String, u64)>,
}

/// One plan of the step.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanProfile {
    /// Name of the graph.
    pub name: String,
    /// How often a step runs it.
    pub runs_per_step: usize,
    /// Size of its arena.
    pub arena_bytes: usize,
    /// Most bytes alive at once: no arena could be smaller for this order.
    pub live_bytes: usize,
    /// Kinds of launches, in order of their first.
    pub kinds: Vec<Kind>,
    /// For each kind, the keys of a GPU's kernels, by which choices for them are known; empty on a CPU.
    pub programs: Vec<Vec<String>>,
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// Blocks of the arena in order of their first use; times are positions of launches.
    pub blocks: Vec<Block>,
    /// What becomes of each value that the backward pass reads of the forward pass.
    pub decisions: Vec<Decision>,
}

/// Launches that do the same work.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// The operation.
    pub op: String,
    /// Whether it is a primitive.
    pub prim: bool,
    /// Its attributes, `name=value`.
    pub attrs: String,
    /// Operand types.
    pub inputs: Vec<String>,
    /// Result types.
    pub outputs: Vec<String>,
    /// Work of one launch.
    pub cost: Cost,
}

/// Attributes that say what an operation's work is.
fn attributes(op: &Op) -> String {
    let attrs = kfc_graph::text::attrs(op);
    let shown = attrs.iter().filter(|(name, _)| !NO_WORK.contains(name)).map(|(n, v)| format!("{n}={v}"));
    shown.collect::<Vec<_>>().join(", ")
}

impl Kind {
    /// The work of an operation on operands and results of these types.
    pub fn of(op: &Op, inputs: &[TensorType], outputs: &[TensorType]) -> Kind {
        let types = |types: &[TensorType]| types.iter().map(ToString::to_string).collect();
        // Of operations that run as one, the body's own: where their operands come from makes no difference to their work.
        let shown = match op {
            Op::Fused(f) => {
                let part = |n: &Node| format!("{} {{{}}}", n.op.name(), attributes(&n.op));
                f.body().nodes().iter().map(part).collect::<Vec<_>>().join(" + ").replace(" {}", "")
            }
            op => attributes(op),
        };
        Kind {
            op: op.name().to_string(),
            prim: matches!(op, Op::Prim(_)),
            attrs: shown,
            inputs: types(inputs),
            outputs: types(outputs),
            cost: op.cost(inputs, outputs),
        }
    }

    /// What identifies the work: the key of a calibration.
    pub fn signature(&self) -> String {
        format!(
            "{} {{{}}} ({}) -> ({})",
            self.op,
            self.attrs,
            self.inputs.join(", "),
            self.outputs.join(", ")
        )
    }

    /// Rows of the smallest operand that has more than one axis; 0 if there is none.
    pub fn least_rows(&self) -> usize {
        let rows = |ty: &String| {
            let dims = ty.split_once('[')?.1.trim_end_matches(']').split(',');
            let dims: Vec<usize> = dims.map(|d| d.trim().parse().ok()).collect::<Option<_>>()?;
            (dims.len() > 1).then(|| dims[..dims.len() - 1].iter().product())
        };
        self.inputs.iter().filter_map(rows).min().unwrap_or(0)
    }

    /// Whether a float operand has 16 bits.
    pub fn is_16_bit(&self) -> bool {
        self.inputs.iter().any(|t| t.starts_with("bf16") || t.starts_with("f16"))
    }
}

/// One launch of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Position in [`PlanProfile::kinds`].
    pub kind: usize,
    /// Part of the step.
    pub phase: Phase,
    /// Where in the model.
    pub scope: String,
    /// Bytes of results that took over an operand's place.
    pub inplace_bytes: usize,
    /// Nanoseconds over all runs of the covered steps; 0 if nothing was measured.
    pub ns: u64,
}

impl Profile {
    /// The description of a step that did not run yet.
    pub fn predicted(
        model: String,
        shape: [usize; 3],
        machine: Machine,
        plans: &[Plan],
        account: &Account,
    ) -> Profile {
        // The first plan runs once a micro-batch, the last once a step.
        let runs = |i: usize| if i + 1 == plans.len() { 1 } else { shape[2] };
        Profile {
            model,
            shape,
            machine,
            plans: plans.iter().enumerate().map(|(i, p)| PlanProfile::of(p, runs(i))).collect(),
            account: account.items.iter().map(|i| (i.what.to_string(), i.bytes)).collect(),
            stated: None,
            measured: None,
        }
    }

    /// Predicted peak resident size, bytes.
    pub fn predicted_peak(&self) -> u64 {
        self.account.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl PlanProfile {
    /// Describes a plan.
    pub fn of(plan: &Plan, runs_per_step: usize) -> PlanProfile {
        let (mut kinds, mut known) = (Vec::new(), BTreeMap::new());
        let mut launches = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let kind = Kind::of(&step.op, &step.input_types, &step.output_types);
            let next = kinds.len();
            let index = *known.entry(kind.signature()).or_insert(next);
            if index == next {
                kinds.push(kind);
            }
            launches.push(Launch {
                kind: index,
                phase: step.phase,
                scope: step.scope.clone(),
                inplace_bytes: inplace_bytes(step),
                ns: 0,
            });
        }
        PlanProfile {
            name: plan.name.clone(),
            runs_per_step,
            arena_bytes: plan.arena_bytes,
            live_bytes: plan.live_bytes,
            kinds,
            programs: Vec::new(),
            launches,
            blocks: timeline::blocks(plan),
            decisions: plan.decisions.clone(),
        }
    }

    /// The same with the keys of each step's kernels.
    pub(crate) fn with_programs(mut self, steps: &[Vec<String>]) -> PlanProfile {
        if !steps.is_empty() {
            self.programs = vec![Vec::new(); self.kinds.len()];
        }
        for (keys, launch) in steps.iter().zip(&self.launches) {
            let known = &mut self.programs[launch.kind];
            for key in keys {
                if !known.contains(key) {
                    known.push(key.clone());
                }
            }
        }
        self
    }

    /// Takes over the times of the plan's steps.
    pub(crate) fn measure(&mut self, times: &[u64]) {
        self.launches.iter_mut().zip(times).for_each(|(launch, ns)| launch.ns = *ns);
    }

    /// Nanoseconds in kernels.
    pub fn kernel_ns(&self) -> u64 {
        self.launches.iter().map(|l| l.ns).sum()
    }
}

/// Attributes that change results, not work.
const NO_WORK: [&str; 1] = ["stream"];

fn inplace_bytes(step: &Step) -> usize {
    let shared = |p: &&Place| matches!(p, Place::Arena { .. }) && step.inputs.contains(p);
    let bytes = |p: &Place| match p {
        Place::Arena { bytes, .. } => *bytes,
        Place::Input(_) => 0,
    };
    step.outputs.iter().filter(shared).map(bytes).sum()
}
