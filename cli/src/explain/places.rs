//! Which part of the model a launch belongs to, for totals and colours.

use kfc_graph::Phase;

/// A part of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attention with its projections.
    Attention,
    /// The feed-forward block.
    Mlp,
    /// The output layer and its losses.
    Head,
    /// The embedding.
    Embedding,
    /// The norm before the head.
    Norm,
    /// What stands between: losses, features.
    Losses,
    /// Gradient accumulation.
    Gradients,
    /// The penalty against forgetting.
    Ewc,
    /// The optimiser.
    Optimiser,
}

/// A part of the student or the teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The part.
    pub part: Part,
    /// The teacher's, not the student's.
    pub teacher: bool,
}

impl Place {
    /// Where a launch of `op` in `scope` belongs.
    pub fn of(op: &str, scope: &str, phase: Phase) -> Place {
        let place = |part| Place { part, teacher: scope.starts_with("teacher.") };
        let ends = |name: &str| scope == name || scope.ends_with(&format!(".{name}"));
        place(if op.starts_with("ewc") || ends("ewc") {
            Part::Ewc
        } else if phase == Phase::Update {
            Part::Optimiser
        } else if op.starts_with("linear_cross_entropy") || ends("head") {
            Part::Head
        } else if ends("attn") {
            Part::Attention
        } else if ends("mlp") {
            Part::Mlp
        } else if ends("embed") {
            Part::Embedding
        } else if ends("norm") {
            Part::Norm
        } else if ends("accumulate") {
            Part::Gradients
        } else {
            Part::Losses
        })
    }

    /// Name in tables.
    pub fn name(self) -> String {
        let part = self.part.name();
        if self.teacher { format!("teacher {part}") } else { part.to_string() }
    }
}

impl Part {
    /// Every part, in the order of the step.
    pub const ALL: [Part; 9] = [
        Part::Attention,
        Part::Mlp,
        Part::Head,
        Part::Embedding,
        Part::Norm,
        Part::Losses,
        Part::Gradients,
        Part::Ewc,
        Part::Optimiser,
    ];

    /// Name in tables and legends.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Attention => "attention",
            Part::Mlp => "mlp",
            Part::Head => "head",
            Part::Embedding => "embedding",
            Part::Norm => "final norm",
            Part::Losses => "losses and features",
            Part::Gradients => "gradient accumulation",
            Part::Ewc => "ewc",
            Part::Optimiser => "optimiser",
        }
    }

    /// Number of its colour in the style sheet.
    pub const fn colour(self) -> usize {
        match self {
            Part::Attention => 0,
            Part::Mlp => 1,
            Part::Head => 2,
            Part::Embedding => 5,
            Part::Norm => 8,
            Part::Losses => 3,
            Part::Gradients => 6,
            Part::Ewc => 4,
            Part::Optimiser => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_lead_to_places() {
        let name = |op, scope, phase| Place::of(op, scope, phase).name();
        assert_eq!(name("lora_linear", "student.layers.3.attn", Phase::Backward), "attention");
        assert_eq!(name("swiglu", "teacher.layers.0.mlp", Phase::Forward), "teacher mlp");
        assert_eq!(name("linear_cross_entropy_kd_fused", "loss", Phase::Forward), "head");
        assert_eq!(name("adamw", "lora.model.layers.0.self_attn.q_proj.A", Phase::Update), "optimiser");
        assert_eq!(name("ewc_delta", "ewc", Phase::Update), "ewc");
    }
}
