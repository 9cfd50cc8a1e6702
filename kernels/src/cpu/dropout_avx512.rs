//! Decisions of [`super::dropout`] with AVX-512: Philox ([`super::philox`]) of 32 counters at a time, whose numbers are compared
//! where they are made.

use crate::cpu::dropout::{BITS, Kept};
use crate::cpu::philox::Stream;
use crate::cpu::simd::prefetch;
use half::bf16;
use kfc_graph::interp::philox::{MULTIPLIER, ROUNDS, WEYL};
use std::arch::x86_64::*;

/// Vectors of eight counters side by side: one round takes longer than it keeps the units busy.
const VECTORS: usize = 4;

/// Elements that [`copy`] asks for ahead.
const AHEAD: usize = 1024;

/// Words that their numbers decide.
const WORDS: usize = 2 * VECTORS;

/// The keys of all rounds in every lane.
type Keys = [[__m512i; 2]; ROUNDS];

/// The decisions of the elements of counters from `counter` on: whether their numbers are above `last`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn decide(stream: Stream, counter: u64, last: u16, out: &mut [u32]) {
    let mut key = stream.key;
    let keys = std::array::from_fn(|_| {
        let now = key.map(|k| _mm512_set1_epi64(i64::from(k)));
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        now
    });
    let mut counters = (counter..).step_by(8 * VECTORS);
    let mut next = || decisions(&keys, stream.stream, counters.next().unwrap_or_default(), last);
    let (whole, rest) = out.as_chunks_mut::<WORDS>();
    whole.iter_mut().for_each(|out| *out = next());
    if !rest.is_empty() {
        rest.copy_from_slice(&next()[..rest.len()]);
    }
}

/// Those of as many counters as there are lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn decisions(keys: &Keys, stream: u32, counter: u64, last: u16) -> [u32; WORDS] {
    // Even lanes have the first four counters of a vector: where the halves of two vectors are put side by side, all are in order.
    let lanes = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let multiplier = MULTIPLIER.map(|m| _mm512_set1_epi64(i64::from(m)));
    // A word stands in the low half of 64 bits, of which a multiplication reads no more.
    let mut words: [[__m512i; 4]; VECTORS] = std::array::from_fn(|v| {
        let counters = _mm512_add_epi64(_mm512_set1_epi64((counter + 8 * v as u64).cast_signed()), lanes);
        let stream = _mm512_set1_epi64(i64::from(stream));
        [counters, _mm512_srli_epi64::<32>(counters), stream, _mm512_setzero_si512()]
    });
    for key in keys {
        for w in &mut words {
            let [p, q] = [_mm512_mul_epu32(w[0], multiplier[0]), _mm512_mul_epu32(w[2], multiplier[1])];
            let [high_p, high_q] = [p, q].map(|x| _mm512_srli_epi64::<32>(x));
            *w = [xor(high_q, w[1], key[0]), q, xor(high_p, w[3], key[1]), p];
        }
    }
    let last = _mm512_set1_epi16(last.cast_signed());
    let mut bits = [0; WORDS];
    for (bits, [a, b, c, d]) in bits.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        let [front, back] = [[a, b], [c, d]]
            .map(|[low, high]| _mm512_mask_blend_epi32(0xaaaa, low, _mm512_slli_epi64::<32>(high)));
        *bits = [_mm512_unpacklo_epi64(front, back), _mm512_unpackhi_epi64(front, back)]
            .map(|numbers| _mm512_cmpgt_epu16_mask(numbers, last));
    }
    bits
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

/// `x` with zeros for elements that are dropped, the first of which has a number among the decisions.
///
/// # Safety
/// The decisions have been made.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn copy(kept: Kept, first: usize, x: &[bf16], out: &mut [bf16]) {
    for (i, (x, out)) in x.chunks(BITS).zip(out.chunks_mut(BITS)).enumerate() {
        let mask = !0 >> (BITS - x.len());
        prefetch(x.as_ptr().wrapping_add(AHEAD));
        // SAFETY: by contract; lanes beyond the chunk are masked.
        unsafe {
            let kept = mask & kept.at(first + i * BITS) as u32;
            _mm512_mask_storeu_epi16(
                out.as_mut_ptr().cast(),
                mask,
                _mm512_maskz_loadu_epi16(kept, x.as_ptr().cast()),
            );
        }
    }
}
