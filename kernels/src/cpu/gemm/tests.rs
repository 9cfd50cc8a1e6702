//! Every instruction set that the CPU has against sums in `f64`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use half::{bf16, f16};

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn levels() -> Vec<Level> {
    simd::available()
}

/// Values of a type as they are stored, and exactly.
struct Data {
    bytes: Vec<u32>,
    values: Vec<f64>,
    dtype: DType,
}

impl Data {
    fn new(n: usize, dtype: DType, seed: u32) -> Data {
        let mut state = seed.wrapping_mul(2_654_435_769) | 1;
        // Nothing after them, so that an address sanitizer sees who reads too far.
        let mut bytes = vec![0u32; (n * dtype.size()).div_ceil(4)];
        let dst = Dst::new(bytes.as_mut_ptr().cast(), dtype);
        let mut values = Vec::new();
        for i in 0..n {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            // SAFETY: in bounds.
            unsafe { dst.store(i, &[x]) };
            values.push(match dtype {
                DType::Bf16 => bf16::from_f32(x).to_f64(),
                DType::F16 => f16::from_f32(x).to_f64(),
                _ => f64::from(x),
            });
        }
        Data { bytes, values, dtype }
    }

    fn src(&self) -> Src {
        Src::new(self.bytes.as_ptr().cast(), self.dtype)
    }

    /// The matrix of `rows × columns`, stored by rows or, if `t`, by columns.
    fn mat(&self, rows: usize, columns: usize, t: bool) -> Mat {
        if t { Mat::rows(self.src(), rows).t() } else { Mat::rows(self.src(), columns) }
    }
}

/// One product in `f64`, added to `c`; and the same of magnitudes.
fn exact(m: usize, n: usize, k: usize, a: (&Data, bool), b: (&Data, bool), alpha: f64, c: &mut [[f64; 2]]) {
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let x = a.0.values[if a.1 { l * m + i } else { i * k + l }];
                let y = b.0.values[if b.1 { j * k + l } else { l * n + j }];
                let c = &mut c[i * n + j];
                *c = [c[0] + alpha * x * y, c[1] + (alpha * x * y).abs()];
            }
        }
    }
}

fn compare(what: &str, got: &[f32], want: &[[f64; 2]], dtype: DType) {
    let rounding = match dtype {
        DType::Bf16 => 1.0 / 256.0,
        DType::F16 => 1.0 / 2048.0,
        _ => 0.0,
    };
    for (i, (&g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w[0]).abs();
        assert!(
            error <= w[0].abs() * rounding + w[1] * 1e-5 + 1e-6,
            "{what}: element {i}: {g}, expected {}",
            w[0]
        );
    }
}

/// `c = c + bias + a·b + 0.5 s·t` in all types and layouts of `a` and `b`.
fn check(m: usize, n: usize, k: usize, level: Level, dtypes: [DType; 3], [ta, tb]: [bool; 2], extra: bool) {
    let [da, db, dc] = dtypes;
    let what = format!("{level:?} {m}x{n}x{k} {dtypes:?} {ta} {tb} {extra}");
    let (a, b) = (Data::new(m * k, da, 1), Data::new(k * n, db, 2));
    let (s, t) = (Data::new(m * 5, DType::F32, 3), Data::new(5 * n, DType::F32, 4));
    let (mut c, bias) = (Data::new(m * n, dc, 5), Data::new(n, da, 6));
    let mut want = vec![[0.0, 0.0]; m * n];
    let mut products = vec![Product::new(a.mat(m, k, ta), b.mat(k, n, tb), k)];
    exact(m, n, k, (&a, ta), (&b, tb), 1.0, &mut want);
    if extra {
        products.push(Product { alpha: 0.5, ..Product::new(s.mat(m, 5, false), t.mat(5, n, true), 5) });
        exact(m, n, 5, (&s, false), (&t, true), 0.5, &mut want);
        for (i, w) in want.iter_mut().enumerate() {
            w[0] += c.values[i] + bias.values[i % n];
        }
    }
    let dst = Dst::new(c.bytes.as_mut_ptr().cast(), dc);
    let job = Job { accumulate: extra, bias: extra.then(|| bias.src()), ..Job::new(m, n, &products, dst) };
    let mut got = vec![0.0; m * n];
    // SAFETY: operands have these extents.
    unsafe {
        job.run_at(level);
        c.src().load(0, &mut got);
    }
    compare(&what, &got, &want, dc);
}

#[test]
fn odd_extents_in_every_type_and_layout() {
    let sides = [1, 2, 5, 8, 13, 16, 17, 31, 47, 48, 49, 70];
    let mut case = 0;
    for level in levels() {
        for m in sides {
            for n in sides {
                for k in [1, 2, 3, 7, 16, 33, 64, 70] {
                    // All combinations come up over the extents.
                    case += 1;
                    let of = |i: usize| FLOATS[case / 3usize.pow(i as u32) % 3];
                    let types = if case % 4 == 0 { [DType::Bf16; 3] } else { [of(0), of(1), of(2)] };
                    let layout = [case / 5 % 2 == 0, case / 7 % 2 == 0];
                    check(m, n, k, level, types, layout, case / 11 % 2 == 0);
                }
            }
        }
    }
}

#[test]
fn several_segments_phases_tiles_and_blocks() {
    for level in levels() {
        for types in
            [[DType::F32; 3], [DType::Bf16; 3], [DType::Bf16, DType::F32, DType::F16], [DType::F16; 3]]
        {
            for layout in [[false, true], [true, false], [false, false], [true, true]] {
                check(5, 6, 2100, level, types, layout, true);
                check(140, 270, 601, level, types, layout, true);
                check(33, 70, 1024, level, types, layout, true);
            }
            for m in 1..5 {
                check(m, 45, 1100, level, types, [false, true], false);
            }
            check(1100, 9, 65, level, types, [false, true], false);
            check(9, 1100, 65, level, types, [false, true], true);
            check(20, 1100, 1300, level, types, [false, false], true);
        }
    }
}

/// Parts that one thread computes after each other, of one phase and of several: what is packed for one serves the next, or
/// does not.
#[test]
fn parts_that_share_columns() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for level in levels() {
        for dtype in [DType::F32, DType::Bf16] {
            pool.install(|| {
                check(1060, 530, 10, level, [dtype; 3], [true, false], false);
                check(530, 1060, 10, level, [dtype; 3], [false, true], true);
                check(520, 560, 30, level, [dtype; 3], [true, true], true);
                check(530, 60, 1100, level, [dtype, dtype, DType::F32], [true, false], true);
            });
        }
    }
}

#[test]
fn no_depth_leaves_the_sum_of_nothing() {
    for level in levels() {
        check(7, 9, 0, level, [DType::F32; 3], [false, false], false);
        check(7, 9, 0, level, [DType::Bf16; 3], [false, false], true);
    }
}

/// Bits of a LoRA-like sum with dropout on an operand and on a product, of which the decisions are made before; and of one
/// with dropout on a product of `bf16`, which micro-kernels apply to sums in registers.
fn bits(level: Level, threads: usize, dtype: DType, (m, n, k): (usize, usize, usize)) -> Vec<u32> {
    use crate::cpu::dropout::Kept;
    use crate::cpu::philox::Stream;
    let (a, b) = (Data::new(m * k, dtype, 1), Data::new(k * n, dtype, 2));
    let (s, t) = (Data::new(m * 8, DType::F32, 3), Data::new(8 * n, DType::F32, 4));
    let mut c = vec![0u32; m * n];
    let d = Dropout::new(Stream::new(&[7, 8], 3), 0.25);
    let mut words = vec![0; Kept::words(m * n)];
    let kept = Kept::new(&mut words);
    // SAFETY: there is room.
    unsafe { d.decide(kept, 0, m * n) };
    let (low, high) = (Data::new(m * 8, dtype, 5), Data::new(8 * n, dtype, 6));
    let decided = Some(d.with(kept));
    let pair = [
        Product::new(a.mat(m, k, false), b.mat(k, n, true), k),
        Product { dropout: decided, ..Product::new(low.mat(m, 8, false), high.mat(8, n, false), 8) },
    ];
    let d = Some(d);
    let products = [
        Product::new(a.mat(m, k, false), b.mat(k, n, true), k),
        Product { dropout: decided, ..Product::new(s.mat(m, 8, false), t.mat(8, n, false), 8) },
        Product { dropout: d, ..Product::new(s.mat(m, 8, false), t.mat(8, n, false), 8) },
        Product::new(a.mat(m, k, false).with_dropout(d), b.mat(k, n, true), k),
    ];
    let dst = Dst::new(c.as_mut_ptr().cast(), dtype);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut sums = vec![0u32; m * n];
    let to = Dst::new(sums.as_mut_ptr().cast(), dtype);
    // SAFETY: operands have these extents.
    pool.install(|| unsafe {
        Job::new(m, n, &products, dst).run_at(level);
        Job::new(m, n, &pair, to).run_at(level);
    });
    let mut want = vec![[0.0, 0.0]; m * n];
    exact(m, n, 8, (&low, false), (&high, false), 1.0, &mut want);
    for (i, want) in want.iter_mut().enumerate() {
        // SAFETY: within the tensor.
        let factor = if unsafe { kept.at(i) } & 1 == 1 { 1.0 / 0.75 } else { 0.0 };
        *want = want.map(|x| x * factor);
    }
    exact(m, n, k, (&a, false), (&b, true), 1.0, &mut want);
    let mut got = vec![0.0; m * n];
    // SAFETY: as above.
    unsafe { to.src().load(0, &mut got) };
    compare(&format!("dropout {level:?} {dtype}"), &got, &want, dtype);
    c.extend(sums);
    c
}

#[test]
fn bits_do_not_depend_on_threads() {
    for level in levels() {
        for dtype in FLOATS {
            for extents in [(300, 257, 1300), (33, 70, 64), (129, 500, 31)] {
                let one = bits(level, 1, dtype, extents);
                assert!(one.iter().any(|x| *x != 0));
                for threads in [2, 3] {
                    assert_eq!(one, bits(level, threads, dtype, extents), "{level:?} {dtype} {extents:?}");
                }
            }
        }
    }
}

/// An element's bits do not depend on how many rows and columns there are beside it.
#[test]
fn bits_do_not_depend_on_the_place_in_a_tile() {
    let k = 1100;
    for level in levels() {
        for dtype in FLOATS {
            let (a, b) = (Data::new(200 * k, dtype, 1), Data::new(300 * k, dtype, 2));
            let run = |m: usize, n: usize| {
                let mut c = vec![0.0; m * n];
                let products = [Product::new(a.mat(200, k, false), b.mat(k, 300, true), k)];
                // SAFETY: operands have at least these extents.
                unsafe { Job::new(m, n, &products, Dst::floats(&mut c)).run_at(level) };
                c
            };
            let all = run(200, 300);
            for (m, n) in [(5, 300), (200, 1), (77, 133)] {
                for (i, row) in run(m, n).chunks(n).enumerate() {
                    assert_eq!(row, &all[i * 300..i * 300 + n], "{level:?} {dtype} {m} {n}");
                }
            }
        }
    }
}
