//! Dots and their operands in shared memory.

use super::assign::{Kind, identity};
use super::layout::Layout;
use super::print::{Group, Printer, pointer};
use super::shared::{Place, Region};
use super::stages::Copy;
use crate::tile::ir::{Inst, Stmt, Var};

impl Printer<'_> {
    /// The region of a dot's operand, which goes there from registers in `layout` or in loops over it.
    pub(super) fn region(&mut self, v: Var, layout: &Layout) -> Region {
        let region = self.new_region(v, layout, 1);
        self.shared.regions.entry(v).or_insert(region).clone()
    }

    /// A region of so many slots for an operand like that.
    pub(super) fn new_region(&self, v: Var, layout: &Layout, slots: usize) -> Region {
        let (elem, dims) = (self.plan.elem(v), &self.p.ty(v).dims);
        let (dims, fast) = ([dims[0], dims[1]], layout.fastest());
        let swizzle = self.plan.in_groups.then(|| self.plan.row_bytes(v, fast));
        Region { elem, dims, fast, swizzle, slots }
    }

    /// A load that only dots use: from memory to shared memory.
    pub(super) fn copy(&mut self, c: Copy) {
        if self.shared.since != Default::default() {
            self.flush();
        }
        self.writes(Place::Tile(c.result));
        let wide = self.copy_to(c, &format!("s{}", c.result.index()));
        if wide * self.plan.elem(c.result).bytes() >= 4 {
            self.shared.copying();
        }
    }

    /// Copies a tile to this address in shared memory. Returns how many elements are copied at once.
    pub(super) fn copy_to(&mut self, c: Copy, to: &str) -> usize {
        let Copy { result: r, param, index, mask } = c;
        let buffer = &self.p.params[param];
        let layout = self.plan.layout(r);
        let region = self.region(r, &layout);
        let wide = self.vector(&layout, index, mask, buffer.elem.bytes());
        let from = pointer(&buffer.name);
        let map = identity(&self.p.ty(index).dims);
        let guard = layout.replicas();
        let operands: Vec<_> =
            [Some(index), mask].into_iter().flatten().map(|v| (v, map.as_slice())).collect();
        self.each(&layout, wide, &operands, |this, g| {
            let args: Vec<String> = operands.iter().map(|(v, m)| this.at(g, *v, m)).collect();
            let place = element(g, &region);
            let valid = args.get(1).map_or(String::new(), |m| format!(", {m}"));
            let once = if guard == 0 { String::new() } else { format!("if ((tid & {guard}) == 0) ") };
            vec![format!("{once}kfc_copy<{wide}>({to} + {place}, {from}, {}{valid});", args[0])]
        });
        self.flush();
        wide
    }

    /// Writes a value that was just computed to shared memory, if dots use it.
    pub(super) fn stage_held(&mut self, r: Var) {
        let is_staged = self.uses.dots[r.index()] > 0 && !self.is_copied(r);
        if is_staged && !self.plan.is_in_registers(r) {
            let layout = self.plan.layout(r);
            self.stage(r, &layout);
        }
    }

    /// Whether a value goes from memory to shared memory and is in no registers.
    pub(super) fn is_copied(&self, r: Var) -> bool {
        let is_load = matches!(self.plan.defs[r.index()], Some(Inst::Load { .. }));
        is_load && self.uses.others[r.index()] == 0 && self.uses.dots[r.index()] > 0
    }

    /// Writes a value to shared memory.
    fn stage(&mut self, v: Var, layout: &Layout) {
        let source = self.whole(v, layout);
        self.flush();
        let region = self.region(v, layout);
        let wide = layout.run(region.fast).min(16 / region.elem.bytes());
        let to = format!("s{}", v.index());
        self.writes(Place::Tile(v));
        let once = layout.replicas();
        self.each(layout, wide, &[], |_, g| {
            let place = element(g, &region);
            let valid = if once == 0 { String::new() } else { format!(", (tid & {once}) == 0") };
            vec![format!("kfc_store<{wide}>({to} + {place}, {source} + e{valid});")]
        });
        self.flush();
    }

    /// `acc + a · b`.
    pub(super) fn dot(&mut self, s: &Stmt, r: Var) {
        let Inst::Dot { a, b, acc } = s.inst else { return };
        let layout = self.plan.layout(r);
        let (name, map) = (self.name(r), identity(&self.p.ty(acc).dims));
        self.each(&layout, 1, &[(acc, &map)], |this, g| {
            g.declarations.push(format!("float {name}[{}];", layout.registers()));
            vec![format!("{name}[e] = {};", this.at(g, acc, &map))]
        });
        self.flush();
        let mut sides = Vec::new();
        for (which, operand) in [(0, a), (1, b)] {
            let (v, turned) = self.plan.upright(operand);
            let is_plain = self.plan.kinds[v.index()] == Kind::Held && self.plan.defs[v.index()].is_some();
            if self.plan.in_groups && which == 0 && !turned && self.plan.is_in_registers(v) {
                // Multiplied from where it is.
            } else if !is_plain {
                let layout = self.plan.place(s, which);
                self.stage(v, &layout);
            }
            sides.push((v, turned));
        }
        if self.plan.in_groups {
            self.dot_in_groups(r, &name, &sides);
            return self.stage_held(r);
        }
        sides.iter().for_each(|(v, _)| self.reads(Place::Tile(*v)));
        let mut arguments = Vec::new();
        for (which, (v, turned)) in sides.iter().enumerate() {
            let Some(region) = self.shared.regions.get(v) else { continue };
            let axis = if *turned { 1 - region.fast } else { region.fast };
            // k is the second axis of the left operand and the first one of the right.
            arguments.push((axis == 1 - which, region.pitch()));
        }
        let [(a_fast, a_pitch), (b_fast, b_pitch)] = arguments[..] else { return };
        let (m, n, k) = (self.p.ty(r).dims[0], self.p.ty(r).dims[1], self.p.ty(a).dims[1]);
        let (wm, wn) = self.plan.warps(m, n);
        let (left, right) = (self.tile(sides[0].0), self.tile(sides[1].0));
        self.line(&format!(
            "kfc_dot<{m}, {n}, {k}, {wm}, {wn}, {a_fast}, {a_pitch}, {b_fast}, {b_pitch}>({name}, {left}, {right});"
        ));
        self.stage_held(r);
    }
}

/// Index of an element in its region.
fn element(g: &mut Group, region: &Region) -> String {
    Printer::coordinate(g, 0);
    Printer::coordinate(g, 1);
    region.index()
}
