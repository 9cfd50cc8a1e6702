//! The output layer in chunks of tokens: products give the logits of a chunk in a workspace, a program a row turns them
//! into losses and, in place, into their gradients, products give the gradients of hidden states and weight. Logits of all
//! tokens never exist.

mod rows;
mod topk;

use super::products::{Matrix, Product, factors, gradient_factors};
use super::sums::total;
use super::{Arg, EmitError, Emitted, Kernel, Launch, Operation, Sizes};
use crate::tile::Buffer;
use crate::tile::ir::{Access, Elem};
use kfc_graph::{Attrs, TensorType};
use kfc_ops::head::{HeadAttrs, KdKind};

/// What is computed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Mode {
    /// Losses.
    Forward,
    /// Gradients.
    Backward,
    /// Both.
    Fused,
}

/// One application: attributes, extents, and where operands, results and workspaces are.
struct Head {
    attrs: HeadAttrs,
    mode: Mode,
    /// Position of h among the operands.
    h: usize,
    tokens: usize,
    hidden: usize,
    vocab: usize,
    /// Vocabulary of a teacher with logits.
    teacher_vocab: usize,
    /// Tokens of a chunk.
    chunk: usize,
    works: Works,
}

/// Positions of workspaces.
#[derive(Default)]
struct Works {
    logits: usize,
    teacher: usize,
    /// Gradients of cached logits.
    direct: usize,
    /// Terms of ce, (kd), correct, a token each.
    terms: Vec<usize>,
}

/// A run of tokens.
#[derive(Clone, Copy)]
struct Chunk {
    start: usize,
    n: usize,
}

/// Tokens of a chunk: a multiple of 16, so that parts of tensors begin at multiples of 16 bytes.
fn chunk_rows(tokens: usize, logits: usize, sizes: &Sizes) -> usize {
    let rows = (sizes.logits / logits.max(1)).max(16);
    let rows = if rows >= 128 { rows / 128 * 128 } else { rows / 16 * 16 };
    let most = rows.min(tokens.max(1));
    sizes.chunk.map_or(most, |n| n.clamp(1, most))
}

/// The attributes of a head that is called `name`, and where h is among its operands.
fn attributes(name: &str, attrs: &Attrs, mode: Mode) -> Result<(HeadAttrs, usize), EmitError> {
    let attrs = HeadAttrs::parse(name, attrs)?;
    let first = match (mode, attrs.distils()) {
        (Mode::Forward, _) => 0,
        (_, false) => 1,
        (_, true) => 2,
    };
    Ok((attrs, first))
}

/// Vocabulary of a teacher with logits.
fn teacher_vocab(attrs: &HeadAttrs, inputs: &[TensorType], first: usize) -> usize {
    if attrs.kd == KdKind::Logits { inputs[first + 5].dims[0] } else { 0 }
}

/// Tokens of a chunk of the operation of this name; `None` if it has no chunks.
pub(super) fn chunk(name: &str, attrs: &Attrs, inputs: &[TensorType], sizes: &Sizes) -> Option<usize> {
    let mode = match name {
        "linear_cross_entropy_kd" => Mode::Forward,
        "linear_cross_entropy_kd_bwd" => Mode::Backward,
        "linear_cross_entropy_kd_fused" => Mode::Fused,
        _ => return None,
    };
    let (attrs, first) = attributes(name, attrs, mode).ok()?;
    let logits = inputs[first + 1].dims[0] + teacher_vocab(&attrs, inputs, first);
    Some(chunk_rows(inputs[first].rows(), logits, sizes))
}

impl Head {
    fn chunks(&self) -> impl Iterator<Item = Chunk> + use<> {
        let (chunk, tokens) = (self.chunk, self.tokens);
        (0..tokens).step_by(chunk).map(move |start| Chunk { start, n: chunk.min(tokens - start) })
    }

    fn gives_losses(&self) -> bool {
        self.mode != Mode::Backward
    }

    fn gives_gradients(&self) -> bool {
        self.mode != Mode::Forward
    }

    /// Position of w_kd.
    fn w_kd(&self) -> usize {
        self.h + if self.attrs.kd == KdKind::TopK { 7 } else { 6 }
    }
}

/// `linear_cross_entropy_kd` and its siblings; `name` is the operation's.
pub(super) fn head(name: &str, o: &Operation<'_>, mode: Mode, sizes: &Sizes) -> Result<Emitted, EmitError> {
    let (attrs, first) = attributes(name, o.attrs, mode)?;
    let (h, w) = (&o.inputs[first], &o.inputs[first + 1]);
    let (tokens, vocab) = (h.rows(), w.dims[0]);
    let teacher_vocab = teacher_vocab(&attrs, o.inputs, first);
    let chunk = chunk_rows(tokens, vocab + teacher_vocab, sizes);
    let mut e = Emitted::default();
    let mut work = |len: usize| {
        e.workspaces.push((Elem::F32, len));
        e.workspaces.len() - 1
    };
    let mut works = Works { logits: work(chunk * vocab), ..Works::default() };
    match attrs.kd {
        KdKind::None => {}
        KdKind::Logits => works.teacher = work(chunk * teacher_vocab),
        KdKind::TopK => works.direct = work(chunk * o.inputs[first + 4].last()),
    }
    if mode != Mode::Backward {
        works.terms = (0..if attrs.distils() { 3 } else { 2 }).map(|_| work(tokens)).collect();
    }
    let head = Head { attrs, mode, h: first, tokens, hidden: h.last(), vocab, teacher_vocab, chunk, works };
    for c in head.chunks() {
        let mut launches = vec![logits("head_logits", o, &e, (head.h, head.h + 1), head.works.logits, c)?];
        if attrs.kd == KdKind::Logits {
            let teacher = (head.h + 4, head.h + 5);
            launches.push(logits("head_teacher_logits", o, &e, teacher, head.works.teacher, c)?);
        }
        launches.push(rows::rows(o, &head, &e, c)?);
        if head.gives_gradients() {
            if attrs.kd == KdKind::TopK {
                launches.push(topk::scatter(o, &head, &e, c)?);
            }
            launches.push(hidden_gradient(o, &head, &e, c)?);
            if attrs.need_dw {
                launches.push(weight_gradient(o, &head, &e, c)?);
            }
        }
        e.launches.extend(launches);
    }
    for (j, work) in head.works.terms.iter().enumerate() {
        let sum = total("head_total", o, &e, *work, j)?;
        e.launches.push(sum);
    }
    Ok(e)
}

/// Logits of a chunk, `f32`, into workspace `work`: `h·wᵀ` for the operands at these positions.
fn logits(
    name: &str,
    o: &Operation<'_>,
    e: &Emitted,
    (h, w): (usize, usize),
    work: usize,
    c: Chunk,
) -> Result<Launch, EmitError> {
    let (hidden, vocab) = (o.inputs[h].last(), o.inputs[w].dims[0]);
    let elem = factors(o.inputs[h].dtype.into(), o.inputs[w].dtype.into());
    let product = Product::new(o.tiled(name, c.n, vocab, hidden, elem), false);
    let mut k = product.kernel("A tile of the logits of a chunk of tokens: z = h · wᵀ");
    let (x, y) = (k.input_part(o, h, "h", c.start * hidden, c.n * hidden), k.input(o, w, "w"));
    let z = k.work_part(e, work, "z", 0, c.n * vocab, product.access());
    product.write(&mut k.b, Matrix::rows(x, hidden), Matrix::rows(y, hidden).transposed(), z);
    k.finish()
}

/// The gradients of a chunk's logits, which stand where the logits stood.
fn dz(k: &mut Kernel, head: &Head, e: &Emitted, c: Chunk) -> Buffer {
    k.work_part(e, head.works.logits, "dz", 0, c.n * head.vocab, Access::Read)
}

/// `dh = dz·w` of a chunk.
fn hidden_gradient(o: &Operation<'_>, head: &Head, e: &Emitted, c: Chunk) -> Result<Launch, EmitError> {
    let elem = gradient_factors(o.inputs[head.h + 1].dtype.into());
    let product = Product::new(o.tiled("head_dh", c.n, head.hidden, head.vocab, elem), false);
    let mut k = product.kernel("A tile of dh = dz · w of a chunk of tokens");
    let (dz, w) = (dz(&mut k, head, e, c), k.input(o, head.h + 1, "w"));
    let j = head.works.terms.len();
    let dh = k.output_part(o, j, "dh", c.start * head.hidden, c.n * head.hidden);
    product.write(&mut k.b, Matrix::rows(dz, head.vocab), Matrix::rows(w, head.hidden), dh);
    k.finish()
}

/// `dw = dzᵀ·h` of the first chunk, or what it adds to that of those before.
fn weight_gradient(o: &Operation<'_>, head: &Head, e: &Emitted, c: Chunk) -> Result<Launch, EmitError> {
    let elem = gradient_factors(o.inputs[head.h].dtype.into());
    let product = Product::new(o.tiled("head_dw", head.vocab, head.hidden, c.n, elem), c.start > 0);
    let doc = "A tile of dzᵀ · h of a chunk of tokens, added to that of the chunks before";
    let mut k = product.kernel(doc);
    let dz = dz(&mut k, head, e, c);
    let h = k.input_part(o, head.h, "h", c.start * head.hidden, c.n * head.hidden);
    let (j, len) = (head.works.terms.len() + 1, head.vocab * head.hidden);
    let dw = k.bind(Arg::Output(j), 0, "dw", Elem::F32, len, product.access());
    product.write(&mut k.b, Matrix::rows(dz, head.vocab).transposed(), Matrix::rows(h, head.hidden), dw);
    k.finish()
}

/// `linear_token_scores`: log-probabilities of labels, and the likeliest tokens.
pub(super) fn token_scores(o: &Operation<'_>, sizes: &Sizes) -> Result<Emitted, EmitError> {
    let (tokens, vocab) = (o.inputs[0].rows(), o.inputs[1].dims[0]);
    let chunk = chunk_rows(tokens, vocab, sizes);
    let mut e = Emitted { workspaces: vec![(Elem::F32, chunk * vocab)], ..Emitted::default() };
    for start in (0..tokens).step_by(chunk) {
        let c = Chunk { start, n: chunk.min(tokens - start) };
        let launches = [logits("head_logits", o, &e, (0, 1), 0, c)?, rows::scores(o, &e, vocab, c)?];
        e.launches.extend(launches);
    }
    Ok(e)
}
