//! The text form of a graph, `.kir`: what dumps show, tests read and fuzzers speak.
//!
//! ```text
//! graph train {
//!   %0: i32[2,37] = data "tokens"
//!   %1: f32[48,48] = weight "model.x.weight"
//!   %2: f32[2,37,48] = gather(%1, %0) @forward "embed"
//!   %3: f32[1], %4: f32[2,4] = some_composite(%2) {eps=1e-05, heads=4} @backward "layers.0"
//!   output "loss" = %3
//!   output "p.x" = %4 updates %9
//! }
//! ```
//!
//! One statement for each input, node and output, in order of value ids; types are written out, so that a text says
//! what each value is, and `#` starts a comment. Parameters of primitives stand in braces as attributes; those that the
//! result type already says (shapes, element types) are not repeated. The phase `@forward` and the empty scope are
//! always written, so one graph has one text, and `print(parse(print(g))) == print(g)`.
//!
//! A fused group has its body in braces behind its scope, with values of its own; phases and scopes are not repeated there:
//!
//! ```text
//!   %9: f32[4,8] = group(%5, %7) @forward "layers.0" {
//!     %0: f32[4,8], %1: f32[1,8] = operands
//!     %2: f32[4,8] = broadcast(%1)
//!     %3: f32[4,8] = mul(%0, %2)
//!     results %3
//!   }
//! ```
//!
//! Operations that one kernel runs are written in the same way, as `fused`, with composites among them.
//!
//! A text that parses is not yet a valid graph: [`crate::verify::verify`] says that.

mod lexer;
mod parser;
mod prim;
mod printer;

pub use parser::parse;
pub use printer::print;

use crate::attrs::Attrs;
use crate::op::Op;

/// The attributes of an operation as the text form writes them; what the result type says is not among them. The body
/// of a group or of a fused node is one, on one line.
pub fn attrs(op: &Op) -> Attrs {
    match op {
        Op::Prim(p) => prim::prim_attrs(p),
        Op::Composite(c) => c.attrs.clone(),
        Op::Group(g) => Attrs::new().with("body", printer::body_line(g.body()).as_str()),
        Op::Fused(f) => Attrs::new().with("body", printer::body_line(f.body()).as_str()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
