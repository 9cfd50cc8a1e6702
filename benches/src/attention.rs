//! Causal attention with grouped key heads, as plans of one operation each.

use kfc_graph::{Attrs, Builder, DType, Graph, GraphError, InputKind, TensorType};
use kfc_ops::attention::{ATTENTION, ATTENTION_BWD};
use kfc_runtime::exec::{BoundPlan, Store};
use kfc_runtime::models::write_f32;
use kfc_runtime::random::normal_tensor;
use kfc_runtime::session;
use std::fmt;
use std::str::FromStr;

/// A shape; as text `DTYPE:LENGTH:HEADS:KV_HEADS:HEAD_SIZE`, the batch is 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Type of queries, keys and values.
    pub dtype: DType,
    /// Tokens of the row.
    pub length: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub size: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { dtype, length, heads, kv_heads, size } = self;
        write!(f, "{dtype}:{length}:{heads}:{kv_heads}:{size}")
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Case, String> {
        let fail = || format!("`{text}` is not DTYPE:LENGTH:HEADS:KV_HEADS:HEAD_SIZE");
        let (dtype, extents) = text.split_once(':').ok_or_else(fail)?;
        let dtype = DType::from_name(dtype).ok_or_else(fail)?;
        let extents: Vec<usize> =
            extents.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| fail())?;
        let [length, heads, kv_heads, size] = extents[..] else { return Err(fail()) };
        Ok(Case { dtype, length, heads, kv_heads, size })
    }
}

impl Case {
    /// Lengths and head sizes that are compared, in both types.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::Bf16] {
            for size in [64, 96, 128, 192] {
                for length in [512, 1024, 2048, 4096, 8192] {
                    cases.push(Case { dtype, length, heads: 8, kv_heads: 2, size });
                }
            }
        }
        cases
    }

    /// Floating-point operations of the visible half of `products` products.
    pub fn flops(&self, products: u64) -> u64 {
        products * (self.heads * self.length * self.length * self.size) as u64
    }

    /// Plans of the forward and of the backward pass, and their operands.
    ///
    /// # Errors
    /// If the shape is not one of an attention, or memory is short.
    pub fn plans(&self) -> Result<([BoundPlan; 2], Store), Box<dyn std::error::Error>> {
        let t = self.length;
        let tensor = |heads: usize| TensorType::new(self.dtype, [1, t, heads * self.size]);
        let rows = TensorType::new(DType::I32, [1, t]);
        let (wide, narrow) = (tensor(self.heads), tensor(self.kv_heads));
        let lse = TensorType::new(DType::F32, [1, self.heads, t]);
        let operands = [("q", wide.clone()), ("k", narrow.clone()), ("v", narrow)];
        let results = [("o", wide.clone()), ("lse", lse)];
        let marks = [("segments", rows.clone()), ("positions", rows)];
        let attrs = Attrs::new()
            .with("heads", self.heads)
            .with("kv_heads", self.kv_heads)
            .with("scale", (self.size as f64).powf(-0.5));

        let mut store = Store::new();
        for (name, ty) in operands.iter().chain(&results[..1]).chain([&("do", wide.clone())]) {
            let slot = store.allocate(name, ty)?;
            write_f32(&normal_tensor(0, name, ty.elements(), 1.0), ty.dtype, store.slice_mut::<u8>(slot));
        }
        // A log-sum-exp that gives plausible probabilities.
        let slot = store.allocate("lse", &results[1].1)?;
        store.slice_mut::<f32>(slot).fill((t as f32).ln() + 0.5);
        for (name, ty) in &marks {
            let slot = store.allocate(name, ty)?;
            let is_position = *name == "positions";
            let marks = store.slice_mut::<i32>(slot).iter_mut().enumerate();
            marks.for_each(|(i, x)| *x = if is_position { i as i32 } else { 0 });
        }

        let graph = |backward: bool| -> Result<Graph, GraphError> {
            let mut graph = Graph::new(if backward { "backward" } else { "forward" });
            let mut names: Vec<(&str, TensorType)> = Vec::new();
            if backward {
                names.push(("do", wide.clone()));
            }
            names.extend(operands.clone());
            if backward {
                names.extend(results.clone());
            }
            names.extend(marks.clone());
            let mut inputs: Vec<_> =
                names.iter().map(|(n, ty)| graph.add_input(*n, InputKind::Weight, ty.clone())).collect();
            inputs.extend_from_within(inputs.len() - 2..);
            let mut b = Builder::new(&mut graph);
            let results = if backward {
                b.composite(&ATTENTION_BWD, attrs.clone(), &inputs)?
            } else {
                b.composite(&ATTENTION, attrs.clone(), &inputs)?
            };
            results.iter().enumerate().for_each(|(i, r)| graph.add_output(format!("result.{i}"), *r, None));
            Ok(graph)
        };
        let plans = session::bind(&session::compile_all(&[graph(false)?, graph(true)?])?, &store)?;
        let plans = <[BoundPlan; 2]>::try_from(plans).map_err(|_| "two graphs make two plans")?;
        Ok((plans, store))
    }
}
