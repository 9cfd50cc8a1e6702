//! The passes of `softmax` with AVX-512, for panels of 48 lanes.

use super::softmax::{Kept, Lanes, Mask, Rows, SLACK};
use crate::cpu::gemm::Engine;
use crate::cpu::math::avx512::exp2;
use crate::cpu::simd::quarters;
use std::arch::x86_64::*;

/// Vectors of a row.
const VR: usize = 3;

/// Lanes of a row.
const NR: usize = 16 * VR;

/// Whether the passes here are those of an engine.
pub(super) fn fits(e: &Engine) -> bool {
    e.level().has_avx512() && e.nr() == NR
}

/// See [`super::softmax::forward`].
///
/// # Safety
/// [`fits`].
pub(super) unsafe fn forward(
    e: &Engine,
    scores: &mut [f32],
    lanes: &mut Lanes<'_>,
    mask: Mask<'_>,
    pairs: &mut [u32],
) -> bool {
    // SAFETY: by contract; an engine takes pairs only with BF16.
    unsafe {
        let raised = raise(scores, lanes, mask);
        if e.is_pair() {
            exponential_pairs(scores, lanes, pairs);
        } else {
            exponentials(scores, lanes);
        }
        raised
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32]) -> __m512 {
    let x = &x[..16];
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: &mut [f32], v: __m512) {
    let x = &mut x[..16];
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i(x: &[i32]) -> __m512i {
    let x = &x[..16];
    // SAFETY: 16 integers.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_units(x: &mut [u32], v: __m512i) {
    let x = &mut x[..16];
    // SAFETY: 16 units.
    unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
}

/// A vector of each of the three parts of a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn row(x: &[f32]) -> [__m512; VR] {
    [load(&x[..16]), load(&x[16..32]), load(&x[32..48])]
}

/// Which lanes see a key.
#[derive(Clone, Copy)]
struct Eyes {
    real: __mmask16,
    seg: __m512i,
    pos: __m512i,
}

impl Eyes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(seg: &[i32], pos: &[i32]) -> Eyes {
        let seg = load_i(seg);
        Eyes { real: _mm512_cmpge_epi32_mask(seg, _mm512_setzero_si512()), seg, pos: load_i(pos) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn see(&self, seg: i32, pos: i32) -> __mmask16 {
        let same = _mm512_mask_cmpeq_epi32_mask(self.real, self.seg, _mm512_set1_epi32(seg));
        _mm512_mask_cmpge_epi32_mask(same, self.pos, _mm512_set1_epi32(pos))
    }
}

/// Hides what is masked and raises the running maxima.
#[target_feature(enable = "avx512f")]
unsafe fn raise(scores: &mut [f32], lanes: &mut Lanes<'_>, mask: Mask<'_>) -> bool {
    let low = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut most = [low; VR];
    if let Some((segs, poss)) = mask {
        let mut eyes = [Eyes { real: 0, seg: _mm512_setzero_si512(), pos: _mm512_setzero_si512() }; VR];
        for (v, eyes) in eyes.iter_mut().enumerate() {
            *eyes = Eyes::new(&lanes.seg[16 * v..], &lanes.pos[16 * v..]);
        }
        for ((x, &seg), &pos) in scores.chunks_exact_mut(NR).zip(segs).zip(poss) {
            for v in 0..VR {
                let s = _mm512_mask_blend_ps(eyes[v].see(seg, pos), low, load(&x[16 * v..]));
                store(&mut x[16 * v..], s);
                most[v] = _mm512_max_ps(s, most[v]);
            }
        }
    } else {
        for x in scores.chunks_exact(NR) {
            for (most, s) in most.iter_mut().zip(row(x)) {
                *most = _mm512_max_ps(s, *most);
            }
        }
    }
    let mut any = 0;
    for (v, &most) in most.iter().enumerate() {
        let at = 16 * v;
        let max = load(&lanes.max[at..]);
        let raised = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, _mm512_add_ps(max, _mm512_set1_ps(SLACK)));
        let to = _mm512_mask_blend_ps(raised, max, most);
        let one = _mm512_set1_ps(1.0);
        let factor = _mm512_mask_blend_ps(raised, one, exp2(_mm512_sub_ps(max, to)));
        store(&mut lanes.factor[at..], factor);
        let sum = _mm512_mul_ps(load(&lanes.sum[at..]), factor);
        store(&mut lanes.sum[at..], sum);
        store(&mut lanes.max[at..], to);
        any |= raised;
    }
    any != 0
}

/// What exponentials are relative to: 0 for lanes that see nothing, whose scores are all -inf.
#[inline]
#[target_feature(enable = "avx512f")]
fn shifts(max: &[f32]) -> [__m512; VR] {
    let low = _mm512_set1_ps(f32::NEG_INFINITY);
    row(max).map(|m| _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(m, low), m, _mm512_setzero_ps()))
}

#[target_feature(enable = "avx512f")]
unsafe fn exponentials(scores: &mut [f32], lanes: &mut Lanes<'_>) {
    let shift = shifts(lanes.max);
    let mut sum = row(lanes.sum);
    for x in scores.chunks_exact_mut(NR) {
        for v in 0..VR {
            let p = exp2(_mm512_sub_ps(load(&x[16 * v..]), shift[v]));
            sum[v] = _mm512_add_ps(sum[v], p);
            store(&mut x[16 * v..], p);
        }
    }
    for (v, &sum) in sum.iter().enumerate() {
        store(&mut lanes.sum[16 * v..], sum);
    }
}

/// Order of the halves of two vectors of `bf16`, one after the other, when they are interleaved.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved() -> __m512i {
    let mut order = [0i16; 32];
    for (i, o) in order.iter_mut().enumerate() {
        *o = (i / 2 + i % 2 * 16) as i16;
    }
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// Units of two vectors: `low` rounded in the low halves, `high` in the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn join(low: __m512, high: __m512, order: __m512i) -> __m512i {
    // SAFETY: both types are 512 bits without invalid values.
    let both = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
    _mm512_permutexvar_epi16(order, both)
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn exponential_pairs(scores: &[f32], lanes: &mut Lanes<'_>, pairs: &mut [u32]) {
    let shift = shifts(lanes.max);
    let mut sum = row(lanes.sum);
    let order = interleaved();
    let mut both = scores.chunks_exact(2 * NR);
    for (x, out) in both.by_ref().zip(pairs.chunks_exact_mut(NR)) {
        for v in 0..VR {
            let low = exp2(_mm512_sub_ps(load(&x[16 * v..]), shift[v]));
            let high = exp2(_mm512_sub_ps(load(&x[NR + 16 * v..]), shift[v]));
            sum[v] = _mm512_add_ps(sum[v], _mm512_add_ps(low, high));
            store_units(&mut out[16 * v..], join(low, high, order));
        }
    }
    let rest = both.remainder();
    if !rest.is_empty() {
        let out = &mut pairs[scores.len() / (2 * NR) * NR..];
        for v in 0..VR {
            let low = exp2(_mm512_sub_ps(load(&rest[16 * v..]), shift[v]));
            sum[v] = _mm512_add_ps(sum[v], low);
            store_units(&mut out[16 * v..], join(low, _mm512_setzero_ps(), order));
        }
    }
    for (v, &sum) in sum.iter().enumerate() {
        store(&mut lanes.sum[16 * v..], sum);
    }
}

/// See [`super::softmax::rescale`].
///
/// # Safety
/// The CPU has AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn rescale(factor: &[f32], x: &mut [f32]) {
    let factor = row(factor);
    for x in x.chunks_exact_mut(NR) {
        for v in 0..VR {
            let scaled = _mm512_mul_ps(load(&x[16 * v..]), factor[v]);
            store(&mut x[16 * v..], scaled);
        }
    }
}

/// See [`super::softmax::join`].
///
/// # Safety
/// The CPU has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn join_rows(x: &[f32], out: &mut [u32]) {
    let order = interleaved();
    for (x, out) in x.chunks(2 * NR).zip(out.chunks_exact_mut(NR)) {
        for v in 0..VR {
            let high = x.get(NR + 16 * v..).map_or(_mm512_setzero_ps(), |high| load(high));
            store_units(&mut out[16 * v..], join(load(&x[16 * v..]), high, order));
        }
    }
}

/// Keys of a panel.
const MR: usize = 8;

/// Panels of keys whose depth are 16 lanes, from the rows of 8 keys: 8 units of each key, in 4 vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn panel(keys: &[__m512; MR], order: &[__m512i; 4]) -> [__m512i; 4] {
    let both = |low: __m512, high: __m512| {
        // SAFETY: both types are 512 bits without invalid values.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    };
    // Each has 8 units of one key, then of the next.
    let r = [both(keys[0], keys[1]), both(keys[2], keys[3]), both(keys[4], keys[5]), both(keys[6], keys[7])];
    // Four keys of units 0..4, and of units 4..8.
    let pick = |a, order, b| _mm512_permutex2var_epi32(a, order, b);
    let (low, high) = (pick(r[0], order[0], r[1]), pick(r[0], order[1], r[1]));
    let (low2, high2) = (pick(r[2], order[0], r[3]), pick(r[2], order[1], r[3]));
    [
        pick(low, order[2], low2),
        pick(low, order[3], low2),
        pick(high, order[2], high2),
        pick(high, order[3], high2),
    ]
}

/// The permutations of [`panel`].
#[inline]
#[target_feature(enable = "avx512f")]
fn panel_order() -> [__m512i; 4] {
    // Element `i` is key `i % 4` of unit `i / 4`: keys 0 and 1 are in the first vector, 2 and 3 in the second.
    let four: [i32; 16] = std::array::from_fn(|i| (i % 4 / 2 * 16 + i % 2 * 8 + i / 4) as i32);
    // Element `i` is key `i % 8` of unit `i / 8`: four keys are in the first vector, four in the second.
    let eight: [i32; 16] = std::array::from_fn(|i| (i % 8 / 4 * 16 + i / 8 * 4 + i % 4) as i32);
    let order = [four, four.map(|o| o + 4), eight, eight.map(|o| o + 8)];
    // SAFETY: 64 bytes each.
    order.map(|o| unsafe { _mm512_loadu_si512(o.as_ptr().cast()) })
}

/// See [`super::softmax::backward`].
///
/// # Safety
/// [`fits`].
pub(super) unsafe fn backward(
    e: &Engine,
    (p, ds): (&mut [f32], &mut [f32]),
    rows: &Rows<'_>,
    kept: Kept<'_>,
) {
    // SAFETY: by contract; an engine takes pairs only with BF16.
    unsafe {
        if e.is_pair() { backward_pairs((p, ds), rows, kept) } else { backward_singles((p, ds), rows, kept) }
    }
}

/// # Safety
/// As [`backward`]; the CPU has BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn backward_pairs((p, ds): (&[f32], &[f32]), rows: &Rows<'_>, kept: Kept<'_>) {
    let (lse, delta) = (row(rows.lse), row(rows.delta));
    let (halves, order) = (interleaved(), panel_order());
    let keys = p.chunks_exact(MR * NR).zip(ds.chunks_exact(MR * NR));
    let out = kept.p.chunks_mut(kept.stride).zip(kept.ds.chunks_mut(kept.stride));
    for (((p, ds), (kept_p, kept_ds)), pairs) in keys.zip(out).zip(kept.pairs.chunks_exact_mut(MR / 2 * NR)) {
        let (kept_p, kept_ds) = (&mut kept_p[..NR / 2 * MR], &mut kept_ds[..NR / 2 * MR]);
        for v in 0..VR {
            let mut x = [_mm512_setzero_ps(); MR];
            for (i, x) in x.iter_mut().enumerate() {
                *x = exp2(_mm512_sub_ps(load(&p[i * NR + 16 * v..]), lse[v]));
            }
            for (i, units) in panel(&x, &order).into_iter().enumerate() {
                store_units(&mut kept_p[(4 * v + i) * 16..], units);
            }
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm512_mul_ps(*x, _mm512_sub_ps(load(&ds[i * NR + 16 * v..]), delta[v]));
            }
            for (i, units) in panel(&x, &order).into_iter().enumerate() {
                store_units(&mut kept_ds[(4 * v + i) * 16..], units);
            }
            for (i, x) in x.chunks_exact(2).enumerate() {
                store_units(&mut pairs[i * NR + 16 * v..], join(x[0], x[1], halves));
            }
        }
    }
}

/// Writes the rows of 8 keys, 16 lanes each, as 16 units of a panel of keys.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_panel(keys: &[__m512; MR], out: &mut [u32]) {
    let out = &mut out[..16 * MR];
    let low = |a, b| _mm512_unpacklo_ps(a, b);
    let high = |a, b| _mm512_unpackhi_ps(a, b);
    let pd = |x| _mm512_castps_pd(x);
    // Quarter `q` of vector `j` has four keys of lane `4 q + j`.
    let four = |k: &[__m512]| {
        let (l, m) = ([low(k[0], k[1]), low(k[2], k[3])], [high(k[0], k[1]), high(k[2], k[3])]);
        [
            _mm512_unpacklo_pd(pd(l[0]), pd(l[1])),
            _mm512_unpackhi_pd(pd(l[0]), pd(l[1])),
            _mm512_unpacklo_pd(pd(m[0]), pd(m[1])),
            _mm512_unpackhi_pd(pd(m[0]), pd(m[1])),
        ]
    };
    for (j, (a, b)) in four(&keys[..4]).into_iter().zip(four(&keys[4..])).enumerate() {
        for (h, lanes) in quarters(_mm512_castpd_si512(a), _mm512_castpd_si512(b)).into_iter().enumerate() {
            let lanes = _mm512_castsi512_pd(lanes);
            let halves = [_mm512_castpd512_pd256(lanes), _mm512_extractf64x4_pd::<1>(lanes)];
            for (q, half) in halves.into_iter().enumerate() {
                let to = &mut out[(8 * h + 4 * q + j) * MR..][..MR];
                // SAFETY: 8 units.
                unsafe { _mm256_storeu_pd(to.as_mut_ptr().cast(), half) };
            }
        }
    }
}

/// # Safety
/// As [`backward`].
#[target_feature(enable = "avx512f")]
unsafe fn backward_singles((p, ds): (&mut [f32], &mut [f32]), rows: &Rows<'_>, kept: Kept<'_>) {
    let (lse, delta) = (row(rows.lse), row(rows.delta));
    let keys = p.chunks_exact_mut(MR * NR).zip(ds.chunks_exact_mut(MR * NR));
    let out = kept.p.chunks_mut(kept.stride).zip(kept.ds.chunks_mut(kept.stride));
    for ((p, ds), (kept_p, kept_ds)) in keys.zip(out) {
        for v in 0..VR {
            let mut x = [_mm512_setzero_ps(); MR];
            for (i, x) in x.iter_mut().enumerate() {
                *x = exp2(_mm512_sub_ps(load(&p[i * NR + 16 * v..]), lse[v]));
            }
            store_panel(&x, &mut kept_p[16 * v * MR..]);
            for (i, x) in x.iter_mut().enumerate() {
                let ds = &mut ds[i * NR + 16 * v..];
                *x = _mm512_mul_ps(*x, _mm512_sub_ps(load(ds), delta[v]));
                store(ds, *x);
            }
            store_panel(&x, &mut kept_ds[16 * v * MR..]);
        }
    }
}
