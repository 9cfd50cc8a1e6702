//! What is done to a tile of a product before it is written: the operations of a fused node behind the product.
//!
//! Invariant: a product's result is rounded to its own type first, as if it had been written and read again, so that a fused node
//! computes the bits that its operations compute one by one.

use super::group::{Elements, walk};
use super::products::{Axis, Matrix};
use super::{EmitError, Kernel, Operation};
use crate::tile::ir::{Elem, Var};
use crate::tile::{Buffer, Builder};
use kfc_graph::{Graph, Node, Op, Prim, ValueId};
use std::collections::HashMap;

/// The operations behind a product, in the body of a node.
pub(super) struct Behind<'a> {
    /// The node.
    pub(super) whole: &'a Operation<'a>,
    /// Its body.
    pub(super) body: &'a Graph,
    /// The operations, in order.
    pub(super) nodes: Vec<&'a Node>,
    /// The product's result in the body.
    pub(super) product: ValueId,
}

/// What becomes of a product's result.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// It is written.
    None,
    /// More is done to it; it is written too if it is a result of the node.
    Behind(&'a Behind<'a>),
}

/// An epilogue with its buffers.
pub(super) struct Bound<'a> {
    /// Where the product's own result goes, if anywhere.
    own: Option<Buffer>,
    elem: Elem,
    behind: Option<&'a Behind<'a>>,
    inputs: HashMap<ValueId, Buffer>,
    outputs: Vec<(Buffer, ValueId)>,
}

/// Along which axis of a matrix `[rows, columns]` an operand lies that is repeated along the other one, if it lies so.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Spread {
    Row,
    Column,
}

impl Spread {
    /// That of an operand of extents `from` which is repeated up to `to`.
    pub(super) fn of(from: &[usize], to: &[usize]) -> Option<Spread> {
        let (last, before) = from.split_last()?;
        let (columns, rows) = to.split_last()?;
        match (before.iter().all(|d| *d == 1), before == rows) {
            (true, _) if last == columns => Some(Spread::Row),
            (_, true) if *last == 1 => Some(Spread::Column),
            _ => None,
        }
    }

    /// Elements of such an operand for positions of a tile.
    pub(super) fn load(self, b: &mut Builder, buffer: Buffer, (row, column): (Axis, Axis)) -> Var {
        let (axis, side) = match self {
            Spread::Row => (column, 0),
            Spread::Column => (row, 1),
        };
        let mask = axis.mask(b);
        let value = b.load(buffer, axis.at, mask);
        b.expand(value, side)
    }
}

impl<'a> Epilogue<'a> {
    /// A kernel's name: a product with more behind it is another kernel than one without.
    pub(super) fn name(self, kernel: &str) -> String {
        match self {
            Epilogue::None => kernel.into(),
            Epilogue::Behind(b) if matches!(b.nodes[..], [Node { op: Op::Prim(Prim::Add), .. }]) => {
                format!("{kernel}_add")
            }
            Epilogue::Behind(_) => format!("{kernel}_fused"),
        }
    }

    /// What a kernel does, for the header of its source.
    pub(super) fn doc(self, doc: &str) -> String {
        match self {
            Epilogue::None => doc.into(),
            Epilogue::Behind(b) => {
                let names: Vec<&str> = b.nodes.iter().map(|n| n.op.name()).collect();
                format!("{doc}, then {}", names.join(", "))
            }
        }
    }

    /// Adds the parameters that it takes for result `j` of a product.
    pub(super) fn bind(self, k: &mut Kernel, o: &Operation<'_>, j: usize, name: &str) -> Bound<'a> {
        let elem = o.outputs[j].dtype.into();
        let Epilogue::Behind(behind) = self else {
            let own = Some(k.output(o, j, name));
            return Bound { own, elem, behind: None, inputs: HashMap::new(), outputs: Vec::new() };
        };
        let (whole, body) = (behind.whole, behind.body);
        let is_read = |v: ValueId| behind.nodes.iter().any(|n| n.inputs.contains(&v));
        let inputs = body
            .inputs()
            .iter()
            .enumerate()
            .filter(|(_, input)| is_read(input.value))
            .map(|(i, input)| (input.value, k.input(whole, i, &format!("e{i}"))))
            .collect();
        let results = || body.outputs().iter().enumerate();
        let own = results().find(|(_, o)| o.value == behind.product).map(|(j, _)| k.output(whole, j, name));
        let is_made = |v: ValueId| behind.nodes.iter().any(|n| n.outputs.contains(&v));
        let outputs = results()
            .filter(|(_, o)| is_made(o.value))
            .map(|(j, o)| (k.output(whole, j, &format!("z{j}")), o.value))
            .collect();
        Bound { own, elem, behind: Some(behind), inputs, outputs }
    }
}

impl Bound<'_> {
    /// Where the product's result goes, if that is all that becomes of it.
    pub(super) fn alone(&self) -> Option<Buffer> {
        self.own.filter(|_| self.behind.is_none())
    }

    /// Writes what becomes of elements `(row, column)` of a result with so many columns.
    pub(super) fn write(
        &self,
        b: &mut Builder,
        (row, column): (Axis, Axis),
        columns: usize,
        value: Var,
    ) -> Result<(), EmitError> {
        let Some(any) = self.own.or(self.outputs.first().map(|o| o.0)) else { return Ok(()) };
        let (at, mask) = Matrix::rows(any, columns).place(b, row, column);
        let value = b.cast(value, self.elem);
        if let Some(own) = self.own {
            b.store(own, at, value, mask);
        }
        let Some(behind) = self.behind else { return Ok(()) };
        let known = HashMap::from([(behind.product, value)]);
        let elements = Elements { at, mask, axes: Some((row, column)), buffers: &self.inputs };
        let values = walk(b, behind.body, behind.nodes.iter().copied(), &elements, known)?;
        for (buffer, v) in &self.outputs {
            b.store(*buffer, at, values[v], mask);
        }
        Ok(())
    }
}
