//! An encoder at run time: weights in a store, plans for the shapes that came.

use super::batches::{Batch, batches, lengths, most_rows};
use crate::error::{Result, RunError};
use crate::exec::{Slot, Store};
use crate::hf::{ModelFolder, TensorView, Weights, dtype_of};
use crate::models::load_as;
use crate::plan_set::{PlanId, PlanSet};
use kfc_graph::{DType, TensorType};
use kfc_ops::model::encoder::{PREFIX, classify_graph};
use kfc_ops::model::{EncoderConfig, Parameter, ParameterKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Inputs whose shape depends on the batch.
const OWN: [&str; 3] = ["tokens", "positions", "segments"];

/// An encoder with its classification head.
pub struct Classifier {
    /// The folder.
    pub path: PathBuf,
    /// Shape and arithmetic.
    pub config: EncoderConfig,
    /// Element type that it runs in.
    pub dtype: DType,
    longest: usize,
    weights: Arc<Weights>,
    plans: PlanSet,
    shapes: BTreeMap<(usize, usize), Shape>,
}

/// A plan for batches of one shape.
struct Shape {
    plan: PlanId,
    tokens: Slot,
    positions: Slot,
    segments: Slot,
    logits: usize,
}

impl Classifier {
    /// Opens a model folder. Without `dtype` it runs in the type that its weights are stored in. Texts have at most
    /// `longest` tokens, and never more than the model has positions.
    ///
    /// # Errors
    /// If a file is missing or damaged, the model is no encoder that is built, or a weight is absent or of another shape.
    pub fn open(path: &Path, dtype: Option<DType>, longest: Option<usize>) -> Result<Classifier> {
        let folder = ModelFolder::open(path)?;
        let config = EncoderConfig::from_json(&folder.config)
            .map_err(|source| RunError::Model { path: path.display().to_string(), source })?;
        let weights = Arc::new(folder.weights()?);
        let mut stored = DType::F32;
        for p in config.parameters() {
            let view = find(&weights, &p)?;
            if p.kind == ParameterKind::Matrix {
                stored = dtype_of(view.dtype).unwrap_or(DType::F32);
            }
        }
        let dtype = dtype.unwrap_or(stored);
        let plans = PlanSet::new(place(&config, &weights, dtype)?)?;
        let longest = longest.unwrap_or(usize::MAX).min(config.max_tokens());
        let mut classifier =
            Classifier { path: path.into(), config, dtype, longest, weights, plans, shapes: BTreeMap::new() };
        // Full batches need the most: with these the arena has its final size.
        for seq in lengths(classifier.longest) {
            classifier.shape(seq, most_rows(seq))?;
        }
        Ok(classifier)
    }

    /// Most tokens of a text.
    pub const fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of all weights in the type that it runs in.
    pub fn weight_bytes(&self) -> usize {
        let bytes = |p: &Parameter| TensorType::new(self.dtype, p.dims.clone()).bytes();
        self.config.parameters().iter().map(bytes).sum()
    }

    /// Bytes of the activations of a batch.
    pub const fn arena_bytes(&self) -> usize {
        self.plans.arena_bytes()
    }

    /// Logits of texts, one list of `config.labels.len()` a text. `progress` is told how many texts are done.
    ///
    /// # Errors
    /// If a text is empty, too long or has a token outside the vocabulary, a logit is not finite, or memory runs out.
    pub fn classify<T: AsRef<[i32]>>(
        &mut self,
        texts: &[T],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<f32>>> {
        for text in texts {
            self.check(text.as_ref())?;
        }
        let lengths: Vec<usize> = texts.iter().map(|t| t.as_ref().len()).collect();
        let mut logits = vec![Vec::new(); texts.len()];
        let mut done = 0;
        for batch in batches(&lengths, self.longest) {
            let members: Vec<&[i32]> = batch.members.iter().map(|&i| texts[i].as_ref()).collect();
            let found = self.run(&batch, &members)?;
            for (&i, found) in batch.members.iter().zip(found) {
                logits[i] = found;
            }
            done += batch.members.len();
            progress(done);
        }
        Ok(logits)
    }

    fn check(&self, text: &[i32]) -> Result<()> {
        if text.is_empty() || text.len() > self.longest {
            return Err(RunError::Failed(format!(
                "a text of {} tokens; 1 to {} can be classified",
                text.len(),
                self.longest
            )));
        }
        let vocab = self.config.vocab_size as i32;
        match text.iter().find(|t| !(0..vocab).contains(*t)) {
            None => Ok(()),
            Some(bad) => Err(RunError::Input(format!(
                "{}: token {bad} is outside the model's vocabulary of {vocab}; is the tokenizer that of another model?",
                self.path.display()
            ))),
        }
    }

    /// The plan of a shape, compiled when it is first needed.
    fn shape(&mut self, seq: usize, rows: usize) -> Result<&Shape> {
        if !self.shapes.contains_key(&(seq, rows)) {
            let graph = classify_graph(&self.config, self.dtype, rows, seq)?;
            let prefix = format!("{rows}x{seq}.");
            let plan = self.plans.add(&graph, &OWN, &prefix)?;
            let slot = |name: &str| self.plans.slot(&format!("{prefix}{name}"));
            let [tokens, positions, segments] = [slot("tokens")?, slot("positions")?, slot("segments")?];
            let logits = self.plans.output(plan, "logits")?;
            self.shapes.insert((seq, rows), Shape { plan, tokens, positions, segments, logits });
        }
        self.shapes
            .get(&(seq, rows))
            .ok_or_else(|| RunError::Failed("a plan that was made is not there".into()))
    }

    fn run(&mut self, batch: &Batch, members: &[&[i32]]) -> Result<Vec<Vec<f32>>> {
        let &Batch { seq, rows, .. } = batch;
        let first = self.config.first_position as i32;
        let &Shape { plan, tokens, positions, segments, logits } = self.shape(seq, rows)?;
        let store = self.plans.store_mut();
        for row in 0..rows {
            let text = members.get(row).copied().unwrap_or_default();
            let mut fill = |slot: Slot, padding: i32, real: &dyn Fn(usize) -> i32| {
                let values = &mut store.slice_mut::<i32>(slot)[row * seq..(row + 1) * seq];
                values.iter_mut().enumerate().for_each(|(i, v)| {
                    *v = if i < text.len() { real(i) } else { padding };
                });
            };
            fill(tokens, 0, &|i| text[i]);
            fill(positions, first, &|i| first + i as i32);
            fill(segments, -1, &|_| 0);
        }
        self.plans.run(plan);
        let found = self.plans.plan(plan).output::<f32>(logits);
        let found: Vec<Vec<f32>> =
            found.chunks_exact(self.config.labels.len()).take(members.len()).map(<[f32]>::to_vec).collect();
        match found.iter().flatten().all(|x| x.is_finite()) {
            true => Ok(found),
            false => Err(self.not_finite()),
        }
    }

    fn not_finite(&self) -> RunError {
        match self.weights.find_non_finite() {
            Some(what) => RunError::Input(format!("{what}: the model scores nothing; take an intact copy")),
            None => RunError::Failed(format!(
                "the logits of {} are not finite although its weights are: values overflow in {}",
                self.path.display(),
                self.dtype.name()
            )),
        }
    }
}

/// A parameter of the file. Old files call gain and bias of norms gamma and beta.
fn find<'a>(weights: &'a Weights, p: &Parameter) -> Result<TensorView<'a>> {
    let old = match weights.get(&p.name) {
        Some(_) => None,
        None => p
            .name
            .strip_suffix("LayerNorm.weight")
            .map(|path| format!("{path}LayerNorm.gamma"))
            .or_else(|| p.name.strip_suffix("LayerNorm.bias").map(|path| format!("{path}LayerNorm.beta"))),
    };
    let old = old.filter(|name| weights.get(name).is_some());
    Ok(weights.require(old.as_deref().unwrap_or(&p.name), &p.dims)?)
}

/// A store with every parameter: mapped where the file has the right type, else converted.
fn place(config: &EncoderConfig, weights: &Arc<Weights>, dtype: DType) -> Result<Store> {
    let mut store = Store::new();
    for p in config.parameters() {
        let view = find(weights, &p)?;
        let (name, ty) = (format!("{PREFIX}{}", p.name), TensorType::new(dtype, p.dims.clone()));
        if dtype_of(view.dtype) == Some(dtype) && view.aligned() {
            store.insert_mapped(&name, ty, view.bytes, Arc::clone(weights) as _);
        } else {
            let slot = store.allocate(&name, &ty)?;
            load_as(&view, dtype, store.slice_mut::<u8>(slot))?;
        }
    }
    Ok(store)
}
