//! How many tokens' logits the head has in memory at once on a GPU: what is built in, and what a search may try.
//!
//! Fewer tokens take less of the memory that is planned for them, and none more; losses and the gradients of hidden states have
//! the same bits, those of a trained weight have not: they are sums over chunks.

use super::choice::hash;
use super::programs::{Sizes, head_chunk};
use kfc_graph::{Op, TensorType};
use std::fmt;

/// Fewest tokens that are tried.
const FEWEST: usize = 16;

/// The heads of a kind that a plan may have: operation, types, and tokens at once as built in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunked {
    /// The operation.
    name: String,
    /// Of attributes and types.
    hash: u64,
    /// Tokens at once.
    pub built_in: usize,
}

impl Chunked {
    /// That of a step of a plan; `None` if it is no head.
    pub fn of(op: &Op, inputs: &[TensorType], outputs: &[TensorType]) -> Option<Chunked> {
        let Op::Composite(c) = op else { return None };
        let built_in = head_chunk(c, inputs, &Sizes::default())?;
        let types: Vec<String> = inputs.iter().chain(outputs).map(ToString::to_string).collect();
        let attrs: Vec<String> =
            kfc_graph::text::attrs(op).iter().map(|(name, value)| format!("{name}={value}")).collect();
        let hash = hash(format!("{}\n{}", attrs.join(","), types.join(",")).as_bytes());
        Some(Chunked { name: op.name().to_string(), hash, built_in })
    }

    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Chunked> {
        let (name, hash) = name.split_once(" tokens #")?;
        let (name, built_in) = name.split_once(" in chunks of ")?;
        let hash = u64::from_str_radix(hash, 16).ok()?;
        Some(Chunked { name: name.into(), hash, built_in: built_in.parse().ok().filter(|n| *n > 0)? })
    }

    /// Tokens at once that can be tried, the built-in ones first: halves of them.
    pub fn candidates(&self) -> Vec<usize> {
        let half = |n: &usize| Some((n / 2).next_multiple_of(16)).filter(|half| half < n && *half >= FEWEST);
        std::iter::successors(Some(self.built_in), half).collect()
    }
}

impl fmt::Display for Chunked {
    /// `linear_cross_entropy_kd_fused in chunks of 512 tokens #0123456789abcdef`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in chunks of {} tokens #{:016x}", self.name, self.built_in, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_halved_and_names_are_read_back() {
        let chunked = |built_in| Chunked { name: "linear_cross_entropy_kd".into(), hash: 7, built_in };
        assert_eq!(chunked(384).candidates(), [384, 192, 96, 48, 32, 16]);
        assert_eq!(chunked(16).candidates(), [16]);
        assert_eq!(chunked(5).candidates(), [5]);
        assert_eq!(Chunked::named(&chunked(384).to_string()), Some(chunked(384)));
        for wrong in ["", "head in chunks of 0 tokens #07", "head in chunks of 5 tokens #x", "rms_norm #07"] {
            assert_eq!(Chunked::named(wrong), None, "{wrong}");
        }
    }
}
