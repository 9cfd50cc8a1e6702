//! Text to graph. Total: hostile text gives an error, never a panic; memory is linear in the text.

use super::lexer::{Lexer, Place, Token, shorten};
use super::prim::{prim_from, unknown_attr};
use crate::attrs::{AttrValue, Attrs};
use crate::error::{GraphError, Result};
use crate::fused::{self, Fused};
use crate::graph::{Graph, InputKind, Phase, ValueId};
use crate::group::{self, Group};
use crate::op::{Composite, Op, Registry};
use crate::prim::Prim;
use crate::types::{DType, TensorType};
use crate::verify::check_type;
use std::collections::HashMap;

/// Integers in attributes stay within ±2^32, so that typing rules may multiply two of them.
const MAX_INT: i64 = 1 << 32;

/// Reads a graph; composites are looked up in `registry`. Values may be numbered in any way; the graph numbers them in
/// order.
///
/// # Errors
/// [`GraphError::Parse`] with the place. Types are read, not checked: see [`crate::verify::verify`].
pub fn parse(text: &str, registry: &Registry) -> Result<Graph> {
    let mut lexer = Lexer::new(text);
    let (token, place) = lexer.next()?;
    let graph = Graph::new("");
    let scopes = HashMap::from([(String::new(), 0)]);
    Parser { lexer, token, place, registry, graph, values: HashMap::new(), scopes }.graph()
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token not yet taken, and its place.
    token: Token,
    place: Place,
    registry: &'a Registry,
    graph: Graph,
    /// Number in the text to value.
    values: HashMap<u32, ValueId>,
    scopes: HashMap<String, u32>,
}

/// A result as written on the left of `=`.
struct Declared {
    number: u32,
    place: Place,
    ty: TensorType,
}

impl Parser<'_> {
    fn graph(mut self) -> Result<Graph> {
        self.keyword("graph")?;
        self.graph.name = match self.take()? {
            (Token::Word(name) | Token::Quoted(name), _) => name,
            (other, place) => return place.error(format!("expected the name of the graph, found {other}")),
        };
        self.symbol('{')?;
        loop {
            match &self.token {
                Token::Symbol('}') => break,
                Token::Value(_) => self.definition()?,
                Token::Word(w) if w == "output" => self.output()?,
                other => {
                    let m =
                        format!("expected a definition (`%1: f32[2] = ..`), `output` or `}}`, found {other}");
                    return self.place.error(m);
                }
            }
        }
        self.take()?;
        match self.take()? {
            (Token::End, _) => Ok(self.graph),
            (other, place) => place.error(format!("expected the end of the text, found {other}")),
        }
    }

    /// `%1: f32[2] = data "x"` or `%1: f32[2], .. = op(%0, ..) {a=1} @forward "scope"`.
    fn definition(&mut self) -> Result<()> {
        let mut declared = vec![self.declared()?];
        while self.token == Token::Symbol(',') {
            self.take()?;
            declared.push(self.declared()?);
        }
        self.symbol('=')?;
        let (name, place) = self.word("an operation, `data`, `weight` or `state`")?;
        let values = match InputKind::ALL.into_iter().find(|k| k.name() == name) {
            Some(kind) => {
                let input = self.quoted("the name of the input")?;
                let [only] = &declared[..] else { return place.error("an input is one value") };
                vec![self.graph.add_input(input, kind, only.ty.clone())]
            }
            None if name == group::NAME || name == fused::NAME => self.with_body(&name, &declared)?,
            None => self.node(&name, place, &declared)?,
        };
        self.define(&declared, values)
    }

    /// From here on the text means these values by what was declared.
    fn define(&mut self, declared: &[Declared], values: Vec<ValueId>) -> Result<()> {
        for (d, v) in declared.iter().zip(values) {
            if self.values.insert(d.number, v).is_some() {
                return d.place.error(format!("%{} is defined twice", d.number));
            }
        }
        Ok(())
    }

    fn declared(&mut self) -> Result<Declared> {
        let (number, place) = match self.take()? {
            (Token::Value(number), place) => (number, place),
            (other, place) => return place.error(format!("expected a value like %1, found {other}")),
        };
        self.symbol(':')?;
        Ok(Declared { number, place, ty: self.ty()? })
    }

    fn ty(&mut self) -> Result<TensorType> {
        let (name, place) = self.word("an element type")?;
        let Some(dtype) = DType::from_name(&name) else {
            return place.error(format!("`{}` is no element type (f32, bf16, f16, i32)", shorten(&name)));
        };
        let dims = self.ints()?;
        let dims: Vec<usize> = match dims.iter().all(|&d| d >= 0) {
            true => dims.iter().map(|&d| d as usize).collect(),
            false => return place.error("an extent is negative"),
        };
        let ty = TensorType::new(dtype, dims);
        check_type(&ty).or_else(|m| place.error(m))?;
        Ok(ty)
    }

    fn node(&mut self, name: &str, place: Place, declared: &[Declared]) -> Result<Vec<ValueId>> {
        let operands = self.operands()?;
        let attrs_place = self.place;
        let attrs = if self.token == Token::Symbol('{') { self.attrs()? } else { Attrs::new() };
        let op = match prim_from(name, &attrs, &declared[0].ty) {
            Some(prim) => Op::Prim(checked_prim(prim, &attrs, declared, attrs_place)?),
            None => match self.registry.get(name) {
                Some(def) => Op::Composite(Composite { def, attrs }),
                None => return place.error(format!("there is no operation `{}`", shorten(name))),
            },
        };
        let (phase, scope) = self.phase_and_scope()?;
        Ok(self.graph.add_node(op, operands, types(declared), phase, scope))
    }

    /// `(%1, %2)`
    fn operands(&mut self) -> Result<Vec<ValueId>> {
        self.symbol('(')?;
        let mut operands = vec![];
        while self.token != Token::Symbol(')') {
            operands.push(self.value()?);
            if self.token != Token::Symbol(')') {
                self.symbol(',')?;
            }
        }
        self.take()?;
        Ok(operands)
    }

    /// `@forward "scope"`
    fn phase_and_scope(&mut self) -> Result<(Phase, u32)> {
        self.symbol('@')?;
        let (phase_name, place) = self.word("a phase")?;
        let Some(phase) = Phase::ALL.into_iter().find(|p| p.name() == phase_name) else {
            let m = format!("`{}` is no phase (forward, recompute, backward, update)", shorten(&phase_name));
            return place.error(m);
        };
        let scope = self.quoted("a scope")?;
        Ok((phase, self.scope(scope)))
    }

    /// The operands, place and body of a group or of a fused node.
    fn with_body(&mut self, name: &str, declared: &[Declared]) -> Result<Vec<ValueId>> {
        let operands = self.operands()?;
        let (phase, scope) = self.phase_and_scope()?;
        let place = self.place;
        self.symbol('{')?;
        let outer = std::mem::replace(&mut self.graph, Graph::new(name));
        let names = std::mem::take(&mut self.values);
        self.body(name == fused::NAME)?;
        let body = std::mem::replace(&mut self.graph, outer);
        self.values = names;
        let op = match name == fused::NAME {
            true => Fused::new(body).map(Op::Fused),
            false => Group::new(body).map(Op::Group),
        };
        let op = op.or_else(|e| place.error(e.to_string()))?;
        Ok(self.graph.add_node(op, operands, types(declared), phase, scope))
    }

    /// The statements of a body, up to and with its closing brace; whether there may be composites.
    fn body(&mut self, composites: bool) -> Result<()> {
        while self.token != Token::Word("results".into()) {
            let mut declared = vec![self.declared()?];
            while self.token == Token::Symbol(',') {
                self.take()?;
                declared.push(self.declared()?);
            }
            self.symbol('=')?;
            let (name, place) = self.word("`operands` or a primitive")?;
            let values = if name == "operands" {
                let mut input = |d: &Declared| {
                    let name = self.graph.inputs().len().to_string();
                    self.graph.add_input(name, InputKind::Data, d.ty.clone())
                };
                declared.iter().map(&mut input).collect()
            } else {
                let operands = self.operands()?;
                let attrs_place = self.place;
                let attrs = if self.token == Token::Symbol('{') { self.attrs()? } else { Attrs::new() };
                let op = match prim_from(&name, &attrs, &declared[0].ty) {
                    Some(prim) => Op::Prim(checked_prim(prim, &attrs, &declared, attrs_place)?),
                    None => match self.registry.get(&name).filter(|_| composites) {
                        Some(def) => Op::Composite(Composite { def, attrs }),
                        None => {
                            let what = if composites { "operation" } else { "primitive" };
                            return place.error(format!("there is no {what} `{}`", shorten(&name)));
                        }
                    },
                };
                self.graph.add_node(op, operands, types(&declared), Phase::Forward, 0)
            };
            self.define(&declared, values)?;
        }
        self.take()?;
        loop {
            let v = self.value()?;
            self.graph.add_output(self.graph.outputs().len().to_string(), v, None);
            if self.token != Token::Symbol(',') {
                return self.symbol('}');
            }
            self.take()?;
        }
    }

    fn scope(&mut self, name: String) -> u32 {
        let graph = &mut self.graph;
        *self.scopes.entry(name).or_insert_with_key(|name| {
            graph.scopes.push(name.clone());
            graph.scopes.len() as u32 - 1
        })
    }

    /// `output "name" = %1 [updates %0]`
    fn output(&mut self) -> Result<()> {
        self.take()?;
        let name = self.quoted("the name of the output")?;
        self.symbol('=')?;
        let value = self.value()?;
        let updates = match &self.token {
            Token::Word(w) if w == "updates" => {
                self.take()?;
                Some(self.value()?)
            }
            _ => None,
        };
        self.graph.add_output(name, value, updates);
        Ok(())
    }

    /// A value defined above.
    fn value(&mut self) -> Result<ValueId> {
        match self.take()? {
            (Token::Value(v), place) => match self.values.get(&v) {
                Some(&v) => Ok(v),
                None => place.error(format!("%{v} is not defined above")),
            },
            (other, place) => place.error(format!("expected a value like %1, found {other}")),
        }
    }

    fn attrs(&mut self) -> Result<Attrs> {
        self.symbol('{')?;
        let mut attrs = Attrs::new();
        loop {
            let (name, place) = self.word("the name of an attribute")?;
            if attrs.get(&name).is_some() {
                return place.error(format!("attribute `{}` is given twice", shorten(&name)));
            }
            self.symbol('=')?;
            self.attr(&mut attrs, &name)?;
            if self.token == Token::Symbol('}') {
                self.take()?;
                return Ok(attrs);
            }
            self.symbol(',')?;
        }
    }

    fn attr(&mut self, attrs: &mut Attrs, name: &str) -> Result<()> {
        if self.token == Token::Symbol('[') {
            attrs.set(name, AttrValue::Ints(self.ints()?));
            return Ok(());
        }
        let value = match self.take()? {
            (Token::Word(w), _) if w == "true" || w == "false" => AttrValue::Bool(w == "true"),
            (Token::Word(w), _) if w == "inf" => AttrValue::Float(f64::INFINITY),
            (Token::Quoted(s), _) => AttrValue::Str(s),
            (Token::Number(n), place) if n.contains(['.', 'e', 'f']) => match n.parse::<f64>() {
                Ok(v) if v.is_finite() || n == "-inf" => AttrValue::Float(v),
                _ => return place.error(format!("`{}` is no float", shorten(&n))),
            },
            (Token::Number(n), place) => AttrValue::Int(int(&n, place)?),
            (other, place) => return place.error(format!("expected the value of `{name}`, found {other}")),
        };
        attrs.set(name, value);
        Ok(())
    }

    /// `[1,2,3]`
    fn ints(&mut self) -> Result<Vec<i64>> {
        self.symbol('[')?;
        let mut out = vec![];
        while self.token != Token::Symbol(']') {
            match self.take()? {
                (Token::Number(n), place) => out.push(int(&n, place)?),
                (other, place) => return place.error(format!("expected an integer, found {other}")),
            }
            if self.token != Token::Symbol(']') {
                self.symbol(',')?;
            }
        }
        self.take()?;
        Ok(out)
    }

    /// The current token; the next one becomes current.
    fn take(&mut self) -> Result<(Token, Place)> {
        let (next, place) = self.lexer.next()?;
        Ok((std::mem::replace(&mut self.token, next), std::mem::replace(&mut self.place, place)))
    }

    fn symbol(&mut self, c: char) -> Result<()> {
        match self.take()? {
            (Token::Symbol(found), _) if found == c => Ok(()),
            (other, place) => place.error(format!("expected `{c}`, found {other}")),
        }
    }

    fn keyword(&mut self, word: &str) -> Result<()> {
        match self.take()? {
            (Token::Word(w), _) if w == word => Ok(()),
            (other, place) => place.error(format!("expected `{word}`, found {other}")),
        }
    }

    fn word(&mut self, what: &str) -> Result<(String, Place)> {
        match self.take()? {
            (Token::Word(w), place) => Ok((w, place)),
            (other, place) => place.error(format!("expected {what}, found {other}")),
        }
    }

    fn quoted(&mut self, what: &str) -> Result<String> {
        match self.take()? {
            (Token::Quoted(s), _) => Ok(s),
            (other, place) => place.error(format!("expected {what} in quotes, found {other}")),
        }
    }
}

fn types(declared: &[Declared]) -> Vec<TensorType> {
    declared.iter().map(|d| d.ty.clone()).collect()
}

fn int(text: &str, place: Place) -> Result<i64> {
    match text.parse::<i64>() {
        Ok(v) if v.abs() <= MAX_INT => Ok(v),
        _ => place.error(format!("`{}` is no integer within ±2^32", shorten(text))),
    }
}

fn checked_prim(prim: Result<Prim>, attrs: &Attrs, declared: &[Declared], place: Place) -> Result<Prim> {
    let prim = prim.or_else(|e| match e {
        GraphError::Type { message, .. } => place.error(message),
        e => Err(e),
    })?;
    if let Some(name) = unknown_attr(&prim, attrs) {
        return place.error(format!("`{}` has no attribute `{}`", prim.name(), shorten(name)));
    }
    match declared.get(1) {
        Some(extra) => extra.place.error(format!("`{}` has one result", prim.name())),
        None => Ok(prim),
    }
}
