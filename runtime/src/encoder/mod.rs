//! Encoders that classify texts: the BERT family with a classification head, from a Hugging Face folder.
//!
//! [`Texts`] turns text into token ids with the special tokens of the model, [`Classifier`] gives logits. Texts are sorted
//! by length and run in batches of one length each, on one plan a shape over one arena. Batches are made of lengths alone,
//! so logits do not depend on threads.

mod batches;
mod model;
mod score;
mod texts;

pub use model::Classifier;
pub use score::{Kind, Scoring};
pub use texts::{Long, Texts};
