//! What is chosen for the kernels of plans on a GPU: how they cut their work, and the language that they are printed in; and how
//! many tokens a head takes at once.
//!
//! A choice is known by a kernel's key: what it multiplies, or else a hash of its program, so that a kernel of another job
//! that does the same has the same choice.

use super::chunk::Chunked;
use super::header::Language;
use super::ir::Program;
use super::plain::Algorithm;
use super::programs::Sizes;
use super::tiling::{Shape, Tiling, Tilings};
use super::triton;
use kfc_graph::{Op, TensorType};
use std::collections::BTreeMap;
use std::fmt;

/// How a kernel is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// How it is cut, if there is more than one way.
    pub tiling: Option<Tiling>,
    /// The language that it is printed in.
    pub language: Language,
    /// Tokens at once, of a head alone ([`Chunked`]).
    pub chunk: Option<usize>,
    /// How NVIDIA's library does it in the kernel's place, of a plain product alone ([`super::plain`]).
    pub library: Option<Algorithm>,
}

impl Choice {
    /// What is chosen by itself for the kernel of this key.
    pub fn builtin(key: &str) -> Choice {
        let chunk = Chunked::named(key).map(|c| c.built_in);
        Choice {
            tiling: Shape::named(key).map(|s| Tiling::builtin(&s)),
            language: Language::Cuda,
            chunk,
            library: None,
        }
    }

    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Choice> {
        if let Some(tokens) = name.strip_prefix("chunk ") {
            let chunk = tokens.parse().ok().filter(|n| *n > 0)?;
            return Some(Choice {
                tiling: None,
                language: Language::Cuda,
                chunk: Some(chunk),
                library: None,
            });
        }
        if let Some(algorithm) = Algorithm::named(name) {
            return Some(Choice::by_library(algorithm));
        }
        let (language, rest) = match name.split_once(", ") {
            _ if name == Language::Cuda.name() => (Language::Cuda, ""),
            _ if name == Language::Triton.name() => (Language::Triton, ""),
            Some((first, rest)) if first == Language::Triton.name() => (Language::Triton, rest),
            _ => (Language::Cuda, name),
        };
        let tiling = if rest.is_empty() { None } else { Some(Tiling::named(rest)?) };
        Some(Choice { tiling, language, chunk: None, library: None })
    }

    /// That of a plain product which the library does.
    pub fn by_library(algorithm: Algorithm) -> Choice {
        Choice { tiling: None, language: Language::Cuda, chunk: None, library: Some(algorithm) }
    }
}

impl fmt::Display for Choice {
    /// `tile 128x128x64, 8 warps, 3 stages`, with `Triton, ` before it in Triton; the language alone of a kernel that can be
    /// cut in one way only; `chunk 128` of a head, an algorithm of the library.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tokens) = self.chunk {
            return write!(f, "chunk {tokens}");
        }
        if let Some(algorithm) = &self.library {
            return write!(f, "{algorithm}");
        }
        match (self.tiling, self.language) {
            (None, language) => f.write_str(language.name()),
            (Some(t), Language::Cuda) => write!(f, "{t}"),
            (Some(t), language) => write!(f, "{}, {t}", language.name()),
        }
    }
}

/// What is chosen for kernels; others are made as [`Choice::builtin`] says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choices {
    /// How kernels are cut.
    pub tilings: Tilings,
    /// Tokens that heads take at once, by key.
    chunks: BTreeMap<String, usize>,
    /// What the library does, by key.
    libraries: BTreeMap<String, Algorithm>,
    /// Languages that are not the built-in one, by key.
    languages: BTreeMap<String, Language>,
    /// Keys of the kernels whose results have other bits than as built in, and the choice.
    other_bits: BTreeMap<String, Choice>,
}

impl Choices {
    /// Chooses for the kernel of this key; `other_bits` says that its results are not the built-in one's, bit for bit.
    pub fn choose(&mut self, key: &str, choice: Choice, other_bits: bool) {
        if let (Some(shape), Some(tiling)) = (Shape::named(key), choice.tiling) {
            self.tilings.choose(shape, tiling);
        }
        match (choice.chunk, choice.library) {
            (Some(tokens), _) => _ = self.chunks.insert(key.into(), tokens),
            (_, Some(algorithm)) => _ = self.libraries.insert(key.into(), algorithm),
            _ => _ = self.languages.insert(key.into(), choice.language),
        }
        if other_bits {
            self.other_bits.insert(key.into(), choice);
        }
    }

    /// Goes back to what is built in for the kernel of this key.
    pub fn forget(&mut self, key: &str) {
        if let Some(shape) = Shape::named(key) {
            self.tilings.forget(&shape);
        }
        self.chunks.remove(key);
        self.libraries.remove(key);
        self.languages.remove(key);
        self.other_bits.remove(key);
    }

    /// The sizes that a step of a plan is cut by.
    pub fn sizes(&self, op: &Op, inputs: &[TensorType], outputs: &[TensorType]) -> Sizes {
        let chunked = if self.chunks.is_empty() { None } else { Chunked::of(op, inputs, outputs) };
        let chunk = chunked.and_then(|c| self.chunks.get(&c.to_string()).copied());
        Sizes { chunk, ..Sizes::default() }
    }

    /// How the library does the kernel of this key, if it is to.
    pub fn library(&self, key: &str) -> Option<Algorithm> {
        self.libraries.get(key).copied()
    }

    /// The language of the kernel of this key.
    pub fn language(&self, key: &str) -> Language {
        self.languages.get(key).copied().unwrap_or(Language::Cuda)
    }

    /// Kernels whose results have other bits than as built in, by key.
    pub fn other_bits(&self) -> &BTreeMap<String, Choice> {
        &self.other_bits
    }
}

/// What choices of a program are known by: the shape of what it multiplies, or else its name and a hash of what it does.
pub fn key(p: &Program) -> String {
    match &p.tiled {
        Some(tiled) => tiled.shape.to_string(),
        None => format!("{} #{:016x}", p.name, hash(triton::print(p).as_bytes())),
    }
}

/// FNV-1a of 64 bits (Fowler, Noll and Vo).
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tile::ir::Elem;

    #[test]
    fn names_are_read_back() {
        let shape = Shape { kernel: "linear".into(), m: 80, n: 160, k: 200, parts: 1, elem: Elem::Bf16 };
        let of_heads = Shape { kernel: "attention".into(), parts: 32, ..shape.clone() };
        for s in [&shape, &of_heads] {
            assert_eq!(Shape::named(&s.to_string()).as_ref(), Some(s));
        }
        let tiling = Some(Tiling::builtin(&shape));
        for language in [Language::Cuda, Language::Triton] {
            for tiling in [None, tiling] {
                let c = Choice { tiling, language, chunk: None, library: None };
                assert_eq!(Choice::named(&c.to_string()), Some(c), "{c}");
            }
        }
        let of_head = Choice { tiling: None, language: Language::Cuda, chunk: Some(64), library: None };
        assert_eq!(Choice::named(&of_head.to_string()), Some(of_head));
        let by_library = Choice::by_library(Algorithm { version: 130_100, words: [3; 8] });
        assert_eq!(Choice::named(&by_library.to_string()), Some(by_library));
        for wrong in [
            "",
            "chunk 0",
            "chunk x",
            "Triton, ",
            "Fortran",
            "tile 1x2, 3 warps, 4 stages",
            "rms_norm #0123456789abcdef",
        ] {
            assert_eq!(Choice::named(wrong).filter(|c| c.tiling.is_some()), None, "{wrong}");
            assert_eq!(Shape::named(wrong), None);
        }
        assert_eq!(Choice::named("Fortran"), None);
    }

    #[test]
    fn what_is_chosen_goes_before_what_is_built_in() {
        let shape = Shape { kernel: "linear".into(), m: 80, n: 160, k: 200, parts: 1, elem: Elem::Bf16 };
        let (key, mut all) = (shape.to_string(), Choices::default());
        let tiling = Tiling { m: 16, n: 32, k: 32, warps: 4, stages: 2 };
        assert_eq!(all.language(&key), Language::Cuda);
        all.choose(
            &key,
            Choice { tiling: Some(tiling), language: Language::Triton, chunk: None, library: None },
            true,
        );
        assert_eq!((all.tilings.of(&shape), all.language(&key)), (tiling, Language::Triton));
        assert_eq!(all.other_bits().keys().collect::<Vec<_>>(), [&key]);
    }
}
