//! Training and evaluation data: sources → rows of text → tokens → packed rows → batches of a step.
pub mod chat;
pub mod documents;
pub mod error;
pub mod loader;
pub mod order;
pub mod pack;
pub mod rows;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod word_level;
