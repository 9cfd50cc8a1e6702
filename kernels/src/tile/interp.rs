//! The meaning of programs: they are run one after the other on the CPU, element by element.
//!
//! Floats are rounded to the type that holds them after every operation; a dot product is summed in `f64` and rounded once.
//! Every index is checked, and so is that no two programs write one element and none reads what another one writes: on a
//! device they run in any order. [`run`] runs the whole grid, [`sample`] some programs of it over buffers that nobody holds.

use super::TileError;
use super::ir::{Binary, Compare, Elem, Fold, Inst, Program, Stmt, Unary, Var};
use half::{bf16, f16};

/// A tile: elements in row-major order. Integers and truths are kept as numbers.
#[derive(Clone, Debug, PartialEq)]
struct Tile(Vec<f64>);

/// Elements that are kept together.
const PAGE: usize = 1024;

/// Some elements of a buffer, and which program wrote and read each.
struct Page {
    data: [f64; PAGE],
    writer: [u32; PAGE],
    reader: [u32; PAGE],
}

/// A buffer: the pages that were touched, and what the others hold.
struct Memory<'a> {
    pages: Vec<Option<Box<Page>>>,
    len: usize,
    before: Box<dyn Fn(usize) -> f64 + 'a>,
}

const NOBODY: u32 = u32::MAX;
const SEVERAL: u32 = u32::MAX - 1;

impl<'a> Memory<'a> {
    fn new(len: usize, before: impl Fn(usize) -> f64 + 'a) -> Memory<'a> {
        let pages = std::iter::repeat_with(|| None).take(len.div_ceil(PAGE)).collect();
        Memory { pages, len, before: Box::new(before) }
    }

    /// The page of an element, which is in bounds.
    fn page(&mut self, at: usize) -> &mut Page {
        let (start, before, len) = (at / PAGE * PAGE, &self.before, self.len);
        self.pages[at / PAGE].get_or_insert_with(|| {
            let element = |i: usize| if start + i < len { before(start + i) } else { 0.0 };
            let data = std::array::from_fn(element);
            Box::new(Page { data, writer: [NOBODY; PAGE], reader: [NOBODY; PAGE] })
        })
    }

    /// The elements that were written, in order.
    fn written(&self) -> Vec<(usize, f64)> {
        let pages = self.pages.iter().enumerate().filter_map(|(k, page)| Some((k, page.as_ref()?)));
        let elements = pages.flat_map(|(k, page)| (0..PAGE).map(move |i| (k * PAGE + i, page, i)));
        elements
            .filter(|(_, page, i)| page.writer[*i] != NOBODY)
            .map(|(at, page, i)| (at, page.data[i]))
            .collect()
    }
}

/// Runs a program on buffers of `f64`, which hold values of the parameters' types.
///
/// # Errors
/// If a buffer has another length, an index is out of bounds, or programs touch each other's elements.
pub fn run(p: &Program, buffers: &mut [Vec<f64>]) -> Result<(), TileError> {
    if buffers.len() != p.params.len() || buffers.iter().zip(&p.params).any(|(b, q)| b.len() != q.len) {
        let message = "buffers do not fit the parameters".into();
        return Err(TileError { program: p.name.clone(), message });
    }
    let written: Vec<_> = {
        let memories = buffers.iter().map(|data| Memory::new(data.len(), |i| data[i])).collect();
        let mut machine = Machine::new(p, memories);
        (0..p.programs()).try_for_each(|number| machine.program(number))?;
        machine.memories.iter().map(Memory::written).collect()
    };
    for (data, written) in buffers.iter_mut().zip(written) {
        written.into_iter().for_each(|(at, value)| data[at] = value);
    }
    Ok(())
}

/// What some programs of a grid do.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The programs that ran, by their number: `x + extents[0] * (y + extents[1] * z)`.
    pub programs: Vec<usize>,
    /// For each parameter, the elements that they write, in order, with their contents.
    pub written: Vec<Vec<(usize, f64)>>,
    /// Multiplications and additions of their dot products.
    pub dot_flops: u64,
}

/// Runs programs of a grid in this order until they did so many operations on elements; at least one. `before(k, i)` is
/// element `i` of parameter `k`, in its type, before.
///
/// # Errors
/// If an index is out of bounds, or two of the programs touch each other's elements.
pub fn sample(
    p: &Program,
    before: &dyn Fn(usize, usize) -> f64,
    order: impl IntoIterator<Item = usize>,
    budget: u64,
) -> Result<Sample, TileError> {
    let memories =
        p.params.iter().enumerate().map(|(k, q)| Memory::new(q.len, move |i| before(k, i))).collect();
    let mut machine = Machine::new(p, memories);
    let mut programs = Vec::new();
    for number in order {
        if machine.work > budget {
            break;
        }
        machine.program(number)?;
        programs.push(number);
    }
    let written = machine.memories.iter().map(Memory::written).collect();
    Ok(Sample { programs, written, dot_flops: machine.dot_flops })
}

/// A float rounded to a type.
pub fn round(x: f64, elem: Elem) -> f64 {
    match elem {
        Elem::F32 => f64::from(x as f32),
        Elem::Bf16 => f64::from(bf16::from_f32(x as f32)),
        Elem::F16 => f64::from(f16::from_f32(x as f32)),
        Elem::I32 => f64::from(x as i64 as i32),
        Elem::U32 => f64::from(x as i64 as u32),
        Elem::Bool => f64::from(u8::from(x != 0.0)),
    }
}

struct Machine<'a> {
    p: &'a Program,
    memories: Vec<Memory<'a>>,
    values: Vec<Tile>,
    at: [usize; 3],
    number: u32,
    /// Operations on elements so far.
    work: u64,
    dot_flops: u64,
}

impl<'a> Machine<'a> {
    fn new(p: &'a Program, memories: Vec<Memory<'a>>) -> Machine<'a> {
        let values = vec![Tile(Vec::new()); p.values()];
        Machine { p, memories, values, at: [0; 3], number: 0, work: 0, dot_flops: 0 }
    }

    /// Runs one program of the grid.
    fn program(&mut self, number: usize) -> Result<(), TileError> {
        let [x, y, _] = self.p.grid;
        self.at = [number % x, number / x % y, number / x / y];
        self.number = number as u32;
        let p = self.p;
        self.block(&p.body).map_err(|message| TileError { program: p.name.clone(), message })
    }

    fn get(&self, v: Var) -> &[f64] {
        &self.values[v.index()].0
    }

    fn block(&mut self, statements: &[Stmt]) -> Result<(), String> {
        for s in statements {
            if let Inst::For { index, from, to, step, carried, body } = &s.inst {
                let (mut i, to) = (self.get(*from)[0] as i64, self.get(*to)[0] as i64);
                let mut now: Vec<Tile> =
                    carried.iter().map(|c| self.values[c.init.index()].clone()).collect();
                while i < to {
                    self.values[index.index()] = Tile(vec![i as f64]);
                    carried.iter().zip(now).for_each(|(c, t)| self.values[c.inner.index()] = t);
                    self.block(body)?;
                    now = carried.iter().map(|c| self.values[c.next.index()].clone()).collect();
                    i += step;
                }
                carried.iter().zip(now).for_each(|(c, t)| self.values[c.result.index()] = t);
                continue;
            }
            let tile = self.value(s)?;
            self.work += tile.0.len() as u64;
            if let Some(v) = s.result {
                self.values[v.index()] = tile;
            }
        }
        Ok(())
    }

    fn value(&mut self, s: &Stmt) -> Result<Tile, String> {
        let dims = |v: Var| &self.p.ty(v).dims;
        Ok(Tile(match &s.inst {
            Inst::ProgramId(axis) => vec![self.at[*axis] as f64],
            Inst::Int(i, _) => vec![*i as f64],
            Inst::Float(x) => vec![f64::from(*x)],
            Inst::Range(n) => (0..*n).map(|i| i as f64).collect(),
            Inst::Splat(v, dims) => vec![self.get(*v)[0]; dims.iter().product()],
            Inst::Expand(v, _) => self.get(*v).to_vec(),
            Inst::Broadcast(v, to) => {
                let (from, x) = (dims(*v), self.get(*v));
                let columns = to.last().copied().unwrap_or(1);
                let at = |i: usize| {
                    let (r, c) = (i / columns, i % columns);
                    if from.len() == 1 { 0 } else { (r % from[0]) * from[1] + c % from[1] }
                };
                (0..to.iter().product()).map(|i| x[at(i)]).collect()
            }
            Inst::Transpose(v) => {
                let (d, x) = (dims(*v), self.get(*v));
                (0..x.len()).map(|i| x[(i % d[0]) * d[1] + i / d[0]]).collect()
            }
            Inst::Unary(op, v) => {
                let elem = self.p.ty(*v).elem;
                self.get(*v).iter().map(|&x| round(unary(*op, x), elem)).collect()
            }
            Inst::Binary(op, a, b) => {
                let elem = self.p.ty(*a).elem;
                self.get(*a).iter().zip(self.get(*b)).map(|(&x, &y)| binary(*op, elem, x, y)).collect()
            }
            Inst::Compare(op, a, b) => {
                let holds = |(x, y): (&f64, &f64)| match op {
                    Compare::Eq => x == y,
                    Compare::Lt => x < y,
                    Compare::Le => x <= y,
                };
                self.get(*a).iter().zip(self.get(*b)).map(|p| f64::from(u8::from(holds(p)))).collect()
            }
            Inst::Select(c, a, b) => {
                let pairs = self.get(*a).iter().zip(self.get(*b));
                self.get(*c).iter().zip(pairs).map(|(&c, (&x, &y))| if c != 0.0 { x } else { y }).collect()
            }
            Inst::Cast(v, elem) => self.get(*v).iter().map(|&x| round(x, *elem)).collect(),
            Inst::Load { param, index, mask } => self.load(*param, *index, *mask)?,
            Inst::Store { param, index, value, mask } => {
                self.store(*param, *index, *value, *mask)?;
                Vec::new()
            }
            Inst::Dot { a, b, acc } => {
                let (m, k, n) = (dims(*a)[0], dims(*a)[1], dims(*b)[1]);
                self.work += (m * k * n) as u64;
                self.dot_flops += 2 * (m * k * n) as u64;
                let (x, y) = (self.get(*a), self.get(*b));
                let sum = |i: usize| (0..k).map(|l| x[i / n * k + l] * y[l * n + i % n]).sum::<f64>();
                self.get(*acc).iter().enumerate().map(|(i, c)| round(c + sum(i), Elem::F32)).collect()
            }
            Inst::Reduce(op, v, axis) => self.reduce(*op, *v, *axis),
            Inst::For { .. } => Vec::new(),
        }))
    }

    fn reduce(&self, op: Fold, v: Var, axis: usize) -> Vec<f64> {
        let (ty, x) = (self.p.ty(v), self.get(v));
        let inner: usize = ty.dims[axis + 1..].iter().product();
        let n = ty.dims[axis];
        let fold = |i: usize| {
            let elements = (0..n).map(|j| x[i / inner * n * inner + j * inner + i % inner]);
            match op {
                Fold::Sum => round(elements.sum(), ty.elem),
                Fold::Max => elements.fold(f64::NEG_INFINITY, f64::max),
            }
        };
        (0..x.len() / n).map(fold).collect()
    }

    fn load(&mut self, param: usize, index: Var, mask: Option<Var>) -> Result<Vec<f64>, String> {
        let (number, name) = (self.number, &self.p.params[param].name);
        let mask = mask.map(|m| self.values[m.index()].0.as_slice());
        let memory = &mut self.memories[param];
        let mut read = |i: usize, at: f64| {
            if mask.is_some_and(|m| m[i] == 0.0) {
                return Ok(0.0);
            }
            let at = checked(name, at, memory.len)?;
            let (page, i) = (memory.page(at), at % PAGE);
            if page.writer[i] != NOBODY && page.writer[i] != number {
                return Err(format!("{name}[{at}] is read by a program after another wrote it"));
            }
            let reader = &mut page.reader[i];
            *reader = if *reader == NOBODY || *reader == number { number } else { SEVERAL };
            Ok(page.data[i])
        };
        self.values[index.index()].0.iter().enumerate().map(|(i, &at)| read(i, at)).collect()
    }

    fn store(&mut self, param: usize, index: Var, value: Var, mask: Option<Var>) -> Result<(), String> {
        let (number, name) = (self.number, &self.p.params[param].name);
        let values = &self.values;
        let memory = &mut self.memories[param];
        for (i, &at) in values[index.index()].0.iter().enumerate() {
            if mask.is_some_and(|m| values[m.index()].0[i] == 0.0) {
                continue;
            }
            let at = checked(name, at, memory.len)?;
            let (page, slot) = (memory.page(at), at % PAGE);
            let (writer, reader) = (page.writer[slot], page.reader[slot]);
            if (writer != NOBODY && writer != number) || (reader != NOBODY && reader != number) {
                return Err(format!("{name}[{at}] is written by a program and touched by another"));
            }
            page.writer[slot] = number;
            page.data[slot] = values[value.index()].0[i];
        }
        Ok(())
    }
}

fn checked(name: &str, at: f64, len: usize) -> Result<usize, String> {
    if at >= 0.0 && at < len as f64 {
        Ok(at as usize)
    } else {
        Err(format!("{name}[{at}] of {len} elements"))
    }
}

fn unary(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Erf => kfc_graph::interp::erf(x),
        Unary::Not => f64::from(u8::from(x == 0.0)),
    }
}

fn binary(op: Binary, elem: Elem, x: f64, y: f64) -> f64 {
    if elem == Elem::F32 {
        let z = match op {
            Binary::Add => x + y,
            Binary::Sub => x - y,
            Binary::Mul => x * y,
            Binary::Div => x / y,
            Binary::Max if x.is_nan() => x,
            Binary::Max => x.max(y),
            Binary::Min => x.min(y),
            _ => f64::NAN,
        };
        return round(z, elem);
    }
    let (a, b) = (x as i64, y as i64);
    let (u, w) = (a as u32, b as u32);
    let z = match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div => a.checked_div(b).unwrap_or(0),
        Binary::Rem => a.checked_rem(b).unwrap_or(0),
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => i64::from(u ^ w),
        Binary::Shl => i64::from(u.checked_shl(w).unwrap_or(0)),
        Binary::Shr => i64::from(u.checked_shr(w).unwrap_or(0)),
        Binary::MulHigh => ((u64::from(u) * u64::from(w)) >> 32) as i64,
    };
    match elem {
        Elem::U32 => f64::from(z as u32),
        Elem::Bool => f64::from(u8::from(z != 0)),
        _ => f64::from(z as i32),
    }
}
