//! Dots on Hopper: `wgmma`, in which four warps multiply tiles that lie swizzled in shared memory, the left one also from
//! registers. Layouts of tiles in shared memory are the canonical ones of the PTX ISA ("Asynchronous Warpgroup Level Matrix
//! Shared Memory Layout"), with rows of 128 bytes where the tile is that wide.

use super::assign::{Kind, Plan};
use super::layout::{Layout, group_grid};
use super::print::Printer;
use super::shared::Place;
use crate::tile::ir::{Elem, Inst, Program, Stmt, Var};

/// Widest row of a swizzled tile, bytes.
const WIDEST: usize = 128;

/// Most columns of an instruction.
const MOST_COLUMNS: usize = 256;

/// Whether all dots of a program can be `wgmma`, and there is one.
pub(super) fn suits(p: &Program) -> bool {
    let mut count = 0;
    let mut all = true;
    each_dot(&p.body, &mut |a, b, _| {
        let (m, n) = (p.ty(a).dims[0], p.ty(b).dims[1]);
        let is_narrow = matches!(p.ty(a).elem, Elem::Bf16 | Elem::F16);
        count += 1;
        all &= is_narrow
            && m.is_multiple_of(64)
            && n / group_grid(m.max(64), n, p.warps.max(4)).1 <= MOST_COLUMNS;
    });
    all && count > 0 && p.warps.is_multiple_of(4)
}

/// Calls `f` with the factors and the result of each dot.
fn each_dot(statements: &[Stmt], f: &mut impl FnMut(Var, Var, Var)) {
    for s in statements {
        match (&s.inst, s.result) {
            (Inst::Dot { a, b, .. }, Some(r)) => f(*a, *b, r),
            (Inst::For { body, .. }, _) => each_dot(body, f),
            _ => {}
        }
    }
}

impl Plan<'_> {
    /// Bytes of the rows of a tile for dots whose elements are consecutive along axis `fast`: as wide as all its dots can
    /// read. Where k runs across rows, a row must not be longer than the columns of an instruction.
    pub(super) fn row_bytes(&self, v: Var, fast: usize) -> usize {
        let size = self.elem(v).bytes();
        let mut bytes = WIDEST.min(self.p.ty(v).dims[fast] * size);
        each_dot(&self.p.body, &mut |a, b, r| {
            let (m, n) = (self.p.ty(r).dims[0], self.p.ty(r).dims[1]);
            for (which, operand) in [(0, a), (1, b)] {
                let (tile, turned) = self.upright(operand);
                let fast = if turned { 1 - fast } else { fast };
                if tile == v && fast == which {
                    let across = if which == 0 { 64 } else { n / group_grid(m, n, self.p.warps).1 };
                    bytes = bytes.min(across * size);
                }
            }
        });
        bytes
    }

    /// Whether a value is multiplied from the registers that it is in: as the left factor alone, in the layout that a result
    /// of its extents has, no two groups sharing rows.
    pub(super) fn is_in_registers(&self, v: Var) -> bool {
        let is_computed = !matches!(self.defs[v.index()], None | Some(Inst::Load { .. }));
        if !self.in_groups || self.kinds[v.index()] != Kind::Held || !is_computed {
            return false;
        }
        let mut fits = true;
        each_dot(&self.p.body, &mut |a, b, _| {
            let (left, right) = (self.upright(a), self.upright(b));
            fits &= right.0 != v;
            if left.0 == v {
                let (m, k) = (self.p.ty(a).dims[0], self.p.ty(a).dims[1]);
                let are_apart = self.p.warps / 4 <= m / 64;
                fits &= !left.1 && are_apart && self.layout(v) == Layout::wgmma(m, k, self.p.warps);
            }
        });
        fits
    }
}

impl Printer<'_> {
    /// Adds the product of tiles (and whether they are turned) to the registers `name` of result `r`.
    pub(super) fn dot_in_groups(&mut self, r: Var, name: &str, sides: &[(Var, bool)]) {
        let from_registers = self.plan.is_in_registers(sides[0].0);
        let tiles = if from_registers { &sides[1..] } else { sides };
        tiles.iter().for_each(|(v, _)| self.reads(Place::Tile(*v)));
        let mut arguments = Vec::new();
        for (which, (v, turned)) in sides.iter().enumerate() {
            if self.shared.regions.contains_key(v) {
                arguments.push(self.operand_form(*v, *turned, which));
            }
        }
        let (m, n) = (self.p.ty(r).dims[0], self.p.ty(r).dims[1]);
        let (left, turned) = sides[0];
        let k = self.p.ty(left).dims[usize::from(!turned)];
        let (gm, gn) = group_grid(m, n, self.p.warps);
        let (right, arguments) = (self.tile(sides[1].0), arguments.join(", "));
        if from_registers {
            let left = left.index();
            return self.line(&format!(
                "kfc_dot_registers<{m}, {n}, {k}, {gm}, {arguments}>({name}, v{left}, {right});"
            ));
        }
        let left = self.tile(left);
        self.line(&format!(
            "kfc_dot_groups<{m}, {n}, {k}, {gm}, {gn}, {arguments}>({name}, {left}, {right});"
        ));
        self.refill();
        self.line(&format!("kfc_wgmma_wait<{}>({name});", self.plan.layout(r).registers()));
    }

    /// How the left (0) or right (1) operand of a product lies in shared memory, turned or not, as template arguments.
    pub(super) fn operand_form(&self, v: Var, turned: bool, which: usize) -> String {
        let Some(region) = self.shared.regions.get(&v) else { return String::new() };
        let axis = if turned { 1 - region.fast } else { region.fast };
        // k is the second axis of the left operand and the first one of the right.
        let (fast_k, bytes) = (axis == 1 - which, region.swizzle.unwrap_or(WIDEST));
        format!("{fast_k}, {bytes}, {}", region.dims[1 - region.fast])
    }
}
