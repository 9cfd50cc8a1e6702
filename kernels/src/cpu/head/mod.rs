//! The output layer with its losses: `linear_cross_entropy_kd`, its gradient, the two fused, and `linear_token_scores`.
//!
//! Tokens that count are taken in chunks; student and teacher logits of a chunk stand in the workspace, one pass a row
//! turns them into losses and (in place) into gradients, and two products turn these into `dh` and `dw`. Losses are
//! summed in `f64` in the order of tokens.

pub(super) mod rows;
#[cfg(target_arch = "x86_64")]
mod rows_avx512;
mod scores;
mod topk;

pub(crate) use scores::TokenScores;

use crate::cpu::float::{Dst, Src};
use crate::cpu::gemm::{self, Job, Mat, Product};
use crate::cpu::transposed::Transposed;
use crate::cpu::{Call, Kernel, KernelError, choice, par};
use kfc_graph::{Attrs, DType, TensorType};
use kfc_ops::head::{Divergence, HeadAttrs, KdKind};
use rows::{Forward, Softened};

/// Bytes of logits that a chunk aims at: they stay in a last-level cache beside weights.
const CHUNK_BYTES: usize = 16 << 20;

/// Bytes that it may have where it would be fewer than [`GOOD_ROWS`] tokens, for which weights would be read too often.
const MOST_BYTES: usize = 32 << 20;
const GOOD_ROWS: usize = 128;

/// Fewest tokens of a chunk: fewer would make the products inefficient.
const CHUNK_ROWS: usize = 64;

/// Tokens of a chunk for `n` tokens and `vocab` logits a token.
fn chunk_rows(n: usize, vocab: usize) -> usize {
    let row = vocab.max(1) * size_of::<f32>();
    let rows = (CHUNK_BYTES / row).max(GOOD_ROWS.min(MOST_BYTES / row));
    // Chunks of nearly equal length.
    let chunks = n.div_ceil(rows.max(CHUNK_ROWS).next_multiple_of(16)).max(1);
    n.div_ceil(chunks).next_multiple_of(16).min(n).max(1)
}

/// Which of the three operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Forward,
    Backward,
    Fused,
}

/// A matrix of rows that are multiplied by a weight.
#[derive(Clone, Copy)]
struct Projection {
    width: usize,
    vocab: usize,
    x: DType,
    w: DType,
}

impl Projection {
    fn new(h: &TensorType, w: &TensorType) -> Projection {
        Projection { width: h.last(), vocab: w.dims[0], x: h.dtype, w: w.dtype }
    }

    fn row_bytes(&self) -> usize {
        self.width * self.x.size()
    }

    /// Floats from the logits of one token to those of the next.
    fn pitch(&self) -> usize {
        gemm::row_pitch(self.vocab)
    }
}

/// `linear_cross_entropy_kd`, `_bwd` and `_fused`.
pub(crate) struct Head {
    attrs: HeadAttrs,
    mode: Mode,
    tokens: usize,
    student: Projection,
    teacher: Option<Projection>,
    /// Cached tokens of a position.
    top: usize,
    chunk: usize,
    layout: Layout,
}

/// Where things stand in the workspace, in bytes.
#[derive(Clone, Copy, Default)]
struct Layout {
    active: usize,
    z: usize,
    zt: usize,
    h: usize,
    ht: usize,
    dh: usize,
    losses: usize,
    total: usize,
}

impl Head {
    pub(crate) fn new(
        op: &str,
        mode: Mode,
        attrs: &Attrs,
        inputs: &[TensorType],
    ) -> Result<Head, KernelError> {
        let attrs = HeadAttrs::parse(op, attrs)?;
        let mut head = Head {
            attrs,
            mode,
            tokens: 0,
            student: Projection { width: 0, vocab: 0, x: DType::F32, w: DType::F32 },
            teacher: None,
            top: 0,
            chunk: 1,
            layout: Layout::default(),
        };
        let o = head.first();
        head.tokens = inputs[o].rows();
        head.student = Projection::new(&inputs[o], &inputs[o + 1]);
        match attrs.kd {
            KdKind::None => {}
            KdKind::Logits => head.teacher = Some(Projection::new(&inputs[o + 4], &inputs[o + 5])),
            KdKind::TopK => head.top = inputs[o + 4].last(),
        }
        let teacher_vocab = head.teacher.map_or(0, |t| t.vocab);
        head.chunk = chunk_rows(head.tokens, head.student.vocab + teacher_vocab);
        head.layout = head.lay_out();
        Ok(head)
    }

    fn lay_out(&self) -> Layout {
        let mut at = 0;
        let mut next = |bytes: usize| {
            let start = at;
            at += bytes.next_multiple_of(64);
            start
        };
        let teacher_row = self.teacher.map_or(0, |t| t.row_bytes());
        let dh_row = if self.mode == Mode::Forward { 0 } else { self.student.row_bytes() };
        let mut layout = Layout {
            active: next(self.tokens * size_of::<u32>()),
            z: next(self.chunk * self.student.pitch() * size_of::<f32>()),
            zt: next(self.chunk * self.teacher.map_or(0, |t| t.pitch()) * size_of::<f32>()),
            h: next(self.chunk * self.student.row_bytes()),
            ht: next(self.chunk * teacher_row),
            dh: next(self.chunk * dh_row),
            losses: next(self.chunk * size_of::<[f64; 3]>()),
            total: 0,
        };
        layout.total = at;
        layout
    }

    /// Position of h among the operands: gradients of the losses stand before.
    fn first(&self) -> usize {
        match self.mode {
            Mode::Forward => 0,
            _ => 1 + usize::from(self.attrs.distils()),
        }
    }

    /// The weight, across which gradients of hidden states read.
    fn weight(&self) -> Transposed {
        let Projection { width, vocab, w, .. } = self.student;
        Transposed { operand: self.first() + 1, rows: vocab, columns: width, dtype: w }
    }

    /// Position of w_kd.
    fn w_kd(&self) -> usize {
        self.first() + if self.attrs.kd == KdKind::TopK { 7 } else { 6 }
    }

    /// Position of dh among the results.
    fn dh(&self) -> usize {
        match self.mode {
            Mode::Fused => 2 + usize::from(self.attrs.distils()),
            _ => 0,
        }
    }

    /// Lists the tokens with a loss; returns how many there are.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn list_active(&self, call: &Call<'_>) -> usize {
        let o = self.first();
        // SAFETY: by contract.
        unsafe {
            let (labels, w_ce) = (call.input::<i32>(o + 2), call.input::<f32>(o + 3));
            let w_kd = if self.attrs.distils() { call.input::<f32>(self.w_kd()) } else { &[] };
            let active = call.work::<u32>(self.layout.active, self.tokens);
            let mut n = 0;
            for i in 0..self.tokens {
                let counts = self.label(labels[i]).is_some() && w_ce[i] != 0.0;
                if counts || w_kd.get(i).is_some_and(|w| *w != 0.0) {
                    active[n] = i as u32;
                    n += 1;
                }
            }
            n
        }
    }

    fn label(&self, label: i32) -> Option<usize> {
        usize::try_from(label).ok().filter(|l| *l < self.student.vocab)
    }

    /// The rows `active` of operand `x`: where they lie if they follow one another, else gathered at `rows_at`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn rows_of(
        &self,
        call: &Call<'_>,
        x: usize,
        p: Projection,
        active: &[u32],
        rows_at: usize,
    ) -> Src {
        let bytes = p.row_bytes();
        // SAFETY: by contract; the parts of the workspace do not overlap.
        unsafe {
            if follow_one_another(active) {
                return call.src(x, p.x).offset(active[0] as usize * p.width);
            }
            let all = call.input::<u8>(x);
            let rows = call.work::<u8>(rows_at, active.len() * bytes);
            for (to, i) in rows.chunks_exact_mut(bytes).zip(active) {
                to.copy_from_slice(&all[*i as usize * bytes..][..bytes]);
            }
            Dst::new(rows.as_mut_ptr(), p.x).src()
        }
    }

    /// Logits of the rows `active` of operand `x`, gathered at `rows_at` if need be, written at `z_at`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn logits(
        &self,
        call: &Call<'_>,
        x: usize,
        p: Projection,
        active: &[u32],
        rows_at: usize,
        z_at: usize,
    ) {
        let n = active.len();
        // SAFETY: by contract; the parts of the workspace do not overlap.
        unsafe {
            let h = self.rows_of(call, x, p, active, rows_at);
            let w = Mat::rows(call.src(x + 1, p.w), p.width);
            let z = Dst::floats(call.work(z_at, n * p.pitch()));
            let products = [Product::new(Mat::rows(h, p.width), w.t(), p.width)];
            // The logits of a token are the same in any chunk.
            Job { dots: false, ldc: p.pitch(), ..Job::new(n, p.vocab, &products, z) }.run();
        }
    }

    /// Turns the logits of a chunk into losses and gradients.
    ///
    /// # Safety
    /// As [`Kernel::run`], after [`Head::logits`].
    unsafe fn rows(&self, call: &Call<'_>, active: &[u32]) {
        let (o, v) = (self.first(), self.student.vocab);
        let vt = self.teacher.map_or(0, |t| t.vocab);
        let n = active.len();
        let (pitch, pitch_t) = (self.student.pitch(), self.teacher.map_or(0, |t| t.pitch()));
        // SAFETY: by contract; rows are disjoint.
        unsafe {
            let z = par::Shared::new(call.work::<f32>(self.layout.z, n * pitch));
            let zt = par::Shared::new(call.work::<f32>(self.layout.zt, n * pitch_t));
            let losses = par::Shared::new(call.work::<[f64; 3]>(self.layout.losses, n));
            let (labels, w_ce) = (call.input::<i32>(o + 2), call.input::<f32>(o + 3));
            let distils = self.attrs.distils();
            let w_kd = if distils { call.input::<f32>(self.w_kd()) } else { &[] };
            let with_gradient = self.mode != Mode::Forward;
            let g_ce = if with_gradient { call.input::<f32>(0)[0] } else { 0.0 };
            let g_kd = if with_gradient && distils { call.input::<f32>(1)[0] } else { 0.0 };
            let t = self.attrs.temperature;
            par::ranges(n, par::rows_grain(4 * (v + vt)), |range| {
                for r in range {
                    let i = active[r] as usize;
                    let z = z.slice(r * pitch, v);
                    let label = self.label(labels[i]);
                    let w_ce = if label.is_some() { w_ce[i] } else { 0.0 };
                    let w_kd = w_kd.get(i).copied().unwrap_or(0.0);
                    let (a, b) = (g_ce * w_ce, g_kd * w_kd * t as f32);
                    let zt = zt.slice(r * pitch_t, vt);
                    let is_forward = self.attrs.divergence == Divergence::ForwardKl && vt >= v;
                    let forward = (self.attrs.kd == KdKind::Logits && is_forward)
                        .then(|| Forward::new(z, zt, [pitch, pitch_t], label, t as f32));
                    let ce = match &forward {
                        Some(forward) => forward.ce,
                        None => rows::cross_entropy(z, label),
                    };
                    let is_best = match (&forward, label) {
                        (Some(forward), _) => forward.is_best,
                        (None, label) => label.is_some_and(|l| ce.is_best(z, l)),
                    };
                    let correct = w_ce > 0.0 && is_best;
                    let rounds = with_gradient && self.rounds() && !self.attrs.need_dw;
                    let mut is_done = !with_gradient;
                    let kd = match (self.attrs.kd, forward) {
                        (_, Some(forward)) => {
                            is_done |= rounds && forward.rounded_gradient(a, b, label, z, zt);
                            if !is_done {
                                forward.gradient(a, b, z, zt);
                            }
                            forward.loss
                        }
                        (KdKind::None, _) => {
                            if with_gradient {
                                rows::scaled_softmax(a, ce.lse as f32, z);
                            }
                            0.0
                        }
                        (KdKind::Logits, _) => {
                            let common = v.min(vt);
                            let pair = Softened::new(&z[..common], &zt[..common], t as f32);
                            pair.run(self.attrs.divergence, a, b, ce.lse as f32, z, zt, with_gradient)
                        }
                        (KdKind::TopK, _) => {
                            let k = self.top;
                            let cache = topk::Cache {
                                ids: &call.input::<i32>(o + 4)[i * k..][..k],
                                logits: &call.input::<f32>(o + 5)[i * k..][..k],
                                lse: call.input::<f32>(o + 6)[i],
                            };
                            topk::run(self.attrs.divergence, t, &cache, a, b, ce.lse as f32, z, with_gradient)
                        }
                    };
                    if let (false, Some(l)) = (is_done, label) {
                        z[l] -= a;
                    }
                    if !is_done && rounds {
                        round_in_place(z);
                    }
                    losses.slice(r, 1)[0] = [
                        f64::from(w_ce) * ce.loss,
                        f64::from(w_kd) * t * t * kd,
                        f64::from(u8::from(correct)),
                    ];
                }
            });
        }
    }

    /// Whether dh, which is `bf16`, is a product of `bf16`: gradients of logits are rounded for it, in place.
    fn rounds(&self) -> bool {
        self.student.x == DType::Bf16 && self.student.w == DType::Bf16 && gemm::multiplies_bf16()
    }

    /// Gradients of a chunk from those of its logits.
    ///
    /// # Safety
    /// As [`Kernel::run`], after [`Head::rows`].
    unsafe fn gradients(&self, call: &Call<'_>, active: &[u32], is_first: bool) {
        let (n, p) = (active.len(), self.student);
        let bytes = p.row_bytes();
        // SAFETY: by contract; the parts of the workspace do not overlap.
        unsafe {
            let z = call.work::<f32>(self.layout.z, n * p.pitch());
            let mut dz = Mat::rows(Dst::floats(z).src(), p.pitch());
            if self.attrs.need_dw {
                let h = self.rows_of(call, self.first(), p, active, self.layout.h);
                let products = [Product::new(dz.t(), Mat::rows(h, p.width), n)];
                let dw = call.dst(self.dh() + 1, DType::F32);
                Job { accumulate: !is_first, ..Job::new(p.vocab, p.width, &products, dw) }.run();
                if self.rounds() {
                    let z = par::Shared::new(z);
                    par::ranges(n, par::rows_grain(p.vocab), |range| {
                        range.for_each(|r| round_in_place(z.slice(r * p.pitch(), p.vocab)));
                    });
                }
            }
            if self.rounds() {
                let src = Src::new(dz.src.ptr(), DType::Bf16);
                dz = Mat::rows(src, 2 * p.pitch());
            }
            let w = self.weight().mat(call);
            let follow = follow_one_another(active);
            let to = if follow {
                call.dst(self.dh(), p.x).offset(active[0] as usize * p.width)
            } else {
                Dst::new(call.work::<u8>(self.layout.dh, n * bytes).as_mut_ptr(), p.x)
            };
            Job { dots: false, ..Job::new(n, p.width, &[Product::new(dz, w, p.vocab)], to) }.run();
            if !follow {
                let (dh, all) = (call.work::<u8>(self.layout.dh, n * bytes), call.output::<u8>(self.dh()));
                for (row, i) in dh.chunks_exact(bytes).zip(active) {
                    all[*i as usize * bytes..][..bytes].copy_from_slice(row);
                }
            }
        }
    }
}

/// Whether rows lie one after the other.
fn follow_one_another(active: &[u32]) -> bool {
    active.windows(2).all(|w| w[1] == w[0] + 1)
}

/// Turns a row of `f32` into a row of `bf16` in its first half.
fn round_in_place(row: &mut [f32]) {
    const RUN: usize = 512;
    let mut floats = [0.0f32; RUN];
    let at = row.as_mut_ptr().cast();
    let (from, to) = (Src::new(at, DType::F32), Dst::new(at, DType::Bf16));
    for start in (0..row.len()).step_by(RUN) {
        let n = RUN.min(row.len() - start);
        // SAFETY: within the row, and nothing that is written is still to be read.
        unsafe {
            from.load(start, &mut floats[..n]);
            to.store(start, &floats[..n]);
        }
    }
}

impl Kernel for Head {
    unsafe fn run(&self, call: &Call<'_>) {
        let o = self.first();
        let mut totals = [0.0f64; 3];
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        unsafe {
            let count = self.list_active(call);
            let active = &*call.work::<u32>(self.layout.active, count);
            if self.mode != Mode::Forward {
                if count < self.tokens {
                    call.output::<u8>(self.dh()).fill(0);
                }
                if count == 0 && self.attrs.need_dw {
                    call.output::<f32>(self.dh() + 1).fill(0.0);
                }
            }
            let most = self.chunk().and(choice::current().chunk).map_or(self.chunk, usize::from);
            for (c, chunk) in active.chunks(self.chunk.min(most)).enumerate() {
                self.logits(call, o, self.student, chunk, self.layout.h, self.layout.z);
                if let Some(teacher) = self.teacher {
                    self.logits(call, o + 4, teacher, chunk, self.layout.ht, self.layout.zt);
                }
                self.rows(call, chunk);
                for losses in call.work::<[f64; 3]>(self.layout.losses, chunk.len()).iter() {
                    totals.iter_mut().zip(losses).for_each(|(t, l)| *t += l);
                }
                if self.mode != Mode::Forward {
                    self.gradients(call, chunk, c == 0);
                }
            }
            if self.mode != Mode::Backward {
                let [ce, kd, correct] = totals.map(|t| t as f32);
                call.output::<f32>(0)[0] = ce;
                if self.attrs.distils() {
                    call.output::<f32>(1)[0] = kd;
                }
                call.output::<f32>(1 + usize::from(self.attrs.distils()))[0] = correct;
            }
        }
    }

    fn workspace_bytes(&self) -> usize {
        self.layout.total
    }

    fn transposed(&self) -> Option<Transposed> {
        (self.mode != Mode::Forward).then(|| self.weight())
    }

    /// The gradient of the weight is a sum of those of chunks, which depends on their length.
    fn chunk(&self) -> Option<usize> {
        (!self.attrs.need_dw).then_some(self.chunk)
    }
}
