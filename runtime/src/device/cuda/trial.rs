//! Other kernels for one launch of a plan: checked against the built-in one, bit for bit, and timed, on the operands that the
//! launch has in a step. What they write is put back as it was, so that the step goes on as if nothing had been tried.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned};
use super::kernels::{self, Compiled, Loaded};
use super::memory::{ALIGN, CudaMemory};
use crate::calibration::median;
use cudarc::driver::sys::CUdeviceptr;
use kfc_graph::{Op, TensorType};
use kfc_kernels::plan::Plan;
use kfc_kernels::tile::Tilings;
use kfc_kernels::tile::ir::Access;
use kfc_kernels::tile::lower::{Address, Kernel, PlannedLaunch};
use kfc_kernels::tile::programs::{Launch, Sizes, emit_tiled};
use kfc_kernels::tile::tiling::{Shape, Tiling};
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

/// The first launch of a kernel whose product may be cut in other ways.
#[derive(Clone)]
pub(crate) struct Site {
    /// Position of the kernel among those of all plans.
    pub(crate) kernel: usize,
    /// The product.
    pub(crate) shape: Shape,
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
    /// What it writes.
    written: Vec<(CUdeviceptr, usize)>,
}

/// The sites of a plan.
pub(super) fn sites(
    plan: &Plan,
    launches: &[Vec<PlannedLaunch>],
    kernels: &[Kernel],
    address: &dyn Fn(&Address) -> CUdeviceptr,
) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for (i, (step, launches)) in plan.steps.iter().zip(launches).enumerate() {
        for (j, l) in launches.iter().enumerate() {
            let built_in = &kernels[l.kernel];
            let Some(tiled) = &built_in.program.tiled else { continue };
            if let Some(known) = sites.iter_mut().find(|s| s.kernel == l.kernel) {
                known.launches += 1;
                continue;
            }
            let params = built_in.program.params.iter().zip(&l.args);
            let written = params
                .filter(|(p, _)| p.access != Access::Read)
                .map(|(p, a)| (address(a), p.len * p.elem.bytes()))
                .collect();
            sites.push(Site {
                kernel: l.kernel,
                shape: tiled.shape.clone(),
                launches: 1,
                at: (i, step.copies.len() + j),
                launch: j,
                built_in: built_in.clone(),
                op: step.op.clone(),
                inputs: step.input_types.clone(),
                outputs: step.output_types.clone(),
                written,
            });
        }
    }
    sites
}

/// Compiles the kernel of a site as a tiling has it, and says why it cannot run if so: without launching it.
///
/// # Errors
/// Why it is out.
pub(crate) fn compile(gpu: &Arc<Gpu>, site: &Site, tiling: Tiling) -> Result<(Kernel, Compiled), String> {
    let launch = |tilings: &Tilings| -> Result<(Launch, usize), String> {
        let emitted = emit_tiled(&site.op, &site.inputs, &site.outputs, &Sizes::default(), tilings)
            .map_err(|e| e.to_string())?;
        let bytes = emitted.workspace_bytes();
        let launch = emitted.launches.into_iter().nth(site.launch).ok_or("it has no such launch")?;
        Ok((launch, bytes))
    };
    let mut tilings = Tilings::new();
    tilings.choose(site.shape.clone(), tiling);
    let ((launch, bytes), (before, allowed)) = (launch(&tilings)?, launch(&Tilings::new())?);
    if launch.program.params != before.program.params
        || (&launch.args, &launch.starts) != (&before.args, &before.starts)
    {
        return Err("it takes other buffers".into());
    }
    if bytes > allowed {
        return Err(format!("its workspace has {bytes} bytes, {allowed} are planned"));
    }
    let name = site.built_in.name.clone();
    let kernel = Kernel { name, program: launch.program, launches: site.built_in.launches };
    let compiled = kernels::compile_one(gpu, &kernel).map_err(|e| e.to_string())?;
    let object = &compiled.object;
    if object.registers * compiled.threads as u64 > REGISTERS {
        let (registers, threads) = (object.registers, compiled.threads);
        return Err(format!("{registers} registers for each of {threads} threads are more than there are"));
    }
    if object.spill_bytes > 0 && tiling != Tiling::builtin(&site.shape) {
        return Err(format!("registers spill, {} bytes", object.spill_bytes));
    }
    Ok((kernel, compiled))
}

/// What came of one kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Nanoseconds of a launch in each round.
    pub(crate) times: Vec<f64>,
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

/// Kernels to be tried in place of a launch.
pub(crate) struct Trial {
    pub(super) site: Site,
    others: Vec<Arc<Loaded>>,
    deadline: Instant,
    journal: Journal,
    outcomes: Arc<Mutex<Outcomes>>,
}

impl Trial {
    /// A trial that ends at `deadline`, after a few rounds at least. What comes of it is in the outcomes.
    pub(crate) fn new(
        site: &Site,
        others: Vec<Arc<Loaded>>,
        deadline: Instant,
        journal: Journal,
    ) -> (Trial, Arc<Mutex<Outcomes>>) {
        let all = vec![Outcome::default(); others.len() + 1];
        let outcomes = Arc::new(Mutex::new(Outcomes { all, ..Outcomes::default() }));
        let shared = Arc::clone(&outcomes);
        (Trial { site: site.clone(), others, deadline, journal, outcomes }, shared)
    }

    /// Runs it where the launch is to run next; `args` are the launch's.
    ///
    /// # Errors
    /// If a kernel breaks the device, or the driver fails.
    pub(super) fn run(
        &mut self,
        memory: &CudaMemory,
        built_in: &Loaded,
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
        built_in: &Loaded,
        args: &[CUdeviceptr],
        outcomes: &mut Outcomes,
    ) -> Result<(), CudaError> {
        let what = format!("kernel {}", self.site.built_in.name);
        memory.finish("", Some(&what))?;
        let kept = match Kept::new(memory, &self.site.written) {
            Ok(kept) => kept,
            Err(e @ CudaError::OutOfMemory { .. }) => {
                outcomes.skipped = Some(e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let stream = memory.stream();
        kept.save(memory, 0)?;
        // SAFETY: the launch's own kernel and arguments; memory lives until the stream is waited for.
        unsafe { built_in.launch(stream, args) }?;
        kept.save(memory, 1)?;
        memory.finish("", Some(&what))?;
        for (i, other) in self.others.iter().enumerate() {
            (self.journal)(Some(i));
            kept.restore(memory)?;
            // SAFETY: it takes the parameters of the launch's own kernel (`compile`).
            if let Err(e) = unsafe { other.launch(stream, args) } {
                outcomes.all[i + 1].out = Some(e.to_string());
            } else if let Err(e) = memory.finish("", Some(&what)) {
                outcomes.broke = Some(i);
                return Err(e);
            } else if !kept.is_same(memory)? {
                outcomes.all[i + 1].out = Some("other bits than built in".into());
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
        built_in: &Loaded,
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
                let kernel = if *i == 0 { built_in } else { &self.others[i - 1] };
                for _ in 0..repeats {
                    // SAFETY: as in `run_all`.
                    unsafe { kernel.launch(stream, args) }?;
                }
                stream.record(event)?;
            }
            memory.finish("", Some(&format!("kernel {}", self.site.built_in.name)))?;
            for (i, pair) in alive.iter().zip(events.windows(2)) {
                outcomes.all[*i].times.push(pair[1].ns_since(&pair[0])? as f64 / repeats as f64);
            }
            if round == 0 {
                // The first round warms up, and says how often kernels go into one.
                let longest = outcomes.all.iter_mut().flat_map(|o| o.times.drain(..)).fold(1.0, f64::max);
                repeats = ((ROUND / longest) as usize).clamp(1, MOST_REPEATS);
            }
            prune(&mut outcomes.all);
        }
        outcomes.settled = true;
        Ok(())
    }
}

/// Puts out what is clearly slower than the best; never the built-in one, which others are compared with.
fn prune(all: &mut [Outcome]) {
    let timed = |o: &Outcome| median(&mut o.times.clone()).filter(|_| o.times.len() >= FEW);
    let left = all.iter().filter(|o| o.out.is_none());
    let Some(best) = left.filter_map(timed).min_by(f64::total_cmp) else { return };
    for o in all.iter_mut().skip(1).filter(|o| o.out.is_none()) {
        let limit = if o.times.len() >= SOME { SLOWER } else { MUCH_SLOWER };
        if timed(o).is_some_and(|ns| ns > limit * best) {
            o.out = Some("slower".into());
        }
    }
}

fn lock(outcomes: &Mutex<Outcomes>) -> std::sync::MutexGuard<'_, Outcomes> {
    outcomes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two copies of what a launch writes: as it was before, and as the built-in kernel leaves it.
struct Kept<'a> {
    written: &'a [(CUdeviceptr, usize)],
    copies: DeviceBytes,
    /// Where the second copy begins.
    second: usize,
}

impl<'a> Kept<'a> {
    fn new(memory: &CudaMemory, written: &'a [(CUdeviceptr, usize)]) -> Result<Kept<'a>, CudaError> {
        let second = written.iter().map(|(_, bytes)| bytes.next_multiple_of(ALIGN)).sum();
        let copies = DeviceBytes::new(memory.gpu(), 2 * second, "copies of a kernel's results, to compare")?;
        Ok(Kept { written, copies, second })
    }

    /// Places in the launch's memory and in a copy.
    fn places(&self, copy: usize) -> impl Iterator<Item = (CUdeviceptr, CUdeviceptr, usize)> {
        let mut at = self.copies.at + (copy * self.second) as CUdeviceptr;
        self.written.iter().map(move |(place, bytes)| {
            let here = at;
            at += bytes.next_multiple_of(ALIGN) as CUdeviceptr;
            (*place, here, *bytes)
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

    /// Whether memory holds what the built-in kernel left.
    fn is_same(&self, memory: &CudaMemory) -> Result<bool, CudaError> {
        let largest = self.written.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0).min(PART);
        let both = Pinned::new(memory.gpu(), 2 * largest)?;
        for (is, expected, bytes) in self.places(1) {
            for start in (0..bytes).step_by(PART) {
                let n = PART.min(bytes - start);
                for (side, from) in [is, expected].into_iter().enumerate() {
                    let from = from + start as CUdeviceptr;
                    // SAFETY: both have so many bytes there; the buffer is read after waiting.
                    unsafe { memory.stream().download(&both, side * largest, from, n) }?;
                }
                memory.finish("", Some("comparing results"))?;
                let (a, b) = both.bytes().split_at(largest);
                if a[..n] != b[..n] {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_kernels_go_by_a_wide_margin_first_and_the_built_in_one_stays() {
        let outcome = |ns: f64, rounds: usize| Outcome { times: vec![ns; rounds], out: None };
        let left = |rounds: usize| {
            let mut all = [200.0, 100.0, 110.0, 130.0].map(|ns| outcome(ns, rounds));
            prune(&mut all);
            all.map(|o| o.out.is_none())
        };
        assert_eq!(left(FEW - 1), [true; 4]);
        assert_eq!(left(FEW), [true, true, true, false]);
        assert_eq!(left(SOME), [true, true, false, false]);
    }
}
