//! Reductions over an axis: registers, lanes, warps, always in the same order.

use super::assign::{extents, identity};
use super::express::{float, integer, type_name};
use super::layout::Layout;
use super::print::{Group, Printer, flat, guard, slot};
use super::shared::Place;
use crate::tile::ir::{Elem, Fold, Stmt, Var};

impl Printer<'_> {
    /// Registers in order, then lanes, then warps.
    pub(super) fn reduce(&mut self, s: &Stmt, op: Fold, v: Var, axis: usize, r: Var) {
        let from = self.plan.place(s, 0);
        let source = self.whole(v, &from);
        self.flush();
        let map = identity(&self.p.ty(v).dims);
        let kept: Vec<usize> =
            map.iter().enumerate().filter(|(a, _)| *a != axis).filter_map(|(_, m)| *m).collect();
        let to = from.project(&kept);
        let name = match map[axis] {
            Some(gone) => self.reduce_axis(op, self.plan.elem(r), &source, (&from, &to), gone, &kept),
            // Nothing to reduce: only the extents change.
            None => source,
        };
        if self.p.ty(r).is_scalar() {
            self.names.insert(r, format!("{name}[0]"));
        } else if self.plan.layout(r) == to {
            self.names.insert(r, name);
        } else {
            self.adopt(r, to, name);
        }
    }

    /// An array of the results of reducing registers of `source` over an axis of their layout.
    fn reduce_axis(
        &mut self,
        op: Fold,
        elem: Elem,
        source: &str,
        (from, to): (&Layout, &Layout),
        gone: usize,
        kept: &[usize],
    ) -> String {
        let name = self.temporary();
        let ty = type_name(elem);
        let (start, join, lanes_name) = match (op, elem) {
            (Fold::Sum, Elem::F32) => ("0.0f".into(), "kfc_add", "kfc_lanes_sum"),
            (Fold::Sum, _) => ("0".into(), "kfc_add", "kfc_lanes_sum"),
            (Fold::Max, Elem::F32) => (float(f32::NEG_INFINITY), "fmaxf", "kfc_lanes_max"),
            (Fold::Max, _) => (integer(i64::from(i32::MIN), elem), "kfc_max", "kfc_lanes_max"),
        };
        let n = to.registers();
        self.line(&format!("{ty} {name}[{n}];"));
        self.line("#pragma unroll");
        self.line(&format!("for (int e = 0; e < {n}; ++e) {name}[e] = {start};"));
        let into = format!("{name}[{}]", slot(from, to, kept));
        self.each(from, 1, &[], |_, _| vec![format!("{into} = {join}({into}, {source}[e]);")]);
        self.flush();
        let of_axis = |t: &usize| from.threads[*t].is_some_and(|b| b.0 == gone);
        let lanes: usize = (0..5).filter(of_axis).map(|t| 1 << t).sum();
        let warps: Vec<u32> = (5..from.threads.len()).filter(of_axis).map(|t| t as u32).collect();
        if lanes > 0 {
            self.each(to, 1, &[], |_, _| vec![format!("{name}[e] = {lanes_name}<{lanes}>({name}[e]);")]);
            self.flush();
        }
        if !warps.is_empty() {
            self.across_warps(from, to, &name, elem, (&start, join), &warps, lanes);
        }
        name
    }

    /// A result that came out in another layout than it is used in.
    fn adopt(&mut self, r: Var, from: Layout, name: String) {
        let dims = extents(&self.p.ty(r).dims);
        let (elem, to) = (self.plan.elem(r), self.plan.layout(r));
        let ty = type_name(elem);
        let turn = self.shared.scratch(dims.iter().product::<usize>() * elem.bytes());
        let scratch = format!("reinterpret_cast<{ty} *>(scratch{turn})");
        self.writes(Place::Scratch(turn));
        let guard = guard(&from);
        self.each(&from, 1, &[], |_, g| {
            let at = flat(g, &dims);
            vec![format!("{guard}{scratch}[{at}] = {name}[e];")]
        });
        self.flush();
        self.reads(Place::Scratch(turn));
        let result = self.name(r);
        self.each(&to, 1, &[], |_, g| {
            let at = flat(g, &dims);
            g.declarations.push(format!("{ty} {result}[{}];", to.registers()));
            vec![format!("{result}[e] = {scratch}[{at}];")]
        });
        self.flush();
    }

    /// The last stage of a reduction: each warp's results in shared memory, added up by all threads.
    #[allow(clippy::too_many_arguments)]
    fn across_warps(
        &mut self,
        from: &Layout,
        to: &Layout,
        name: &str,
        elem: Elem,
        (start, join): (&str, &str),
        warps: &[u32],
        lanes: usize,
    ) {
        let len: usize = 1 << to_bits(to);
        let parts = 1usize << warps.len();
        let ty = type_name(elem);
        let turn = self.shared.scratch(len * parts * elem.bytes());
        let scratch = format!("reinterpret_cast<{ty} *>(scratch{turn})");
        let moves: Vec<(u32, u32)> = warps.iter().enumerate().map(|(i, &t)| (t, i as u32)).collect();
        let part = super::layout::bits("tid", &moves);
        let once = lanes | from.replicas();
        let guard = if once == 0 { String::new() } else { format!("if ((tid & {once}) == 0) ") };
        let position = |g: &mut Group| {
            if len == 1 { "0".to_string() } else { Self::coordinate(g, 0).to_string() }
        };
        self.writes(Place::Scratch(turn));
        self.each(to, 1, &[], |_, g| {
            let i = position(g);
            vec![format!("{guard}{scratch}[({part}) * {len} + {i}] = {name}[e];")]
        });
        self.flush();
        self.reads(Place::Scratch(turn));
        self.each(to, 1, &[], |_, g| {
            let i = position(g);
            vec![
                format!("{name}[e] = {start};"),
                "#pragma unroll".into(),
                format!("for (int w = 0; w < {parts}; ++w) {name}[e] = {join}({name}[e], {scratch}[w * {len} + {i}]);"),
            ]
        });
        self.flush();
    }
}

/// Number of bits of all coordinates that a layout of one axis or none covers.
fn to_bits(l: &Layout) -> usize {
    l.slots.len() + l.threads.iter().flatten().count()
}
