//! Statements as loops over registers.

use super::assign::{Kind, Plan, Uses, dense, extents, identity, through};
use super::express::{arguments, element, float, integer, type_name};
use super::layout::Layout;
use super::range::Ranges;
use super::shared::{Place, Shared};
use super::stages::{Copy, Ring};
use super::{STATIC_SHARED, Source, TensorMap};
use crate::cuda::Arch;
use crate::tile::TileError;
use crate::tile::ir::{Access, Elem, Inst, Param, Program, Stmt, Var};
use std::collections::HashMap;

/// For each axis of a value, the axis of the loop; `None` where the extent is 1.
type Map = [Option<usize>];

/// Most blocks along the second and third axis of a grid.
const MOST_BLOCKS: usize = 65_535;

/// Prints with as many stages as the program wants and there is shared memory for on all devices of the architecture.
pub(super) fn print(p: &Program, arch: Arch) -> Result<Source, TileError> {
    let most = arch.usual_shared_memory();
    for (stages, all_loads) in
        [true, false].into_iter().flat_map(|all| (2..=p.stages).rev().map(move |s| (s, all)))
    {
        if let Ok(source) = print_staged(p, arch, stages, all_loads)
            && source.dynamic_shared <= most
        {
            return Ok(source);
        }
    }
    print_staged(p, arch, 1, false)
}

/// `all_loads`: also those that go through registers are copied ahead.
fn print_staged(p: &Program, arch: Arch, stages: usize, all_loads: bool) -> Result<Source, TileError> {
    let plan = Plan::new(p, arch);
    let uses = plan.uses();
    let mut printer = Printer {
        p,
        arch,
        stages,
        all_loads,
        rings: HashMap::new(),
        most_stages: 1,
        due: None,
        maps: Vec::new(),
        copying: Vec::new(),
        is_parted: false,
        plan,
        uses,
        ranges: Ranges::of(p),
        names: HashMap::new(),
        text: String::new(),
        depth: 1,
        open: None,
        converted: Vec::new(),
        shared: Shared::default(),
        temporaries: 0,
    };
    printer.is_parted = p.body.iter().any(|s| printer.bulk(s).is_some());
    printer.block(&p.body);
    printer.flush();
    printer.finish()
}

/// A loop over registers of a layout, to which statements are added as long as they fit.
pub(super) struct Group {
    layout: Layout,
    step: usize,
    pub declarations: Vec<String>,
    lines: Vec<String>,
    memo: HashMap<(Var, Vec<Option<usize>>), String>,
    coordinates: [bool; 2],
}

pub(super) struct Printer<'a> {
    pub p: &'a Program,
    pub arch: Arch,
    /// Slots of rings; no rings if it is 1.
    pub stages: usize,
    /// Loads that go through registers are in rings too.
    pub all_loads: bool,
    /// Values that are in rings, and the name of the slot that is read.
    pub rings: HashMap<Var, String>,
    /// Slots of the largest ring.
    pub most_stages: usize,
    /// What is to be copied ahead in this round and is not yet on its way.
    pub due: Option<Ring<'a>>,
    /// Matrices that the hardware copies from.
    pub maps: Vec<TensorMap>,
    /// What the warp that copies does.
    pub copying: Vec<String>,
    /// Whether there is one: the others have a barrier of their own.
    pub is_parted: bool,
    pub plan: Plan<'a>,
    pub uses: Uses,
    ranges: Ranges,
    /// Names of values that are not called by their number.
    pub names: HashMap<Var, String>,
    pub text: String,
    pub depth: usize,
    open: Option<Group>,
    /// Values that are there in a second layout.
    pub converted: Vec<(Var, Layout, String)>,
    pub shared: Shared,
    pub temporaries: usize,
}

impl<'a> Printer<'a> {
    fn finish(self) -> Result<Source, TileError> {
        let (p, computing) = (self.p, self.p.warps * 32);
        let threads = computing + if self.is_parted { 32 } else { 0 };
        let (pointers, bytes) = self.shared.declarations(type_name);
        let most = self.arch.shared_memory();
        if bytes > most {
            let message = format!("its tiles need {bytes} bytes of shared memory, above {most}");
            return Err(TileError { program: p.name.clone(), message });
        }
        let is_flat = p.grid[1].max(p.grid[2]) > MOST_BLOCKS;
        let grid = if is_flat { [p.programs(), 1, 1] } else { p.grid };
        let dynamic_shared = if bytes > STATIC_SHARED { bytes } else { 0 };
        let mut t = format!("// {}\n//\n", p.doc.trim_end().replace('\n', "\n// "));
        for b in &p.params {
            let access = match b.access {
                Access::Read => "read",
                Access::Write => "written",
                Access::ReadWrite => "read and written",
            };
            t += &format!("//   {:<12} {}[{}], {access}\n", pointer(&b.name), b.elem.name(), b.len);
        }
        t += &format!("//\n// Launch: {grid:?} blocks of {threads} threads");
        if dynamic_shared > 0 {
            t += &format!(", {dynamic_shared} bytes of shared memory");
        }
        t += "\n#include \"kfc.cuh\"\n";
        if self.plan.in_groups {
            t += "#include \"hopper.cuh\"\n";
        }
        t.push('\n');
        self.maps.iter().enumerate().for_each(|(i, m)| t += &m.comment(i, &pointer(&p.params[m.param].name)));
        let params: Vec<String> = p
            .params
            .iter()
            .map(|b| {
                let constant = if b.access == Access::Read { "const " } else { "" };
                format!("{constant}{} *{}", type_name(b.elem), pointer(&b.name))
            })
            .chain((0..self.maps.len()).map(|i| format!("const __grid_constant__ kfc_map map{i}")))
            .collect();
        t += &format!(
            "extern \"C\" __global__ void __launch_bounds__({threads}, 1) {}({}) {{\n    const int tid = threadIdx.x;\n",
            p.name,
            params.join(", ")
        );
        if is_flat {
            t += &format!(
                "    const int pid0 = blockIdx.x % {0}, pid1 = blockIdx.x / {0} % {1}, pid2 = blockIdx.x / {0} / {1};\n",
                p.grid[0], p.grid[1]
            );
        } else {
            t += "    const int pid0 = blockIdx.x, pid1 = blockIdx.y, pid2 = blockIdx.z;\n";
        }
        if bytes > 0 {
            let tiles = if self.plan.in_groups { "_TILES" } else { "" };
            let when = if dynamic_shared > 0 { "_AT_LAUNCH" } else { "" };
            t += &format!("    KFC_SHARED{tiles}{when}({bytes});\n");
            pointers.iter().for_each(|line| t += &format!("    {line}\n"));
        }
        if self.is_parted {
            t += &self.parting(computing);
        }
        t += &self.text;
        t += "}\n";
        let (stages, maps) = (self.most_stages, self.maps);
        Ok(Source { text: t, grid, threads, dynamic_shared, stages, maps })
    }

    /// A barrier of all threads that compute.
    pub(super) fn sync(&mut self) {
        if self.is_parted {
            self.line(&format!("kfc_sync<{}>();", self.p.warps * 32));
        } else {
            self.line("__syncthreads();");
        }
    }

    pub(super) fn line(&mut self, line: &str) {
        for _ in 0..self.depth {
            self.text.push_str("    ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Name of a value's variable or array.
    pub(super) fn name(&self, v: Var) -> String {
        self.names.get(&v).cloned().unwrap_or_else(|| format!("v{}", v.index()))
    }

    pub(super) fn temporary(&mut self) -> String {
        self.temporaries += 1;
        format!("t{}", self.temporaries)
    }

    /// A scalar's name or constant.
    pub(super) fn scalar(&self, v: Var) -> String {
        match self.plan.defs[v.index()] {
            Some(Inst::Int(x, elem)) => integer(*x, *elem),
            Some(Inst::Float(x)) => float(*x),
            Some(Inst::ProgramId(axis)) => format!("pid{axis}"),
            _ => self.name(v),
        }
    }

    /// `copies` and `tiles`: what threads did since the last barrier that others are to see.
    pub(super) fn barrier(&mut self, needed: bool, copies: bool, tiles: bool) {
        if needed {
            if copies {
                self.line("kfc_copy_wait();");
            }
            if tiles && self.plan.in_groups {
                self.line("kfc_fence_shared();");
            }
            self.sync();
        }
    }

    /// Threads are about to write to a place.
    pub(super) fn writes(&mut self, place: Place) {
        let (copies, tiles) = (self.shared.copies(), self.shared.tiles());
        let needed = self.shared.write(place);
        self.barrier(needed, copies, tiles);
    }

    /// Threads are about to read from a place.
    pub(super) fn reads(&mut self, place: Place) {
        let (copies, tiles) = (self.shared.copies(), self.shared.tiles());
        let needed = self.shared.read(place);
        self.barrier(needed, copies, tiles);
    }

    /// Ends the loop that is open.
    pub(super) fn flush(&mut self) {
        let Some(g) = self.open.take() else { return };
        g.declarations.iter().for_each(|d| self.line(d));
        if g.lines.is_empty() {
            return;
        }
        let (n, step) = (g.layout.registers(), g.step);
        if n > step {
            self.line("#pragma unroll");
            let next = if step == 1 { "++e".into() } else { format!("e += {step}") };
            self.line(&format!("for (int e = 0; e < {n}; {next}) {{"));
        } else {
            self.line("{");
            self.line("    const int e = 0;");
        }
        self.depth += 1;
        for (axis, name) in ["i", "j"].into_iter().enumerate().filter(|(a, _)| g.coordinates[*a]) {
            let (thread, slot) = (g.layout.thread_part(axis), g.layout.slot_part(axis));
            let both = match (thread.as_str(), slot.as_str()) {
                ("0", s) => s.to_string(),
                (t, "0") => t.to_string(),
                (t, s) => format!("{t} + {s}"),
            };
            self.line(&format!("const int {name} = {both};"));
        }
        g.lines.iter().for_each(|l| self.line(l));
        self.depth -= 1;
        self.line("}");
    }

    /// Adds lines to the loop over a layout's registers, `step` at a time. `write` gets names of operands from
    /// [`Printer::at`]; `operands` are those that are seen with the maps, whose layouts are changed first where needed.
    pub(super) fn each(
        &mut self,
        layout: &Layout,
        step: usize,
        operands: &[(Var, &Map)],
        write: impl FnOnce(&Printer<'a>, &mut Group) -> Vec<String>,
    ) {
        let mut missing = Vec::new();
        operands.iter().for_each(|(v, map)| self.missing(*v, map, layout, &mut missing));
        if !missing.is_empty() {
            self.flush();
            missing.into_iter().for_each(|(v, to)| self.convert(v, to));
        }
        if self.open.as_ref().is_none_or(|g| g.layout != *layout || g.step != step) {
            self.flush();
        }
        let mut g = self.open.take().unwrap_or_else(|| Group {
            layout: layout.clone(),
            step,
            declarations: Vec::new(),
            lines: Vec::new(),
            memo: HashMap::new(),
            coordinates: [false; 2],
        });
        let lines = write(self, &mut g);
        g.lines.extend(lines);
        self.open = Some(g);
    }

    /// Adds to `out` held values that `v` is computed from and that are in no layout to read them with `layout`.
    fn missing(&self, v: Var, map: &Map, layout: &Layout, out: &mut Vec<(Var, Layout)>) {
        match self.plan.kinds[v.index()] {
            Kind::View => {
                if let Some((v, map)) = self.plan.defs[v.index()].and_then(|d| through(self.p, d, map)) {
                    self.missing(v, &map, layout, out);
                }
            }
            Kind::Held => {
                let map = dense(map);
                let to = layout.project(&map);
                let is_there = layout.holds(&self.plan.layout(v), &map)
                    || self.converted.iter().any(|(w, l, _)| *w == v && *l == to);
                if !is_there && !out.contains(&(v, to.clone())) {
                    out.push((v, to));
                }
            }
            Kind::Scalar | Kind::Lazy => {}
        }
    }

    /// A coordinate of the loop.
    pub(super) fn coordinate(g: &mut Group, axis: usize) -> &'static str {
        g.coordinates[axis] = true;
        ["i", "j"][axis]
    }

    /// The element of a value that goes with register `e` of the loop.
    pub(super) fn at(&self, g: &mut Group, v: Var, map: &Map) -> String {
        let (kind, def) = (self.plan.kinds[v.index()], self.plan.defs[v.index()]);
        match (kind, def) {
            (Kind::Scalar, _) => return self.scalar(v),
            (Kind::Held, _) => return self.register(g, v, map),
            _ => {}
        }
        let Some(def) = def else { return self.name(v) };
        if let Some((v, map)) = through(self.p, def, map) {
            return self.at(g, v, &map);
        }
        match def {
            Inst::Range(_) => return map[0].map_or("0".into(), |axis| Self::coordinate(g, axis).into()),
            Inst::Splat(v, _) => return self.scalar(*v),
            _ => {}
        }
        let key = (v, map.to_vec());
        if let Some(name) = g.memo.get(&key) {
            return name.clone();
        }
        let args: Vec<String> = arguments(def).iter().map(|&a| self.at(g, a, map)).collect();
        let elem = arguments(def).last().map_or(Elem::I32, |&a| self.plan.elem(a));
        let value = element(def, elem, &args, self.ranges.may_wrap(def)).unwrap_or_default();
        let name = match g.memo.keys().filter(|(w, _)| *w == v).count() {
            0 => format!("x{}", v.index()),
            n => format!("x{}_{n}", v.index()),
        };
        g.lines.push(format!("const {} {name} = {value};", type_name(self.plan.elem(v))));
        g.memo.insert(key, name.clone());
        name
    }

    fn register(&self, g: &Group, v: Var, map: &Map) -> String {
        let map = dense(map);
        let own = self.plan.layout(v);
        if g.layout.holds(&own, &map) {
            return format!("{}[{}]", self.name(v), slot(&g.layout, &own, &map));
        }
        let to = g.layout.project(&map);
        let name = self.converted.iter().find(|(w, l, _)| *w == v && *l == to).map(|c| c.2.clone());
        format!("{}[{}]", name.unwrap_or_default(), slot(&g.layout, &to, &map))
    }

    /// Makes a copy of a held value in another layout.
    fn convert(&mut self, v: Var, to: Layout) {
        let dims = extents(&self.p.ty(v).dims);
        let (elem, from, source) = (self.plan.elem(v), self.plan.layout(v), self.name(v));
        let name = self.temporary();
        let ty = type_name(elem);
        let turn = self.shared.scratch(dims.iter().product::<usize>() * elem.bytes());
        self.writes(Place::Scratch(turn));
        let guard = guard(&from);
        let scratch = format!("reinterpret_cast<{ty} *>(scratch{turn})");
        self.each(&from, 1, &[], |_, g| {
            let at = flat(g, &dims);
            vec![format!("{guard}{scratch}[{at}] = {source}[e];")]
        });
        self.flush();
        self.reads(Place::Scratch(turn));
        let n = to.registers();
        self.each(&to, 1, &[], |_, g| {
            g.declarations.push(format!("{ty} {name}[{n}];"));
            let at = flat(g, &dims);
            vec![format!("{name}[e] = {scratch}[{at}];")]
        });
        self.flush();
        self.converted.push((v, to, name));
    }

    fn block(&mut self, statements: &'a [Stmt]) {
        let kept = self.converted.len();
        statements.iter().for_each(|s| self.statement(s));
        self.flush();
        self.converted.truncate(kept);
    }

    pub(super) fn statement(&mut self, s: &'a Stmt) {
        let kind = s.result.map(|v| self.plan.kinds[v.index()]);
        match (&s.inst, s.result, kind) {
            (Inst::For { .. }, ..) => self.repeat(s),
            (Inst::Store { .. }, ..) => self.store(s),
            (Inst::Reduce(op, v, axis), Some(r), _) => self.reduce(s, *op, *v, *axis, r),
            (Inst::Dot { .. }, Some(r), _) => self.dot(s, r),
            (Inst::Load { param, index, mask }, Some(r), _) => {
                self.load(*param, *index, *mask, r);
                self.stage_held(r);
            }
            (inst, Some(r), Some(Kind::Scalar)) => self.scalar_statement(inst, r),
            (inst, Some(r), Some(Kind::Held)) => {
                let layout = self.plan.layout(r);
                let maps: Vec<_> =
                    arguments(inst).into_iter().map(|v| (v, identity(&self.p.ty(v).dims))).collect();
                let operands: Vec<(Var, &Map)> = maps.iter().map(|(v, m)| (*v, m.as_slice())).collect();
                let (ty, name) = (type_name(self.plan.elem(r)), self.name(r));
                let elem = operands.last().map_or(Elem::F32, |(v, _)| self.plan.elem(*v));
                self.each(&layout, 1, &operands, |this, g| {
                    let args: Vec<String> = operands.iter().map(|(v, m)| this.at(g, *v, m)).collect();
                    g.declarations.push(format!("{ty} {name}[{}];", layout.registers()));
                    let wraps = this.ranges.may_wrap(inst);
                    vec![format!("{name}[e] = {};", element(inst, elem, &args, wraps).unwrap_or_default())]
                });
                self.stage_held(r);
            }
            _ => {}
        }
    }

    pub(super) fn scalar_statement(&mut self, inst: &Inst, r: Var) {
        let args: Vec<String> = arguments(inst).iter().map(|&v| self.scalar(v)).collect();
        let elem = arguments(inst).last().map_or(Elem::I32, |&v| self.plan.elem(v));
        if let Some(value) = element(inst, elem, &args, self.ranges.may_wrap(inst)) {
            self.line(&format!("const {} {} = {value};", type_name(self.plan.elem(r)), self.name(r)));
        }
    }

    /// How many elements a load or store takes at once.
    pub(super) fn vector(&self, layout: &Layout, index: Var, mask: Option<Var>, bytes: usize) -> usize {
        let axes = identity(&self.p.ty(index).dims);
        let wide = |(a, to): (usize, &Option<usize>)| {
            to.map_or(1, |to| self.plan.wide(index, mask, a, (16 / bytes).min(layout.run(to))))
        };
        axes.iter().enumerate().map(wide).max().unwrap_or(1)
    }

    fn load(&mut self, param: usize, index: Var, mask: Option<Var>, r: Var) {
        let buffer = &self.p.params[param];
        let (from, ty, name) = (pointer(&buffer.name), type_name(buffer.elem), self.name(r));
        if buffer.access == Access::ReadWrite {
            self.flush();
            self.reads(Place::Buffer(param));
        } else {
            // Nobody writes to it, but for those it shares its memory with: see `store`.
            self.shared.since.reads(Place::Buffer(param));
        }
        if self.p.ty(r).is_scalar() {
            let at = self.scalar(index);
            let value = match mask {
                Some(m) => format!("{} ? {from}[{at}] : {ty}{{}}", self.scalar(m)),
                None => format!("{from}[{at}]"),
            };
            return self.line(&format!("const {ty} {name} = {value};"));
        }
        let copy = Copy { result: r, param, index, mask };
        match (self.is_copied(r), self.rings.contains_key(&r)) {
            (true, true) => return,
            (true, false) => return self.copy(copy),
            (false, true) => return self.read_own(copy),
            (false, false) => {}
        }
        let layout = self.plan.layout(r);
        let wide = self.vector(&layout, index, mask, buffer.elem.bytes());
        let map = identity(&self.p.ty(index).dims);
        let operands: Vec<(Var, &Map)> =
            [Some(index), mask].into_iter().flatten().map(|v| (v, map.as_slice())).collect();
        self.each(&layout, wide, &operands, |this, g| {
            let args: Vec<String> = operands.iter().map(|(v, m)| this.at(g, *v, m)).collect();
            g.declarations.push(format!("{ty} {name}[{}];", layout.registers()));
            let valid = args.get(1).map_or(String::new(), |m| format!(", {m}"));
            vec![format!("kfc_load<{wide}>({name} + e, {from} + {}{valid});", args[0])]
        });
    }

    fn store(&mut self, s: &Stmt) {
        let Inst::Store { param, index, value, mask } = s.inst else { return };
        let buffer = &self.p.params[param];
        let to = pointer(&buffer.name);
        if buffer.access == Access::ReadWrite {
            self.flush();
            self.writes(Place::Buffer(param));
        } else if self.p.ty(value).is_scalar() || self.plan.place(s, 0).replicas() != 0 {
            self.after_readers(param);
        }
        if self.p.ty(value).is_scalar() {
            self.flush();
            let valid = mask.map_or(String::new(), |m| format!(" && {}", self.scalar(m)));
            let (at, value) = (self.scalar(index), self.scalar(value));
            return self.line(&format!("if (tid == 0{valid}) {to}[{at}] = {value};"));
        }
        let layout = self.plan.place(s, 0);
        let wide = self.vector(&layout, index, mask, buffer.elem.bytes());
        let source = if wide > 1 { Some(self.whole(value, &layout)) } else { None };
        let map = identity(&self.p.ty(index).dims);
        let mut operands: Vec<(Var, &Map)> =
            [Some(index), mask].into_iter().flatten().map(|v| (v, map.as_slice())).collect();
        if source.is_none() {
            operands.push((value, &map));
        }
        self.each(&layout, wide, &operands, |this, g| {
            let at = this.at(g, index, &map);
            let mut conditions: Vec<String> = mask.map(|m| this.at(g, m, &map)).into_iter().collect();
            if layout.replicas() != 0 {
                conditions.push(format!("(tid & {}) == 0", layout.replicas()));
            }
            let valid = conditions.join(" && ");
            vec![match source {
                Some(source) if valid.is_empty() => format!("kfc_store<{wide}>({to} + {at}, {source} + e);"),
                Some(source) => format!("kfc_store<{wide}>({to} + {at}, {source} + e, {valid});"),
                None if valid.is_empty() => format!("{to}[{at}] = {};", this.at(g, value, &map)),
                None => format!("if ({valid}) {to}[{at}] = {};", this.at(g, value, &map)),
            }]
        });
    }

    /// Several threads hold what one of them is about to write, and the planner may have put the result where an operand of as
    /// many elements is: all must have read that.
    fn after_readers(&mut self, param: usize) {
        let len = self.p.params[param].len;
        let alike = |q: &Param| q.access == Access::Read && q.len == len;
        let shared = (0..self.p.params.len()).map(Place::Buffer).zip(&self.p.params);
        if shared.filter(|(_, q)| alike(q)).any(|(place, _)| self.shared.since.was_read(place)) {
            self.flush();
            let (copies, tiles) = (self.shared.copies(), self.shared.tiles());
            self.shared.since = Default::default();
            self.barrier(true, copies, tiles);
        }
    }

    /// The name of an array that holds a value in this layout, register for register.
    pub(super) fn whole(&mut self, v: Var, layout: &Layout) -> String {
        if self.plan.kinds[v.index()] == Kind::Held && self.plan.layout(v) == *layout {
            return self.name(v);
        }
        let (name, map) = (self.temporary(), identity(&self.p.ty(v).dims));
        let ty = type_name(self.plan.elem(v));
        self.each(layout, 1, &[(v, &map)], |this, g| {
            g.declarations.push(format!("{ty} {name}[{}];", layout.registers()));
            vec![format!("{name}[e] = {};", this.at(g, v, &map))]
        });
        name
    }
}

/// Name of a buffer.
pub(super) fn pointer(name: &str) -> String {
    format!("{name}_ptr")
}

/// Register of a tile in `inner` that goes with register `e` of `outer`.
pub(super) fn slot(outer: &Layout, inner: &Layout, map: &[usize]) -> String {
    if outer == inner && map.iter().copied().eq(0..map.len()) {
        "e".into()
    } else {
        outer.slot_of(inner, map)
    }
}

/// Position of an element in row-major order.
pub(super) fn flat(g: &mut Group, dims: &[usize]) -> String {
    match dims.len() {
        0 => "0".into(),
        1 => Printer::coordinate(g, 0).into(),
        _ => {
            let (i, j) = (Printer::coordinate(g, 0), Printer::coordinate(g, 1));
            format!("{i} * {} + {j}", dims[1])
        }
    }
}

/// Lets one of the threads through that hold the same.
pub(super) fn guard(l: &Layout) -> String {
    if l.replicas() == 0 { String::new() } else { format!("if ((tid & {}) == 0) ", l.replicas()) }
}
