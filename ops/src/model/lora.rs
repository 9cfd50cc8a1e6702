//! Which linear layers an adapter attaches to, and with which scale.

use super::config::{ModelConfig, ModelError};
use super::names::Module;

/// A low-rank adapter: `y = W x + scale · B A dropout(x)` on each module.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// Rank.
    pub r: usize,
    /// `alpha / r`, or `alpha / sqrt(r)` when rank-stabilised.
    pub scale: f64,
    /// Probability of dropping an input element while training.
    pub dropout: f64,
    /// Adapted modules, in order of use.
    pub modules: Vec<Module>,
}

impl LoraSpec {
    /// The scale of an adapter (rsLoRA: Kalajdzievski 2023).
    pub fn scale_of(alpha: f64, r: usize, rslora: bool) -> f64 {
        if rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 }
    }

    /// Position of the module of this path, which is also its dropout stream.
    pub fn index(&self, path: &str) -> Option<usize> {
        self.modules.iter().position(|m| m.path == path)
    }
}

/// The modules that names select: a name matches a module's path or a dotted suffix of it, as in PEFT.
/// `None` selects every linear layer but the head.
///
/// # Errors
/// [`ModelError::UnknownTarget`] for a name that matches nothing, with the names there are.
pub fn resolve_targets(config: &ModelConfig, names: Option<&[String]>) -> Result<Vec<Module>, ModelError> {
    let all = config.modules();
    let Some(names) = names else { return Ok(all) };
    let matches = |m: &Module, n: &str| m.path == n || m.path.ends_with(&format!(".{n}"));
    for name in names {
        if !all.iter().any(|m| matches(m, name)) {
            let known = config.layer_modules(0).map(|m| m.short().to_string()).join(", ");
            return Err(ModelError::UnknownTarget { target: name.clone(), known });
        }
    }
    Ok(all.into_iter().filter(|m| names.iter().any(|n| matches(m, n))).collect())
}
