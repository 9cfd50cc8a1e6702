//! A memory plan played through: what each byte range holds, step by step.

use kfc_graph::memory::{ALIGN, Facts, MemoryPlan, Place, Slot};
use kfc_graph::{Def, Graph, Node, NodeId, Op, Prim, ValueId};
use std::collections::BTreeMap;

/// Accumulation is in place; sums and products may be; matrix products and gates need scratch.
pub fn facts(_: &Graph, node: &Node) -> Facts {
    let none = Facts::default();
    match node.op.name() {
        "accumulate" => Facts { inplace: &[(0, 0)], ..none },
        "add" | "mul" => Facts { may_inplace: &[(0, 0), (1, 0)], ..none },
        "gate" => Facts { may_inplace: &[(0, 0), (1, 1), (0, 1)], workspace: 200, ..none },
        "matmul" => Facts { workspace: 100, ..none },
        _ => none,
    }
}

/// No kernel needs anything.
pub fn no_facts(_: &Graph, _: &Node) -> Facts {
    Facts::default()
}

/// What lies where: the contents of inputs, and of arena ranges by offset.
struct Memory {
    inputs: Vec<Option<ValueId>>,
    arena: BTreeMap<usize, (usize, ValueId)>,
}

impl Memory {
    fn forget(&mut self, slot: Slot) {
        self.arena.retain(|&from, &mut (to, _)| to <= slot.offset || slot.offset + slot.bytes <= from);
    }

    fn write(&mut self, place: Place, content: ValueId) {
        match place {
            Place::Input(i) => self.inputs[i as usize] = Some(content),
            Place::Arena(s) => {
                self.forget(s);
                self.arena.insert(s.offset, (s.offset + s.bytes, content));
            }
        }
    }

    fn holds(&self, place: Place) -> Option<ValueId> {
        match place {
            Place::Input(i) => self.inputs[i as usize],
            Place::Arena(s) => {
                self.arena.get(&s.offset).filter(|(to, _)| *to == s.offset + s.bytes).map(|(_, v)| *v)
            }
        }
    }
}

fn meet(a: Place, b: Place) -> bool {
    match (a, b) {
        (Place::Input(a), Place::Input(b)) => a == b,
        (Place::Arena(a), Place::Arena(b)) => a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes,
        _ => false,
    }
}

/// Fails if a value is not intact when it is read, when outputs are read or when states are updated, or if ranges that
/// live at one time overlap.
pub fn check_plan(graph: &Graph, order: &[NodeId], plan: &MemoryPlan) {
    assert!(plan.arena_bytes >= plan.lower_bound);
    check_spans(plan);
    let n = graph.inputs().len();
    let mut memory =
        Memory { inputs: graph.inputs().iter().map(|i| Some(i.value)).collect(), arena: BTreeMap::new() };
    // A reshape in place of its operand shows the same content.
    let mut content: Vec<ValueId> = (0..graph.value_count() as u32).map(ValueId).collect();
    let place = |v: ValueId| plan.places[v.index()];
    (0..n).for_each(|i| assert_eq!(place(graph.inputs()[i].value), Place::Input(i as u32)));
    for &id in order {
        let node = graph.node(id);
        for v in &node.inputs {
            assert_eq!(
                memory.holds(place(*v)),
                Some(content[v.index()]),
                "%{} is lost before node {}",
                v.0,
                id.0
            );
        }
        if let Some(w) = plan.workspaces[id.index()] {
            let others = node.inputs.iter().chain(&node.outputs);
            others.for_each(|v| assert!(!meet(place(*v), Place::Arena(w)), "workspace of node {}", id.0));
            memory.forget(w);
        }
        if matches!(node.op, Op::Prim(Prim::Reshape { .. }))
            && place(node.outputs[0]) == place(node.inputs[0])
        {
            content[node.outputs[0].index()] = content[node.inputs[0].index()];
            continue;
        }
        for (j, &v) in node.outputs.iter().enumerate() {
            for (i, &u) in node.inputs.iter().enumerate() {
                let f = facts(graph, node);
                let allowed = f.inplace.contains(&(i, j)) || f.may_inplace.contains(&(i, j));
                assert!(allowed || !meet(place(u), place(v)), "node {} writes over its operand {i}", id.0);
            }
            if let Place::Input(i) = place(v) {
                let state = graph.inputs()[i as usize].value;
                let updated = graph.outputs().iter().any(|o| o.updates == Some(state));
                assert!(updated, "node {} writes into an input that nothing updates", id.0);
            }
            memory.write(place(v), v);
        }
    }
    for o in graph.outputs() {
        let v = o.value;
        assert_eq!(memory.holds(place(v)), Some(content[v.index()]), "output \"{}\" is lost", o.name);
    }
    for &i in &plan.copied_updates {
        let o = &graph.outputs()[i];
        assert_eq!(
            memory.holds(place(o.value)),
            Some(content[o.value.index()]),
            "update \"{}\" is lost",
            o.name
        );
        memory.write(place(o.updates.unwrap()), content[o.value.index()]);
    }
    for o in graph.outputs() {
        let v = o.value;
        assert_eq!(
            memory.holds(place(v)),
            Some(content[v.index()]),
            "copies overwrite output \"{}\"",
            o.name
        );
        if let Some(state) = o.updates {
            assert_eq!(memory.holds(place(state)), Some(content[v.index()]), "state of \"{}\"", o.name);
        }
    }
}

fn check_spans(plan: &MemoryPlan) {
    for (i, a) in plan.spans.iter().enumerate() {
        assert!(a.slot.offset % ALIGN == 0 && a.slot.offset + a.slot.bytes <= plan.arena_bytes);
        for b in &plan.spans[..i] {
            let together = a.first <= b.last && b.first <= a.last;
            assert!(
                !(together && meet(Place::Arena(a.slot), Place::Arena(b.slot))),
                "{a:?} and {b:?} overlap"
            );
        }
    }
}

/// Fails if `order` is not every node once, operands first.
pub fn check_order(graph: &Graph, order: &[NodeId]) {
    let mut position = vec![usize::MAX; graph.nodes().len()];
    for (p, id) in order.iter().enumerate() {
        assert_eq!(std::mem::replace(&mut position[id.index()], p), usize::MAX, "node {} runs twice", id.0);
        for v in &graph.node(*id).inputs {
            if let Def::Node(from, _) = graph.def(*v) {
                assert!(position[from.index()] < p, "node {} runs before its operand", id.0);
            }
        }
    }
    assert_eq!(order.len(), graph.nodes().len());
}
