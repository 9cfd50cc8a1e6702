//! `attention` and `attention_bwd`: causal attention within segments, with grouped key and value heads.
//!
//! Query i sees key j iff `seg_q[i] >= 0`, `seg_q[i] == seg_k[j]` and `pos_k[j] <= pos_q[i]`; this covers
//! packed rows, padding (segment -1) and a key-value cache; where all positions are equal, attention sees both ways.
//! A query that sees nothing has o = 0 and lse = 0.
//! Query head h reads key head `h / (heads / kv_heads)`. Scores are f32.

use crate::common::{Operands, take, unit, zero_unless};
use crate::common::{
    and, at_least, check_vjp, exact, f32, fail, gemm_flops, grad, row_max, row_sum, sample, spread,
};
use kfc_graph::{
    Attrs, Builder, CmpOp, Cost, DType, OpDef, Result, Sample, TensorType, ValueId, Vjp, VjpArgs,
};

/// Forward. Attributes `heads`, `kv_heads`, `scale`. Operands: q `[B,Tq,heads·D]`, k `[B,Tk,kv_heads·D]`, v
/// `[B,Tk,kv_heads·Dv]` of one float type X; seg_q, pos_q `i32 [B,Tq]`; seg_k, pos_k `i32 [B,Tk]`. Results: o
/// `[B,Tq,heads·Dv]` X and lse `f32 [B,heads,Tq]`, the logarithm of each row's softmax denominator. Only o
/// carries a gradient.
pub struct AttentionDef;

/// Backward. The same attributes. Operands: do, q, k, v, o, lse, seg_q, pos_q, seg_k, pos_k. Results: dq, dk,
/// dv (X).
pub struct AttentionBwd;

/// The definition of the forward operation.
pub static ATTENTION: AttentionDef = AttentionDef;
/// The definition of the backward operation.
pub static ATTENTION_BWD: AttentionBwd = AttentionBwd;

const NAME: &str = "attention";
const BWD: &str = "attention_bwd";
/// Score of a masked pair: far below any real score, yet finite, so that differences stay finite.
const MASKED: f64 = -1e30;

/// Arguments of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// `[B,Tq,heads·D]`.
    pub q: ValueId,
    /// `[B,Tk,kv_heads·D]`.
    pub k: ValueId,
    /// `[B,Tk,kv_heads·Dv]`.
    pub v: ValueId,
    /// `i32 [B,Tq]`; -1 is padding.
    pub seg_q: ValueId,
    /// `i32 [B,Tq]`.
    pub pos_q: ValueId,
    /// `i32 [B,Tk]`.
    pub seg_k: ValueId,
    /// `i32 [B,Tk]`.
    pub pos_k: ValueId,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor of the scores, usually `1/√D`.
    pub scale: f64,
}

impl Attention {
    fn attrs(&self) -> Attrs {
        Attrs::new().with("heads", self.heads).with("kv_heads", self.kv_heads).with("scale", self.scale)
    }
}

/// Softmax attention: `[B,Tq,heads·Dv]`.
///
/// # Errors
/// If the operands do not fit.
pub fn attention(b: &mut Builder<'_>, a: &Attention) -> Result<ValueId> {
    Ok(b.composite(&ATTENTION, a.attrs(), &[a.q, a.k, a.v, a.seg_q, a.pos_q, a.seg_k, a.pos_k])?[0])
}

/// Extents of one application.
#[derive(Clone, Copy)]
struct Extents {
    batch: usize,
    tq: usize,
    tk: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
}

impl Extents {
    /// Reads them from the attributes and the types of q, k, v, which must fit.
    fn new(op: &str, attrs: &Attrs, q: &TensorType, k: &TensorType, v: &TensorType) -> Result<Extents> {
        let (heads, kv_heads) = (attrs.usize("heads")?, attrs.usize("kv_heads")?);
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return fail(op, format!("`kv_heads` must divide `heads`, are {kv_heads} and {heads}"));
        }
        let d = q.last() / heads;
        let fits = q.last() == heads * d
            && d > 0
            && k.last() == kv_heads * d
            && v.last().is_multiple_of(kv_heads)
            && k.dims[0] == q.dims[0]
            && v.dims[..2] == k.dims[..2]
            && k.dtype == q.dtype
            && v.dtype == q.dtype;
        if !fits {
            return fail(
                op,
                format!("q {q}, k {k}, v {v} do not fit {heads} heads over {kv_heads} key heads"),
            );
        }
        let (batch, tq, tk, dv) = (q.dims[0], q.dims[1], k.dims[1], v.last() / kv_heads);
        Ok(Extents { batch, tq, tk, heads, kv_heads, d, dv })
    }

    fn of(b: &Builder<'_>, op: &str, attrs: &Attrs, [q, k, v]: [ValueId; 3]) -> Result<Extents> {
        Extents::new(op, attrs, b.ty(q), b.ty(k), b.ty(v))
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn scores(&self) -> [usize; 4] {
        [self.batch, self.heads, self.tq, self.tk]
    }
}

/// `[B,T,heads·D]` as `f32 [B,heads,T,D]`.
fn split_heads(b: &mut Builder<'_>, x: ValueId, heads: usize) -> Result<ValueId> {
    let ty = b.ty(x).clone();
    let x = f32(b, x)?;
    let x = b.reshape(x, &[ty.dims[0], ty.dims[1], heads, ty.last() / heads])?;
    b.transpose(x, &[0, 2, 1, 3])
}

/// Inverse of [`split_heads`], as `dtype`.
fn merge_heads(b: &mut Builder<'_>, x: ValueId, dtype: DType) -> Result<ValueId> {
    let d = b.ty(x).dims.clone();
    let x = b.transpose(x, &[0, 2, 1, 3])?;
    let x = b.reshape(x, &[d[0], d[2], d[1] * d[3]])?;
    b.cast(x, dtype)
}

/// Key heads repeated for each of their query heads: `[B,kv_heads,T,D]` to `[B,heads,T,D]`.
fn repeat_heads(b: &mut Builder<'_>, x: ValueId, group: usize) -> Result<ValueId> {
    let d = b.ty(x).dims.clone();
    let x = b.reshape(x, &[d[0], d[1], 1, d[2], d[3]])?;
    let x = b.broadcast(x, &[d[0], d[1], group, d[2], d[3]])?;
    b.reshape(x, &[d[0], d[1] * group, d[2], d[3]])
}

/// Transpose of [`repeat_heads`].
fn sum_heads(b: &mut Builder<'_>, x: ValueId, group: usize) -> Result<ValueId> {
    let d = b.ty(x).dims.clone();
    let x = b.reshape(x, &[d[0], d[1] / group, group, d[2], d[3]])?;
    let x = b.reduce_sum(x, &[2])?;
    b.reshape(x, &[d[0], d[1] / group, d[2], d[3]])
}

/// 1 where a query sees a key: `i32 [B,heads,Tq,Tk]`.
fn visible(b: &mut Builder<'_>, e: Extents, [seg_q, pos_q, seg_k, pos_k]: [ValueId; 4]) -> Result<ValueId> {
    let of_query = |b: &mut Builder<'_>, v| {
        let v = b.reshape(v, &[e.batch, 1, e.tq, 1])?;
        b.broadcast(v, &e.scores())
    };
    let of_key = |b: &mut Builder<'_>, v| {
        let v = b.reshape(v, &[e.batch, 1, 1, e.tk])?;
        b.broadcast(v, &e.scores())
    };
    let (seg_q, pos_q) = (of_query(b, seg_q)?, of_query(b, pos_q)?);
    let (seg_k, pos_k) = (of_key(b, seg_k)?, of_key(b, pos_k)?);
    let real = at_least(b, seg_q, 0.0)?;
    let same = b.compare(CmpOp::Eq, seg_q, seg_k)?;
    let causal = b.compare(CmpOp::Le, pos_k, pos_q)?;
    let both = and(b, real, same)?;
    and(b, both, causal)
}

/// Scaled scores with masked pairs at [`MASKED`], and the mask.
fn masked_scores(
    b: &mut Builder<'_>,
    e: Extents,
    scale: f64,
    q: ValueId,
    k: ValueId,
    rows: [ValueId; 4],
) -> Result<(ValueId, ValueId)> {
    let scores = b.matmul(q, k, false, true, DType::F32)?;
    let scores = b.scale(scores, scale)?;
    let mask = visible(b, e, rows)?;
    let low = b.full_like(scores, MASKED)?;
    Ok((b.select(mask, scores, low)?, mask))
}

/// What a masked softmax over keys gives: probabilities `[B,heads,Tq,Tk]`, and of each row `[..,1]` the largest score, the
/// sum of exponentials (1 where nothing is seen) and whether anything is seen.
struct Softmax {
    p: ValueId,
    max: ValueId,
    sum: ValueId,
    sees: ValueId,
}

fn softmax(b: &mut Builder<'_>, e: Extents, scores: ValueId, mask: ValueId) -> Result<Softmax> {
    let max = row_max(b, scores)?;
    let spread_max = spread(b, max, e.tk)?;
    let shifted = b.sub(scores, spread_max)?;
    let weights = b.exp(shifted)?;
    let weights = zero_unless(b, mask, weights)?;
    let sum = row_sum(b, weights)?;
    let zero = b.full_like(sum, 0.0)?;
    let sees = b.compare(CmpOp::Lt, zero, sum)?;
    let one = b.full_like(sum, 1.0)?;
    let sum = b.select(sees, sum, one)?;
    let spread_sum = spread(b, sum, e.tk)?;
    let p = b.div(weights, spread_sum)?;
    Ok(Softmax { p, max, sum, sees })
}

/// The weights that [`attention`] gives to keys, `f32 [B,heads,Tq,Tk]`, made of primitives: no attention kernel ever holds
/// them.
///
/// # Errors
/// If the operands do not fit.
pub fn attention_weights(b: &mut Builder<'_>, a: &Attention) -> Result<ValueId> {
    let e = Extents::new(NAME, &a.attrs(), b.ty(a.q), b.ty(a.k), b.ty(a.v))?;
    let q = split_heads(b, a.q, e.heads)?;
    let k = split_heads(b, a.k, e.kv_heads)?;
    let k = repeat_heads(b, k, e.group())?;
    let (scores, mask) = masked_scores(b, e, a.scale, q, k, [a.seg_q, a.pos_q, a.seg_k, a.pos_k])?;
    Ok(softmax(b, e, scores, mask)?.p)
}

impl OpDef for AttentionDef {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        let mut i = Operands::new(NAME, inputs);
        let (q, k, v) = (i.float_rank("q", 3)?, i.float_rank("k", 3)?, i.float_rank("v", 3)?);
        let e = Extents::new(NAME, attrs, q, k, v)?;
        check_rows(&mut i, e)?;
        i.end()?;
        Ok(vec![
            TensorType::new(q.dtype, [e.batch, e.tq, e.heads * e.dv]),
            TensorType::new(DType::F32, [e.batch, e.heads, e.tq]),
        ])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [q, k, v, seg_q, pos_q, seg_k, pos_k] = take(NAME, inputs)?;
        let dtype = b.ty(q).dtype;
        let e = Extents::of(b, NAME, attrs, [q, k, v])?;
        let q = split_heads(b, q, e.heads)?;
        let (k, v) = (split_heads(b, k, e.kv_heads)?, split_heads(b, v, e.kv_heads)?);
        let (k, v) = (repeat_heads(b, k, e.group())?, repeat_heads(b, v, e.group())?);

        let (scores, mask) = masked_scores(b, e, attrs.f64("scale")?, q, k, [seg_q, pos_q, seg_k, pos_k])?;
        let Softmax { p, max, sum, sees } = softmax(b, e, scores, mask)?;
        let o = b.matmul(p, v, false, false, DType::F32)?;
        let log_sum = b.log(sum)?;
        let lse = b.add(max, log_sum)?;
        let lse = zero_unless(b, sees, lse)?;
        Ok(vec![merge_heads(b, o, dtype)?, b.reshape(lse, &[e.batch, e.heads, e.tq])?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Explicit(vjp)
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(pair_flops(NAME, attrs, &inputs[..3], 1, 1), inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        cases().into_iter().map(|c| sample(c.attrs(), [c.qkv(), c.rows()].concat())).collect()
    }
}

/// FLOPs of products over all query-key pairs: `n_d` products of depth D and `n_dv` of depth Dv. A square
/// problem counts half of them, as a causal one computes.
fn pair_flops(op: &str, attrs: &Attrs, qkv: &[TensorType], n_d: u64, n_dv: u64) -> u64 {
    let Ok(e) = Extents::new(op, attrs, &qkv[0], &qkv[1], &qkv[2]) else { return 0 };
    let rows = e.batch * e.heads * e.tq;
    let all = n_d * gemm_flops(rows, e.tk, e.d) + n_dv * gemm_flops(rows, e.tk, e.dv);
    if e.tq == e.tk { all / 2 } else { all }
}

fn check_rows(i: &mut Operands<'_>, e: Extents) -> Result<()> {
    for (name, t) in [("seg_q", e.tq), ("pos_q", e.tq), ("seg_k", e.tk), ("pos_k", e.tk)] {
        i.exact(name, DType::I32, &[e.batch, t])?;
    }
    Ok(())
}

fn vjp(b: &mut Builder<'_>, args: &VjpArgs<'_>) -> Result<Vec<Option<ValueId>>> {
    check_vjp(NAME, args, &[0, 1, 2], 1)?;
    let dtype = b.ty(args.inputs[0]).dtype;
    let mut inputs = vec![grad(b, args, 0, dtype)?];
    inputs.extend(&args.inputs[..3]);
    inputs.extend(args.outputs);
    inputs.extend(&args.inputs[3..]);
    let results = b.composite(&ATTENTION_BWD, args.attrs.clone(), &inputs)?;
    let mut grads = vec![None; args.inputs.len()];
    for i in 0..3 {
        grads[i] = Some(results[i]).filter(|_| args.needs[i]);
    }
    Ok(grads)
}

impl OpDef for AttentionBwd {
    fn name(&self) -> &'static str {
        BWD
    }

    fn infer(&self, attrs: &Attrs, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        attrs.f64("scale")?;
        let mut i = Operands::new(BWD, inputs);
        let dout = i.float_rank("do", 3)?;
        let (q, k, v) = (i.float_rank("q", 3)?, i.float_rank("k", 3)?, i.float_rank("v", 3)?);
        let e = Extents::new(BWD, attrs, q, k, v)?;
        let want = TensorType::new(q.dtype, [e.batch, e.tq, e.heads * e.dv]);
        if *dout != want {
            return fail(BWD, format!("`do` must be {want}, is {dout}"));
        }
        i.exact("o", want.dtype, &want.dims)?;
        i.exact("lse", DType::F32, &[e.batch, e.heads, e.tq])?;
        check_rows(&mut i, e)?;
        i.end()?;
        Ok(vec![q.clone(), k.clone(), v.clone()])
    }

    fn decompose(&self, b: &mut Builder<'_>, attrs: &Attrs, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let [dout, q, k, v, o, lse, seg_q, pos_q, seg_k, pos_k] = take(BWD, inputs)?;
        let (dtype, scale) = (b.ty(q).dtype, attrs.f64("scale")?);
        let e = Extents::of(b, BWD, attrs, [q, k, v])?;
        let (dout, o, q) =
            (split_heads(b, dout, e.heads)?, split_heads(b, o, e.heads)?, split_heads(b, q, e.heads)?);
        let (k, v) = (split_heads(b, k, e.kv_heads)?, split_heads(b, v, e.kv_heads)?);
        let (k, v) = (repeat_heads(b, k, e.group())?, repeat_heads(b, v, e.group())?);

        let (scores, mask) = masked_scores(b, e, scale, q, k, [seg_q, pos_q, seg_k, pos_k])?;
        let lse = b.reshape(lse, &[e.batch, e.heads, e.tq, 1])?;
        let lse = spread(b, lse, e.tk)?;
        let log_p = b.sub(scores, lse)?;
        let p = b.exp(log_p)?;
        let p = zero_unless(b, mask, p)?;

        // ds = p · (do·vᵀ − Σ do·o), the softmax's Jacobian with Σ_j p_j (do·v_j) taken from o (Dao et al.,
        // 2022).
        let dv = b.matmul(p, dout, true, false, DType::F32)?;
        let dp = b.matmul(dout, v, false, true, DType::F32)?;
        let product = b.mul(dout, o)?;
        let delta = row_sum(b, product)?;
        let delta = spread(b, delta, e.tk)?;
        let centred = b.sub(dp, delta)?;
        let ds = b.mul(p, centred)?;
        let ds = b.scale(ds, scale)?;
        let dq = b.matmul(ds, k, false, false, DType::F32)?;
        let dk = b.matmul(ds, q, true, false, DType::F32)?;
        let (dk, dv) = (sum_heads(b, dk, e.group())?, sum_heads(b, dv, e.group())?);
        Ok(vec![merge_heads(b, dq, dtype)?, merge_heads(b, dk, dtype)?, merge_heads(b, dv, dtype)?])
    }

    fn vjp(&self) -> Vjp {
        Vjp::Zero
    }

    fn cost(&self, attrs: &Attrs, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // Scores, dq, dk; dp, dv.
        Cost::streaming(pair_flops(BWD, attrs, &inputs[1..4], 3, 2), inputs, outputs)
    }

    fn samples(&self) -> Vec<Sample> {
        cases()
            .into_iter()
            .map(|c| {
                let (batch, tq) = (c.batch, c.seg_q.len() / c.batch);
                let out = unit(c.dtype, &[batch, tq, c.heads * c.dv]);
                let mut inputs = vec![out.clone()];
                inputs.extend(c.qkv());
                inputs.extend([out, unit(DType::F32, &[batch, c.heads, tq])]);
                inputs.extend(c.rows());
                sample(c.attrs(), inputs)
            })
            .collect()
    }
}

/// One shape and mask for the samples of both operations.
struct Case {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
    seg_q: Vec<f64>,
    pos_q: Vec<f64>,
    seg_k: Vec<f64>,
    pos_k: Vec<f64>,
}

impl Case {
    fn attrs(&self) -> Attrs {
        Attrs::new().with("heads", self.heads).with("kv_heads", self.kv_heads).with("scale", 0.6)
    }

    fn qkv(&self) -> Vec<(TensorType, kfc_graph::SampleInput)> {
        let (tq, tk) = (self.seg_q.len() / self.batch, self.seg_k.len() / self.batch);
        vec![
            unit(self.dtype, &[self.batch, tq, self.heads * self.d]),
            unit(self.dtype, &[self.batch, tk, self.kv_heads * self.d]),
            unit(self.dtype, &[self.batch, tk, self.kv_heads * self.dv]),
        ]
    }

    fn rows(&self) -> Vec<(TensorType, kfc_graph::SampleInput)> {
        let (tq, tk) = (self.seg_q.len() / self.batch, self.seg_k.len() / self.batch);
        vec![
            exact(DType::I32, &[self.batch, tq], &self.seg_q),
            exact(DType::I32, &[self.batch, tq], &self.pos_q),
            exact(DType::I32, &[self.batch, tk], &self.seg_k),
            exact(DType::I32, &[self.batch, tk], &self.pos_k),
        ]
    }
}

fn cases() -> Vec<Case> {
    // Longer than a vector register and no multiple of one; two documents of 10 and 9.
    let seg: Vec<f64> = (0..19).map(|i| f64::from(i / 10)).collect();
    let pos: Vec<f64> = (0..19).map(|i| f64::from(i % 10)).collect();
    let mut cases = vec![Case {
        dtype: DType::F32,
        batch: 1,
        heads: 2,
        kv_heads: 1,
        d: 18,
        dv: 17,
        seg_q: seg.clone(),
        pos_q: pos.clone(),
        seg_k: seg,
        pos_k: pos,
    }];
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        // Two documents and padding in the first row, one document in the second; causal, and with all positions equal.
        let seg = vec![0., 0., 0., 1., 1., -1., -1., 0., 0., 0., 0., 0., 0., 0.];
        for pos in [vec![0., 1., 2., 0., 1., 0., 0., 0., 1., 2., 3., 4., 5., 6.], vec![0.; 14]] {
            cases.push(Case {
                dtype,
                batch: 2,
                heads: 4,
                kv_heads: 2,
                d: 3,
                dv: 5,
                seg_q: seg.clone(),
                pos_q: pos.clone(),
                seg_k: seg.clone(),
                pos_k: pos,
            });
        }
        // Two new queries over a cache of five with one free slot; the second row's query sees nothing.
        cases.push(Case {
            dtype,
            batch: 2,
            heads: 3,
            kv_heads: 1,
            d: 4,
            dv: 4,
            seg_q: vec![0., 0., 2., 0.],
            pos_q: vec![3., 4., 0., 2.],
            seg_k: vec![0., 0., 0., 0., 0., 0., 0., 0., -1., -1.],
            pos_k: vec![0., 1., 2., 3., 4., 0., 1., 2., 0., 0.],
        });
    }
    cases
}
