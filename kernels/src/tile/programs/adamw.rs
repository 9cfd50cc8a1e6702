//! `adamw`: a launch a parameter of the list; parameters of one shape share a program.

use super::elementwise::{flat, tile};
use super::{EmitError, Emitted, Kernel, Launch, Operation};
use crate::tile::ir::{Compare, Unary, Var};
use crate::tile::{Buffer, Builder};
use kfc_ops::adamw::MOST;

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

/// What a node's parameters have in common.
struct Step {
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    /// Results of a parameter: three, or four with a copy in another type.
    states: usize,
    /// Operands of a parameter that are only read.
    others: usize,
    has_scale: bool,
    has_penalty: bool,
    /// The first operand that all parameters share.
    shared: usize,
}

/// One step of Adam with decoupled weight decay, of each parameter of a list, in place.
pub(super) fn adamw(o: &Operation<'_>) -> Result<Emitted, EmitError> {
    let attr = |name: &str| o.attrs.f64(name).map(|v| v as f32);
    let (has_scale, has_penalty) = (o.attrs.bool("lr_scale")?, o.attrs.bool("ewc")?);
    let params = o.attrs.usize("params")?;
    let states = o.outputs.len() / params.max(1);
    let others = 1 + usize::from(has_scale) + 2 * usize::from(has_penalty);
    let step = Step {
        beta1: attr("beta1")?,
        beta2: attr("beta2")?,
        eps: attr("eps")?,
        decay: attr("weight_decay")?,
        states,
        others,
        has_scale,
        has_penalty,
        shared: params * (states + others),
    };
    let launches = (0..params).map(|i| step.launch(o, params, i)).collect::<Result<_, _>>()?;
    let updates = LEADING.get(..o.outputs.len()).unwrap_or(&LEADING);
    Ok(Emitted { launches, updates, ..Emitted::default() })
}

impl Step {
    /// The update of parameter `i` of `params`.
    fn launch(&self, o: &Operation<'_>, params: usize, i: usize) -> Result<Launch, EmitError> {
        let (state, other) = (i * self.states, params * self.states + i * self.others);
        let n = o.outputs[state].elements();
        let doc = if self.has_penalty {
            "AdamW: p, m, v to their next values with the gradient coef · (g + weight · fisher · (p − anchor)); nothing \
             changes where ok is 0"
        } else {
            "AdamW: p, m, v and the gradient g (times coef, the clipping factor) to their next values; nothing changes \
             where ok is 0"
        };
        let mut k = flat("adamw", doc, n);
        let results = [(0, "p"), (1, "m"), (2, "v")].map(|(j, name)| k.updated(o, state + j, name));
        let copy = (self.states > 3).then(|| k.updated(o, state + 3, "pc"));
        let g = k.input(o, other, "g");
        let scale = self.has_scale.then(|| k.input(o, other + 1, "lr_scale"));
        let [lr, coef, bc, ok] =
            [(0, "lr"), (1, "coef"), (2, "bc"), (3, "ok")].map(|(i, name)| k.input(o, self.shared + i, name));
        let penalty = self.has_penalty.then(|| self.penalty(&mut k, o, other));
        let b = &mut k.b;
        let (at, mask) = tile(b, n);
        let (zero, one_at) = (b.int(0), b.int(1));
        let [lr, coef, bc1] = [lr, coef, bc].map(|q| b.load(q, zero, None));
        let (bc2, ok) = (b.load(bc, one_at, None), b.load(ok, zero, None));
        let [p0, m0, v0] = results.map(|q| b.load(q, at, mask));
        let mut g = b.load(g, at, mask);
        if let Some([weight, fisher, anchor]) = penalty {
            let weight = b.load(weight, zero, None);
            let [fisher, anchor] = [fisher, anchor].map(|q| b.load_float(q, at, mask));
            let drift = b.sub(p0, anchor);
            let pull = b.mul(fisher, drift);
            let pull = b.mul(pull, weight);
            g = b.add(g, pull);
        }
        let rate = match scale {
            Some(scale) => {
                let s = b.load(scale, at, mask);
                b.mul(lr, s)
            }
            None => lr,
        };
        let g = b.mul(g, coef);
        let m1 = decayed(b, m0, self.beta1, g);
        let g2 = b.mul(g, g);
        let v1 = decayed(b, v0, self.beta2, g2);
        let p1 = self.moved(b, p0, rate, (m1, bc1), (v1, bc2));
        let changes = b.compare(Compare::Eq, ok, zero);
        let width = b.ty(p0).dims.clone();
        let is_off = b.splat(changes, &width);
        for (buffer, (new, old)) in results.into_iter().zip([(p1, p0), (m1, m0), (v1, v0)]) {
            let value = b.select(is_off, old, new);
            b.store(buffer, at, value, mask);
        }
        if let Some(copy) = copy {
            let old = b.load_float(copy, at, mask);
            let value = b.select(is_off, old, p1);
            b.store(copy, at, value, mask);
        }
        k.finish()
    }

    /// The penalty's weight, Fisher diagonal and anchor of the parameter whose other operands begin at `other`.
    fn penalty(&self, k: &mut Kernel, o: &Operation<'_>, other: usize) -> [Buffer; 3] {
        let first = other + 1 + usize::from(self.has_scale);
        [(self.shared + 4, "weight"), (first, "fisher"), (first + 1, "anchor")]
            .map(|(i, name)| k.input(o, i, name))
    }

    /// The next parameter, from moments and their corrections.
    fn moved(
        &self,
        b: &mut Builder,
        p0: Var,
        rate: Var,
        (m1, bc1): (Var, Var),
        (v1, bc2): (Var, Var),
    ) -> Var {
        let mhat = b.div(m1, bc1);
        let vhat = b.div(v1, bc2);
        let root = b.unary(Unary::Sqrt, vhat);
        let eps = b.float(self.eps);
        let root = b.add(root, eps);
        let step = b.div(mhat, root);
        let decay = b.float(self.decay);
        let shrink = b.mul(decay, p0);
        let change = b.add(step, shrink);
        let change = b.mul(rate, change);
        b.sub(p0, change)
    }
}

/// `beta · old + (1 − beta) · new`
fn decayed(b: &mut Builder, old: Var, beta: f32, new: Var) -> Var {
    let (keep, take) = (b.float(beta), b.float(1.0 - beta));
    let (old, new) = (b.mul(old, keep), b.mul(new, take));
    b.add(old, new)
}
