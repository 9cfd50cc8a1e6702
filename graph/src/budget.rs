//! What to save and what to make again under a memory budget.
//!
//! [`Frontier::new`] tries sets of values to drop, from "none" to "every layer" and beyond, and plans the memory of each;
//! what is left is a list in which less memory costs more time. A budget takes the fastest entry that fits. So by
//! construction a smaller budget never gives a larger peak, a larger one never a slower plan, and no named policy that fits
//! is faster than what is chosen, but for [`FREE`]: what costs so little that nobody notices is made again under any budget.
//!
//! Values that play the same role in every layer form a class, ordered greedily: next comes the class whose recomputation
//! costs the fewest seconds for each byte that the peak of live memory falls by. Each step of the ladder drops one class
//! more, in an eighth of the layers after the other, the first layers first: their values live the longest. What the last
//! layer saves lives for a moment only, so each step is also tried with the last layer left alone.

use crate::cost::{SecondsOf, node_cost, node_seconds};
use crate::graph::{Def, Graph, Node, NodeId, Phase, ValueId};
use crate::memory::{FactsOf, live_bytes, plan};
use crate::passes::recompute::{self, Cut, Policy, chain, dropped, layer_of};
use crate::schedule::schedule;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Share of the graph's time that recomputation may always take: norms and activations are made again for less, and free a
/// good part of what would be kept.
pub const FREE: f64 = 0.005;

/// Sets beside the named policies of which the memory is planned in full.
const PLANNED: usize = 72;

/// The largest classes are tried.
const MAX_CLASSES: usize = 24;

/// Parts that the layers are cut into.
const PARTS: usize = 8;

/// Classes whose values take less than one part in so many of all saved bytes go with their larger siblings only.
const MINOR: usize = 500;

/// What is done to a graph in which values are made again.
pub type Finish<'a> = dyn Fn(Graph) -> Graph + Sync + 'a;

/// One way to run a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The policy, or the classes dropped.
    pub name: String,
    /// Saved values of the graph that are made again.
    pub dropped: BTreeSet<ValueId>,
    /// Size of the planned arena.
    pub arena_bytes: usize,
    /// Most bytes alive at once.
    pub live_bytes: usize,
    /// Estimated time of what runs twice.
    pub extra_seconds: f64,
}

/// Choices in order of falling memory and rising time.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontier {
    /// The choices that no other one beats in both.
    pub choices: Vec<Choice>,
    /// The named policies, whether beaten or not.
    pub named: Vec<Choice>,
    /// Seconds of recomputation that count for nothing: [`FREE`] of the graph's time.
    pub free_seconds: f64,
}

/// The budget is below what any choice needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a budget of {budget} bytes is too small: the smallest feasible one is {smallest} bytes")]
pub struct TooSmall {
    /// What there is.
    pub budget: usize,
    /// What is needed at least.
    pub smallest: usize,
}

impl Frontier {
    /// Tries policies and classes on an optimised graph. `finish` is what is done to a graph behind recomputation, before it
    /// is ordered and placed. Deterministic.
    pub fn new(graph: &Graph, finish: &Finish<'_>, facts: &FactsOf<'_>, seconds: &SecondsOf<'_>) -> Frontier {
        let seconds = seconds_of_works(graph, seconds);
        let search = Search { graph, cut: Cut::new(graph), finish, facts, seconds };
        let named = search.named();
        let mut tried = named.clone();
        let ladder = search.ladder();
        tried.extend(each(ladder, &|c| search.planned(c.name, c.dropped)));
        Frontier {
            choices: pareto(tried, |c| c.arena_bytes),
            named,
            free_seconds: FREE * search.all_seconds(),
        }
    }

    /// The fastest choice whose arena fits; of those that cost at most [`Frontier::free_seconds`] the smallest one.
    ///
    /// # Errors
    /// [`TooSmall`], which names the smallest feasible budget.
    pub fn within(&self, arena_bytes: usize) -> Result<&Choice, TooSmall> {
        let smallest = self.choices.last().map_or(0, |c| c.arena_bytes);
        let free = self.choices.iter().rposition(|c| c.extra_seconds <= self.free_seconds).unwrap_or(0);
        let fits = self.choices.iter().skip(free).find(|c| c.arena_bytes <= arena_bytes);
        fits.ok_or(TooSmall { budget: arena_bytes, smallest })
    }
}

/// What becomes of one saved value.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Scope, operation and result of its node: `student.layers.3.mlp/swiglu.0`.
    pub value: String,
    /// Its size.
    pub bytes: usize,
    /// Whether it is made again, for itself or beside another result of its node; otherwise it stays in memory.
    pub recomputed: bool,
    /// Estimated time to make it again from what is saved.
    pub seconds: f64,
}

/// What becomes of each saved value when `dropped` is dropped, in order of the forward pass.
pub fn decisions(graph: &Graph, dropped: &BTreeSet<ValueId>, seconds: &SecondsOf<'_>) -> Vec<Decision> {
    let cut = Cut::new(graph);
    let copied: BTreeSet<NodeId> = dropped.iter().flat_map(|&v| chain(graph, &cut, dropped, v)).collect();
    let decision = |&v: &ValueId| {
        let Def::Node(id, result) = graph.def(v) else { return None };
        let node = graph.node(id);
        let value = format!("{}/{}.{result}", graph.scope(node), node.op.name());
        let seconds =
            chain(graph, &cut, dropped, v).iter().map(|&n| node_seconds(graph, graph.node(n), seconds)).sum();
        Some(Decision { value, bytes: graph.ty(v).bytes(), recomputed: copied.contains(&id), seconds })
    };
    cut.saved().iter().filter_map(decision).collect()
}

/// A set of values, measured but not planned.
#[derive(Clone)]
struct Candidate {
    name: String,
    dropped: BTreeSet<ValueId>,
    live_bytes: usize,
    extra_seconds: f64,
}

/// Values that play one role, by layer (values outside layers are a class of layer 0).
struct Class {
    name: String,
    layers: Vec<(usize, Vec<ValueId>)>,
    bytes: usize,
}

impl Class {
    fn up_to(&self, layers: usize) -> impl Iterator<Item = ValueId> + '_ {
        self.layers.iter().take(layers).flat_map(|(_, values)| values.iter().copied())
    }
}

struct Search<'a> {
    graph: &'a Graph,
    cut: Cut,
    finish: &'a Finish<'a>,
    facts: &'a FactsOf<'a>,
    /// Seconds of each work.
    seconds: BTreeMap<Work, f64>,
}

/// What a node does: operation, FLOPs, bytes. Nodes of one work are taken to last equally long.
type Work = (&'static str, u64, u64);

fn work(graph: &Graph, node: &Node) -> Work {
    let cost = node_cost(graph, node);
    (node.op.name(), cost.flops, cost.bytes)
}

/// Expected time of each work of a graph: asked for once, since candidates are many.
fn seconds_of_works(graph: &Graph, seconds: &SecondsOf<'_>) -> BTreeMap<Work, f64> {
    let mut known = BTreeMap::new();
    for node in graph.nodes() {
        known.entry(work(graph, node)).or_insert_with(|| node_seconds(graph, node, seconds));
    }
    known
}

impl Search<'_> {
    fn named(&self) -> Vec<Choice> {
        let layers = self.layers();
        let mut policies = vec![Policy::None, Policy::AttentionOnly, Policy::EveryLayer];
        let groups = [2, 3, 4, 6, 8].into_iter().filter(|k| k * 2 <= layers);
        policies.extend(groups.map(Policy::EveryK));
        each(policies, &|p| self.planned(p.name(), dropped(self.graph, &self.cut, &p)))
    }

    /// Number of layers that hold saved values.
    fn layers(&self) -> usize {
        self.cut.saved().iter().filter_map(|&v| self.layer(v)).max().map_or(0, |last| last + 1)
    }

    /// The layer that makes a value.
    fn layer(&self, v: ValueId) -> Option<usize> {
        match self.graph.def(v) {
            Def::Node(id, _) => layer_of(self.graph.scope(self.graph.node(id))).map(|(_, n, _)| n),
            Def::Input(_) => None,
        }
    }

    fn planned(&self, name: String, dropped: BTreeSet<ValueId>) -> Choice {
        let graph = recompute::run(self.graph, &self.cut, &dropped);
        let extra_seconds = self.seconds(&graph);
        let graph = (self.finish)(graph);
        let memory = plan(&graph, &schedule(&graph), self.facts);
        let (arena_bytes, live_bytes) = (memory.arena_bytes, memory.lower_bound);
        Choice { name, dropped, arena_bytes, live_bytes, extra_seconds }
    }

    fn measured(&self, name: String, dropped: BTreeSet<ValueId>) -> Candidate {
        let graph = recompute::run(self.graph, &self.cut, &dropped);
        let live_bytes = live_bytes(&graph, &schedule(&graph), self.facts);
        Candidate { name, dropped, live_bytes, extra_seconds: self.seconds(&graph) }
    }

    /// Expected time of what runs twice.
    fn seconds(&self, graph: &Graph) -> f64 {
        self.sum(graph, |n| n.phase == Phase::Recompute)
    }

    /// Expected time of the graph as it is.
    fn all_seconds(&self) -> f64 {
        self.sum(self.graph, |_| true)
    }

    fn sum(&self, graph: &Graph, counts: impl Fn(&Node) -> bool) -> f64 {
        let nodes = graph.nodes().iter().filter(|n| counts(n));
        nodes.fold(0.0, |sum, n| sum + self.seconds.get(&work(graph, n)).copied().unwrap_or(0.0))
    }

    /// The candidates worth planning, about [`PLANNED`] at most.
    fn ladder(&self) -> Vec<Candidate> {
        let none = self.measured(Policy::None.name(), BTreeSet::new());
        let mut jobs: Vec<(String, BTreeSet<ValueId>)> = vec![];
        for (before, class) in self.greedy(self.classes(), none.clone()) {
            for n in parts(class.layers.len()) {
                let name = match n == class.layers.len() {
                    true => class.name.clone(),
                    false => format!("{} ({n} layers)", class.name),
                };
                let name = if before.dropped.is_empty() { name } else { format!("{}, {name}", before.name) };
                jobs.push((name, before.dropped.iter().copied().chain(class.up_to(n)).collect()));
            }
        }
        let layers = self.layers();
        for n in parts(layers) {
            let policy = Policy::FirstLayers(n);
            jobs.push((policy.name(), dropped(self.graph, &self.cut, &policy)));
        }
        let without_last: Vec<_> = jobs
            .iter()
            .map(|(name, all)| {
                let earlier = |v: &ValueId| self.layer(*v).is_none_or(|n| n + 1 < layers);
                (format!("{name}; last layer kept"), all.iter().copied().filter(earlier).collect())
            })
            .collect();
        jobs.extend(without_last);
        let mut all = vec![none];
        all.extend(each(jobs, &|(name, dropped)| self.measured(name, dropped)));
        thin(pareto(all, |c| c.live_bytes), PLANNED)
    }

    /// Saved values by role.
    fn classes(&self) -> Vec<Class> {
        let graph = self.graph;
        // How many nodes of this operation stood in this scope before: tells q from k.
        let mut ordinals: Vec<usize> = vec![0; graph.nodes().len()];
        let mut seen: BTreeMap<(u32, &str), usize> = BTreeMap::new();
        for (node, ordinal) in graph.nodes().iter().zip(&mut ordinals) {
            let n = seen.entry((node.scope, node.op.name())).or_default();
            *ordinal = *n;
            *n += 1;
        }
        let mut classes: BTreeMap<String, BTreeMap<usize, Vec<ValueId>>> = BTreeMap::new();
        for &v in self.cut.saved() {
            let Def::Node(id, _) = graph.def(v) else { continue };
            let node = graph.node(id);
            let scope = graph.scope(node);
            let (role, layer) = match layer_of(scope) {
                Some((model, layer, part)) => (format!("{model}{part}"), layer),
                None => (scope.to_string(), 0),
            };
            let key = format!("{role}/{}.{}", node.op.name(), ordinals[id.index()]);
            classes.entry(key).or_default().entry(layer).or_default().push(v);
        }
        let total: usize = self.cut.saved().iter().map(|&v| graph.ty(v).bytes()).sum();
        let class = |(name, layers): (String, BTreeMap<usize, Vec<ValueId>>)| {
            let bytes = layers.values().flatten().map(|&v| graph.ty(v).bytes()).sum();
            Class { name, layers: layers.into_iter().collect(), bytes }
        };
        let mut classes: Vec<Class> =
            classes.into_iter().map(class).filter(|c| c.bytes * MINOR >= total).collect();
        classes.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(&b.name)));
        classes.truncate(MAX_CLASSES);
        classes
    }

    /// Classes in order of being dropped, each with what was dropped before.
    fn greedy(&self, mut classes: Vec<Class>, start: Candidate) -> Vec<(Candidate, Class)> {
        let mut steps = vec![];
        let mut current = start;
        while !classes.is_empty() {
            let trials: Vec<(usize, BTreeSet<ValueId>)> = classes
                .iter()
                .enumerate()
                .map(|(i, c)| (i, current.dropped.iter().copied().chain(c.up_to(usize::MAX)).collect()))
                .collect();
            let measured = each(trials, &|(i, dropped)| (i, self.measured(String::new(), dropped)));
            let score = |(i, c): &(usize, Candidate)| {
                let freed = current.live_bytes.saturating_sub(c.live_bytes) as f64;
                // Where another peak hides the gain, the size of the class still tells which is cheaper.
                let freed = freed + classes[*i].bytes as f64 / 50.0;
                (c.extra_seconds - current.extra_seconds).max(0.0) / freed
            };
            let useful = measured.into_iter().filter(|(_, c)| c.live_bytes <= current.live_bytes);
            let Some((i, mut best)) = useful.min_by(|a, b| score(a).total_cmp(&score(b))) else { break };
            let class = classes.remove(i);
            best.name = match current.dropped.is_empty() {
                true => class.name.clone(),
                false => format!("{}, {}", current.name, class.name),
            };
            steps.push((std::mem::replace(&mut current, best), class));
        }
        steps
    }
}

/// How many of `n` layers to take: an eighth, two eighths, .. all.
fn parts(n: usize) -> Vec<usize> {
    let mut parts: Vec<usize> = (1..=PARTS).map(|k| (n * k).div_ceil(PARTS)).filter(|&p| p > 0).collect();
    parts.dedup();
    parts
}

/// Calls `f` for each item on two threads; results in order.
fn each<T: Send, R: Send>(items: Vec<T>, f: &(dyn Fn(T) -> R + Sync)) -> Vec<R> {
    let mut halves: [Vec<T>; 2] = Default::default();
    items.into_iter().enumerate().for_each(|(i, item)| halves[i % 2].push(item));
    let [even, odd] = halves;
    let (even, odd) = std::thread::scope(|s| {
        let odd = s.spawn(|| odd.into_iter().map(f).collect::<Vec<R>>());
        let even: Vec<R> = even.into_iter().map(f).collect();
        (even, odd.join())
    });
    let odd = odd.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let mut odd = odd.into_iter();
    let mut out = vec![];
    for first in even {
        out.push(first);
        out.extend(odd.next());
    }
    out
}

/// What is compared.
trait Timed {
    fn seconds(&self) -> f64;
}

impl Timed for Candidate {
    fn seconds(&self) -> f64 {
        self.extra_seconds
    }
}

impl Timed for Choice {
    fn seconds(&self) -> f64 {
        self.extra_seconds
    }
}

/// Those that no other one beats, from the fastest to the smallest.
fn pareto<T: Timed>(mut all: Vec<T>, bytes: impl Fn(&T) -> usize) -> Vec<T> {
    // The sort is stable: of equals the first one stays.
    all.sort_by(|a, b| a.seconds().total_cmp(&b.seconds()).then(bytes(a).cmp(&bytes(b))));
    let mut least = usize::MAX;
    all.retain(|c| {
        let better = bytes(c) < least;
        least = least.min(bytes(c));
        better
    });
    all
}

/// About `n` of them, both ends among them, each by the same factor smaller than the one before.
fn thin(all: Vec<Candidate>, n: usize) -> Vec<Candidate> {
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return all };
    let smallest = last.live_bytes;
    let step = (smallest.max(1) as f64 / first.live_bytes.max(1) as f64).powf(1.0 / n as f64);
    let mut kept: Vec<Candidate> = vec![];
    for c in all {
        let far = kept.last().is_none_or(|k| c.live_bytes as f64 <= k.live_bytes as f64 * step);
        if far || c.live_bytes == smallest {
            kept.push(c);
        }
    }
    kept
}
