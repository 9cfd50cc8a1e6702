//! Other kernels for one launch of a plan: checked against the built-in one, and timed, on the operands that the launch has in
//! a step. What they write is put back as it was, so that the step goes on as if nothing had been tried.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned, Stream};
use super::head::{Calls, Head};
use super::kernels::{self, Compiled, Loaded, Triton};
use super::memory::{ALIGN, CudaMemory};
use crate::calibration::median;
use crate::files::xxh64;
use cudarc::driver::sys::CUdeviceptr;
use kfc_graph::{Op, TensorType};
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::header::Language;
use kfc_kernels::tile::ir::{Access, Elem};
use kfc_kernels::tile::lower::{Address, Kernel, PlannedLaunch};
use kfc_kernels::tile::plain::Plain;
use kfc_kernels::tile::programs::{Launch, Sizes, emit_tiled};
use kfc_kernels::tile::trial::{LEAST, decode, tolerance};
use kfc_kernels::tile::{Choice, Choices, Tilings};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Registers of a multiprocessor: a block's threads must not need more.
const REGISTERS: u64 = 1 << 16;

/// Rounds after which a kernel may be out by a wide and by a narrow margin, and after which enough is known.
const FEW: usize = 4;
const SOME: usize = 12;
const ENOUGH: usize = 24;

/// Times over the best time that put a kernel out after few and after some rounds.
const MUCH_SLOWER: f64 = 1.25;
const SLOWER: f64 = 1.06;

/// Nanoseconds that a kernel runs for in a round, by repetition, and most repetitions.
const ROUND: f64 = 2e5;
const MOST_REPEATS: usize = 20;

/// Bytes that results are compared by.
const PART: usize = 8 << 20;

/// What a launch writes.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) at: CUdeviceptr,
    pub(super) bytes: usize,
    pub(super) elem: Elem,
    /// How far results may be from the built-in kernel's, relative to the largest.
    pub(super) tolerance: f64,
}

/// The first launch of a kernel.
#[derive(Clone)]
pub(crate) struct Site {
    /// Position of the kernel among those of all plans.
    pub(crate) kernel: usize,
    /// What choices for it are known by.
    pub(crate) key: String,
    /// Launches of the kernel in a run of the plan.
    pub(crate) launches: usize,
    /// Step of the plan, and position among what the step does.
    pub(super) at: (usize, usize),
    /// Position among the step's launches.
    launch: usize,
    built_in: Kernel,
    op: Op,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
    /// What the step is cut by.
    sizes: Sizes,
    /// What it writes.
    written: Vec<Written>,
}

/// The sites of a plan.
pub(super) fn sites(
    plan: &Plan,
    launches: &[Vec<PlannedLaunch>],
    kernels: &[Kernel],
    choices: &Choices,
    address: &dyn Fn(&Address) -> CUdeviceptr,
) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for (i, (step, launches)) in plan.steps.iter().zip(launches).enumerate() {
        for (j, l) in launches.iter().enumerate() {
            let built_in = &kernels[l.kernel];
            if let Some(known) = sites.iter_mut().find(|s| s.kernel == l.kernel) {
                known.launches += 1;
                continue;
            }
            let params = built_in.program.params.iter().zip(&l.args);
            let written = params
                .filter(|(p, _)| p.access != Access::Read)
                .map(|(p, a)| Written {
                    at: address(a),
                    bytes: p.len * p.elem.bytes(),
                    elem: p.elem,
                    tolerance: tolerance(&built_in.program, p.elem),
                })
                .collect();
            sites.push(Site {
                kernel: l.kernel,
                key: built_in.key.clone(),
                launches: 1,
                at: (i, step.copies.len() + j),
                launch: j,
                built_in: built_in.clone(),
                op: step.op.clone(),
                inputs: step.input_types.clone(),
                outputs: step.output_types.clone(),
                sizes: choices.sizes(&step.op, &step.input_types, &step.output_types),
                written,
            });
        }
    }
    sites
}

impl Site {
    /// The product that it is, if it is nothing else.
    pub(crate) fn plain(&self) -> Option<Plain> {
        Plain::of(&self.built_in.program)
    }
}

/// Why a choice is not tried.
pub(crate) enum Unfit {
    /// There is no compiler for it.
    NoCompiler,
    /// It cannot run.
    Out(String),
}

impl From<String> for Unfit {
    fn from(why: String) -> Unfit {
        Unfit::Out(why)
    }
}

/// Compiles the kernel of a site as a choice has it, and says why it cannot run if so: without launching it.
///
/// # Errors
/// Why it is not tried.
pub(crate) fn compile(
    gpu: &Arc<Gpu>,
    site: &Site,
    choice: Choice,
    triton: &Triton,
) -> Result<(Kernel, Compiled), Unfit> {
    let launch = |tilings: &Tilings| -> Result<(Launch, usize), String> {
        let emitted = emit_tiled(&site.op, &site.inputs, &site.outputs, &site.sizes, tilings)
            .map_err(|e| e.to_string())?;
        let bytes = emitted.workspace_bytes();
        let launch = emitted.launches.into_iter().nth(site.launch).ok_or("it has no such launch")?;
        Ok((launch, bytes))
    };
    let mut choices = Choices::default();
    choices.choose(&site.key, choice, false);
    let ((launch, bytes), (before, allowed)) = (launch(&choices.tilings)?, launch(&Tilings::new())?);
    if launch.program.params != before.program.params
        || (&launch.args, &launch.starts) != (&before.args, &before.starts)
    {
        return Err(Unfit::Out("it takes other buffers".into()));
    }
    if bytes > allowed {
        return Err(Unfit::Out(format!("its workspace has {bytes} bytes, {allowed} are planned")));
    }
    let kernel = Kernel {
        program: launch.program,
        language: choice.language,
        library: choice.library,
        ..site.built_in.clone()
    };
    let compiled = kernels::compile(gpu, &kernel, triton).map_err(|e| match e {
        CudaError::Source(_) if choice.language == Language::Triton => Unfit::NoCompiler,
        e => Unfit::Out(e.to_string()),
    })?;
    if compiled.registers * compiled.threads as u64 > REGISTERS {
        let (registers, threads) = (compiled.registers, compiled.threads);
        let why = format!("{registers} registers for each of {threads} threads are more than there are");
        return Err(Unfit::Out(why));
    }
    if compiled.spill_bytes > 0 && choice != Choice::builtin(&site.key) {
        return Err(Unfit::Out(format!("registers spill, {} bytes", compiled.spill_bytes)));
    }
    Ok((kernel, compiled))
}

/// What came of one kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Nanoseconds of a launch in each round.
    pub(crate) times: Vec<f64>,
    /// Whether its results are the built-in kernel's only within the tolerance.
    pub(crate) other_bits: bool,
    /// Why it is out, if it is.
    pub(crate) out: Option<String>,
}

/// What came of a trial.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    /// Of the built-in kernel, then of the others in order.
    pub(crate) all: Vec<Outcome>,
    /// Whether each that is left was timed often enough.
    pub(crate) settled: bool,
    /// Which of the others broke the device.
    pub(crate) broke: Option<usize>,
    /// Why nothing was tried, if so.
    pub(crate) skipped: Option<String>,
}

/// Told before one of the others runs for the first time, and after it.
pub(crate) type Journal = Box<dyn FnMut(Option<usize>) + Send>;

/// What is tried in place of something.
pub(crate) enum Contender {
    /// A kernel in place of a launch.
    Kernel(Arc<Loaded>),
    /// Launches in place of those of a step.
    Calls(Arc<Calls>),
}

impl Contender {
    /// Starts it with the arguments of the launch that it stands for.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// It was made for this place of a plan, whose memory lives until the stream has passed this.
    unsafe fn launch(&self, stream: &Stream, args: &[CUdeviceptr]) -> Result<(), CudaError> {
        match self {
            // SAFETY: see the function's own condition.
            Contender::Kernel(kernel) => unsafe { kernel.launch(stream, args) },
            // SAFETY: as above.
            Contender::Calls(calls) => unsafe { calls.launch(stream, args) },
        }
    }
}

/// What a trial stands in for: starts it as it is built in.
pub(super) type BuiltIn<'a> = &'a dyn Fn() -> Result<(), CudaError>;

/// Kernels to be tried in place of a launch, or launches in place of a step's.
pub(crate) struct Trial {
    /// Step of the plan, and position among what the step does.
    pub(super) at: (usize, usize),
    /// Whether it is all launches of the step from there on.
    pub(super) is_whole_step: bool,
    /// What messages call it.
    what: String,
    written: Vec<Written>,
    others: Vec<Contender>,
    deadline: Instant,
    /// Whether a kernel with other bits may win.
    takes_other_bits: bool,
    journal: Journal,
    outcomes: Arc<Mutex<Outcomes>>,
}

impl Trial {
    /// A trial that ends at `deadline`, after a few rounds at least. What comes of it is in the outcomes.
    pub(crate) fn new(
        site: &Site,
        others: Vec<Arc<Loaded>>,
        deadline: Instant,
        takes_other_bits: bool,
        journal: Journal,
    ) -> (Trial, Arc<Mutex<Outcomes>>) {
        let others = others.into_iter().map(Contender::Kernel).collect();
        let what = format!("kernel {}", site.built_in.name);
        let place = (site.at, false, what, site.written.clone());
        Trial::of(place, others, deadline, takes_other_bits, journal)
    }

    /// [`Trial::new`] for all launches of a head.
    pub(crate) fn of_head(
        head: &Head,
        others: Vec<Arc<Calls>>,
        deadline: Instant,
        takes_other_bits: bool,
        journal: Journal,
    ) -> (Trial, Arc<Mutex<Outcomes>>) {
        let others = others.into_iter().map(Contender::Calls).collect();
        let place = ((head.step, head.copies), true, "the head".to_string(), head.written.clone());
        Trial::of(place, others, deadline, takes_other_bits, journal)
    }

    fn of(
        (at, is_whole_step, what, written): ((usize, usize), bool, String, Vec<Written>),
        others: Vec<Contender>,
        deadline: Instant,
        takes_other_bits: bool,
        journal: Journal,
    ) -> (Trial, Arc<Mutex<Outcomes>>) {
        let all = vec![Outcome::default(); others.len() + 1];
        let outcomes = Arc::new(Mutex::new(Outcomes { all, ..Outcomes::default() }));
        let shared = Arc::clone(&outcomes);
        let trial =
            Trial { at, is_whole_step, what, written, others, deadline, takes_other_bits, journal, outcomes };
        (trial, shared)
    }

    /// Runs it where `built_in` is to run next; `args` are those of the launch, if it is one.
    ///
    /// # Errors
    /// If a kernel breaks the device, or the driver fails.
    pub(super) fn run(
        &mut self,
        memory: &CudaMemory,
        built_in: BuiltIn<'_>,
        args: &[CUdeviceptr],
    ) -> Result<(), CudaError> {
        let mut outcomes = std::mem::take(&mut *lock(&self.outcomes));
        let result = self.run_all(memory, built_in, args, &mut outcomes);
        *lock(&self.outcomes) = outcomes;
        result
    }

    fn run_all(
        &mut self,
        memory: &CudaMemory,
        built_in: BuiltIn<'_>,
        args: &[CUdeviceptr],
        outcomes: &mut Outcomes,
    ) -> Result<(), CudaError> {
        let what = self.what.clone();
        memory.finish("", Some(&what))?;
        let kept = match Kept::new(memory, &self.written) {
            Ok(kept) => kept,
            Err(e @ CudaError::OutOfMemory { .. }) => {
                outcomes.skipped = Some(e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let stream = memory.stream();
        kept.save(memory, 0)?;
        built_in()?;
        kept.save(memory, 1)?;
        memory.finish("", Some(&what))?;
        for (i, other) in self.others.iter().enumerate() {
            (self.journal)(Some(i));
            kept.restore(memory)?;
            // SAFETY: it takes the parameters of the launch's own kernel (`compile`), or was made for this step.
            if let Err(e) = unsafe { other.launch(stream, args) } {
                outcomes.all[i + 1].out = Some(e.to_string());
            } else if let Err(e) = memory.finish("", Some(&what)) {
                outcomes.broke = Some(i);
                return Err(e);
            } else {
                let (first, hash) = kept.compare(memory)?;
                let outcome = &mut outcomes.all[i + 1];
                match first {
                    Likeness::Same => {}
                    Likeness::Close => {
                        outcome.other_bits = true;
                        kept.restore(memory)?;
                        // SAFETY: as above.
                        unsafe { other.launch(stream, args) }?;
                        if kept.compare(memory)?.1 != hash {
                            outcome.out = Some("two runs leave different bits".into());
                        }
                    }
                    Likeness::Wrong(what) => outcome.out = Some(what),
                }
            }
            (self.journal)(None);
        }
        self.race(memory, built_in, args, outcomes)?;
        kept.restore(memory)?;
        memory.finish("", Some(&what))
    }

    /// All that are left in turn, until the slower ones are out, enough is known, or the time is up.
    fn race(
        &self,
        memory: &CudaMemory,
        built_in: BuiltIn<'_>,
        args: &[CUdeviceptr],
        outcomes: &mut Outcomes,
    ) -> Result<(), CudaError> {
        let stream = memory.stream();
        let events = (0..=outcomes.all.len()).map(|_| Event::new(memory.gpu()));
        let events: Vec<Event> = events.collect::<Result<_, _>>()?;
        let mut repeats = 1;
        for round in 0..ENOUGH {
            let mut alive: Vec<usize> =
                (0..outcomes.all.len()).filter(|i| outcomes.all[*i].out.is_none()).collect();
            if alive.len() <= 1 || (round >= FEW && Instant::now() >= self.deadline) {
                outcomes.settled = alive.len() <= 1;
                return Ok(());
            }
            // Nobody always comes first.
            let first = round % alive.len();
            alive.rotate_left(first);
            stream.record(&events[0])?;
            for (i, event) in alive.iter().zip(&events[1..]) {
                for _ in 0..repeats {
                    match i.checked_sub(1) {
                        None => built_in()?,
                        // SAFETY: as in `run_all`.
                        Some(other) => unsafe { self.others[other].launch(stream, args) }?,
                    }
                }
                stream.record(event)?;
            }
            memory.finish("", Some(&self.what))?;
            for (i, pair) in alive.iter().zip(events.windows(2)) {
                outcomes.all[*i].times.push(pair[1].ns_since(&pair[0])? as f64 / repeats as f64);
            }
            if round == 0 {
                // The first round warms up, and says how often kernels go into one.
                let longest = outcomes.all.iter_mut().flat_map(|o| o.times.drain(..)).fold(1.0, f64::max);
                repeats = ((ROUND / longest) as usize).clamp(1, MOST_REPEATS);
            }
            prune(&mut outcomes.all, self.takes_other_bits);
        }
        outcomes.settled = true;
        Ok(())
    }
}

/// Puts out what is clearly slower than the best that may win, or than all others if it may not win itself; never the built-in
/// one, which others are compared with.
fn prune(all: &mut [Outcome], takes_other_bits: bool) {
    let timed = |o: &Outcome| median(&mut o.times.clone()).filter(|_| o.times.len() >= FEW);
    let may_win = |o: &Outcome| takes_other_bits || !o.other_bits;
    let left = || all.iter().filter(|o| o.out.is_none());
    let winning = left().filter(|o| may_win(o)).filter_map(timed).min_by(f64::total_cmp);
    let fastest = left().filter_map(timed).min_by(f64::total_cmp);
    let (Some(winning), Some(fastest)) = (winning, fastest) else { return };
    for o in all.iter_mut().skip(1).filter(|o| o.out.is_none()) {
        let limit = if o.times.len() >= SOME { SLOWER } else { MUCH_SLOWER };
        let best = if may_win(o) { winning } else { fastest };
        if timed(o).is_some_and(|ns| ns > limit * best) {
            o.out = Some(crate::tuning::device::SLOWER.into());
        }
    }
}

fn lock(outcomes: &Mutex<Outcomes>) -> std::sync::MutexGuard<'_, Outcomes> {
    outcomes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a kernel's results are to the built-in one's.
enum Likeness {
    /// The same bits.
    Same,
    /// Other bits, within the tolerance.
    Close,
    /// Something else: what.
    Wrong(String),
}

/// Two copies of what a launch writes: as it was before, and as the built-in kernel leaves it.
struct Kept<'a> {
    written: &'a [Written],
    copies: DeviceBytes,
    /// Where the second copy begins.
    second: usize,
}

impl<'a> Kept<'a> {
    fn new(memory: &CudaMemory, written: &'a [Written]) -> Result<Kept<'a>, CudaError> {
        let second = written.iter().map(|w| w.bytes.next_multiple_of(ALIGN)).sum();
        let copies = DeviceBytes::new(memory.gpu(), 2 * second, "copies of a kernel's results, to compare")?;
        Ok(Kept { written, copies, second })
    }

    /// Places in the launch's memory and in a copy.
    fn places(&self, copy: usize) -> impl Iterator<Item = (CUdeviceptr, CUdeviceptr, usize)> {
        let mut at = self.copies.at + (copy * self.second) as CUdeviceptr;
        self.written.iter().map(move |w| {
            let here = at;
            at += w.bytes.next_multiple_of(ALIGN) as CUdeviceptr;
            (w.at, here, w.bytes)
        })
    }

    fn save(&self, memory: &CudaMemory, copy: usize) -> Result<(), CudaError> {
        // SAFETY: both have so many bytes.
        self.places(copy).try_for_each(|(from, to, n)| unsafe { memory.stream().copy(to, from, n) })
    }

    fn restore(&self, memory: &CudaMemory) -> Result<(), CudaError> {
        // SAFETY: both have so many bytes.
        self.places(0).try_for_each(|(to, from, n)| unsafe { memory.stream().copy(to, from, n) })
    }

    /// How what memory holds is to what the built-in kernel left, and a hash of it.
    fn compare(&self, memory: &CudaMemory) -> Result<(Likeness, u64), CudaError> {
        let (mut is_same, mut hash) = (true, 0);
        self.visit(memory, |_, is, expected| {
            hash = xxh64(&[xxh64(is), hash].map(u64::to_le_bytes).concat());
            is_same &= is == expected;
        })?;
        if is_same {
            return Ok((Likeness::Same, hash));
        }
        // Of each buffer the largest element that was expected, and the largest difference.
        let mut all = vec![(LEAST, 0.0f64); self.written.len()];
        self.visit(memory, |number, is, expected| {
            let (elem, (most, off)) = (self.written[number].elem, &mut all[number]);
            for i in 0..is.len() / elem.bytes() {
                let (got, expected) = (decode(is, elem, i), decode(expected, elem, i));
                *off = off.max(error(got, expected));
                *most = most.max(if expected.is_finite() { expected.abs() } else { 0.0 });
            }
        })?;
        let mut wrong = all.iter().zip(self.written).filter(|((most, off), w)| *off > w.tolerance * most);
        Ok(match wrong.next() {
            Some(((most, off), _)) => (
                Likeness::Wrong(format!("wrong results: {off:.1e} off where the largest is {most:.1e}")),
                hash,
            ),
            None => (Likeness::Close, hash),
        })
    }

    /// Hands what memory holds and what the built-in kernel left to `f`, part by part, with the position of the buffer.
    fn visit(&self, memory: &CudaMemory, mut f: impl FnMut(usize, &[u8], &[u8])) -> Result<(), CudaError> {
        let largest = self.written.iter().map(|w| w.bytes).max().unwrap_or(0).min(PART);
        let both = Pinned::new(memory.gpu(), 2 * largest)?;
        for (number, (is, expected, bytes)) in self.places(1).enumerate() {
            for start in (0..bytes).step_by(PART) {
                let n = PART.min(bytes - start);
                for (side, from) in [is, expected].into_iter().enumerate() {
                    let from = from + start as CUdeviceptr;
                    // SAFETY: both have so many bytes there; the buffer is read after waiting.
                    unsafe { memory.stream().download(&both, side * largest, from, n) }?;
                }
                memory.finish("", Some("comparing results"))?;
                let (a, b) = both.bytes().split_at(largest);
                f(number, &a[..n], &b[..n]);
            }
        }
        Ok(())
    }
}

/// How far apart two numbers are.
fn error(got: f64, expected: f64) -> f64 {
    match (got - expected).abs() {
        _ if got == expected || got.is_nan() && expected.is_nan() => 0.0,
        off if off.is_nan() => f64::INFINITY,
        off => off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_kernels_go_by_a_wide_margin_first_and_the_built_in_one_stays() {
        let outcome = |ns: f64, rounds: usize| Outcome { times: vec![ns; rounds], ..Outcome::default() };
        let left = |rounds: usize| {
            let mut all = [200.0, 100.0, 110.0, 130.0].map(|ns| outcome(ns, rounds));
            prune(&mut all, true);
            all.map(|o| o.out.is_none())
        };
        assert_eq!(left(FEW - 1), [true; 4]);
        assert_eq!(left(FEW), [true, true, true, false]);
        assert_eq!(left(SOME), [true, true, false, false]);
    }

    #[test]
    fn what_may_not_win_puts_out_only_its_like() {
        let outcome =
            |(ns, other_bits): (f64, bool)| Outcome { times: vec![ns; SOME], other_bits, out: None };
        let left = |takes_other_bits: bool| {
            let mut all = [(200.0, false), (110.0, false), (50.0, true), (60.0, true)].map(outcome);
            prune(&mut all, takes_other_bits);
            all.map(|o| o.out.is_none())
        };
        assert_eq!(left(false), [true, true, true, false]);
        assert_eq!(left(true), [true, false, true, false]);
    }

    #[test]
    fn errors_of_what_is_no_number_are_infinite() {
        assert_eq!(error(2.0, 1.5), 0.5);
        assert_eq!(error(f64::INFINITY, f64::INFINITY), 0.0);
        assert_eq!(error(f64::NAN, f64::NAN), 0.0);
        assert_eq!(error(f64::NAN, 1.0), f64::INFINITY);
    }
}
