//! Rings of stages: the operands that a loop's dots read are copied some rounds ahead, while dots work on those that are
//! there. This file says who fills a slot, when, and where threads wait; what is done with a slot is the business of
//! `products`.
//!
//! A ring of S slots begins with copies for the first S - 1 rounds, a group each. A round waits until all but the last S - 2
//! groups have arrived, then for all threads: now the operands of this round are there, and the slot of the round before is
//! free. It is filled for S - 1 rounds ahead, and the round's work begins. Rounds beyond the end copy nothing, yet count as
//! a group. So there is one barrier a round, and S - 1 rounds of copies are under way during the work of each.
//!
//! Loads whose values go through registers before they are multiplied are copied ahead too: each thread its own elements,
//! which it reads back when their round comes.
//!
//! Invariant: what is copied ahead depends on the loop's counter and on what is known before the loop, and its buffer is
//! only read.

use super::assign::Kind;
use super::assign::identity;
use super::express::{arguments, type_name};
use super::print::Printer;
use super::print::pointer;
use super::shared::{Own, Place, Region, Since};
use crate::tile::ir::{Access, Carried, Inst, Stmt, Var};

/// A load whose elements go from memory to shared memory.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    pub result: Var,
    pub param: usize,
    pub index: Var,
    pub mask: Option<Var>,
}

/// What a loop copies ahead.
#[derive(Clone)]
pub(super) struct Ring<'a> {
    stages: usize,
    /// Operands that dots read where they are copied to.
    copies: Vec<Copy>,
    /// Tiles of which each thread copies what it holds.
    own: Vec<Copy>,
    /// Scalars of the body that indices and masks are computed from, in order.
    scalars: Vec<(Var, &'a Inst)>,
    /// Name of the counter and of the slot that a round reads, the loop's end, its step.
    index: String,
    slot: String,
    to: String,
    step: i64,
}

/// The body of a loop, for the question what can be known ahead of a round.
struct Body<'a> {
    index: Var,
    carried: &'a [Carried],
    statements: &'a [Stmt],
    /// All that is defined in it, also in loops inside.
    defined: Vec<Var>,
}

impl<'a> Body<'a> {
    fn new(index: Var, carried: &'a [Carried], statements: &'a [Stmt]) -> Body<'a> {
        let mut defined = Vec::new();
        definitions(statements, &mut defined);
        Body { index, carried, statements, defined }
    }

    /// Whether a value can be computed ahead; adds the scalars of the body that it takes.
    fn is_known(&self, printer: &Printer<'_>, v: Var, scalars: &mut Vec<(Var, &'a Inst)>) -> bool {
        let kind = printer.plan.kinds[v.index()];
        if v == self.index {
            return true;
        }
        if matches!(kind, Kind::Held | Kind::View) || self.carried.iter().any(|c| c.inner == v) {
            return false;
        }
        if !self.defined.contains(&v) {
            return kind == Kind::Scalar || self.operands_are_known(printer, v, scalars);
        }
        let Some(s) = self.statements.iter().find(|s| s.result == Some(v)) else { return false };
        let is_pure = !matches!(s.inst, Inst::Load { .. } | Inst::Reduce(..) | Inst::Dot { .. });
        if !is_pure || !self.operands_are_known(printer, v, scalars) {
            return false;
        }
        if kind == Kind::Scalar && scalars.iter().all(|(w, _)| *w != v) {
            scalars.push((v, &s.inst));
        }
        true
    }

    fn operands_are_known(&self, printer: &Printer<'_>, v: Var, scalars: &mut Vec<(Var, &'a Inst)>) -> bool {
        let Some(inst) = printer.plan.defs[v.index()] else { return false };
        let operands = match inst {
            Inst::Splat(v, _) | Inst::Expand(v, _) | Inst::Broadcast(v, _) | Inst::Transpose(v) => vec![*v],
            inst => arguments(inst),
        };
        operands.into_iter().all(|v| self.is_known(printer, v, scalars))
    }
}

fn definitions(statements: &[Stmt], out: &mut Vec<Var>) {
    for s in statements {
        out.extend(s.result);
        if let Inst::For { index, carried, body, .. } = &s.inst {
            out.push(*index);
            out.extend(carried.iter().flat_map(|c| [c.inner, c.result]));
            definitions(body, out);
        }
    }
}

impl<'a> Printer<'a> {
    /// What a loop can copy ahead; nothing if it has no such operands.
    pub(super) fn ring(&self, s: &'a Stmt) -> Option<Ring<'a>> {
        let Inst::For { index, from, to, step, carried, body } = &s.inst else { return None };
        let stages = self.slots(*from, *to, *step);
        if stages < 2 || !body.iter().any(|s| matches!(s.inst, Inst::Dot { .. })) {
            return None;
        }
        // Elements of 2 bytes in rows that are not aligned are read and written one by one: there is nothing to be ahead of.
        let copied = |s: &&Stmt| s.result.is_some_and(|r| self.is_copied(r));
        if body.iter().filter(copied).any(|s| !self.is_asynchronous(s)) {
            return None;
        }
        let known = Body::new(*index, carried, body);
        let (mut copies, mut own, mut scalars) = (Vec::new(), Vec::new(), Vec::new());
        for s in body {
            let (Inst::Load { param, index, mask }, Some(result)) = (&s.inst, s.result) else { continue };
            let is_copied = self.is_copied(result);
            let is_own =
                self.all_loads && !is_copied && self.p.ty(result).dims.len() == 2 && self.is_asynchronous(s);
            let is_read = self.p.params[*param].access == Access::Read;
            let mut needed = scalars.clone();
            if (is_copied || is_own && self.plan.layout(result).replicas() == 0)
                && is_read
                && [Some(*index), *mask].into_iter().flatten().all(|v| known.is_known(self, v, &mut needed))
            {
                let list = if is_copied { &mut copies } else { &mut own };
                list.push(Copy { result, param: *param, index: *index, mask: *mask });
                scalars = needed;
            }
        }
        let slot = format!("slot{}", index.index());
        let (index, to) = (self.name(*index), self.scalar(*to));
        let is_empty = copies.is_empty() && own.is_empty();
        (!is_empty).then_some(Ring { stages, copies, own, scalars, index, slot, to, step: *step })
    }

    /// A constant.
    pub(super) fn integer(&self, v: Var) -> Option<i64> {
        match self.plan.defs[v.index()] {
            Some(Inst::Int(x, _)) => Some(*x),
            _ => None,
        }
    }

    /// Slots of a loop's ring: no more than there are rounds.
    pub(super) fn slots(&self, from: Var, to: Var, step: i64) -> usize {
        match [from, to].map(|v| self.integer(v)) {
            [Some(from), Some(to)] => self.stages.min(((to - from).max(0) as usize).div_ceil(step as usize)),
            _ => self.stages,
        }
    }

    /// Whether a load that only dots use goes on while threads do other things.
    fn is_asynchronous(&self, s: &Stmt) -> bool {
        let (Inst::Load { index, mask, .. }, Some(r)) = (&s.inst, s.result) else { return false };
        let bytes = self.plan.elem(r).bytes();
        self.vector(&self.plan.layout(r), *index, *mask, bytes) * bytes >= 4
    }

    /// Before the loop: the first rounds' copies.
    pub(super) fn begin(&mut self, ring: &Ring<'a>, from: &str) {
        self.flush();
        for c in &ring.copies {
            self.writes(Place::Tile(c.result));
            let layout = self.plan.layout(c.result);
            self.region(c.result, &layout);
            if let Some(region) = self.shared.regions.get_mut(&c.result) {
                region.slots = ring.stages;
            }
            self.rings.insert(c.result, ring.slot.clone());
        }
        for c in &ring.own {
            // Nobody else reads or writes there, and a thread has read all of it before the last round ends.
            let elements = self.plan.layout(c.result).registers() * self.p.warps * 32;
            let own = Own { elem: self.plan.elem(c.result), elements, slots: ring.stages };
            self.shared.own.insert(c.result, own);
            self.rings.insert(c.result, ring.slot.clone());
        }
        self.most_stages = self.most_stages.max(ring.stages);
        // Copies that were begun before are part of the first group.
        self.shared.since.settled();
        self.line(&format!("int {} = 0;", ring.slot));
        self.line("#pragma unroll");
        self.line(&format!("for (int k = 0; k < {}; ++k) {{", ring.stages - 1));
        self.depth += 1;
        self.line(&format!("const int ahead = {from} + k * {};", ring.step));
        self.line(&format!("if (ahead < {}) {{", ring.to));
        self.fill(ring, "k");
        self.line("}");
        self.line("kfc_copy_commit();");
        self.depth -= 1;
        self.line("}");
    }

    /// At the beginning of a round: waits for its operands, and begins to copy those of the round that is S - 1 ahead. Where
    /// dots go on while threads do other things, the first one is begun before that.
    pub(super) fn turn(&mut self, ring: &Ring<'a>) {
        if self.shared.copies() {
            self.line("kfc_copy_wait();");
        } else {
            self.line(&format!("kfc_copy_wait_but<{}>();", ring.stages - 2));
        }
        if self.plan.in_groups {
            self.line("kfc_fence_shared();");
        }
        self.sync();
        self.shared.since = Since::default();
        self.due = Some(ring.clone());
        if !self.plan.in_groups {
            self.refill();
        }
    }

    /// Begins the copies that are due.
    pub(super) fn refill(&mut self) {
        let Some(ring) = &self.due.take() else { return };
        self.flush();
        let ahead = (ring.stages - 1) as i64 * ring.step;
        self.line(&format!("if ({} < {} - {ahead}) {{", ring.index, ring.to));
        self.depth += 1;
        self.line(&format!("const int ahead = {} + {ahead};", ring.index));
        self.line(&format!("const int k = {0} == 0 ? {1} : {0} - 1;", ring.slot, ring.stages - 1));
        self.depth -= 1;
        self.fill(ring, "k");
        self.line("}");
        self.line("kfc_copy_commit();");
    }

    /// At the end of a round.
    pub(super) fn advance(&mut self, ring: &Ring<'a>) {
        self.refill();
        self.line(&format!("{0} = {0} == {1} ? 0 : {0} + 1;", ring.slot, ring.stages - 1));
    }

    /// Copies the operands of the round whose counter is `ahead` into a slot.
    fn fill(&mut self, ring: &Ring<'a>, slot: &str) {
        self.depth += 1;
        self.line("{");
        self.depth += 1;
        // Indices are printed as in the body, where the counter has this name.
        self.line(&format!("const int {} = ahead;", ring.index));
        for (v, inst) in &ring.scalars {
            self.scalar_statement(inst, *v);
        }
        for c in &ring.copies {
            let to = self.slot_of(c.result, slot);
            self.copy_to(*c, &to);
        }
        for c in &ring.own {
            let to = self.slot_of(c.result, slot);
            self.copy_own(*c, &to);
        }
        self.depth -= 1;
        self.line("}");
        self.depth -= 1;
    }

    /// Copies what a thread holds of a tile to this address.
    fn copy_own(&mut self, c: Copy, to: &str) {
        let buffer = &self.p.params[c.param];
        let (layout, from) = (self.plan.layout(c.result), pointer(&buffer.name));
        let wide = self.vector(&layout, c.index, c.mask, buffer.elem.bytes());
        let map = identity(&self.p.ty(c.index).dims);
        let operands: Vec<_> =
            [Some(c.index), c.mask].into_iter().flatten().map(|v| (v, map.as_slice())).collect();
        let at = self.own_place(wide);
        self.each(&layout, wide, &operands, |this, g| {
            let args: Vec<String> = operands.iter().map(|(v, m)| this.at(g, *v, m)).collect();
            let valid = args.get(1).map_or(String::new(), |m| format!(", {m}"));
            vec![format!("kfc_copy<{wide}>({to} + {at}, {from}, {}{valid});", args[0])]
        });
        self.flush();
    }

    /// Reads back what a thread copied of a tile for this round.
    pub(super) fn read_own(&mut self, c: Copy) {
        let (layout, name, ty) =
            (self.plan.layout(c.result), self.name(c.result), type_name(self.plan.elem(c.result)));
        let wide = self.vector(&layout, c.index, c.mask, self.plan.elem(c.result).bytes());
        let (from, at) = (self.tile(c.result), self.own_place(wide));
        self.each(&layout, wide, &[], |_, g| {
            g.declarations.push(format!("{ty} {name}[{}];", layout.registers()));
            vec![format!("kfc_load<{wide}>({name} + e, {from} + {at});")]
        });
    }

    /// Where a thread's own registers `e` to `e + wide` stand: beside those of its neighbours, so that a warp's are together.
    fn own_place(&self, wide: usize) -> String {
        format!("e * {} + tid * {wide}", self.p.warps * 32)
    }

    /// Where the tile of a slot begins.
    fn slot_of(&self, v: Var, slot: &str) -> String {
        let own = self.shared.own.get(&v).map(|o| o.elements);
        let size = own.or(self.shared.regions.get(&v).map(Region::elements)).unwrap_or(0);
        format!("s{} + {slot} * {size}", v.index())
    }

    /// Where a dot finds its operand.
    pub(super) fn tile(&self, v: Var) -> String {
        match self.rings.get(&v) {
            Some(slot) => self.slot_of(v, slot),
            None => format!("s{}", v.index()),
        }
    }
}
