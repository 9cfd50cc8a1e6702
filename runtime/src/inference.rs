//! A model with an optional adapter, ready to be asked: scores, logits.

use crate::config::ModelInit;
use crate::data::Tokenizer;
use crate::error::{Result, RunError};
use crate::exec::{BoundPlan, Store};
use crate::hf::{Adapter, read_adapter};
use crate::models::Model;
use crate::session;
use crate::train::open::adapter_spec;
use crate::train::setup::place_adapter;
use kfc_graph::{DType, Graph, InputKind};
use kfc_ops::model::LoraSpec;
use std::path::Path;

/// An opened model with its adapter.
pub struct Served {
    /// Configuration and weights.
    pub model: Model,
    /// Where the adapter attaches.
    pub lora: Option<LoraSpec>,
    adapter: Option<Adapter>,
}

impl Served {
    /// Opens a model folder and, if given, an adapter folder. Without `dtype` the stored type is used.
    ///
    /// # Errors
    /// If either is missing, damaged, or they do not belong together.
    pub fn open(model: &Path, adapter: Option<&Path>, dtype: Option<DType>) -> Result<Served> {
        let model = Model::open(model, dtype, ModelInit::Pretrained, 0)?;
        let Some(path) = adapter else { return Ok(Served { model, lora: None, adapter: None }) };
        let adapter = read_adapter(path)?;
        let lora = adapter_spec(&model, &adapter, 0.0, path)?;
        Ok(Served { model, lora: Some(lora), adapter: Some(adapter) })
    }

    /// The adapter, if one is applied.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The tokenizer of the model folder.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let folder = &self.model.path;
        if !folder.join("tokenizer.json").is_file() {
            return Err(RunError::Input(format!(
                "{} has no tokenizer.json, which text needs; copy it there from the model's publisher",
                folder.display()
            )));
        }
        Ok(Tokenizer::load(folder)?)
    }

    /// The error of a model whose scores or logits are NaN or infinite: it names the weight that is at fault.
    pub fn not_finite(&self) -> RunError {
        let folder = self.model.path.display();
        match self.model.find_non_finite() {
            Some(what) => RunError::Input(format!("{what}: the model predicts nothing; take an intact copy")),
            None if self.lora.is_some() => RunError::Failed(format!(
                "the logits are not finite although the weights of {folder} are: the adapter is damaged or diverged"
            )),
            None => RunError::Failed(format!(
                "the logits are not finite although the weights of {folder} are: values overflow in {}",
                self.model.dtype.name()
            )),
        }
    }

    /// A store with the weights, the adapter, and rotary tables for `positions` positions.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn store(&self, positions: usize) -> Result<Store> {
        let mut store = Store::new();
        self.model.place(&mut store, "student.", false)?;
        self.model.place_rope(&mut store, "student.", positions)?;
        if let Some(lora) = &self.lora {
            place_adapter(&mut store, lora, self.adapter.as_ref(), 0)?;
        }
        Ok(store)
    }
}

/// Allocates what the graphs need beside weights, compiles and binds them.
///
/// # Errors
/// If compiling or binding fails.
pub fn bind(graphs: Vec<Graph>, store: &mut Store) -> Result<Vec<BoundPlan>> {
    for graph in &graphs {
        for input in graph.inputs().iter().filter(|i| i.kind != InputKind::Weight) {
            store.allocate(&input.name, graph.ty(input.value))?;
        }
    }
    session::bind(&session::compile_all(&graphs)?, store)
}

/// [`bind`] for a single graph.
///
/// # Errors
/// As [`bind`].
pub fn bind_one(graph: Graph, store: &mut Store) -> Result<BoundPlan> {
    bind(vec![graph], store)?.pop().ok_or_else(|| RunError::Failed("a graph gave no plan".into()))
}
