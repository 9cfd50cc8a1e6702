//! From plans to kernels and launches: each distinct program once, and for each step what is launched with which addresses.

use super::Program;
use super::choice::{self, Choices};
use super::chunk::Chunked;
use super::header::Language;
use super::plain::{Algorithm, Plain};
use super::programs::{Arg, EmitError, emit_tiled};
use crate::plan::{Place, Plan, Step};
use kfc_graph::Op;
use serde_json::{Value, json};
use std::collections::HashMap;

/// A program that plans launch.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// A name of its own: that of the program, with a number if several have it.
    pub name: String,
    /// What runs.
    pub program: Program,
    /// What choices for it are known by ([`choice::key`]).
    pub key: String,
    /// The language that it is compiled from.
    pub language: Language,
    /// How NVIDIA's library does it, if it is to.
    pub library: Option<Algorithm>,
    /// How often all plans together launch it.
    pub launches: usize,
}

impl Kernel {
    /// The kernel of a program as it is built in, launched once.
    pub fn of(program: Program) -> Kernel {
        let (name, key) = (program.name.clone(), choice::key(&program));
        Kernel { name, program, key, language: Language::Cuda, library: None, launches: 1 }
    }
}

/// What a kernel is for, beside what its program says: that of its first launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The operation with its attributes; of a group or a fused node, a line a statement of its body.
    pub operation: Vec<String>,
    /// For each parameter, which operand or result of the operation it is, and its type.
    pub operands: Vec<String>,
    /// Ways in which launches give one buffer to several parameters: for each parameter, the first one with its address.
    pub shared: Vec<Vec<usize>>,
}

/// The address of an argument: so many bytes after the beginning of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The bound tensor of this input position, else the arena.
    pub input: Option<usize>,
    /// Bytes from its beginning.
    pub offset: usize,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLaunch {
    /// Position in [`Lowered::kernels`].
    pub kernel: usize,
    /// Arguments in order of the program's parameters.
    pub args: Vec<Address>,
}

/// What plans run on a GPU.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// Distinct programs, in order of their first launch.
    pub kernels: Vec<Kernel>,
    /// What each of them is for.
    pub origins: Vec<Origin>,
    /// For each plan, for each step, its launches in order.
    pub launches: Vec<Vec<Vec<PlannedLaunch>>>,
}

/// The kernels and launches of plans that were compiled for tile programs.
///
/// # Errors
/// If an operation has no programs.
pub fn lower(plans: &[Plan]) -> Result<Lowered, EmitError> {
    lower_chosen(plans, &Choices::default())
}

/// [`lower`] with kernels made as `choices` say.
///
/// # Errors
/// As [`lower`].
pub fn lower_chosen(plans: &[Plan], choices: &Choices) -> Result<Lowered, EmitError> {
    let mut all = Lowered::default();
    // Programs by their source and stages, which say all that matters of them.
    let mut known: HashMap<(String, usize), usize> = HashMap::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    for plan in plans {
        let mut steps = Vec::new();
        for step in &plan.steps {
            let (inputs, outputs) = (&step.input_types, &step.output_types);
            let sizes = choices.sizes(&step.op, inputs, outputs);
            let emitted = emit_tiled(&step.op, inputs, outputs, &sizes, &choices.tilings)?;
            let works = emitted.workspace_starts().0;
            let mut launches = Vec::new();
            for launch in emitted.launches {
                let args = launch.args.iter().zip(launch.starts.iter().zip(&launch.program.params));
                let args: Vec<Address> = args
                    .map(|(arg, (start, p))| address(step, &works, *arg, start * p.elem.bytes()))
                    .collect();
                let origin = origin(step, &launch.args);
                let source = (super::triton::print(&launch.program), launch.program.stages);
                let kernel = *known.entry(source).or_insert_with(|| {
                    let count = names.entry(launch.program.name.clone()).or_default();
                    *count += 1;
                    let name = match *count {
                        1 => launch.program.name.clone(),
                        n => format!("{}_{n}", launch.program.name),
                    };
                    let of = Kernel::of(launch.program);
                    let language = choices.language(&of.key);
                    // Others of these extents may add a bias.
                    let library = choices.library(&of.key).filter(|_| Plain::of(&of.program).is_some());
                    all.kernels.push(Kernel { name, language, library, launches: 0, ..of });
                    all.origins.push(origin);
                    all.kernels.len() - 1
                });
                all.kernels[kernel].launches += 1;
                let shared = shared(&args);
                let known = &mut all.origins[kernel].shared;
                if !known.contains(&shared) {
                    known.push(shared);
                }
                launches.push(PlannedLaunch { kernel, args });
            }
            steps.push(launches);
        }
        all.launches.push(steps);
    }
    Ok(all)
}

/// What a step's launch with these arguments is for.
fn origin(step: &Step, args: &[Arg]) -> Origin {
    let attrs = kfc_graph::text::attrs(&step.op);
    let operation = match &step.op {
        Op::Group(_) | Op::Fused(_) => {
            let body = attrs.iter().map(|(_, v)| v.to_string()).collect::<String>();
            let lines = body.trim_matches('"').split("; ").map(|line| format!("  {line}"));
            std::iter::once(step.op.name().to_string()).chain(lines).collect()
        }
        op => {
            let words: Vec<String> = attrs.iter().map(|(name, v)| format!("{name}={v}")).collect();
            let attrs = if words.is_empty() { String::new() } else { format!(" {{{}}}", words.join(", ")) };
            vec![format!("{}{attrs}", op.name())]
        }
    };
    let operand = |arg: &Arg| match *arg {
        Arg::Input(i) => format!("operand {i}: {}", step.input_types[i]),
        Arg::Output(j) => format!("result {j}: {}", step.output_types[j]),
        Arg::Work(k) => format!("workspace {k}"),
    };
    Origin { operation, operands: args.iter().map(operand).collect(), shared: Vec::new() }
}

/// For each argument, the first one of the same address.
fn shared(args: &[Address]) -> Vec<usize> {
    args.iter().enumerate().map(|(i, a)| args.iter().position(|b| a == b).unwrap_or(i)).collect()
}

/// Where an argument of a step's launch begins, `start` bytes into its buffer.
fn address(step: &Step, works: &[usize], arg: Arg, start: usize) -> Address {
    let (place, start) = match arg {
        Arg::Input(i) => (step.inputs[i], start),
        Arg::Output(j) => (step.outputs[j], start),
        Arg::Work(k) => (step.workspace, works[k] + start),
    };
    match place {
        Place::Input(i) => Address { input: Some(i), offset: start },
        Place::Arena { offset, .. } => Address { input: None, offset: offset + start },
    }
}

impl Lowered {
    /// A plan as [`Plan::to_json`], each step with its launches: kernel, grid and addresses.
    pub fn plan_json(&self, plan: &Plan, number: usize) -> Value {
        let mut value = plan.to_json();
        let Some(steps) = value["steps"].as_array_mut() else { return value };
        for (step, launches) in steps.iter_mut().zip(&self.launches[number]) {
            step["launches"] = launches.iter().map(|l| self.launch_json(l)).collect();
        }
        value
    }

    /// The keys of the kernels of each step of a plan, and before them that of the step if it is a head.
    pub fn keys(&self, plan: &Plan, number: usize) -> Vec<Vec<String>> {
        let key = |l: &PlannedLaunch| self.kernels[l.kernel].key.clone();
        let head = |s: &Step| Chunked::of(&s.op, &s.input_types, &s.output_types).map(|c| c.to_string());
        let steps = plan.steps.iter().zip(&self.launches[number]);
        steps
            .map(|(step, launches)| head(step).into_iter().chain(launches.iter().map(key)).collect())
            .collect()
    }

    fn launch_json(&self, l: &PlannedLaunch) -> Value {
        let kernel = &self.kernels[l.kernel];
        let arg = |a: &Address| match a.input {
            Some(i) => json!({"input": i, "offset": a.offset}),
            None => json!({"offset": a.offset}),
        };
        json!({
            "kernel": kernel.name,
            "grid": kernel.program.grid,
            "args": l.args.iter().map(arg).collect::<Vec<_>>(),
        })
    }
}

/// What stands about a program beside its compiled form: grid, warps, parameters.
pub fn program_json(p: &Program) -> Value {
    let params: Vec<Value> = p
        .params
        .iter()
        .map(|b| json!({"name": b.name, "type": b.elem.name(), "elements": b.len, "access": b.access.name()}))
        .collect();
    let mut about = json!({"function": p.name, "grid": p.grid, "warps": p.warps, "parameters": params});
    if let Some(t) = &p.tiled {
        let (s, t) = (&t.shape, t.tiling);
        about["product"] = json!({"m": s.m, "n": s.n, "k": s.k, "type": s.elem.name()});
        about["tile"] = json!({"m": t.m, "n": t.n, "k": t.k});
    }
    about
}
