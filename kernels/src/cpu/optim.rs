//! The optimiser: `adamw`, in place, a list of parameters in one pass.

use crate::cpu::elem::{Elem, of_type};
use crate::cpu::float::blocks;
use crate::cpu::list::List;
use crate::cpu::simd::simd;
use crate::cpu::sums::pull;
use crate::cpu::{Call, Kernel, KernelError, par};
use kfc_graph::{Attrs, DType, TensorType};
use kfc_ops::adamw::MOST;

/// `adamw`. Operands and results are those of [`kfc_ops::adamw::AdamWDef`].
pub(crate) struct AdamW {
    list: List,
    step: Step,
    /// Results of a parameter: three, or four with a cast copy.
    states: usize,
    /// Operands of a parameter that are only read.
    others: usize,
    lr_scale: bool,
    cast: Option<DType>,
    /// Element type of each parameter's Fisher diagonal, if there is a penalty.
    fishers: Vec<DType>,
}

/// What all elements of a step share.
#[derive(Clone, Copy)]
struct Step {
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    /// Learning rate.
    lr: f32,
    /// Factor of the gradient.
    coef: f32,
    /// Weight of the penalty.
    penalty: f32,
    /// Inverse of the first moment's correction, and of the root of the second one's.
    inverse: [f32; 2],
}

impl AdamW {
    pub(crate) fn new(attrs: &Attrs, inputs: &[TensorType]) -> Result<AdamW, KernelError> {
        let cast = match attrs.str("cast")? {
            "bf16" => Some(DType::Bf16),
            "f16" => Some(DType::F16),
            _ => None,
        };
        let step = Step {
            beta1: attrs.f64("beta1")? as f32,
            beta2: attrs.f64("beta2")? as f32,
            eps: attrs.f64("eps")? as f32,
            weight_decay: attrs.f64("weight_decay")? as f32,
            lr: 0.0,
            coef: 1.0,
            penalty: 0.0,
            inverse: [1.0; 2],
        };
        let (lr_scale, ewc) = (attrs.bool("lr_scale")?, attrs.bool("ewc")?);
        let states = if cast.is_some() { 4 } else { 3 };
        let others = 1 + usize::from(lr_scale) + if ewc { 2 } else { 0 };
        let n = attrs.usize("params")?.min(MOST);
        let lengths = inputs.chunks(states).take(n).map(|p| p[0].elements()).collect();
        let fisher = |p: &[TensorType]| p[others - 2].dtype;
        let read = inputs[n * states..].chunks(others).take(if ewc { n } else { 0 });
        let (list, fishers) = (List::new(lengths, par::GRAIN), read.map(fisher).collect());
        Ok(AdamW { list, step, states, others, lr_scale, cast, fishers })
    }

    fn params(&self) -> usize {
        self.list.len()
    }
}

impl Kernel for AdamW {
    unsafe fn run(&self, call: &Call<'_>) {
        let reads = self.params() * self.states;
        let shared = reads + self.params() * self.others;
        // SAFETY: by contract of `run`: results hold their operands; tasks have elements of their own.
        unsafe {
            if call.input::<i32>(shared + 3)[0] == 0 {
                return;
            }
            let bc = call.input::<f32>(shared + 2);
            let step = Step {
                lr: call.input::<f32>(shared)[0],
                coef: call.input::<f32>(shared + 1)[0],
                penalty: if self.fishers.is_empty() { 0.0 } else { call.input::<f32>(shared + 4)[0] },
                inverse: [1.0 / bc[0], 1.0 / bc[1].sqrt()],
                ..self.step
            };
            self.list.each(|_, i, range| {
                let state = |k: usize| call.dst(i * self.states + k, DType::F32);
                let read = |k: usize| call.src(reads + i * self.others + k, DType::F32);
                for (start, n) in blocks(range) {
                    let (p, m, v) = (state(0).raw(start, n), state(1).raw(start, n), state(2).raw(start, n));
                    let g = read(0).raw(start, n);
                    let scale: &[f32] = if self.lr_scale { read(1).raw(start, n) } else { &[] };
                    match self.fishers.get(i) {
                        None => plain(step, p, m, v, g, scale),
                        Some(&dtype) => {
                            let at = reads + i * self.others + self.others - 2;
                            let (fisher, anchor) = (call.src(at, dtype), call.src(at + 1, DType::F32));
                            let anchor = anchor.raw(start, n);
                            of_type!(dtype, F => {
                                penalised(step, p, m, v, g, scale, fisher.raw::<F>(start, n), anchor);
                            });
                        }
                    }
                    if let Some(dtype) = self.cast {
                        call.dst(i * self.states + 3, dtype).store(start, p);
                    }
                }
            });
        }
    }

    fn inplace(&self) -> &'static [(usize, usize)] {
        &LEADING[..self.params() * self.states]
    }
}

/// Results stand in the order of the operands that they replace.
static LEADING: [(usize, usize); 4 * MOST] = {
    let mut pairs = [(0, 0); 4 * MOST];
    let mut i = 0;
    while i < pairs.len() {
        pairs[i] = (i, i);
        i += 1;
    }
    pairs
};

/// One element's update, as `torch.optim.AdamW`.
#[inline(always)]
fn update(s: Step, lr: f32, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
    let g = g * s.coef;
    *m = s.beta1 * *m + (1.0 - s.beta1) * g;
    *v = s.beta2 * *v + (1.0 - s.beta2) * (g * g);
    let denominator = v.sqrt() * s.inverse[1] + s.eps;
    *p = *p * (1.0 - lr * s.weight_decay) - lr * s.inverse[0] * (*m / denominator);
}

simd! {
    /// Without a penalty; a factor of the learning rate an element, or none.
    fn plain(s: Step, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], lr_scale: &[f32]) {
        let n = p.len();
        let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
        if lr_scale.is_empty() {
            for i in 0..n {
                update(s, s.lr, &mut p[i], &mut m[i], &mut v[i], g[i]);
            }
        } else {
            let lr_scale = &lr_scale[..n];
            for i in 0..n {
                update(s, s.lr * lr_scale[i], &mut p[i], &mut m[i], &mut v[i], g[i]);
            }
        }
    }

    /// With the gradient of the penalty.
    fn penalised<F: Elem>(
        s: Step,
        p: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        lr_scale: &[f32],
        fisher: &[F],
        anchor: &[f32],
    ) {
        let n = p.len();
        let (m, v, g, fisher, anchor) = (&mut m[..n], &mut v[..n], &g[..n], &fisher[..n], &anchor[..n]);
        if lr_scale.is_empty() {
            for i in 0..n {
                let g = g[i] + pull(s.penalty, p[i], fisher[i].get(), anchor[i]);
                update(s, s.lr, &mut p[i], &mut m[i], &mut v[i], g);
            }
        } else {
            let lr_scale = &lr_scale[..n];
            for i in 0..n {
                let g = g[i] + pull(s.penalty, p[i], fisher[i].get(), anchor[i]);
                update(s, s.lr * lr_scale[i], &mut p[i], &mut m[i], &mut v[i], g);
            }
        }
    }
}
