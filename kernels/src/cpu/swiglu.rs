//! `swiglu` and its gradient.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::{BLOCK, Copied, blocks};
use crate::cpu::simd::simd;
use crate::cpu::{Call, Kernel, math, par};
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
    /// # Safety
    /// As [`Kernel::run`], of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>, forward: fn(&[T], &[T], &mut [T])) {
        let (gate, up, y) = (call.src(0, self.x), call.src(1, self.x), call.dst(0, self.x));
        par::ranges(self.n, par::GRAIN, |r| {
            let (mut room_gate, mut room_up) = (Copied::new(), Copied::new());
            for (start, n) in blocks(r) {
                // SAFETY: blocks are disjoint and in bounds.
                unsafe {
                    let gate = gate.before::<T, BLOCK>(&[y], start, n, &mut room_gate);
                    let up = up.before::<T, BLOCK>(&[y], start, n, &mut room_up);
                    forward(gate, up, y.raw::<T>(start, n));
                }
            }
        });
    }
}

impl Kernel for Swiglu {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe {
            match self.x {
                DType::Bf16 => self.run_as(call, forward_bf16),
                x => of_type!(x, T => self.run_as(call, forward::<T>)),
            }
        }
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
    /// # Safety
    /// As [`Kernel::run`], of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>, backward: Backward<T>) {
        let (dy, gate, up) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.x));
        let (dgate, dup) = (call.dst(0, self.x), call.dst(1, self.x));
        par::ranges(self.n, par::GRAIN, |r| {
            let (mut room_dy, mut room_gate, mut room_up) = (Copied::new(), Copied::new(), Copied::new());
            for (start, n) in blocks(r) {
                // SAFETY: blocks are disjoint and in bounds.
                unsafe {
                    let results = [dgate, dup];
                    let dy = dy.before::<T, BLOCK>(&results, start, n, &mut room_dy);
                    let gate = gate.before::<T, BLOCK>(&results, start, n, &mut room_gate);
                    let up = up.before::<T, BLOCK>(&results, start, n, &mut room_up);
                    backward(dy, gate, up, dgate.raw::<T>(start, n), dup.raw::<T>(start, n));
                }
            }
        });
    }
}

impl Kernel for SwigluBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe {
            match self.x {
                DType::Bf16 => self.run_as(call, backward_bf16),
                x => of_type!(x, T => self.run_as(call, backward::<T>)),
            }
        }
    }

    /// The gradients of gate and up over these, or over dy.
    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (2, 1), (0, 0), (0, 1)]
    }
}

/// The loop of the gradient, over elements of dy, gate and up, and of the gradients of gate and up.
type Backward<T> = fn(&[T], &[T], &[T], &mut [T], &mut [T]);

/// As [`forward`].
fn forward_bf16(gate: &[bf16], up: &[bf16], y: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if math::rounded::swiglu(gate, up, y) {
        return;
    }
    forward(gate, up, y);
}

/// As [`backward`].
fn backward_bf16(dy: &[bf16], gate: &[bf16], up: &[bf16], dgate: &mut [bf16], dup: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if math::rounded::swiglu_bwd(dy, gate, up, dgate, dup) {
        return;
    }
    backward(dy, gate, up, dgate, dup);
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
