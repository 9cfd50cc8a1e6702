//! Knowledge before training: rows of text are read as streams, worked on in parallel and written as knowledge rows,
//! `{"knowledge_id", "text", "metadata": {"source", "domain", ...}}`, one a line.
//!
//! [`input`] finds files and cuts them into items, [`row`] makes rows of items, [`job`] runs a command's [`job::Work`]
//! over them, [`report`] says what came of it; [`clean`] and [`augment`] are such works. Invariants: what is written depends on the input and the settings alone,
//! not on threads or interruptions; memory is bounded by a few blocks and what the work itself keeps; every row that
//! goes in comes out, or is counted under a reason.

pub mod augment;
pub mod clean;
pub mod filter;
pub mod input;
pub mod job;
pub mod report;
pub mod row;

#[cfg(test)]
mod tests;
