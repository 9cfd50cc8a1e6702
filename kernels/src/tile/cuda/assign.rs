//! Which values are kept in registers, and in which layout.
//!
//! Values are of four kinds ([`Kind`]). Held values fall into classes that must share a layout: operands and results of
//! arithmetic, what a loop carries. A class with a result of a dot has the layout of `mma` or `wgmma`, and vectors that are reduced
//! from or spread over it the slices of that; other classes are blocked, as their loads and stores like it best. Where a
//! value is used in another layout than its own, it goes through shared memory.

use super::axis::{self, Info};
use super::hopper;
use super::layout::{Layout, warp_grid};
use crate::cuda::Arch;
use crate::tile::ir::{Elem, Inst, Program, Stmt, Unary, Var};
use std::collections::HashMap;

/// How a value is there when it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A variable, the same in all threads.
    Scalar,
    /// Computed again wherever it is used, from coordinates and scalars.
    Lazy,
    /// A held value seen with other extents.
    View,
    /// In registers.
    Held,
}

/// Axes of extent above 1.
fn squeezed(dims: &[usize]) -> Vec<usize> {
    (0..dims.len()).filter(|&a| dims[a] > 1).collect()
}

/// Their extents.
pub(super) fn extents(dims: &[usize]) -> Vec<usize> {
    dims.iter().copied().filter(|&d| d > 1).collect()
}

/// For each axis of a value, the axis of a loop over the same extents; `None` where the extent is 1.
pub(super) fn identity(dims: &[usize]) -> Vec<Option<usize>> {
    let axes = squeezed(dims);
    (0..dims.len()).map(|a| axes.iter().position(|&s| s == a)).collect()
}

/// The map of the operand of a view, given that of the view. `None` if it is no view.
pub(super) fn through(p: &Program, inst: &Inst, map: &[Option<usize>]) -> Option<(Var, Vec<Option<usize>>)> {
    match inst {
        Inst::Expand(v, axis) => Some((*v, vec![map[1 - *axis]])),
        Inst::Broadcast(v, _) => {
            let dims = &p.ty(*v).dims;
            Some((*v, dims.iter().zip(map).map(|(&d, &m)| if d == 1 { None } else { m }).collect()))
        }
        Inst::Transpose(v) => Some((*v, vec![map[1], map[0]])),
        _ => None,
    }
}

/// A map without the axes of extent 1.
pub(super) fn dense(map: &[Option<usize>]) -> Vec<usize> {
    map.iter().copied().flatten().collect()
}

/// Kinds and layouts of a program's values.
pub(super) struct Plan<'a> {
    pub p: &'a Program,
    /// The instruction that defines each value; `None` for those of loops.
    pub defs: Vec<Option<&'a Inst>>,
    pub kinds: Vec<Kind>,
    pub infos: Vec<Info>,
    /// Rows before columns when warps are placed.
    pub tall: bool,
    /// Dots are `wgmma`, and what they multiply lies swizzled in shared memory.
    pub in_groups: bool,
    nodes: Vec<Node>,
    /// Nodes of statements that have tiles of their own: stores, operands of reductions and dots.
    places: HashMap<(usize, usize), usize>,
    relations: Vec<(usize, Vec<usize>, usize)>,
    layouts: Vec<Option<Layout>>,
}

struct Node {
    up: usize,
    dims: Vec<usize>,
    is_mma: bool,
    /// Loads and stores: index, mask, bytes of an element.
    accesses: Vec<(Var, Option<Var>, usize)>,
}

/// A statement as a key of tables.
fn key(s: &Stmt) -> usize {
    std::ptr::from_ref(s) as usize
}

impl<'a> Plan<'a> {
    pub(super) fn new(p: &'a Program, arch: Arch) -> Plan<'a> {
        let nodes = p.types.iter().enumerate().map(|(up, ty)| Node::new(up, &ty.dims)).collect();
        let kinds = p.types.iter().map(|t| if t.is_scalar() { Kind::Scalar } else { Kind::Held }).collect();
        let mut plan = Plan {
            p,
            defs: vec![None; p.values()],
            kinds,
            infos: axis::analyse(p),
            tall: false,
            in_groups: arch == Arch::Sm90a && hopper::suits(p),
            nodes,
            places: HashMap::new(),
            relations: Vec::new(),
            layouts: Vec::new(),
        };
        plan.classify(&p.body);
        plan.link_block(&p.body);
        plan.assign();
        plan
    }

    /// The layout of a held value.
    pub(super) fn layout(&self, v: Var) -> Layout {
        self.of_node(v.index())
    }

    /// The layout of the tile that a statement makes of its operand number `which`.
    pub(super) fn place(&self, s: &Stmt, which: usize) -> Layout {
        self.of_node(self.places[&(key(s), which)])
    }

    fn of_node(&self, node: usize) -> Layout {
        let root = self.root(node);
        self.layouts[root].clone().unwrap_or_else(|| self.blocked(root))
    }

    fn classify(&mut self, statements: &'a [Stmt]) {
        for s in statements {
            if let Some(v) = s.result {
                self.defs[v.index()] = Some(&s.inst);
                if !self.p.ty(v).is_scalar() {
                    self.kinds[v.index()] = self.kind(&s.inst);
                }
            }
            if let Inst::For { body, .. } = &s.inst {
                self.classify(body);
            }
            if let Inst::Reduce(_, v, _) = &s.inst {
                self.tall |= self.p.ty(*v).dims.len() == 2;
            }
        }
    }

    fn kind(&self, inst: &Inst) -> Kind {
        let lazy = |vs: &[Var]| {
            let cheap = vs.iter().all(|v| matches!(self.kinds[v.index()], Kind::Lazy | Kind::Scalar));
            if cheap { Kind::Lazy } else { Kind::Held }
        };
        match inst {
            Inst::Range(_) | Inst::Splat(..) => Kind::Lazy,
            Inst::Expand(v, _) | Inst::Broadcast(v, _) | Inst::Transpose(v) => match self.kinds[v.index()] {
                Kind::Lazy => Kind::Lazy,
                _ => Kind::View,
            },
            Inst::Unary(Unary::Neg | Unary::Not, v) | Inst::Cast(v, _) => lazy(&[*v]),
            Inst::Binary(_, a, b) | Inst::Compare(_, a, b) => lazy(&[*a, *b]),
            Inst::Select(c, a, b) => lazy(&[*c, *a, *b]),
            _ => Kind::Held,
        }
    }

    fn root(&self, mut node: usize) -> usize {
        while self.nodes[node].up != node {
            node = self.nodes[node].up;
        }
        node
    }

    fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            let accesses = std::mem::take(&mut self.nodes[b].accesses);
            self.nodes[b].up = a;
            self.nodes[a].is_mma |= self.nodes[b].is_mma;
            self.nodes[a].accesses.extend(accesses);
        }
    }

    /// A node for a tile that a statement makes of an operand.
    fn place_node(&mut self, s: &Stmt, which: usize, operand: Var) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node::new(node, &self.p.ty(operand).dims));
        self.places.insert((key(s), which), node);
        self.link(node, operand);
        node
    }

    /// `v` is used in registers numbered by the layout of `node`, which has its extents.
    fn link(&mut self, node: usize, v: Var) {
        let (mut v, mut map) = (v, identity(&self.p.ty(v).dims));
        while self.kinds[v.index()] == Kind::View {
            let Some(next) = self.defs[v.index()].and_then(|d| through(self.p, d, &map)) else { return };
            (v, map) = next;
        }
        if self.kinds[v.index()] != Kind::Held {
            return;
        }
        let map = dense(&map);
        if map.iter().copied().eq(0..self.nodes[node].dims.len()) {
            self.union(node, v.index());
        } else {
            self.relations.push((node, map, v.index()));
        }
    }

    fn link_block(&mut self, statements: &'a [Stmt]) {
        statements.iter().for_each(|s| self.link_statement(s));
    }

    fn link_statement(&mut self, s: &'a Stmt) {
        let held = s.result.filter(|v| self.kinds[v.index()] == Kind::Held).map(Var::index);
        match (&s.inst, held) {
            (Inst::Unary(_, v) | Inst::Cast(v, _), Some(r)) => self.link(r, *v),
            (Inst::Binary(_, a, b) | Inst::Compare(_, a, b), Some(r)) => {
                [a, b].into_iter().for_each(|v| self.link(r, *v));
            }
            (Inst::Select(c, a, b), Some(r)) => [c, a, b].into_iter().for_each(|v| self.link(r, *v)),
            (Inst::Load { index, mask, param }, Some(r)) => {
                [Some(*index), *mask].into_iter().flatten().for_each(|v| self.link(r, v));
                let root = self.root(r);
                let bytes = self.p.params[*param].elem.bytes();
                self.nodes[root].accesses.push((*index, *mask, bytes));
            }
            (Inst::Store { param, index, value, mask }, _) => {
                let node = self.place_node(s, 0, *value);
                [Some(*index), *mask].into_iter().flatten().for_each(|v| self.link(node, v));
                let root = self.root(node);
                let bytes = self.p.params[*param].elem.bytes();
                self.nodes[root].accesses.push((*index, *mask, bytes));
            }
            (Inst::Reduce(_, v, axis), r) => {
                let node = self.place_node(s, 0, *v);
                let kept: Vec<usize> = identity(&self.p.ty(*v).dims)
                    .into_iter()
                    .enumerate()
                    .filter_map(|(a, m)| m.filter(|_| a != *axis))
                    .collect();
                if let Some(r) = r {
                    self.relations.push((node, kept, r));
                }
            }
            (Inst::Dot { a, b, acc }, Some(r)) => {
                self.link(r, *acc);
                let root = self.root(r);
                self.nodes[root].is_mma = true;
                for (which, v) in [(0, *a), (1, *b)] {
                    let v = self.upright(v).0;
                    self.place_node(s, which, v);
                }
            }
            (Inst::For { carried, body, .. }, _) => {
                for c in carried.iter().filter(|c| !self.p.ty(c.inner).is_scalar()) {
                    self.union(c.inner.index(), c.result.index());
                    self.link(c.inner.index(), c.init);
                }
                self.link_block(body);
                for c in carried.iter().filter(|c| !self.p.ty(c.inner).is_scalar()) {
                    self.link(c.inner.index(), c.next);
                }
            }
            _ => {}
        }
    }

    /// An operand of a dot without transpositions, and whether their number is odd.
    pub(super) fn upright(&self, mut v: Var) -> (Var, bool) {
        let mut turned = false;
        while let Some(Inst::Transpose(x)) = self.defs[v.index()] {
            (v, turned) = (*x, !turned);
        }
        (v, turned)
    }

    /// Layouts of all classes: those of dots, what is related to them, the other tiles, and so on.
    fn assign(&mut self) {
        let roots: Vec<usize> = (0..self.nodes.len()).filter(|&n| self.nodes[n].up == n).collect();
        self.layouts = vec![None; self.nodes.len()];
        for &n in roots.iter().filter(|&&n| self.nodes[n].is_mma) {
            let dims = &self.nodes[n].dims;
            self.layouts[n] = Some(if self.in_groups {
                Layout::wgmma(dims[0], dims[1], self.p.warps)
            } else {
                Layout::mma(dims[0], dims[1], self.p.warps, self.tall)
            });
        }
        self.spread();
        for rank in [2, 1, 0] {
            for &n in &roots {
                if self.nodes[n].dims.len() == rank && self.layouts[n].is_none() {
                    self.layouts[n] = Some(self.blocked(n));
                    self.spread();
                }
            }
        }
    }

    /// Gives slices and transposes of layouts that are known to classes that have none.
    fn spread(&mut self) {
        let mut changed = true;
        while changed {
            changed = false;
            for (parent, map, child) in &self.relations {
                let (parent, child) = (self.root(*parent), self.root(*child));
                if let (Some(l), None) = (&self.layouts[parent], &self.layouts[child]) {
                    self.layouts[child] = Some(l.project(map));
                    changed = true;
                }
            }
        }
    }

    /// The blocked layout whose threads hold as many consecutive elements as its loads and stores can take at once.
    fn blocked(&self, root: usize) -> Layout {
        let (node, threads) = (&self.nodes[root], self.p.warps * 32);
        let rank = node.dims.len();
        let len: usize = node.dims.iter().product();
        let most = (len / threads).max(1);
        let best = |axis: usize| {
            let wide = |&(index, mask, bytes): &(Var, Option<Var>, usize)| {
                let at = self.axis_of(index, axis);
                // Where nothing is aligned, at least neighbouring threads should take neighbouring elements.
                (self.wide(index, mask, at, 16 / bytes), self.infos[index.index()].axes[at].run)
            };
            node.accesses.iter().map(wide).max()
        };
        let widest = (0..rank).map(|axis| (best(axis), axis)).max();
        let (vec, axis) = match widest {
            Some((Some((vec, _)), axis)) => (vec, axis),
            _ => (4, rank.saturating_sub(1)),
        };
        let mut order: Vec<usize> = (0..rank).rev().collect();
        order.sort_by_key(|&a| usize::from(a != axis));
        let extent = node.dims.get(axis).copied().unwrap_or(1);
        Layout::blocked(&node.dims, &order, vec.min(most).min(extent), threads)
    }

    /// The axis of a value that is its `axis`th of extent above 1.
    fn axis_of(&self, v: Var, axis: usize) -> usize {
        squeezed(&self.p.ty(v).dims).get(axis).copied().unwrap_or(0)
    }

    /// How many consecutive elements along an axis of the index a load or store can take at once, at most `most`.
    pub(super) fn wide(&self, index: Var, mask: Option<Var>, axis: usize, most: usize) -> usize {
        let at = self.infos[index.index()].axes[axis];
        let same = mask.map_or(u64::MAX, |m| self.infos[m.index()].axes[axis].same);
        let mut n = (most as u64).min(at.run).min(same);
        while n > 1 && at.starts(n) < n {
            n /= 2;
        }
        n.max(1) as usize
    }

    /// Warps over rows and columns of a dot's result.
    pub(super) fn warps(&self, m: usize, n: usize) -> (usize, usize) {
        warp_grid(m, n, self.p.warps, self.tall)
    }

    /// Whether a load is only used by dots, so that it goes to shared memory without registers.
    pub(super) fn uses(&self) -> Uses {
        let mut uses = Uses { dots: vec![0; self.p.values()], others: vec![0; self.p.values()] };
        self.count(&self.p.body, &mut uses);
        uses
    }

    fn count(&self, statements: &[Stmt], uses: &mut Uses) {
        for s in statements {
            match &s.inst {
                Inst::Dot { a, b, acc } => {
                    [a, b].into_iter().for_each(|v| uses.dots[self.upright(*v).0.index()] += 1);
                    uses.others[acc.index()] += 1;
                }
                // Counted at the dots behind it; others count it below.
                Inst::Transpose(_) => {}
                Inst::For { carried, body, .. } => {
                    carried.iter().for_each(|c| self.used(c.init, uses));
                    self.count(body, uses);
                    carried.iter().for_each(|c| self.used(c.next, uses));
                }
                inst => operands(inst).into_iter().for_each(|v| self.used(v, uses)),
            }
        }
    }

    fn used(&self, v: Var, uses: &mut Uses) {
        uses.others[self.upright(v).0.index()] += 1;
    }

    /// Element type of a value.
    pub(super) fn elem(&self, v: Var) -> Elem {
        self.p.ty(v).elem
    }
}

/// How often values are used.
pub(super) struct Uses {
    /// By dots, as an operand or transposed.
    pub dots: Vec<usize>,
    /// Otherwise.
    pub others: Vec<usize>,
}

impl Node {
    fn new(up: usize, dims: &[usize]) -> Node {
        Node { up, dims: extents(dims), is_mma: false, accesses: Vec::new() }
    }
}

/// Values that an instruction other than a loop or a dot reads.
fn operands(inst: &Inst) -> Vec<Var> {
    match inst {
        Inst::ProgramId(_) | Inst::Int(..) | Inst::Float(_) | Inst::Range(_) | Inst::For { .. } => Vec::new(),
        Inst::Splat(v, _)
        | Inst::Expand(v, _)
        | Inst::Broadcast(v, _)
        | Inst::Transpose(v)
        | Inst::Unary(_, v)
        | Inst::Cast(v, _)
        | Inst::Reduce(_, v, _) => vec![*v],
        Inst::Binary(_, a, b) | Inst::Compare(_, a, b) => vec![*a, *b],
        Inst::Select(a, b, c) | Inst::Dot { a, b, acc: c } => vec![*a, *b, *c],
        Inst::Load { index, mask, .. } => [Some(*index), *mask].into_iter().flatten().collect(),
        Inst::Store { index, value, mask, .. } => {
            [Some(*index), Some(*value), *mask].into_iter().flatten().collect()
        }
    }
}
