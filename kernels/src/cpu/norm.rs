//! `rms_norm` and its gradient, row by row.

use crate::cpu::elem::{Elem, of_type};
#[cfg(target_arch = "x86_64")]
use crate::cpu::norm_avx512;
use crate::cpu::reduce::{axpy, dot, sum_squares};
use crate::cpu::scratch::{self, Cut};
use crate::cpu::simd::simd;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{self, Level};
use crate::cpu::{Call, Kernel, par};
use half::bf16;
use kfc_graph::{DType, TensorType};

/// Rows whose sums are made one after the other: a sum is a chain of additions, beside which there is room for others.
const TOGETHER: usize = 8;

/// `rms_norm`: `y = x · rstd · w`, `rstd = 1/√(mean(x²) + eps)`.
pub(crate) struct RmsNorm {
    rows: usize,
    width: usize,
    x: DType,
    w: DType,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(x: &TensorType, w: &TensorType, eps: f64) -> RmsNorm {
        RmsNorm { rows: x.rows(), width: x.last(), x: x.dtype, w: w.dtype, eps }
    }
}

impl RmsNorm {
    /// # Safety
    /// As [`Kernel::run`], with x of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>, Loops { squares, scale }: Loops<T>) {
        let h = self.width;
        let (x, w, y) = (call.src(0, self.x), call.src(1, self.w), call.dst(0, self.x));
        let rstd = call.dst(1, DType::F32);
        par::ranges(self.rows, par::rows_grain(h), |rows| {
            scratch::with(h, |s| {
                // SAFETY: by contract of `run`; rows are written by one task each.
                unsafe {
                    let w = w.read(0, h, s);
                    let end = rows.end;
                    for first in rows.step_by(TOGETHER) {
                        let mut factors = [0.0; TOGETHER];
                        let factors = &mut factors[..TOGETHER.min(end - first)];
                        for (i, factor) in factors.iter_mut().enumerate() {
                            let sum = squares(x.raw::<T>((first + i) * h, h));
                            *factor = (1.0 / (sum / h as f64 + self.eps).sqrt()) as f32;
                        }
                        for (i, factor) in factors.iter().enumerate() {
                            let start = (first + i) * h;
                            scale(*factor, x.raw(start, h), w, y.raw::<T>(start, h));
                        }
                        rstd.store(first, factors);
                    }
                }
            });
        });
    }
}

impl Kernel for RmsNorm {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe {
            match self.x {
                DType::Bf16 => self.run_as(call, loops_of_bf16()),
                x => of_type!(x, T => self.run_as(call, loops_of::<T>())),
            }
        }
    }
}

/// The loops of `rms_norm`: `Σ x²` and `y = scale · x · w`.
struct Loops<T> {
    squares: fn(&[T]) -> f64,
    scale: fn(f32, &[T], &[f32], &mut [T]),
}

/// Those of any type and level. Squares of numbers of 16 bits are exact in `f32`.
fn loops_of<T: Elem>() -> Loops<T> {
    let squares = if size_of::<T>() == 2 { |x: &[T]| dot(x, x).into() } else { sum_squares::<T> };
    Loops { squares, scale: scale_by }
}

/// Those of the level.
fn loops_of_bf16() -> Loops<bf16> {
    #[cfg(target_arch = "x86_64")]
    if simd::level() == Level::Avx512Bf16 {
        return Loops {
            // SAFETY: the level is there.
            squares: |x| unsafe { norm_avx512::squares(x) }.into(),
            // SAFETY: as above.
            scale: |scale, x, w, y| unsafe { norm_avx512::scale_by(scale, x, w, y) },
        };
    }
    loops_of()
}

/// `rms_norm_bwd`.
pub(crate) struct RmsNormBwd {
    rows: usize,
    width: usize,
    x: DType,
    w: DType,
    need_dw: bool,
}

impl RmsNormBwd {
    pub(crate) fn new(x: &TensorType, w: &TensorType, need_dw: bool) -> RmsNormBwd {
        RmsNormBwd { rows: x.rows(), width: x.last(), x: x.dtype, w: w.dtype, need_dw }
    }

    /// Rows of a task: with a gradient of the weight there are at most 16 tasks, each with a partial sum.
    fn grain(&self) -> usize {
        let grain = par::rows_grain(2 * self.width);
        if self.need_dw { grain.max(self.rows.div_ceil(16)) } else { grain }
    }
}

impl RmsNormBwd {
    /// # Safety
    /// As [`Kernel::run`], with x of type `T`.
    unsafe fn run_as<T: Elem>(&self, call: &Call<'_>, loops: Gradient<T>) {
        let Gradient { dot, products, subtract, writes_over } = loops;
        let h = self.width;
        let (dy, x, w) = (call.src(0, self.x), call.src(1, self.x), call.src(2, self.w));
        let (rstd, dx) = (call.src(3, DType::F32), call.dst(0, self.x));
        let grain = self.grain();
        let tasks = self.rows.div_ceil(grain);
        // SAFETY: by contract of `run`; the workspace has the size asked for.
        let partials = unsafe { call.work::<f32>(0, if self.need_dw { tasks * h } else { 0 }) };
        let shared = par::Shared::new(partials);
        par::ranges(self.rows, grain, |rows| {
            scratch::with(2 * h, |s| {
                let mut cut = Cut(s);
                let (sw, room) = (cut.take(h), cut.take(h));
                // SAFETY: by contract of `run`; rows and partial sums are written by one task each.
                unsafe {
                    let partial = if self.need_dw { (rows.start / grain * h, h) } else { (0, 0) };
                    let dw = shared.slice(partial.0, partial.1);
                    dw.fill(0.0);
                    let w = w.read(0, h, sw);
                    let end = rows.end;
                    for first in rows.step_by(TOGETHER) {
                        let n = TOGETHER.min(end - first);
                        let row = |i: usize| ((first + i) * h, x.raw::<T>((first + i) * h, h));
                        let mut projections = [0.0; TOGETHER];
                        for (i, projection) in projections[..n].iter_mut().enumerate() {
                            let (start, x) = row(i);
                            *projection = dot(dy.raw(start, h), w, x);
                        }
                        let mut factors = [0.0; TOGETHER];
                        factors[..n].iter_mut().enumerate().for_each(|(i, f)| *f = rstd.at(first + i));
                        if self.need_dw {
                            let (start, n) = (first * h, n * h);
                            products(&factors, dy.raw(start, n), x.raw(start, n), dw);
                        }
                        for (i, projection) in projections[..n].iter().enumerate() {
                            let ((start, x), rstd) = (row(i), factors[i]);
                            let projection = projection * rstd * rstd / h as f32;
                            let to = dx.offset(start).src().ptr().cast_mut().cast();
                            let dy = match writes_over {
                                true => dy.raw(start, h),
                                false => dy.row_before::<T>(&[dx], start, h, room),
                            };
                            subtract(rstd, projection, dy.as_ptr(), w, x, to);
                        }
                    }
                }
            });
        });
        if self.need_dw {
            // SAFETY: by contract of `run`; all tasks are done.
            let (dw, partials) = unsafe { (call.output::<f32>(1), call.work::<f32>(0, tasks * h)) };
            dw.fill(0.0);
            partials.chunks_exact(h.max(1)).for_each(|p| axpy(1.0, p, dw));
        }
    }
}

impl Kernel for RmsNormBwd {
    unsafe fn run(&self, call: &Call<'_>) {
        // SAFETY: by contract.
        unsafe {
            match self.x {
                DType::Bf16 => self.run_as(call, gradient_of_bf16()),
                x => of_type!(x, T => self.run_as(call, gradient_of::<T>())),
            }
        }
    }

    fn may_inplace(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn workspace_bytes(&self) -> usize {
        if self.need_dw { self.rows.div_ceil(self.grain()) * self.width * size_of::<f32>() } else { 0 }
    }
}

/// The loops of the gradient.
struct Gradient<T> {
    /// `Σ dy·w·x`
    dot: fn(&[T], &[f32], &[T]) -> f32,
    products: Products<T>,
    /// `dx = rstd · (dy · w - projection · x)`
    subtract: Subtract<T>,
    /// Whether dx may be where dy is.
    writes_over: bool,
}

/// `dw += Σ rstd · dy · x` over rows as long as dw that follow one another, from the first to the last.
type Products<T> = fn(&[f32], &[T], &[T], &mut [f32]);

/// Of `rstd`, `projection`, dy, w, x and dx.
///
/// # Safety
/// There are as many elements of dy and dx as of x; dx overlaps neither w nor x.
type Subtract<T> = unsafe fn(f32, f32, *const T, &[f32], &[T], *mut T);

/// Those of any type and level.
fn gradient_of<T: Elem>() -> Gradient<T> {
    let subtract: Subtract<T> = |rstd, projection, dy, w, x, dx| {
        // SAFETY: by contract, and they do not overlap either.
        let (dy, dx) =
            unsafe { (std::slice::from_raw_parts(dy, x.len()), std::slice::from_raw_parts_mut(dx, x.len())) };
        subtract_projection(rstd, projection, dy, w, x, dx);
    };
    Gradient { dot: dot_weighted, products: add_products, subtract, writes_over: false }
}

/// Those of the level.
fn gradient_of_bf16() -> Gradient<bf16> {
    #[cfg(target_arch = "x86_64")]
    if simd::level() == Level::Avx512Bf16 {
        return Gradient {
            // SAFETY: the level is there.
            dot: |dy, w, x| unsafe { norm_avx512::dot_weighted(dy, w, x) },
            // SAFETY: as above.
            products: |rstd, dy, x, dw| unsafe { norm_avx512::add_products(rstd, dy, x, dw) },
            // SAFETY: as above, and by contract.
            subtract: |rstd, projection, dy, w, x, dx| unsafe {
                norm_avx512::subtract_projection([rstd, projection], dy, w, x, dx)
            },
            writes_over: true,
        };
    }
    gradient_of()
}

simd! {
    /// `y = scale · x · w`
    fn scale_by<T: Elem>(scale: f32, x: &[T], w: &[f32], y: &mut [T]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = T::put(x.get() * scale * *w);
        }
    }

    /// `Σ dy·w·x`, in 32 interleaved partial sums.
    fn dot_weighted<T: Elem>(dy: &[T], w: &[f32], x: &[T]) -> f32 {
        const LANES: usize = 32;
        let whole = dy.len() / LANES * LANES;
        let ((dy, dy_rest), (w, w_rest), (x, x_rest)) = (dy.split_at(whole), w.split_at(whole), x.split_at(whole));
        let mut acc = [0.0f32; LANES];
        for ((dy, w), x) in dy.chunks_exact(LANES).zip(w.chunks_exact(LANES)).zip(x.chunks_exact(LANES)) {
            for l in 0..LANES {
                acc[l] += dy[l].get() * w[l] * x[l].get();
            }
        }
        let rest = dy_rest.iter().zip(w_rest).zip(x_rest).map(|((dy, w), x)| dy.get() * *w * x.get());
        acc.iter().sum::<f32>() + rest.sum::<f32>()
    }

    /// `dx = rstd · (dy · w - projection · x)`
    fn subtract_projection<T: Elem>(rstd: f32, projection: f32, dy: &[T], w: &[f32], x: &[T], dx: &mut [T]) {
        for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(w).zip(x) {
            *dx = T::put(rstd * (dy.get() * *w - projection * x.get()));
        }
    }

    /// `dw += Σ rstd · dy · x`, row by row.
    fn add_products<T: Elem>(rstd: &[f32], dy: &[T], x: &[T], dw: &mut [f32]) {
        let h = dw.len().max(1);
        for ((rstd, dy), x) in rstd.iter().zip(dy.chunks_exact(h)).zip(x.chunks_exact(h)) {
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += rstd * dy.get() * x.get();
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Values that a layer has, and some whose products with small factors are subnormal.
    fn values(n: usize, factor: f32) -> Vec<bf16> {
        (0..n).map(|i| bf16::from_f32(((i * 7919 % 4001) as f32 - 2000.0) * factor)).collect()
    }

    fn bits(x: &[bf16]) -> Vec<u16> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn gradients_of_the_weight_have_the_bits_of_one_row_after_the_other() {
        if !simd::available().contains(&Level::Avx512Bf16) {
            return;
        }
        for (n, rows) in [(1, 1), (31, 2), (32, 8), (33, 3), (95, 8), (256, 5), (1000, 7)] {
            let (dy, x) = (values(n * rows, 1e-2), values(n * rows + 3, 3e-3)[3..].to_vec());
            let rstd: Vec<f32> = (0..8).map(|i| 0.3 + 0.21 * i as f32).collect();
            let mut dw: Vec<f32> = (0..n).map(|i| i as f32 * 0.01).collect();
            let mut expected = dw.clone();
            // SAFETY: the level is there.
            unsafe { norm_avx512::add_products(&rstd, &dy, &x, &mut dw) };
            add_products(&rstd, &dy, &x, &mut expected);
            assert_eq!(dw, expected, "{n} of {rows} rows");
        }
    }

    #[test]
    fn loops_for_bf16_agree_with_those_for_any_type() {
        if !simd::available().contains(&Level::Avx512Bf16) {
            return;
        }
        for n in [1, 2, 31, 32, 33, 48, 64, 95, 256, 1000] {
            for small in [1e-3, 1e-38] {
                let (mut x, dy) = (values(n, 1e-2), values(n + 5, small)[5..].to_vec());
                let w: Vec<f32> = (0..n).map(|i| (i % 37) as f32 * 0.05 - 0.9).collect();
                // SAFETY: the level is there.
                let (square, dot) =
                    unsafe { (norm_avx512::squares(&x), norm_avx512::dot_weighted(&dy, &w, &x)) };
                let exact = sum_squares(&x);
                assert!((f64::from(square) - exact).abs() <= exact * 1e-5, "{n}: {square} {exact}");
                let exact = dot_weighted(&dy, &w, &x);
                let most: f32 = (0..n).map(|i| (dy[i].to_f32() * w[i] * x[i].to_f32()).abs()).sum();
                assert!((dot - exact).abs() <= most * 1e-5, "{n}: {dot} {exact}");
                x[0] = if small < 1e-10 { bf16::NAN } else { bf16::INFINITY };

                let (mut y, mut expected) = (vec![bf16::ONE; n + 40], vec![bf16::ONE; n + 40]);
                // SAFETY: the level is there.
                unsafe { norm_avx512::scale_by(small, &x, &w, &mut y[..n]) };
                scale_by(small, &x, &w, &mut expected[..n]);
                assert_eq!(bits(&y), bits(&expected), "{n} of {small}");

                // Over dy.
                y[..n].copy_from_slice(&dy);
                let to = y.as_mut_ptr();
                // SAFETY: the level is there, and so are the elements.
                unsafe { norm_avx512::subtract_projection([1.7, -0.3], to, &w, &x, to) };
                subtract_projection(1.7, -0.3, &dy, &w, &x, &mut expected[..n]);
                assert_eq!(bits(&y), bits(&expected), "{n} of {small}");
            }
        }
    }
}
