//! Graph to text.

use super::prim::prim_attrs;
use crate::attrs::Attrs;
use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;
use std::fmt::Write;

/// The text of a graph.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_graph(&mut out, graph);
    out
}

fn write_graph(out: &mut String, graph: &Graph) -> std::fmt::Result {
    writeln!(out, "graph {} {{", graph_name(&graph.name))?;
    let mut inputs = graph.inputs().iter().peekable();
    for node in graph.nodes() {
        let first = node.outputs.first().copied().unwrap_or(ValueId(0));
        while let Some(input) = inputs.next_if(|i| i.value < first) {
            write_input(out, graph, input)?;
        }
        write_node(out, graph, node)?;
    }
    for input in inputs {
        write_input(out, graph, input)?;
    }
    for o in graph.outputs() {
        write!(out, "  output {} = %{}", quoted(&o.name), o.value.0)?;
        match o.updates {
            Some(state) => writeln!(out, " updates %{}", state.0)?,
            None => writeln!(out)?,
        }
    }
    writeln!(out, "}}")
}

fn write_input(out: &mut String, graph: &Graph, input: &crate::graph::Input) -> std::fmt::Result {
    let (v, ty) = (input.value.0, graph.ty(input.value));
    writeln!(out, "  %{v}: {ty} = {} {}", input.kind.name(), quoted(&input.name))
}

fn write_node(out: &mut String, graph: &Graph, node: &Node) -> std::fmt::Result {
    out.push_str("  ");
    write_application(out, graph, node)?;
    write!(out, " @{} {}", node.phase.name(), quoted(graph.scope(node)))?;
    let body = match &node.op {
        Op::Group(g) => Some(g.body()),
        Op::Fused(f) => Some(f.body()),
        Op::Prim(_) | Op::Composite(_) => None,
    };
    if let Some(body) = body {
        out.push_str(" {\n");
        for statement in body_statements(body)? {
            writeln!(out, "    {statement}")?;
        }
        out.push_str("  }");
    }
    writeln!(out)
}

/// Results, operation, operands and attributes.
fn write_application(out: &mut String, graph: &Graph, node: &Node) -> std::fmt::Result {
    write_typed(out, graph, &node.outputs)?;
    write!(out, " = {}(", node.op.name())?;
    for (i, v) in node.inputs.iter().enumerate() {
        write!(out, "{}%{}", if i == 0 { "" } else { ", " }, v.0)?;
    }
    out.push(')');
    match &node.op {
        Op::Prim(p) => write_attrs(out, &prim_attrs(p)),
        Op::Composite(c) => write_attrs(out, &c.attrs),
        Op::Group(_) | Op::Fused(_) => Ok(()),
    }
}

fn write_typed(out: &mut String, graph: &Graph, values: &[ValueId]) -> std::fmt::Result {
    for (i, v) in values.iter().enumerate() {
        write!(out, "{}%{}: {}", if i == 0 { "" } else { ", " }, v.0, graph.ty(*v))?;
    }
    Ok(())
}

/// The body of a group or of a fused node, one statement a line.
fn body_statements(body: &Graph) -> Result<Vec<String>, std::fmt::Error> {
    let inputs: Vec<ValueId> = body.inputs().iter().map(|i| i.value).collect();
    let mut operands = String::new();
    write_typed(&mut operands, body, &inputs)?;
    let mut statements = vec![operands + " = operands"];
    for node in body.nodes() {
        let mut statement = String::new();
        write_application(&mut statement, body, node)?;
        statements.push(statement);
    }
    let results: Vec<String> = body.outputs().iter().map(|o| format!("%{}", o.value.0)).collect();
    statements.push(format!("results {}", results.join(", ")));
    Ok(statements)
}

/// A body on one line.
pub(super) fn body_line(body: &Graph) -> String {
    // Writing to a string cannot fail.
    body_statements(body).unwrap_or_default().join("; ")
}

fn write_attrs(out: &mut String, attrs: &Attrs) -> std::fmt::Result {
    for (i, (name, value)) in attrs.iter().enumerate() {
        write!(out, "{}{name}={value}", if i == 0 { " {" } else { ", " })?;
    }
    if !attrs.is_empty() {
        out.push('}');
    }
    Ok(())
}

/// The name as a bare word if it is one.
fn graph_name(name: &str) -> String {
    let word = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
    if word { name.to_string() } else { quoted(name) }
}

/// In double quotes; `\` before quotes and backslashes, `\u{..}` for control characters.
fn quoted(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
