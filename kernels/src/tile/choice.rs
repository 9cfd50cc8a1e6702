//! What is chosen for the kernels of plans on a GPU: how they cut their work, and the language that they are printed in.
//!
//! A choice is known by a kernel's key: what it multiplies, or else a hash of its program, so that a kernel of another job
//! that does the same has the same choice.

use super::header::Language;
use super::ir::Program;
use super::tiling::{Shape, Tiling, Tilings};
use super::triton;
use std::collections::BTreeMap;
use std::fmt;

/// How a kernel is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// How it is cut, if there is more than one way.
    pub tiling: Option<Tiling>,
    /// The language that it is printed in.
    pub language: Language,
}

impl Choice {
    /// What is chosen by itself for the kernel of this key.
    pub fn builtin(key: &str) -> Choice {
        Choice { tiling: Shape::named(key).map(|s| Tiling::builtin(&s)), language: Language::Cuda }
    }

    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Choice> {
        let (language, rest) = match name.split_once(", ") {
            _ if name == Language::Cuda.name() => (Language::Cuda, ""),
            _ if name == Language::Triton.name() => (Language::Triton, ""),
            Some((first, rest)) if first == Language::Triton.name() => (Language::Triton, rest),
            _ => (Language::Cuda, name),
        };
        let tiling = if rest.is_empty() { None } else { Some(Tiling::named(rest)?) };
        Some(Choice { tiling, language })
    }
}

impl fmt::Display for Choice {
    /// `tile 128x128x64, 8 warps, 3 stages`, with `Triton, ` before it in Triton; the language alone of a kernel that can be
    /// cut in one way only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        self.languages.insert(key.into(), choice.language);
        if other_bits {
            self.other_bits.insert(key.into(), choice);
        }
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
fn hash(bytes: &[u8]) -> u64 {
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
                let c = Choice { tiling, language };
                assert_eq!(Choice::named(&c.to_string()), Some(c), "{c}");
            }
        }
        for wrong in ["", "Triton, ", "Fortran", "tile 1x2, 3 warps, 4 stages", "rms_norm #0123456789abcdef"]
        {
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
        all.choose(&key, Choice { tiling: Some(tiling), language: Language::Triton }, true);
        assert_eq!((all.tilings.of(&shape), all.language(&key)), (tiling, Language::Triton));
        assert_eq!(all.other_bits().keys().collect::<Vec<_>>(), [&key]);
    }
}
