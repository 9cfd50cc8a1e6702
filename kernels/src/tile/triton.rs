//! Programs as Triton source: one function a file, nearly one line an instruction.

use super::ir::{Binary, Compare, Elem, Fold, Inst, Param, Program, Stmt, Ty, Unary, Var};
use std::fmt::Write;

/// The source of a program: a module with one `@triton.jit` function, whose arguments are the program's buffers in order.
pub fn print(p: &Program) -> String {
    let mut out = Printer { p, text: String::new(), depth: 1 };
    out.header();
    out.block(&p.body);
    out.text
}

struct Printer<'a> {
    p: &'a Program,
    text: String,
    depth: usize,
}

impl Printer<'_> {
    fn header(&mut self) {
        let p = self.p;
        let mut t = format!("# {}\n#\n", p.doc.trim_end().replace('\n', "\n# "));
        for b in &p.params {
            let access = b.access.name();
            let _ = writeln!(t, "#   {:<12} {}[{}], {access}", pointer(b), b.elem.name(), b.len);
        }
        let (grid, warps) = (p.grid, p.warps);
        let _ = writeln!(
            t,
            "#\n# Launch: grid ({}, {}, {}), num_warps={warps}:\n#   {}[({}, {}, {})]({}, num_warps={warps})\n",
            grid[0],
            grid[1],
            grid[2],
            p.name,
            grid[0],
            grid[1],
            grid[2],
            p.params.iter().map(pointer).collect::<Vec<_>>().join(", ")
        );
        let params = p.params.iter().map(pointer).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            t,
            "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef {}({params}):",
            p.name
        );
        self.text = t;
    }

    fn line(&mut self, line: &str) {
        for _ in 0..self.depth {
            self.text.push_str("    ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn block(&mut self, statements: &[Stmt]) {
        if statements.is_empty() {
            self.line("pass");
        }
        for s in statements {
            match &s.inst {
                Inst::For { .. } => self.repeat(s),
                Inst::Store { param, index, value, mask } => {
                    let mask = mask.map_or(String::new(), |m| format!(", mask={}", v(m)));
                    let name = pointer(&self.p.params[*param]);
                    self.line(&format!("tl.store({name} + {}, {}{mask})", v(*index), v(*value)));
                }
                inst => {
                    if let Some(result) = s.result {
                        let value = self.value(inst);
                        self.line(&format!("{} = {value}", v(result)));
                    }
                }
            }
        }
    }

    fn repeat(&mut self, s: &Stmt) {
        let Inst::For { index, from, to, step, carried, body } = &s.inst else { return };
        for c in carried {
            self.line(&format!("{} = {}", v(c.inner), v(c.init)));
        }
        self.line(&format!("for {} in range({}, {}, {step}):", v(*index), v(*from), v(*to)));
        self.depth += 1;
        self.block(body);
        // One value handed on may be what another one was: all are read before any is written.
        for c in carried.iter().filter(|c| c.next != c.inner) {
            self.line(&format!("{}_next = {}", v(c.inner), v(c.next)));
        }
        for c in carried.iter().filter(|c| c.next != c.inner) {
            self.line(&format!("{0} = {0}_next", v(c.inner)));
        }
        self.depth -= 1;
        for c in carried {
            self.line(&format!("{} = {}", v(c.result), v(c.inner)));
        }
    }

    fn value(&self, inst: &Inst) -> String {
        let ty = |x: Var| self.p.ty(x);
        match inst {
            Inst::ProgramId(axis) => format!("tl.program_id({axis})"),
            Inst::Int(i, Elem::U32) => format!("tl.full([], {i}, tl.uint32)"),
            Inst::Int(i, _) => format!("{i}"),
            Inst::Float(x) => format!("tl.full([], {}, tl.float32)", float(*x)),
            Inst::Range(n) => format!("tl.arange(0, {n})"),
            Inst::Splat(x, dims) => match ty(*x).elem {
                Elem::Bool => format!("tl.full({dims:?}, 1, tl.int1) & {}", v(*x)),
                elem => format!("tl.full({dims:?}, 0, {}) + {}", dtype(elem), v(*x)),
            },
            Inst::Expand(x, 0) => format!("{}[None, :]", v(*x)),
            Inst::Expand(x, _) => format!("{}[:, None]", v(*x)),
            Inst::Broadcast(x, dims) => format!("tl.broadcast_to({}, {dims:?})", v(*x)),
            Inst::Transpose(x) => format!("tl.trans({})", v(*x)),
            Inst::Unary(op, x) => unary(*op, &v(*x)),
            Inst::Binary(op, a, b) => binary(*op, ty(*a), &v(*a), &v(*b)),
            Inst::Compare(op, a, b) => {
                let op = match op {
                    Compare::Eq => "==",
                    Compare::Lt => "<",
                    Compare::Le => "<=",
                };
                format!("{} {op} {}", v(*a), v(*b))
            }
            Inst::Select(c, a, b) => format!("tl.where({}, {}, {})", v(*c), v(*a), v(*b)),
            Inst::Cast(x, elem) => format!("{}.to({})", v(*x), dtype(*elem)),
            Inst::Load { param, index, mask } => {
                let mask = mask.map_or(String::new(), |m| format!(", mask={}, other=0", v(m)));
                format!("tl.load({} + {}{mask})", pointer(&self.p.params[*param]), v(*index))
            }
            Inst::Dot { a, b, acc } => {
                // Three TF32 products keep f32 operands to about f32; without it they are rounded to TF32.
                let precision = if ty(*a).elem == Elem::F32 { ", input_precision=\"tf32x3\"" } else { "" };
                format!("tl.dot({}, {}, {}{precision})", v(*a), v(*b), v(*acc))
            }
            Inst::Reduce(Fold::Sum, x, axis) => format!("tl.sum({}, axis={axis})", v(*x)),
            Inst::Reduce(Fold::Max, x, axis) => format!("tl.max({}, axis={axis})", v(*x)),
            // Printed as statements.
            Inst::Store { .. } | Inst::For { .. } => String::new(),
        }
    }
}

/// Name of a buffer.
fn pointer(p: &Param) -> String {
    format!("{}_ptr", p.name)
}

/// Name of a value.
fn v(x: Var) -> String {
    format!("v{}", x.index())
}

fn dtype(elem: Elem) -> &'static str {
    match elem {
        Elem::F32 => "tl.float32",
        Elem::Bf16 => "tl.bfloat16",
        Elem::F16 => "tl.float16",
        Elem::I32 => "tl.int32",
        Elem::U32 => "tl.uint32",
        Elem::Bool => "tl.int1",
    }
}

fn float(x: f32) -> String {
    match x {
        f32::INFINITY => "float(\"inf\")".into(),
        f32::NEG_INFINITY => "float(\"-inf\")".into(),
        x if x.is_nan() => "float(\"nan\")".into(),
        x => format!("{x:?}"),
    }
}

fn unary(op: Unary, x: &str) -> String {
    match op {
        Unary::Neg => format!("-{x}"),
        Unary::Exp => format!("tl.exp({x})"),
        Unary::Log => format!("tl.log({x})"),
        Unary::Sqrt => format!("tl.sqrt_rn({x})"),
        Unary::Sigmoid => format!("tl.sigmoid({x})"),
        Unary::Erf => format!("tl.erf({x})"),
        Unary::Not => format!("{x} == 0"),
    }
}

fn binary(op: Binary, ty: &Ty, a: &str, b: &str) -> String {
    let is_float = ty.elem == Elem::F32;
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Sub => format!("{a} - {b}"),
        Binary::Mul => format!("{a} * {b}"),
        Binary::Div if is_float => format!("tl.div_rn({a}, {b})"),
        Binary::Div => format!("{a} // {b}"),
        Binary::Rem => format!("{a} % {b}"),
        Binary::Max if is_float => format!("tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"),
        Binary::Max => format!("tl.maximum({a}, {b})"),
        Binary::Min => format!("tl.minimum({a}, {b})"),
        Binary::And => format!("{a} & {b}"),
        Binary::Or => format!("{a} | {b}"),
        Binary::Xor => format!("{a} ^ {b}"),
        Binary::Shl => format!("{a} << {b}"),
        Binary::Shr => format!("{a} >> {b}"),
        Binary::MulHigh => format!("tl.umulhi({a}, {b})"),
    }
}
