//! `swiglu` and its gradient.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::{BLOCK, Copied, blocks};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, math, par};
#[cfg(target_arch = "x86_64")]
use half::bf16;
use kfc_graph::{DType, TensorType};

/// `swiglu`: `silu(gate) · up`.
pub(crate) struct Swiglu {
    n: usize,
    x: DType,
}

impl Swiglu {
    pub(crate) fn new(gate: &TensorType) -> Swiglu {
        Swiglu { n: gate.elements(), x: gate.dtype }
    }
}

impl Swiglu {
    /// Elements `first..first + n`.
    ///
    /// # Safety
    /// As [`Kernel::run`]; nothing else uses these elements.
    unsafe fn part(&self, call: &Call<'_>, first: usize, n: usize) {
        // SAFETY: by contract.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.x == DType::Bf16 {
                let x = [0, 1].map(|i| call.src(i, self.x).ptr().cast::<bf16>().wrapping_add(first));
                let y = call.outputs[0].ptr.cast::<bf16>().wrapping_add(first);
                if math::rounded::swiglu(x, y, n) {
                    return;
                }
            }
            of_type!(self.x, T => self.part_as::<T>(call, first, n))
        }
    }

    /// # Safety
    /// As [`Swiglu::part`], of type `T`.
    unsafe fn part_as<T: Elem>(&self, call: &Call<'_>, first: usize, n: usize) {
        let (gate, up, y) = (call.src(0, self.x), call.src(1, self.x), call.dst(0, self.x));
        let (mut room_gate, mut room_up) = (Copied::new(), Copied::new());
        for (start, n) in blocks(first..first + n) {
            // SAFETY: by contract.
            unsafe {
                let gate = gate.before::<T, BLOCK>(&[y], start, n, &mut room_gate);
                let up = up.before::<T, BLOCK>(&[y], start, n, &mut room_up);
                forward(gate, up, y.raw::<T>(start, n));
            }
        }
    }
}

impl Kernel for Swiglu {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract; ranges are disjoint.
        par::ranges(self.n, par::GRAIN, |r| unsafe { self.part(call, r.start, r.len()) });
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }
}

/// `swiglu_bwd`.
pub(crate) struct SwigluBwd {
    n: usize,
    x: DType,
}

impl SwigluBwd {
    pub(crate) fn new(dy: &TensorType) -> SwigluBwd {
        SwigluBwd { n: dy.elements(), x: dy.dtype }
    }
}

impl SwigluBwd {
    /// Elements `first..first + n`.
    ///
    /// # Safety
    /// As [`Kernel::run`]; nothing else uses these elements.
    unsafe fn part(&self, call: &Call<'_>, first: usize, n: usize) {
        // SAFETY: by contract.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.x == DType::Bf16 {
                let x = [0, 1, 2].map(|i| call.src(i, self.x).ptr().cast::<bf16>().wrapping_add(first));
                let out = [0, 1].map(|j| call.outputs[j].ptr.cast::<bf16>().wrapping_add(first));
                if math::rounded::swiglu_bwd(x, out, n) {
                    return;
                }
            }
            of_type!(self.x, T => self.part_as::<T>(call, first, n))
        }
    }

    /// # Safety
    /// As [`SwigluBwd::part`], of type `T`.
    unsafe fn part_as<T: Elem>(&self, call: &Call<'_>, first: usize, n: usize) {
        let (dy, gate, up) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.x));
        let (dgate, dup) = (call.dst(0, self.x), call.dst(1, self.x));
        let results = [dgate, dup];
        let (mut room_dy, mut room_gate, mut room_up) = (Copied::new(), Copied::new(), Copied::new());
        for (start, n) in blocks(first..first + n) {
            // SAFETY: by contract.
            unsafe {
                let dy = dy.before::<T, BLOCK>(&results, start, n, &mut room_dy);
                let gate = gate.before::<T, BLOCK>(&results, start, n, &mut room_gate);
                let up = up.before::<T, BLOCK>(&results, start, n, &mut room_up);
                backward(dy, gate, up, dgate.raw::<T>(start, n), dup.raw::<T>(start, n));
            }
        }
    }
}

impl Kernel for SwigluBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract; ranges are disjoint.
        par::ranges(self.n, par::GRAIN, |r| unsafe { self.part(call, r.start, r.len()) });
    }

    /// The gradients of gate and up over these, or over dy.
    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (2, 1), (0, 0), (0, 1)]
    }
}

simd! {
    fn forward<T: Elem>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.get();
            *y = T::put(g * math::sigmoid(g) * u.get());
        }
    }

    fn backward<T: Elem>(dy: &[T], gate: &[T], up: &[T], dgate: &mut [T], dup: &mut [T]) {
        let n = dy.len();
        let (gate, up, dgate, dup) = (&gate[..n], &up[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let (d, g) = (dy[i].get(), gate[i].get());
            let s = math::sigmoid(g);
            dgate[i] = T::put(d * up[i].get() * s * (1.0 + g * (1.0 - s)));
            dup[i] = T::put(d * g * s);
        }
    }
}
