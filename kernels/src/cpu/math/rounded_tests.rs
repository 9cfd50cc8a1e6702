//! Every `bf16` there is, against `f64`, at both levels that have these functions.

use super::*;

/// Both loops of a function, where this CPU has them.
fn both<const N: usize, const M: usize>(plain: Loop<N, M>, bf16: Loop<N, M>) -> Vec<Loop<N, M>> {
    let there = simd::available();
    let loops = [(Level::Avx512, plain), (Level::Avx512Bf16, bf16)];
    loops.into_iter().filter(|(level, _)| there.contains(level)).map(|(_, f)| f).collect()
}

fn apply<const N: usize, const M: usize>(f: Loop<N, M>, x: [&[bf16]; N]) -> [Vec<bf16>; M] {
    let n = x[0].len();
    let mut out = [const { Vec::new() }; M];
    out.iter_mut().for_each(|o| o.resize(n, bf16::ONE));
    let to = out.each_mut().map(|o| o.as_mut_ptr());
    // SAFETY: the level is there and all operands have as many elements.
    unsafe { f(x.map(<[bf16]>::as_ptr), to, n) };
    out
}

fn every() -> Vec<bf16> {
    (0..=u16::MAX).map(bf16::from_bits).collect()
}

/// Error in units in the last place of the exact value, or none where both are the same kind of no number.
fn ulps(got: bf16, exact: f64) -> f64 {
    let got = got.to_f64();
    if got == exact || (got.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    // What rounds to infinity may be it.
    if got.is_infinite() && exact.abs() > bf16::MAX.to_f64() {
        return 0.0;
    }
    let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (got - exact).abs() / (exponent - 7.0).exp2()
}

/// Checks a function of one operand at every `bf16` but those that `except`.
fn check(loops: Vec<Loop<1, 1>>, exact: fn(f64) -> f64, except: fn(f64) -> bool, flushed: fn(f64) -> bool) {
    let x = every();
    let results: Vec<_> = loops.iter().map(|&f| apply(f, [&x])).collect();
    for [y] in &results {
        for (x, y) in x.iter().zip(y) {
            let exact = exact(x.to_f64());
            if flushed(x.to_f64()) {
                assert_eq!(y.to_bits(), 0, "{x:e}");
            } else if !except(x.to_f64()) {
                assert!(ulps(*y, exact) <= 0.51, "{x:e}: {y:e} instead of {exact:e}");
            }
        }
    }
    let bits = |[y]: &[Vec<bf16>; 1]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    assert!(results.windows(2).all(|w| bits(&w[0]) == bits(&w[1])), "levels give the same bits");
}

#[test]
fn functions_of_every_element() {
    let flushed = |x: f64| x.exp() < f64::from(f32::MIN_POSITIVE);
    check(both(plain::exp, with_bf16::exp), f64::exp, |_| false, flushed);
    check(both(plain::log, with_bf16::log), f64::ln, |_| false, |_| false);
    let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
    // Below that it is zero, and no normal number before.
    let except = |x: f64| (-88.0..-87.0).contains(&x);
    check(both(plain::sigmoid, with_bf16::sigmoid), exact, except, |x| x < -88.37);
}

/// Values that a layer has, zeros, and products that are no normal numbers.
fn values(n: usize, factor: f32) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 7919 % 4001) as f32 - 2000.0) * factor)).collect()
}

#[test]
fn swiglu_and_its_gradient() {
    for (up_factor, tiny) in [(1e-3, 0.0), (1e-38, 1e-38)] {
        let (gate, up, dy) = (values(8000, 1e-2), values(8003, up_factor), values(8007, 2e-3));
        let (up, dy) = (&up[3..], &dy[7..]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let close = |got: bf16, exact: f64, of: f64| {
            // Beside rounding, one part in 2^13 of the factors.
            let tolerance = exact.abs() * (1.0 / 256.0 + 1.0 / 8192.0) + of * 1e-4 + tiny * 0.005;
            assert!((got.to_f64() - exact).abs() <= tolerance, "{got:e} instead of {exact:e}");
        };
        let mut before: Option<[Vec<u16>; 3]> = None;
        let loops = both(plain::swiglu, with_bf16::swiglu).into_iter();
        for (forward, backward) in loops.zip(both(plain::swiglu_bwd, with_bf16::swiglu_bwd)) {
            let [y] = apply(forward, [&gate, up]);
            let [dgate, dup] = apply(backward, [dy, &gate, up]);
            for i in 0..gate.len() {
                let [g, u, d] = [gate[i], up[i], dy[i]].map(bf16::to_f64);
                let s = sigmoid(g);
                close(y[i], g * s * u, 0.0);
                close(dgate[i], d * u * s * (1.0 + g * (1.0 - s)), (d * u * s).abs());
                close(dup[i], d * g * s, 0.0);
            }
            let bits = [y, dgate, dup].map(|r| r.iter().map(|y| y.to_bits()).collect::<Vec<_>>());
            assert!(before.as_ref().is_none_or(|b| *b == bits), "levels give the same bits");
            before = Some(bits);
        }
    }
}

#[test]
fn sums_are_rounded_once_and_may_be_written_over_an_operand() {
    // Every element with some others, down to subnormal sums.
    for (factor, shift) in [(1e-2, 7), (1e-38, 3), (1e-40, 5), (1e38, 11)] {
        let (a, b) = (every(), values(1 << 16, factor));
        let b: Vec<bf16> = b.iter().cycle().skip(shift).take(a.len()).copied().collect();
        let put = |x: f32| <bf16 as crate::cpu::elem::Elem>::put(x);
        let exact: Vec<bf16> = a.iter().zip(&b).map(|(a, b)| put(a.to_f32() + b.to_f32())).collect();
        let same = |y: &[bf16]| {
            let agree = |(y, e): (&bf16, &bf16)| y.to_bits() == e.to_bits() || (y.is_nan() && e.is_nan());
            y.iter().zip(&exact).all(agree)
        };
        for f in both(plain::add, with_bf16::add) {
            let [y] = apply(f, [&a, &b]);
            assert!(same(&y), "{factor:e}");
            for over in 0..2 {
                let mut x = [a.clone(), b.clone()];
                let to = x.each_mut().map(|x| x.as_mut_ptr());
                // SAFETY: the level is there; the result is where an operand is.
                unsafe { f(to.map(|p| p.cast_const()), [to[over]], a.len()) };
                assert!(same(&x[over]), "{factor:e} over operand {over}");
            }
        }
    }
}

#[test]
fn what_is_beyond_the_end_stays() {
    let x = values(100, 1e-2);
    for f in both(plain::exp, with_bf16::exp) {
        let [all] = apply(f, [&x]);
        for n in 0..x.len() {
            let mut out = vec![bf16::ONE; n + 40];
            // SAFETY: the level is there, and both have `n` elements.
            unsafe { f([x.as_ptr()], [out.as_mut_ptr()], n) };
            assert!(out[..n] == all[..n] && out[n..].iter().all(|o| *o == bf16::ONE), "{n} elements");
        }
    }
}
