//! Primitives as name, attributes and result type, and back. The two functions are each other's inverse.

use crate::attrs::{AttrValue, Attrs};
use crate::error::Result;
use crate::prim::{CmpOp, Prim};
use crate::types::TensorType;

/// The parameters that the result type does not say.
pub(super) fn prim_attrs(prim: &Prim) -> Attrs {
    let attrs = Attrs::new();
    match prim {
        Prim::Const { value, .. } => attrs.with("value", *value),
        Prim::Iota { axis, .. } | Prim::Concat { axis } => attrs.with("axis", *axis),
        Prim::Random { stream, .. } => attrs.with("stream", i64::from(*stream)),
        Prim::Transpose { perm } => attrs.with("perm", perm.as_slice()),
        Prim::Slice { axis, start, end } => attrs.with("axis", *axis).with("start", *start).with("end", *end),
        Prim::Pad { axis, lo, hi } => attrs.with("axis", *axis).with("lo", *lo).with("hi", *hi),
        Prim::ReduceSum { axes } | Prim::ReduceMax { axes } => attrs.with("axes", axes.as_slice()),
        Prim::MatMul { ta, tb, .. } => attrs.with("ta", *ta).with("tb", *tb),
        Prim::Neg
        | Prim::Exp
        | Prim::Log
        | Prim::Sqrt
        | Prim::Sigmoid
        | Prim::Erf
        | Prim::Cast(_)
        | Prim::Add
        | Prim::Sub
        | Prim::Mul
        | Prim::Div
        | Prim::Max
        | Prim::Compare(_)
        | Prim::Select
        | Prim::Reshape { .. }
        | Prim::Broadcast { .. }
        | Prim::Gather
        | Prim::ScatterAdd { .. } => attrs,
    }
}

/// The primitive of this name with a result of type `ty`; `None` if there is none of the name.
///
/// # Errors
/// If an attribute is missing, unknown or of the wrong kind.
pub(super) fn prim_from(name: &str, attrs: &Attrs, ty: &TensorType) -> Option<Result<Prim>> {
    let dims = || ty.dims.clone();
    let plain = |prim: Prim| Some(Ok(prim));
    match name {
        "neg" => plain(Prim::Neg),
        "exp" => plain(Prim::Exp),
        "log" => plain(Prim::Log),
        "sqrt" => plain(Prim::Sqrt),
        "sigmoid" => plain(Prim::Sigmoid),
        "erf" => plain(Prim::Erf),
        "cast" => plain(Prim::Cast(ty.dtype)),
        "add" => plain(Prim::Add),
        "sub" => plain(Prim::Sub),
        "mul" => plain(Prim::Mul),
        "div" => plain(Prim::Div),
        "max" => plain(Prim::Max),
        "eq" => plain(Prim::Compare(CmpOp::Eq)),
        "lt" => plain(Prim::Compare(CmpOp::Lt)),
        "le" => plain(Prim::Compare(CmpOp::Le)),
        "select" => plain(Prim::Select),
        "reshape" => plain(Prim::Reshape { dims: dims() }),
        "broadcast" => plain(Prim::Broadcast { dims: dims() }),
        "gather" => plain(Prim::Gather),
        "scatter_add" => plain(Prim::ScatterAdd { rows: ty.dims.first().copied().unwrap_or(0) }),
        "const" => Some(attrs.f64("value").map(|value| Prim::Const { ty: ty.clone(), value })),
        "iota" => Some(attrs.usize("axis").map(|axis| Prim::Iota { dims: dims(), axis })),
        "concat" => Some(attrs.usize("axis").map(|axis| Prim::Concat { axis })),
        "random" => Some(stream(attrs).map(|stream| Prim::Random { dims: dims(), stream })),
        "transpose" => Some(attrs.usizes("perm").map(|perm| Prim::Transpose { perm })),
        "slice" => Some(slice(attrs)),
        "pad" => Some(pad(attrs)),
        "reduce_sum" => Some(attrs.usizes("axes").map(|axes| Prim::ReduceSum { axes })),
        "reduce_max" => Some(attrs.usizes("axes").map(|axes| Prim::ReduceMax { axes })),
        "matmul" => Some(matmul(attrs, ty)),
        _ => None,
    }
}

fn stream(attrs: &Attrs) -> Result<u32> {
    let stream = attrs.usize("stream")?;
    u32::try_from(stream)
        .map_err(|_| crate::GraphError::ty("random", format!("stream {stream} exceeds 32 bits")))
}

fn slice(attrs: &Attrs) -> Result<Prim> {
    Ok(Prim::Slice { axis: attrs.usize("axis")?, start: attrs.usize("start")?, end: attrs.usize("end")? })
}

fn pad(attrs: &Attrs) -> Result<Prim> {
    Ok(Prim::Pad { axis: attrs.usize("axis")?, lo: attrs.usize("lo")?, hi: attrs.usize("hi")? })
}

fn matmul(attrs: &Attrs, ty: &TensorType) -> Result<Prim> {
    Ok(Prim::MatMul { ta: attrs.bool("ta")?, tb: attrs.bool("tb")?, out: ty.dtype })
}

/// The name of an attribute that the primitive does not have, if any. An integer constant may stand for a float.
pub(super) fn unknown_attr<'a>(prim: &Prim, attrs: &'a Attrs) -> Option<&'a str> {
    let known = prim_attrs(prim);
    attrs.iter().map(|(name, _): (&str, &AttrValue)| name).find(|name| known.get(name).is_none())
}
