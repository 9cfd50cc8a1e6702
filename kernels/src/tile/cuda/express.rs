//! Instructions on single elements as C++ expressions.

use crate::tile::ir::{Binary, Compare, Elem, Inst, Unary, Var};

/// Name of an element type in source.
pub fn type_name(elem: Elem) -> &'static str {
    match elem {
        Elem::F32 => "float",
        Elem::Bf16 => "kfc_bf16",
        Elem::F16 => "kfc_f16",
        Elem::I32 => "int",
        Elem::U32 => "unsigned",
        Elem::Bool => "bool",
    }
}

/// A float constant.
pub(super) fn float(x: f32) -> String {
    if x.is_finite() { format!("{x:?}f") } else { format!("__uint_as_float({:#x}u)", x.to_bits()) }
}

/// An integer constant.
pub(super) fn integer(x: i64, elem: Elem) -> String {
    match elem {
        Elem::U32 => format!("{}u", x as u32),
        _ if x == i64::from(i32::MIN) => "(-2147483647 - 1)".into(),
        _ => format!("{x}"),
    }
}

/// Operands of an instruction of elements; the last one is of the type that it computes with.
pub(super) fn arguments(inst: &Inst) -> Vec<Var> {
    match inst {
        Inst::Unary(_, v) | Inst::Cast(v, _) => vec![*v],
        Inst::Binary(_, a, b) | Inst::Compare(_, a, b) => vec![*a, *b],
        Inst::Select(c, a, b) => vec![*c, *a, *b],
        _ => Vec::new(),
    }
}

/// An instruction of elements: `args` are its operands, of type `elem`; `wraps` is whether integers may leave 32 bits. `None`
/// for other instructions.
pub(super) fn element(inst: &Inst, elem: Elem, args: &[String], wraps: bool) -> Option<String> {
    let a = args.first()?;
    Some(match (inst, args.get(1), args.get(2)) {
        (Inst::Unary(op, _), ..) => unary(*op, a),
        (Inst::Cast(_, to), ..) => cast(a, elem, *to),
        (Inst::Binary(op, ..), Some(b), _) => binary(*op, elem, a, b, wraps),
        (Inst::Compare(Compare::Eq, ..), Some(b), _) => format!("{a} == {b}"),
        (Inst::Compare(Compare::Lt, ..), Some(b), _) => format!("{a} < {b}"),
        (Inst::Compare(Compare::Le, ..), Some(b), _) => format!("{a} <= {b}"),
        (Inst::Select(..), Some(b), Some(c)) => format!("{a} ? {b} : {c}"),
        _ => return None,
    })
}

fn unary(op: Unary, a: &str) -> String {
    match op {
        Unary::Neg => format!("-({a})"),
        Unary::Exp => format!("expf({a})"),
        Unary::Log => format!("logf({a})"),
        Unary::Sqrt => format!("sqrtf({a})"),
        Unary::Sigmoid => format!("kfc_sigmoid({a})"),
        Unary::Erf => format!("erff({a})"),
        Unary::Not => format!("!{a}"),
    }
}

fn binary(op: Binary, elem: Elem, a: &str, b: &str, wraps: bool) -> String {
    let wraps = wraps && elem == Elem::I32;
    let infix = |op: &str| format!("{a} {op} {b}");
    // Elements that a mask excludes may be divided by 0.
    let divide = |op: &str, name: &str| match b.parse::<u32>() {
        _ if elem == Elem::F32 => infix(op),
        Ok(1..) => infix(op),
        _ => format!("{name}({a}, {b})"),
    };
    let shift = |name: &str| match elem {
        Elem::I32 => format!("(int){name}((unsigned){a}, (unsigned){b})"),
        _ => format!("{name}({a}, {b})"),
    };
    match op {
        Binary::Add if wraps => format!("kfc_add({a}, {b})"),
        Binary::Sub if wraps => format!("kfc_sub({a}, {b})"),
        Binary::Mul if wraps => format!("kfc_mul({a}, {b})"),
        Binary::Add => infix("+"),
        Binary::Sub => infix("-"),
        Binary::Mul => infix("*"),
        Binary::Div => divide("/", "kfc_div"),
        Binary::Rem => divide("%", "kfc_rem"),
        Binary::Max => format!("kfc_max({a}, {b})"),
        Binary::Min => format!("kfc_min({a}, {b})"),
        Binary::And => infix("&"),
        Binary::Or => infix("|"),
        Binary::Xor => infix("^"),
        Binary::Shl => shift("kfc_shl"),
        Binary::Shr => shift("kfc_shr"),
        Binary::MulHigh => format!("__umulhi({a}, {b})"),
    }
}

/// `x` of type `from` as a `to`.
pub(super) fn cast(x: &str, from: Elem, to: Elem) -> String {
    let float = if from == Elem::F32 {
        x.to_string()
    } else if from.is_float() {
        format!("kfc_float({x})")
    } else {
        format!("(float){x}")
    };
    match to {
        _ if from == to => x.into(),
        Elem::F32 => float,
        Elem::Bf16 => format!("kfc_to_bf16({float})"),
        Elem::F16 => format!("kfc_to_f16({float})"),
        Elem::I32 if from.is_float() => format!("kfc_int({float})"),
        Elem::U32 if from.is_float() => format!("kfc_uint({float})"),
        Elem::I32 => format!("(int){x}"),
        Elem::U32 => format!("(unsigned){x}"),
        Elem::Bool if from.is_float() => format!("{float} != 0.0f"),
        Elem::Bool => format!("{x} != 0"),
    }
}
