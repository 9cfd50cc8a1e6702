//! Loops over the depth of a product on Hopper whose operands the hardware copies (TMA): a warp of its own begins copies of
//! boxes, the others multiply. Who may go on is said by barriers in shared memory, and no barrier of the block is in the loop.
//!
//! A ring has S slots, each with two barriers. `full`: the boxes of a round have arrived, by their bytes. `free`: all warps have
//! multiplied what was there. The warp that copies waits for `free`, says how many bytes it expects, and begins the copies of a
//! round. The others wait for `full`, begin this round's products, wait for those of the round before, and free its slot: so
//! products of one round are under way while those of the next one begin. A slot's phases have parities 0, 1, 0, …; a wait for
//! `free` begins with parity 1, that of the phase before the first one, which is over.
//!
//! Several products of a round, over one ring, are begun one after the other; a round's are waited for together.
//!
//! The order over the depth is that of other loops, so results have the same bits.
//!
//! What a matrix must be for that is known from its shape: 16-bit elements in rows of multiples of 16 bytes, with a window
//! ([`super::affine`]) for each operand. Other loops are copied by all threads (`stages`).

use super::TensorMap;
use super::affine::Start;
use super::assign::Kind;
use super::layout::group_grid;
use super::print::Printer;
use super::shared::{Bulk as Slots, Region};
use crate::tile::ir::{Access, Binary, Carried, Elem, Inst, Stmt, Var};

/// Most elements of a box along an axis.
const MOST: usize = 256;

/// Multiple of addresses and pitches, bytes.
const PART: usize = 16;

/// An operand that is copied in boxes: one for each panel of its tile.
pub(super) struct Operand {
    result: Var,
    map: TensorMap,
    rows: Start,
    columns: Start,
    region: Region,
}

/// A loop whose operands are copied in boxes.
pub(super) struct Loop<'a> {
    index: Var,
    from: Var,
    to: Var,
    step: i64,
    /// Sums, and the product that adds to each.
    sums: Vec<(Carried, &'a Stmt)>,
    operands: Vec<Operand>,
    slots: usize,
}

impl<'a> Printer<'a> {
    /// The loop as one whose operands the hardware copies; nothing if it is none, or cannot be.
    pub(super) fn bulk(&self, s: &'a Stmt) -> Option<Loop<'a>> {
        let Inst::For { index, from, to, step, carried, body } = &s.inst else { return None };
        let slots = self.slots(*from, *to, *step);
        if !self.plan.in_groups || slots < 2 {
            return None;
        }
        let dots: Vec<&Stmt> = body.iter().filter(|s| matches!(s.inst, Inst::Dot { .. })).collect();
        let sums: Vec<(Carried, &Stmt)> = carried.iter().copied().zip(dots.iter().copied()).collect();
        let is_sum = |(c, dot): &(Carried, &Stmt)| match dot.inst {
            Inst::Dot { acc, .. } => acc == c.inner && Some(c.next) == dot.result && c.next != c.inner,
            _ => false,
        };
        if dots.is_empty() || dots.len() != carried.len() || !sums.iter().all(is_sum) {
            return None;
        }
        let known = |v: Var| v == *index || self.expression(v).is_some();
        let most = |v: Var| match (v == *index, self.plan.defs[v.index()]) {
            // Its last value.
            (true, _) => {
                let (from, to) = (self.integer(*from)?, self.integer(*to)?);
                Some(from + (to - from - 1).max(0) / step * step)
            }
            (false, Some(Inst::ProgramId(axis))) => Some(self.p.grid[*axis] as i64 - 1),
            _ => None,
        };
        let mut operands: Vec<Operand> = Vec::new();
        for side in dots.iter().flat_map(|dot| factors(dot)) {
            let v = self.plan.upright(side).0;
            if operands.iter().all(|o| o.result != v) {
                operands.push(self.operand(body.iter().find(|s| s.result == Some(v))?, &known, &most)?);
            }
        }
        let is_else = |s: &&Stmt| {
            let is_operand = operands.iter().any(|o| Some(o.result) == s.result);
            let is_dot = dots.iter().any(|dot| dot.result == s.result);
            let kind = s.result.map(|v| self.plan.kinds[v.index()]);
            !is_operand && !is_dot && matches!(kind, None | Some(Kind::Held))
        };
        if body.iter().any(|s| is_else(&s)) || [from, to].iter().any(|v| self.expression(**v).is_none()) {
            return None;
        }
        Some(Loop { index: *index, from: *from, to: *to, step: *step, sums, operands, slots })
    }

    /// The part of a kernel that makes the barriers of its rings, and sends a warp off to copy.
    pub(super) fn parting(&self, computing: usize) -> String {
        let mut t = String::from("    if (tid == 0) {\n");
        for b in &self.shared.bulk {
            let (n, warps) = (b.number, b.warps);
            t += &format!("        for (int k = 0; k < {}; ++k) {{\n", b.slots);
            t += &format!("            kfc_make_barrier(full{n} + k, 1);\n");
            t += &format!("            kfc_make_barrier(free{n} + k, {warps});\n        }}\n");
        }
        t += "        kfc_announce_barriers();\n    }\n    __syncthreads();\n";
        t += &format!("    if (tid >= {computing}) {{\n        if (tid == {computing}) {{\n");
        self.copying.iter().for_each(|line| t += &format!("            {line}\n"));
        t + "        }\n        return;\n    }\n"
    }

    /// The loop as one whose operands the hardware copies; only those that stand in no other one.
    pub(super) fn bulk_of(&self, s: &'a Stmt) -> Option<Loop<'a>> {
        self.p.body.iter().any(|t| std::ptr::eq(s, t)).then(|| self.bulk(s)).flatten()
    }

    /// An integer that depends on the grid alone, in source.
    fn expression(&self, v: Var) -> Option<String> {
        match self.plan.defs[v.index()]? {
            Inst::Int(..) | Inst::ProgramId(_) => Some(self.scalar(v)),
            Inst::Binary(op, a, b) => {
                let (a, b) = (self.expression(*a)?, self.expression(*b)?);
                match op {
                    Binary::Add => Some(format!("({a} + {b})")),
                    Binary::Mul => Some(format!("{a} * {b}")),
                    Binary::Min => Some(format!("kfc_min({a}, {b})")),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// How a load is copied in boxes; nothing if it cannot be. `most`: what a scalar is at most.
    fn operand(
        &self,
        s: &Stmt,
        known: &dyn Fn(Var) -> bool,
        most: &dyn Fn(Var) -> Option<i64>,
    ) -> Option<Operand> {
        let (Inst::Load { param, index, mask }, Some(result)) = (&s.inst, s.result) else { return None };
        let (buffer, elem) = (&self.p.params[*param], self.plan.elem(result));
        let window = self.plan.window(*index, *mask, known)?;
        let layout = self.plan.layout(result);
        if buffer.access != Access::Read
            || !self.is_copied(result)
            || !matches!(elem, Elem::Bf16 | Elem::F16)
            || layout.fastest() != window.fast
        {
            return None;
        }
        let region = self.new_region(result, &layout, self.stages);
        let (swizzle, dims) = (region.swizzle?, region.dims);
        let (pitch, size) = (window.pitch, elem.bytes());
        let [rows, columns] = [window.most[0].unwrap_or(buffer.len / pitch), window.most[1].unwrap_or(pitch)];
        let is_whole = window.most[0].is_some() || buffer.len.is_multiple_of(pitch);
        // Without a mask, what is beyond the end of a row would be the next one.
        let is_inside = window.most[1].is_some()
            || window.columns.is_below((pitch + 1).saturating_sub(dims[window.fast]), most);
        if !(pitch * size).is_multiple_of(PART)
            || !is_whole
            || !is_inside
            || columns > pitch
            || rows * pitch > buffer.len
            || dims[1 - window.fast] > MOST
        {
            return None;
        }
        let map = TensorMap {
            param: *param,
            elem,
            extents: [columns, rows],
            pitch: pitch * size,
            tile: [swizzle / size, dims[1 - window.fast]],
            swizzle,
        };
        Some(Operand { result, map, rows: window.rows, columns: window.columns, region })
    }

    /// Prints the loop, and adds what copies for it to the warp that does.
    pub(super) fn repeat_bulk(&mut self, l: &Loop<'a>) {
        let (n, index) = (l.index.index(), self.name(l.index));
        let sum = |c: &Carried| (self.name(c.inner), self.plan.layout(c.inner).registers());
        let sums: Vec<(String, usize)> = l.sums.iter().map(|(c, _)| sum(c)).collect();
        for o in &l.operands {
            self.shared.regions.insert(o.result, Region { slots: l.slots, ..o.region.clone() });
            self.rings.insert(o.result, format!("slot{n}"));
        }
        self.shared.bulk.push(Slots { number: n, slots: l.slots, warps: self.p.warps });
        self.most_stages = self.most_stages.max(l.slots);
        for ((_, dot), (name, _)) in l.sums.iter().zip(&sums) {
            dot.result.map(|r| self.names.insert(r, name.clone()));
        }
        let (from, to) = (self.scalar(l.from), self.scalar(l.to));
        let last = l.slots - 1;
        self.line(&format!("int slot{n} = 0, parity{n} = 0;"));
        for (name, registers) in &sums {
            self.line(&format!("kfc_keep<{registers}>({name});"));
        }
        self.line(&format!("for (int {index} = {from}; {index} < {to}; {index} += {}) {{", l.step));
        self.depth += 1;
        self.line(&format!("kfc_await(full{n} + slot{n}, parity{n});"));
        for ((_, dot), (name, _)) in l.sums.iter().zip(&sums) {
            let product = self.product(dot, name);
            self.line(&format!("kfc_dot_on<{product};"));
        }
        self.line(&format!("kfc_wgmma_wait_but<{}>();", sums.len()));
        self.line(&format!(
            "if ({index} != {from}) kfc_arrive(free{n} + (slot{n} == 0 ? {last} : slot{n} - 1));"
        ));
        self.line(&format!("if (slot{n} == {last}) parity{n} ^= 1;"));
        self.line(&format!("slot{n} = slot{n} == {last} ? 0 : slot{n} + 1;"));
        self.depth -= 1;
        self.line("}");
        for (name, registers) in &sums {
            self.line(&format!("kfc_wgmma_wait<{registers}>({name});"));
        }
        self.copies_of(l);
    }

    /// Template arguments and arguments of a product that adds to the sums of this name.
    fn product(&self, dot: &Stmt, sums: &str) -> String {
        let (Inst::Dot { a, b, acc }, sums) = (&dot.inst, sums.to_string()) else { return String::new() };
        let (a, b) = (*a, *b);
        let (m, n) = (self.p.ty(*acc).dims[0], self.p.ty(*acc).dims[1]);
        let (gm, gn) = group_grid(m, n, self.p.warps);
        let extents = [m, n, self.p.ty(a).dims[1], gm, gn];
        let mut arguments: Vec<String> = extents.iter().map(usize::to_string).collect();
        let mut tiles = vec![sums];
        for (which, side) in [a, b].into_iter().enumerate() {
            let (v, turned) = self.plan.upright(side);
            arguments.push(self.operand_form(v, turned, which));
            tiles.push(self.tile(v));
        }
        format!("{}>({})", arguments.join(", "), tiles.join(", "))
    }

    /// What the warp that copies does for a loop.
    fn copies_of(&mut self, l: &Loop<'a>) {
        let (n, index, last) = (l.index.index(), self.name(l.index), l.slots - 1);
        let [from, to] = [l.from, l.to].map(|v| self.expression(v).unwrap_or_default());
        let mut lines = vec![
            "{".to_string(),
            format!("    int slot{n} = 0, parity{n} = 1;"),
            format!("    for (int {index} = {from}; {index} < {to}; {index} += {}) {{", l.step),
            format!("        kfc_await(free{n} + slot{n}, parity{n});"),
        ];
        let bytes: usize = l.operands.iter().map(|o| o.map.tile_bytes() * o.panels()).sum();
        lines.push(format!("        kfc_arrive_expecting(full{n} + slot{n}, {bytes});"));
        for o in &l.operands {
            let map = self.maps.iter().position(|m| *m == o.map).unwrap_or_else(|| {
                self.maps.push(o.map.clone());
                self.maps.len() - 1
            });
            let (columns, rows) = (self.start(&o.columns, l.index), self.start(&o.rows, l.index));
            let (to, along, size) = (self.tile(o.result), o.map.tile[0], o.map.tile[0] * o.map.tile[1]);
            for panel in 0..o.panels() {
                lines.push(format!(
                    "        kfc_copy_box({to} + {}, &map{map}, {columns} + {}, {rows}, full{n} + slot{n});",
                    panel * size,
                    panel * along
                ));
            }
        }
        lines.push(format!("        if (slot{n} == {last}) parity{n} ^= 1;"));
        lines.push(format!("        slot{n} = slot{n} == {last} ? 0 : slot{n} + 1;"));
        lines.extend(["    }".to_string(), "}".to_string()]);
        self.copying.extend(lines);
    }

    /// A start in source.
    fn start(&self, s: &Start, index: Var) -> String {
        let mut sum: Vec<String> = Vec::new();
        for (v, c) in &s.terms {
            let of = if *v == index { Some(self.name(*v)) } else { self.expression(*v) };
            let factor = if *c == 1 { String::new() } else { format!(" * {c}") };
            sum.push(format!("{}{factor}", of.unwrap_or_default()));
        }
        if s.constant != 0 || sum.is_empty() {
            sum.push(s.constant.to_string());
        }
        sum.join(" + ")
    }
}

/// The factors of a product.
fn factors(dot: &Stmt) -> Vec<Var> {
    match dot.inst {
        Inst::Dot { a, b, .. } => vec![a, b],
        _ => Vec::new(),
    }
}

impl Operand {
    fn panels(&self) -> usize {
        self.region.dims[self.region.fast] / self.map.tile[0]
    }
}
