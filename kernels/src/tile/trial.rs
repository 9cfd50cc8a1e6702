//! Trials of kernels that people wrote: random buffers of a program's own sizes, what the interpreter makes of them, and the
//! first difference of what a kernel made of them.
//!
//! The program is run for a sample of its grid, as many programs as an amount of work allows, the first and the last among
//! them; results are compared where those write. Elements are functions of their index and a seed: nothing is held.
//!
//! What buffers hold is found by trying: integers may be indices, so each buffer of them gets the largest power of two below
//! which all values keep the program in bounds; floats are between -1 and 1, or positive where results would not be finite.

use super::TileError;
use super::interp::{self, Sample, round};
use super::ir::{Access, Elem, Fold, Inst, Program, Stmt};
use half::{bf16, f16};
use std::fmt;

/// Operations on elements that the interpreter may do for a trial: seconds.
const WORK: u64 = 300_000_000;

/// Programs that are run to find out what buffers may hold.
const PROBED: usize = 2;

/// Largest integers that are tried.
const LARGEST: u32 = 1 << 16;

/// Least size of a buffer's largest element, for a tolerance.
pub const LEAST: f64 = 1e-3;

/// Buffers of floats that are tried one by one.
const MOST_TRIED: usize = 12;

/// What a buffer holds before.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// All bits set: what is not written is seen.
    Unwritten,
    /// Integers below this; every second one below 4, so that some are equal.
    Below(u32),
    /// This integer.
    Exactly(u32),
    /// Floats between -1 and 1.
    Signed,
    /// Floats between 0.1 and 1.
    Positive,
}

/// A program with contents of its buffers, and what some of its grid make of them.
#[derive(Clone, Debug)]
pub struct Trial {
    params: Vec<(String, Elem, usize, Access)>,
    /// For each parameter, the first that has the same buffer.
    shared: Vec<usize>,
    rules: Vec<Rule>,
    sample: Sample,
    programs: usize,
    /// Largest error of `f32` results, relative to the largest of them.
    error_f32: f64,
}

/// What a kernel does otherwise than its program.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The parameter.
    pub buffer: String,
    /// Its first wrong element.
    pub index: usize,
    /// What the kernel left there.
    pub got: f64,
    /// What the program leaves there.
    pub expected: f64,
    /// How far the two may be apart.
    pub tolerance: f64,
    /// Wrong elements of the buffer, and all that were compared.
    pub count: (usize, usize),
    /// Whether the program only reads the buffer.
    pub is_read: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { buffer, index, got, expected, tolerance, count: (wrong, all), is_read } = self;
        if *is_read {
            return write!(
                f,
                "it changes {buffer}[{index}], which it may only read, from {expected} to {got}"
            );
        }
        write!(
            f,
            "{buffer}[{index}] is {got} instead of {expected} (tolerance {tolerance:.1e}; {wrong} of {all} compared \
             elements of {buffer} are wrong)"
        )
    }
}

impl Trial {
    /// A trial of `p`, whose parameters share buffers as `shared` says ([`super::lower::Origin::shared`]).
    ///
    /// # Errors
    /// If no contents are found that keep the program in bounds.
    pub fn new(p: &Program, shared: &[usize]) -> Result<Trial, TileError> {
        let same = |(k, &first): (usize, &usize)| {
            let (a, b) = (&p.params[k], &p.params[first]);
            if (a.elem, a.len) == (b.elem, b.len) { first } else { k }
        };
        let shared: Vec<usize> = shared.iter().enumerate().map(same).collect();
        let mut rules: Vec<Rule> = (0..p.params.len()).map(|k| first_rule(p, &shared, k)).collect();
        bound_integers(p, &shared, &mut rules)?;
        keep_finite(p, &shared, &mut rules)?;
        let sample = interp::sample(p, &contents(p, &shared, &rules), order(p.programs()), WORK)?;
        let params = p.params.iter().map(|q| (q.name.clone(), q.elem, q.len, q.access)).collect();
        Ok(Trial { params, shared, rules, sample, programs: p.programs(), error_f32: error_f32(p, &p.body) })
    }

    /// Bytes of the buffer of a parameter, before. Those of parameters that share a buffer are the same.
    pub fn bytes(&self, k: usize) -> Vec<u8> {
        let (_, elem, len, _) = self.params[self.shared[k]];
        let (rule, seed) = (self.rules[self.shared[k]], self.shared[k]);
        if rule == Rule::Unwritten {
            return vec![0xff; len * elem.bytes()];
        }
        let mut bytes = Vec::with_capacity(len * elem.bytes());
        for i in 0..len {
            encode(element(rule, elem, seed, i), elem, &mut bytes);
        }
        bytes
    }

    /// For each parameter, the first that has the same buffer.
    pub fn shared(&self) -> &[usize] {
        &self.shared
    }

    /// Programs of the grid that were run, in that order.
    pub fn sampled(&self) -> &[usize] {
        &self.sample.programs
    }

    /// How many of the grid's programs were run, in words.
    pub fn coverage(&self) -> String {
        match self.sample.programs.len() {
            n if n == self.programs => format!("all {n} blocks"),
            n => format!("{n} of {} blocks", self.programs),
        }
    }

    /// Multiplications and additions of dot products that the whole grid does, from those of the sample.
    pub fn dot_flops(&self) -> u64 {
        let all = u128::from(self.sample.dot_flops) * self.programs as u128;
        (all / self.sample.programs.len().max(1) as u128) as u64
    }

    /// The first difference of what a kernel left in the buffers of all parameters; `is_done(k, i)` tells whether it was let
    /// write element `i` of parameter `k`. Where one buffer is several parameters', each has it.
    pub fn compare(&self, after: &[Vec<u8>], is_done: &dyn Fn(usize, usize) -> bool) -> Option<Difference> {
        (0..self.params.len()).find_map(|k| match self.params[k].3 {
            Access::Read => self.changed(k, &after[k]),
            Access::Write | Access::ReadWrite => self.wrong(k, &after[k], is_done),
        })
    }

    /// How many elements [`Trial::compare`] compares.
    pub fn compared(&self, is_done: &dyn Fn(usize, usize) -> bool) -> usize {
        let written = self.sample.written.iter().enumerate();
        written.map(|(k, elements)| elements.iter().filter(|(i, _)| is_done(k, *i)).count()).sum()
    }

    /// A change of what is only read.
    fn changed(&self, k: usize, after: &[u8]) -> Option<Difference> {
        let is_written = |j: usize| self.shared[j] == self.shared[k] && self.params[j].3 != Access::Read;
        if (0..self.params.len()).any(is_written) {
            return None;
        }
        let before = self.bytes(k);
        let (name, elem, len, _) = &self.params[k];
        let at = before.iter().zip(after).position(|(a, b)| a != b)?;
        let index = at / elem.bytes();
        let (got, expected) = (decode(after, *elem, index), decode(&before, *elem, index));
        let count = (1, *len);
        Some(Difference { buffer: name.clone(), index, got, expected, tolerance: 0.0, count, is_read: true })
    }

    /// A wrong result.
    fn wrong(&self, k: usize, after: &[u8], is_done: &dyn Fn(usize, usize) -> bool) -> Option<Difference> {
        let (name, elem, ..) = &self.params[k];
        let expected = || self.sample.written[k].iter().filter(|(i, _)| is_done(k, *i));
        let finite = expected().map(|(_, v)| v.abs()).filter(|v| v.is_finite());
        let tolerance = self.relative(*elem) * finite.fold(LEAST, f64::max);
        let is_wrong = |(i, v): &&(usize, f64)| {
            let got = decode(after, *elem, *i);
            let is_close = (got - v).abs() <= tolerance || got == *v || (got.is_nan() && v.is_nan());
            !is_close
        };
        let (index, v) = *expected().find(is_wrong)?;
        let count = (expected().filter(is_wrong).count(), expected().count());
        let got = decode(after, *elem, index);
        Some(Difference { buffer: name.clone(), index, got, expected: v, tolerance, count, is_read: false })
    }

    /// Largest error allowed, relative to the largest element.
    fn relative(&self, elem: Elem) -> f64 {
        relative(elem, self.error_f32)
    }
}

/// How far results of this type may be from those of a program, relative to the largest element of their buffer.
pub fn tolerance(p: &Program, elem: Elem) -> f64 {
    relative(elem, error_f32(p, &p.body))
}

fn relative(elem: Elem, error_f32: f64) -> f64 {
    match elem {
        Elem::F32 => error_f32,
        Elem::Bf16 => 1e-2,
        Elem::F16 => 2e-3,
        _ => 0.0,
    }
}

/// What a buffer holds before anything was tried.
fn first_rule(p: &Program, shared: &[usize], k: usize) -> Rule {
    let of_buffer = || p.params.iter().zip(shared).filter(|(_, first)| **first == k).map(|(q, _)| q);
    if of_buffer().all(|q| q.access == Access::Write) {
        return Rule::Unwritten;
    }
    if p.params[k].elem.is_float() { Rule::Signed } else { Rule::Below(LARGEST) }
}

/// Contents of all buffers.
fn contents<'a>(p: &'a Program, shared: &'a [usize], rules: &'a [Rule]) -> impl Fn(usize, usize) -> f64 + 'a {
    |k, i| element(rules[shared[k]], p.params[k].elem, shared[k], i)
}

/// Runs a few programs.
fn probe(p: &Program, shared: &[usize], rules: &[Rule]) -> Result<Sample, TileError> {
    interp::sample(p, &contents(p, shared, rules), order(p.programs()).take(PROBED), WORK)
}

/// Lowers what integers are until all indices are in bounds: of each buffer alone, then of all together.
fn bound_integers(p: &Program, shared: &[usize], rules: &mut [Rule]) -> Result<(), TileError> {
    let integers: Vec<usize> = (0..rules.len()).filter(|k| matches!(rules[*k], Rule::Below(_))).collect();
    let mut limits: Vec<u32> = Vec::new();
    integers.iter().for_each(|k| rules[*k] = Rule::Exactly(0));
    for &k in &integers {
        let mut limit = LARGEST;
        loop {
            rules[k] = Rule::Exactly(limit - 1);
            match probe(p, shared, rules) {
                Ok(_) => break,
                Err(e) if limit == 1 => return Err(e),
                Err(_) => limit /= 2,
            }
        }
        rules[k] = Rule::Exactly(0);
        limits.push(limit);
    }
    loop {
        integers.iter().zip(&limits).for_each(|(k, limit)| rules[*k] = Rule::Exactly(limit - 1));
        match probe(p, shared, rules) {
            Ok(_) => break,
            Err(e) if limits.iter().all(|l| *l == 1) => return Err(e),
            Err(_) => limits.iter_mut().for_each(|l| *l = (*l / 2).max(1)),
        }
    }
    integers.iter().zip(limits).for_each(|(k, limit)| rules[*k] = Rule::Below(limit));
    Ok(())
}

/// Makes buffers positive if that makes more results finite.
fn keep_finite(p: &Program, shared: &[usize], rules: &mut [Rule]) -> Result<(), TileError> {
    let bad = |rules: &[Rule]| -> Result<usize, TileError> {
        let sample = probe(p, shared, rules)?;
        Ok(sample.written.iter().flatten().filter(|(_, v)| !v.is_finite()).count())
    };
    let mut fewest = bad(rules)?;
    let floats: Vec<usize> = (0..rules.len()).filter(|k| rules[*k] == Rule::Signed).collect();
    if floats.len() <= MOST_TRIED {
        for &k in &floats {
            if fewest == 0 {
                return Ok(());
            }
            rules[k] = Rule::Positive;
            match bad(rules)? {
                n if n < fewest => fewest = n,
                _ => rules[k] = Rule::Signed,
            }
        }
    }
    if fewest > 0 {
        let signed = rules.to_vec();
        floats.iter().for_each(|k| rules[*k] = Rule::Positive);
        if bad(rules)? >= fewest {
            rules.copy_from_slice(&signed);
        }
    }
    Ok(())
}

/// Programs of a grid, each once: the first, the last, then others far from each other.
fn order(n: usize) -> impl Iterator<Item = usize> {
    let step = (n * 5 / 8..n).find(|s| gcd(*s, n) == 1).unwrap_or(1);
    let last = n.saturating_sub(1);
    let others = (1..n).map(move |i| i * step % n).filter(move |i| *i != last);
    std::iter::once(0).chain((last > 0).then_some(last)).chain(others)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Products of 16-bit tiles may have operands that were rounded otherwise; sums differ by their order.
fn error_f32(p: &Program, body: &[Stmt]) -> f64 {
    let of = |s: &Stmt| match &s.inst {
        Inst::Dot { a, .. } if p.ty(*a).elem != Elem::F32 => 1e-3,
        Inst::Dot { .. } | Inst::Reduce(Fold::Sum, ..) => 1e-4,
        Inst::For { body, .. } => error_f32(p, body),
        _ => 1e-5,
    };
    body.iter().map(of).fold(1e-5, f64::max)
}

/// Element `i` of a buffer, a value that its type holds.
fn element(rule: Rule, elem: Elem, seed: usize, i: usize) -> f64 {
    let bits = mixed((seed as u64) << 48 ^ i as u64);
    let unit = (bits >> 40) as f64 / f64::from(1 << 24);
    match rule {
        Rule::Unwritten if elem.is_float() => f64::NAN,
        Rule::Unwritten => round(-1.0, elem),
        Rule::Below(n) if bits & 1 == 0 => ((bits >> 8) as u32 % n).into(),
        Rule::Below(n) => ((bits >> 8) as u32 % n.min(4)).into(),
        Rule::Exactly(v) => v.into(),
        Rule::Signed => round(2.0 * unit - 1.0, elem),
        Rule::Positive => round(0.1 + 0.9 * unit, elem),
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn encode(x: f64, elem: Elem, to: &mut Vec<u8>) {
    match elem {
        Elem::F32 => to.extend((x as f32).to_le_bytes()),
        Elem::Bf16 => to.extend(bf16::from_f64(x).to_le_bytes()),
        Elem::F16 => to.extend(f16::from_f64(x).to_le_bytes()),
        Elem::I32 => to.extend((x as i32).to_le_bytes()),
        Elem::U32 => to.extend((x as u32).to_le_bytes()),
        Elem::Bool => to.push(u8::from(x != 0.0)),
    }
}

/// Element `i` of a buffer; not a number beyond its end.
pub fn decode(bytes: &[u8], elem: Elem, i: usize) -> f64 {
    let n = elem.bytes();
    let Some(b) = bytes.get(i * n..(i + 1) * n) else { return f64::NAN };
    let two = || [b[0], b[1]];
    let four = || [b[0], b[1], b[2], b[3]];
    match elem {
        Elem::F32 => f64::from(f32::from_le_bytes(four())),
        Elem::Bf16 => bf16::from_le_bytes(two()).to_f64(),
        Elem::F16 => f16::from_le_bytes(two()).to_f64(),
        Elem::I32 => f64::from(i32::from_le_bytes(four())),
        Elem::U32 => f64::from(u32::from_le_bytes(four())),
        Elem::Bool => f64::from(b[0]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tile::Builder;
    use crate::tile::ir::Unary;

    #[test]
    fn programs_of_a_grid_come_once_each() {
        for n in 1..200 {
            let mut all: Vec<usize> = order(n).collect();
            assert_eq!((all[0], all.get(1).copied()), (0, (n > 1).then(|| n - 1)));
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }

    /// `y[i] = sqrt(table[ids[i]])`, a block for 32 elements.
    fn gather() -> Program {
        let mut b = Builder::new("gather", "", [4, 1, 1], 1);
        let ids = b.param("ids", Elem::I32, 128, Access::Read);
        let table = b.param("table", Elem::F32, 100, Access::Read);
        let y = b.param("y", Elem::F32, 128, Access::Write);
        let (pid, n, range) = (b.program_id(0), b.int(32), b.range(32));
        let start = b.mul(pid, n);
        let start = b.splat(start, &[32]);
        let at = b.add(start, range);
        let id = b.load(ids, at, None);
        let x = b.load(table, id, None);
        let root = b.unary(Unary::Sqrt, x);
        b.store(y, at, root, None);
        b.finish().unwrap()
    }

    #[test]
    fn contents_keep_a_program_in_bounds_and_finite() {
        let trial = Trial::new(&gather(), &[0, 1, 2]).unwrap();
        assert_eq!(trial.rules, [Rule::Below(64), Rule::Positive, Rule::Unwritten]);
        assert_eq!((trial.sampled(), trial.coverage().as_str()), (&[0, 3, 2, 1][..], "all 4 blocks"));
    }

    #[test]
    fn differences_are_found() {
        let p = gather();
        let trial = Trial::new(&p, &[0, 1, 2]).unwrap();
        let mut after: Vec<Vec<u8>> = (0..3).map(|k| trial.bytes(k)).collect();
        let all = |_: usize, _: usize| true;
        let unwritten = trial.compare(&after, &all).unwrap();
        assert_eq!((unwritten.buffer.as_str(), unwritten.index, unwritten.count), ("y", 0, (128, 128)));
        for i in 0..128 {
            let id = decode(&after[0], Elem::I32, i) as usize;
            let root = decode(&after[1], Elem::F32, id).sqrt() as f32;
            after[2][4 * i..4 * i + 4].copy_from_slice(&root.to_le_bytes());
        }
        assert_eq!(trial.compare(&after, &all), None);
        let right = after[2].clone();
        after[2][4 * 77..4 * 78].copy_from_slice(&1.5f32.to_le_bytes());
        let wrong = trial.compare(&after, &all).unwrap();
        assert_eq!((wrong.index, wrong.got, wrong.count), (77, 1.5, (1, 128)));
        assert!(wrong.to_string().starts_with("y[77] is 1.5 instead of 0."), "{wrong}");
        // What was not let run is not compared.
        assert_eq!(trial.compare(&after, &|_, i| i != 77), None);
        after[2] = right;
        after[1][3] ^= 1;
        let changed = trial.compare(&after, &all).unwrap();
        assert_eq!((changed.buffer.as_str(), changed.index, changed.is_read), ("table", 0, true));
    }
}
