//! What a run holds in memory, item by item, before its first step.
//!
//! The total is a prediction of the process's peak resident size: buffers are resident from their allocation on
//! ([`crate::exec::HostBuffer`]), mapped weights become resident when they are first read, and nothing is allocated in a
//! step but each thread's bounded tiles.

use crate::device;
use crate::exec::Store;
use crate::memory::Held;
use kfc_graph::{Graph, TensorType};
use kfc_kernels::cpu::gemm::SCRATCH_BYTES;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Something that takes memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub what: &'static str,
    /// How much of it, bytes.
    pub bytes: u64,
}

/// Everything that a run holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What there is, the largest first.
    pub items: Vec<Item>,
    /// What sizes are rounded up to, bytes.
    unit: u64,
}

impl Default for Account {
    fn default() -> Account {
        Account { items: Vec::new(), unit: 1 }
    }
}

impl fmt::Display for Account {
    /// Sizes of the largest items, of 1 MiB and more, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let large = self.items.iter().filter(|i| i.bytes >= 1 << 20);
        let items: Vec<String> = large.map(|i| format!("{} MiB {}", mib(i.bytes), i.what)).collect();
        f.write_str(if items.is_empty() { "less than 1 MiB of each kind" } else { "" })?;
        f.write_str(&items.join(", "))
    }
}

/// The item of blocks of streamed files, in use and read ahead.
pub const READ_AHEAD: &str = "training rows read ahead";

/// The item of transposed copies of weights, which kernels were found to be faster with.
pub const TRANSPOSED: &str = "transposed weights";

/// The item of the batches of a step and of those built ahead.
pub const BATCHES: &str = "batches in use and built ahead";

/// The item of compiled plans: their launches, bound and described.
pub const PLANS: &str = "plans";

/// Bytes of a plan for each node of the graph that it is compiled from, at most.
const PLAN_BYTES_OF_NODE: u64 = 2000;

/// The item of rows of embedding tables that stay in their files.
pub const EMBEDDED: &str = "embedded tokens";

/// The item of the arena.
const ARENA: &str = "activations (arena)";

/// What is written beside the items from the account's making on: stacks, metrics, what files are read and written through, and
/// what pages have more than tensors in them. It was up to 3 MiB.
const TO_COME: u64 = 4 << 20;

/// Where a tensor of the store belongs, by the prefix of its name; the first that fits counts.
const KINDS: [(&str, &str); 14] = [
    ("teacher.rope.", "rotary tables"),
    ("student.rope.", "rotary tables"),
    ("teacher.", "teacher weights"),
    ("student.", "student weights"),
    ("master.", "f32 masters"),
    ("lora.", "adapter"),
    ("projector.", "projectors"),
    ("grad.", "gradient accumulators"),
    ("m.", "optimiser moments"),
    ("v.", "optimiser moments"),
    ("fisher.", "Fisher diagonal"),
    ("anchor.", "anchors"),
    ("lr_scale.", "learning-rate factors"),
    ("embedded.", EMBEDDED),
];

impl Account {
    /// The account of a store and an arena in a process that held `before` when it began to fill them.
    pub fn new(before: Held, store: &Store, arena: u64) -> Account {
        Account::of(before, arena, store.iter().map(|(name, tensor)| (name, tensor.ty())))
    }

    /// The account of the tensors that graphs will be bound to, before any is allocated; no arena.
    pub fn of_graphs(before: Held, graphs: [&Graph; 2]) -> Account {
        let inputs =
            graphs.into_iter().flat_map(|g| g.inputs().iter().map(|i| (i.name.as_str(), g.ty(i.value))));
        let tensors: BTreeMap<&str, &TensorType> = inputs.collect();
        Account::of(before, 0, tensors.into_iter())
    }

    /// Adds the plans that graphs are compiled to.
    pub(crate) fn add_plans(&mut self, graphs: [&Graph; 2]) {
        let nodes: usize = graphs.iter().map(|g| g.nodes().len()).sum();
        self.add(PLANS, nodes as u64 * PLAN_BYTES_OF_NODE);
    }

    /// The account of the tensors that graphs will be bound to on a GPU; no arena. Its total, with the arena, is what is
    /// allocated there, in one piece.
    pub fn on_device(graphs: [&Graph; 2]) -> Account {
        let inputs =
            graphs.into_iter().flat_map(|g| g.inputs().iter().map(|i| (i.name.as_str(), g.ty(i.value))));
        let tensors: BTreeMap<&str, &TensorType> = inputs.collect();
        let mut account = Account { items: Vec::new(), unit: device::cuda::ALIGN as u64 };
        account.add_tensors(tensors.into_iter());
        account.sort();
        account
    }

    /// The same with an arena.
    pub fn with_arena(&self, bytes: u64) -> Account {
        let mut account = self.clone();
        account.add(ARENA, bytes.next_multiple_of(self.unit));
        account.sort();
        account
    }

    fn of<'a>(before: Held, arena: u64, tensors: impl Iterator<Item = (&'a str, &'a TensorType)>) -> Account {
        let mut account = Account::default();
        account.add("program code", before.code);
        account.add("program data and training rows", before.data + TO_COME);
        account.add(ARENA, arena);
        account.add("tiles of threads", (rayon::current_num_threads() * SCRATCH_BYTES) as u64);
        account.add_tensors(tensors);
        account.sort();
        account
    }

    fn add_tensors<'a>(&mut self, tensors: impl Iterator<Item = (&'a str, &'a TensorType)>) {
        for (name, ty) in tensors {
            let kind = KINDS
                .iter()
                .find(|(prefix, _)| name.starts_with(prefix))
                .map_or("step data", |(_, kind)| kind);
            self.add(kind, (ty.bytes() as u64).next_multiple_of(self.unit));
        }
    }

    fn sort(&mut self) {
        self.items.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.what.cmp(b.what)));
    }

    /// Predicted peak resident size, bytes.
    pub fn total(&self) -> u64 {
        self.items.iter().fold(0, |sum, i| sum.saturating_add(i.bytes))
    }

    /// Everything but the arena, bytes.
    pub fn without_arena(&self) -> u64 {
        self.items.iter().filter(|i| i.what != ARENA).map(|i| i.bytes).sum()
    }

    /// Items as a JSON object, and their total.
    pub fn to_json(&self) -> Value {
        let items: serde_json::Map<String, Value> =
            self.items.iter().map(|i| (i.what.to_string(), json!(i.bytes))).collect();
        json!({"predicted_peak_bytes": self.total(), "items": items})
    }

    /// Adds an item, and keeps the largest first.
    pub(crate) fn insert(&mut self, what: &'static str, bytes: u64) {
        self.add(what, bytes);
        self.sort();
    }

    /// Adds to an item.
    pub(crate) fn add(&mut self, what: &'static str, bytes: u64) {
        match self.items.iter_mut().find(|i| i.what == what) {
            Some(item) => item.bytes += bytes,
            None if bytes > 0 => self.items.push(Item { what, bytes }),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kfc_graph::{DType, TensorType};

    #[test]
    fn tensors_are_counted_under_their_kind() {
        let mut store = Store::new();
        let ty = TensorType::new(DType::F32, [256]);
        for name in ["student.a", "student.rope.cos", "m.lora.x", "v.lora.x", "tokens"] {
            store.allocate(name, &ty).unwrap();
        }
        let account = Account::new(Held { code: 1000, data: 100 }, &store, 4096);
        let of = |what: &str| account.items.iter().find(|i| i.what == what).map_or(0, |i| i.bytes);
        assert_eq!(of("optimiser moments"), 2048);
        assert_eq!(of("student weights"), 1024);
        assert_eq!(of("step data"), 1024);
        assert_eq!((of("program code"), of("program data and training rows")), (1000, 100 + TO_COME));
        assert_eq!(account.total() - account.without_arena(), 4096);
    }
}
