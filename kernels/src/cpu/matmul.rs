//! `Prim::MatMul` and `linear`.

use crate::cpu::gemm::{Job, Mat, Product, is_one_task};
use crate::cpu::transposed::Transposed;
use crate::cpu::{Call, Kernel, par};
use kfc_graph::{DType, TensorType};

/// `Prim::MatMul`.
pub(crate) struct MatMul {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: (DType, bool),
    b: (DType, bool),
    out: DType,
}

impl MatMul {
    pub(crate) fn new(a: &TensorType, b: &TensorType, ta: bool, tb: bool, out: DType) -> MatMul {
        let r = a.rank();
        let (m, k) = if ta { (a.dims[r - 1], a.dims[r - 2]) } else { (a.dims[r - 2], a.dims[r - 1]) };
        let n = if tb { b.dims[r - 2] } else { b.dims[r - 1] };
        let batch = a.dims[..r - 2].iter().product();
        MatMul { batch, m, n, k, a: (a.dtype, ta), b: (b.dtype, tb), out }
    }
}

impl Kernel for MatMul {
    unsafe fn run(&self, call: &Call<'_>) {
        let &MatMul { m, n, k, .. } = self;
        let (a, b, c) = (call.src(0, self.a.0), call.src(1, self.b.0), call.dst(0, self.out));
        let view = |src, t: bool, rows: usize, columns: usize| {
            if t { Mat::rows(src, rows).t() } else { Mat::rows(src, columns) }
        };
        // SAFETY: by contract of `run`; matrices of the result are disjoint.
        let product = |i: usize| unsafe {
            let a = view(a.offset(i * m * k), self.a.1, m, k);
            let b = match self.transposed() {
                Some(b) => b.mat(call),
                None => view(b.offset(i * k * n), self.b.1, k, n),
            };
            let dots = self.b.1 || n == 1;
            Job { dots, ..Job::new(m, n, &[Product::new(a, b, k)], c.offset(i * m * n)) }.run();
        };
        // Large products one after the other: each occupies all threads, and only one keeps packed operands.
        if is_one_task(m, n, k) { par::tasks(self.batch, product) } else { (0..self.batch).for_each(product) }
    }

    fn transposed(&self) -> Option<Transposed> {
        let (dtype, turned) = self.b;
        (self.batch == 1 && !turned).then_some(Transposed {
            operand: 1,
            rows: self.k,
            columns: self.n,
            dtype,
        })
    }
}

/// `linear`: `y = x·Wᵀ (+ bias)`.
pub(crate) struct Linear {
    rows: usize,
    inputs: usize,
    outputs: usize,
    dtypes: [DType; 3],
    bias: Option<DType>,
}

impl Linear {
    pub(crate) fn new(inputs: &[TensorType], y: &TensorType) -> Linear {
        let (x, w) = (&inputs[0], &inputs[1]);
        Linear {
            rows: x.rows(),
            inputs: x.last(),
            outputs: w.dims[0],
            dtypes: [x.dtype, w.dtype, y.dtype],
            bias: inputs.get(2).map(|b| b.dtype),
        }
    }
}

impl Kernel for Linear {
    unsafe fn run(&self, call: &Call<'_>) {
        let [x, w, y] = self.dtypes;
        let x = Mat::rows(call.src(0, x), self.inputs);
        let w = Mat::rows(call.src(1, w), self.inputs);
        let products = [Product::new(x, w.t(), self.inputs)];
        let bias = self.bias.map(|b| call.src(2, b));
        let job = Job { bias, ..Job::new(self.rows, self.outputs, &products, call.dst(0, y)) };
        // SAFETY: by contract of `run`.
        unsafe { job.run() }
    }
}
