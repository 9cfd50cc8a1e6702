//! `attention_bwd`: probabilities are recomputed from the saved log-sum-exp, tile by tile (Dao et al. 2022, algorithm 4).
//!
//! One task takes a key head of a batch entry with all its query heads: tiles of keys in order, for each of them tiles
//! of queries in order. Gradients of keys and values are summed in scratch, those of queries in the workspace (`f32`,
//! one `Tq · heads · d` a batch entry).

use crate::cpu::attention::{KEYS, Shape, Sight, Tile, Tokens, exp_in_place};
use crate::cpu::float::Dst;
use crate::cpu::reduce::dot;
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, KernelError, gemm, par};
use kfc_graph::{Attrs, DType, TensorType};

/// `attention_bwd`.
pub(crate) struct AttentionBwd(Shape);

impl AttentionBwd {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<AttentionBwd, KernelError> {
        Shape::new(attrs, &inputs[1], &inputs[2], &inputs[3]).map(AttentionBwd)
    }

    /// Floats of the workspace of one task: gradients of queries, then `Σ do·o` a row.
    fn task_floats(&self) -> usize {
        let s = self.0;
        s.group * s.tq * (s.d + 1)
    }

    /// The tiles of queries of a task.
    fn query_tiles(&self, batch: usize, kv_head: usize) -> impl Iterator<Item = Tile> + use<> {
        let s = self.0;
        (0..s.tq).step_by(s.queries).map(move |start| Tile {
            batch,
            kv_head,
            start,
            n: s.queries.min(s.tq - start),
        })
    }

    /// # Safety
    /// As [`Kernel::run`], for this key head.
    unsafe fn head(&self, call: &Call<'_>, batch: usize, kv_head: usize, work: &mut [f32]) {
        let s = self.0;
        let most_rows = s.group * s.queries;
        let (dq, delta) = work.split_at_mut(s.group * s.tq * s.d);
        dq.fill(0.0);
        let [d_o, _, k, v, o] = [0, 1, 2, 3, 4].map(|i| call.src(i, s.x));
        let size = most_rows * (s.d + s.dv + 2 * KEYS) + 2 * KEYS * (s.d + s.dv);
        scratch::with(size.max(2 * most_rows * s.dv), |scratch| {
            // SAFETY: by contract; extents are those of the scratch.
            unsafe {
                let (x, y) = scratch.split_at_mut(most_rows * s.dv);
                for at in self.query_tiles(batch, kv_head) {
                    let rows = s.group * at.n;
                    s.load_rows(d_o, at, s.dv, x);
                    s.load_rows(o, at, s.dv, y);
                    for r in 0..rows {
                        let row = r * s.dv..(r + 1) * s.dv;
                        delta[s.group * at.start + r] = dot(&x[row.clone()], &y[row]);
                    }
                }
                let mut cut = Cut(scratch);
                let (kt, vt) = (cut.take(KEYS * s.d), cut.take(KEYS * s.dv));
                let (dk, dv) = (cut.take(KEYS * s.d), cut.take(KEYS * s.dv));
                for start in (0..s.tk).step_by(KEYS) {
                    let at = Tile { batch, kv_head, start, n: KEYS.min(s.tk - start) };
                    s.load_keys(k, at, s.d, kt);
                    s.load_keys(v, at, s.dv, vt);
                    dk.fill(0.0);
                    dv.fill(0.0);
                    for q_at in self.query_tiles(batch, kv_head) {
                        self.pair(call, at, q_at, (kt, vt), (dk, dv), (dq, delta), cut.0);
                    }
                    self.store_keys(call.dst(1, s.x), at, s.d, dk);
                    self.store_keys(call.dst(2, s.x), at, s.dv, dv);
                }
                self.store_queries(call.dst(0, s.x), batch, kv_head, dq);
            }
        });
    }

    /// Adds what one pair of tiles contributes.
    ///
    /// # Safety
    /// As [`AttentionBwd::head`].
    #[allow(clippy::too_many_arguments)]
    unsafe fn pair(
        &self,
        call: &Call<'_>,
        k_at: Tile,
        q_at: Tile,
        (kt, vt): (&[f32], &[f32]),
        (dk, dv): (&mut [f32], &mut [f32]),
        (dq, delta): (&mut [f32], &[f32]),
        scratch: &mut [f32],
    ) {
        let s = self.0;
        let (rows, n) = (s.group * q_at.n, k_at.n);
        // SAFETY: by contract.
        let [seg_q, pos_q, seg_k, pos_k] = [6, 7, 8, 9].map(|i| unsafe { call.input::<i32>(i) });
        let queries = Tokens::new(seg_q, pos_q, q_at.batch * s.tq + q_at.start, q_at.n);
        let keys = Tokens::new(seg_k, pos_k, k_at.batch * s.tk + k_at.start, n);
        let sight = queries.sees(&keys);
        if sight == Sight::Nothing {
            return;
        }
        let mut cut = Cut(scratch);
        let (qt, dot_) = (cut.take(rows * s.d), cut.take(rows * s.dv));
        let (p, ds) = (cut.take(rows * n), cut.take(rows * n));
        let first = s.group * q_at.start;
        let scale = s.scale;
        // SAFETY: by contract; extents are those of the scratch.
        unsafe {
            s.load_rows(call.src(1, s.x), q_at, s.d, qt);
            s.load_rows(call.src(0, s.x), q_at, s.dv, dot_);
            let lse = call.input::<f32>(5);
            let (q_s, o_s, p_s) = ((s.d, 1), (s.dv, 1), (n, 1));
            gemm::kernel(
                rows,
                n,
                s.d,
                p.as_mut_ptr(),
                n,
                false,
                qt.as_ptr(),
                q_s,
                kt.as_ptr(),
                (1, s.d),
                scale,
            );
            if sight == Sight::Part {
                queries.mask(&keys, f32::NEG_INFINITY, p);
            }
            for (r, row) in p.chunks_exact_mut(n).enumerate() {
                let head = q_at.kv_head * s.group + r / q_at.n;
                let i = (q_at.batch * s.heads() + head) * s.tq + q_at.start + r % q_at.n;
                exp_in_place(lse[i], row);
            }
            gemm::kernel(
                n,
                s.dv,
                rows,
                dv.as_mut_ptr(),
                s.dv,
                true,
                p.as_ptr(),
                (1, n),
                dot_.as_ptr(),
                o_s,
                1.0,
            );
            gemm::kernel(
                rows,
                n,
                s.dv,
                ds.as_mut_ptr(),
                n,
                false,
                dot_.as_ptr(),
                o_s,
                vt.as_ptr(),
                (1, s.dv),
                1.0,
            );
            for (r, (ds, p)) in ds.chunks_exact_mut(n).zip(p.chunks_exact(n)).enumerate() {
                softmax_gradient(delta[first + r], p, ds);
            }
            gemm::kernel(
                n,
                s.d,
                rows,
                dk.as_mut_ptr(),
                s.d,
                true,
                ds.as_ptr(),
                (1, n),
                qt.as_ptr(),
                q_s,
                scale,
            );
            let dq = dq[first * s.d..].as_mut_ptr();
            gemm::kernel(rows, s.d, n, dq, s.d, true, ds.as_ptr(), p_s, kt.as_ptr(), (s.d, 1), scale);
        }
    }

    /// # Safety
    /// As [`AttentionBwd::head`].
    unsafe fn store_keys(&self, out: Dst, at: Tile, width: usize, x: &[f32]) {
        for (i, row) in x[..at.n * width].chunks_exact(width).enumerate() {
            let token = at.batch * self.0.tk + at.start + i;
            // SAFETY: by contract.
            unsafe { out.store((token * self.0.kv_heads + at.kv_head) * width, row) }
        }
    }

    /// # Safety
    /// As [`AttentionBwd::head`].
    unsafe fn store_queries(&self, out: Dst, batch: usize, kv_head: usize, dq: &[f32]) {
        let s = self.0;
        for at in self.query_tiles(batch, kv_head) {
            let tile = &dq[s.group * at.start * s.d..][..s.group * at.n * s.d];
            for (r, row) in tile.chunks_exact(s.d).enumerate() {
                let token = batch * s.tq + at.start + r % at.n;
                let head = kv_head * s.group + r / at.n;
                // SAFETY: by contract.
                unsafe { out.store((token * s.heads() + head) * s.d, row) }
            }
        }
    }
}

impl Kernel for AttentionBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        let s = self.0;
        let floats = self.task_floats();
        let tasks = s.batch * s.kv_heads;
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let work = par::Shared::new(unsafe { call.work::<f32>(0, tasks * floats) });
        let grain = par::rows_grain(s.group * s.tq * s.tk * (s.d + s.dv) / 4);
        par::ranges(tasks, grain, |range| {
            for t in range {
                // SAFETY: tasks have parts of the workspace and of the results of their own.
                unsafe { self.head(call, t / s.kv_heads, t % s.kv_heads, work.slice(t * floats, floats)) }
            }
        });
    }

    fn workspace_bytes(&self) -> usize {
        self.0.batch * self.0.kv_heads * self.task_floats() * DType::F32.size()
    }
}

simd! {
    /// `ds = p · (dp - delta)`, where `ds` holds `dp`.
    fn softmax_gradient(delta: f32, p: &[f32], ds: &mut [f32]) {
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = *p * (*ds - delta);
        }
    }
}
