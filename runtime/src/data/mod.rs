//! Training and evaluation data: sources → rows of text → tokens → packed rows → batches of a step.
pub mod chat;
pub mod error;
pub mod rows;
pub mod tokenizer;
pub mod word_level;
#[cfg(test)]
mod testing;
