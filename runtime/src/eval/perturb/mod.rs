//! Other words for a question whose answer stays the same: slips of typing, synonyms, and a sentence that has nothing to do
//! with it. English (and other languages with blanks) and Chinese.
//!
//! Invariants:
//! - the same text, seed and variant give the same result, whatever else is perturbed;
//! - words with digits, words in capitals (names of genes, units) and the texts to keep stay as they are;
//! - a result differs from the text; where nothing can be changed there is none.

mod character;
mod distractor;
mod synonym;
mod units;

pub use synonym::Lexicon;

use crate::random;
use units::units;

/// A way of changing a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perturbation {
    /// Slips of typing: letters of a word swapped, dropped, doubled or replaced by a neighbour on the keyboard; in Chinese a
    /// character replaced by one that sounds or looks alike, or swapped with the next.
    Character,
    /// Words replaced by synonyms.
    Synonym,
    /// A sentence put in that has nothing to do with the question.
    Distractor,
}

impl Perturbation {
    /// All of them.
    pub const ALL: [Perturbation; 3] =
        [Perturbation::Character, Perturbation::Synonym, Perturbation::Distractor];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Perturbation::Character => "character",
            Perturbation::Synonym => "synonym",
            Perturbation::Distractor => "distractor",
        }
    }

    /// The perturbation of this name.
    pub fn named(name: &str) -> Option<Perturbation> {
        Perturbation::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Variant number `variant` of `text`. What stands in `keep` is not touched.
    pub fn apply(
        self,
        text: &str,
        keep: &[&str],
        lexicon: &Lexicon,
        seed: u64,
        variant: usize,
    ) -> Option<String> {
        let mut draws = Draws::new(seed, &format!("{}\n{text}", self.name()), variant);
        let units = units(text, keep);
        let changed = match self {
            Perturbation::Character => character::slip(text, &units, &mut draws),
            Perturbation::Synonym => synonym::replace(text, &units, lexicon, &mut draws),
            Perturbation::Distractor => distractor::insert(text, &mut draws),
        };
        changed.filter(|changed| changed != text)
    }
}

/// How many of `n` places to change: a tenth, one at least.
fn share(n: usize) -> usize {
    n.div_ceil(10)
}

/// Random numbers of one variant of one text.
struct Draws {
    seed: u64,
    stream: u64,
    next: u64,
}

impl Draws {
    fn new(seed: u64, text: &str, variant: usize) -> Draws {
        Draws { seed, stream: random::stream_of(text), next: (variant as u64) << 32 }
    }

    /// Uniform in `0..n`; `n` is not 0.
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        ((random::uniform(self.seed, self.stream, self.next) * n as f64) as usize).min(n - 1)
    }

    /// `k` of the numbers `0..n`, in order.
    fn choose(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in 0..k.min(n) {
            let j = i + self.below(n - i);
            all.swap(i, j);
        }
        all.truncate(k);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const ENGLISH: &str = "A 34-year-old woman comes to the physician because of severe abdominal pain. \
                           Which of the following is the most likely diagnosis of this patient with BRCA1?";
    const CHINESE: &str = "患者因为头痛来到医院。医生认为他需要马上治疗,在这种情况下,下列哪种药物最合适?";

    fn variants(kind: Perturbation, text: &str, keep: &[&str]) -> Vec<String> {
        let lexicon = Lexicon::built_in();
        (0..8).filter_map(|v| kind.apply(text, keep, &lexicon, 7, v)).collect()
    }

    #[test]
    fn every_kind_changes_both_languages() {
        for kind in Perturbation::ALL {
            for text in [ENGLISH, CHINESE] {
                let made = variants(kind, text, &[]);
                assert_eq!(made.len(), 8, "{kind:?} {text}");
                assert_eq!(made, variants(kind, text, &[]), "the same seed gives the same texts");
                assert!(made.iter().any(|m| *m != made[0]), "{kind:?}: variants differ: {made:?}");
                assert!(made.iter().all(|m| m.contains("34-year") == text.contains("34-year")), "{made:?}");
                assert!(made.iter().all(|m| m.contains("BRCA1") == text.contains("BRCA1")), "{made:?}");
            }
            let other = kind.apply(ENGLISH, &[], &Lexicon::built_in(), 8, 0).unwrap();
            assert!(variants(kind, ENGLISH, &[])[0] != other, "{kind:?}: another seed");
            assert_eq!(Perturbation::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn what_is_kept_stays() {
        for kind in [Perturbation::Character, Perturbation::Synonym] {
            assert!(variants(kind, "severe pain", &["Severe Pain"]).is_empty(), "{kind:?}");
            assert!(variants(kind, "12 + 3 = ?", &[]).is_empty(), "{kind:?}");
            for made in variants(kind, ENGLISH, &["abdominal pain"]) {
                assert!(made.contains("abdominal pain"), "{made}");
            }
            for made in variants(kind, CHINESE, &["头痛"]) {
                assert!(made.contains("头痛"), "{made}");
            }
        }
    }

    #[test]
    fn slips_are_few_and_within_words() {
        for made in variants(Perturbation::Character, ENGLISH, &[]) {
            let (a, b): (Vec<&str>, Vec<&str>) = (ENGLISH.split(' ').collect(), made.split(' ').collect());
            assert_eq!(a.len(), b.len());
            let changed: Vec<(&str, &str)> = a.into_iter().zip(b).filter(|(a, b)| a != b).collect();
            assert!((1..=3).contains(&changed.len()), "{changed:?}");
            assert!(
                changed.iter().all(|(a, b)| a[..1] == b[..1] && a.len().abs_diff(b.len()) <= 1),
                "{changed:?}"
            );
        }
        for made in variants(Perturbation::Character, CHINESE, &[]) {
            assert_eq!(made.chars().count(), CHINESE.chars().count());
            let changed = made.chars().zip(CHINESE.chars()).filter(|(a, b)| a != b).count();
            assert!((1..=8).contains(&changed), "{made}");
            let marks = |t: &str| t.char_indices().filter(|(_, c)| "。,?".contains(*c)).count();
            assert_eq!(marks(&made), marks(CHINESE));
        }
    }

    #[test]
    fn synonyms_keep_their_capitals() {
        let lexicon = Lexicon::of("big, large\n电脑, 计算机\n", "f").unwrap();
        let made = |text: &str| Perturbation::Synonym.apply(text, &[], &lexicon, 0, 0);
        assert_eq!(made("Big dogs").as_deref(), Some("Large dogs"));
        assert_eq!(made("a large dog").as_deref(), Some("a big dog"));
        assert_eq!(made("bigger"), None);
        assert_eq!(made("我的电脑坏了").as_deref(), Some("我的计算机坏了"));
        let error = Lexicon::of("a, b\nc\n", "f").unwrap_err().to_string();
        assert!(error.contains("f:2"), "{error}");
    }

    #[test]
    fn distractors_leave_the_text_whole() {
        for made in variants(Perturbation::Distractor, ENGLISH, &[]) {
            assert!(made.len() > ENGLISH.len() + 20);
            let sentences: Vec<&str> = ENGLISH.split_inclusive(". ").collect();
            assert!(sentences.iter().all(|s| made.contains(s)), "{made}");
            assert!(made.ends_with("BRCA1?"), "{made}");
        }
        for made in variants(Perturbation::Distractor, CHINESE, &[]) {
            assert!(
                made.ends_with("下列哪种药物最合适?") && made.is_char_boundary(3) && !made.contains(". "),
                "{made}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_changed_or_left(text in "\\PC{0,60}", keep in "\\PC{0,6}", seed in 0u64..4, v in 0usize..4) {
            let lexicon = Lexicon::built_in();
            for kind in Perturbation::ALL {
                let once = kind.apply(&text, &[&keep], &lexicon, seed, v);
                prop_assert_eq!(&once, &kind.apply(&text, &[&keep], &lexicon, seed, v));
                prop_assert!(once.is_none_or(|made| made != text));
            }
        }
    }
}
