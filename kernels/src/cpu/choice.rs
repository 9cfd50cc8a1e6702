//! How a kernel cuts its work, where there is a choice.
//!
//! Invariant: no choice changes a bit of any result (`kernels/tests/choices.rs`), needs more scratch than the built-in one
//! may, or can fail. What would change the order of sums is not here: units of depth of a panel, tokens of a chunk of
//! the head where its weight is trained, parts of a long reduction.
//!
//! [`Choice::transposed`] alone costs memory, which whoever makes that choice provides and accounts for.
//!
//! A choice holds for all that a kernel does: [`with`] sets it for the calling thread, and the loops of
//! `par` hand it on to their tasks.

use std::cell::Cell;

/// Extents of a tile of a product that may be chosen, besides the built-in 128 × 256: the most rows (half of them where there
/// are more) and columns. None has more elements than the built-in.
const TILES: [(u16, u16); 5] = [(64, 512), (256, 128), (32, 256), (64, 128), (128, 96)];

/// Parts for each thread that a product may be cut into at most, besides the built-in number.
const PARTS: [u8; 3] = [1, 2, 4];

/// The parts for each thread that may be chosen.
pub fn parts() -> impl Iterator<Item = u8> {
    PARTS.into_iter()
}

/// Tokens of a chunk of the head that may be chosen.
const CHUNKS: [u16; 4] = [32, 64, 128, 256];

/// The chunks that may be chosen, in tokens.
pub fn chunks() -> impl Iterator<Item = u16> {
    CHUNKS.into_iter()
}

/// The tiles that may be chosen: most rows and columns.
pub fn tiles() -> impl Iterator<Item = (u16, u16)> {
    TILES.into_iter()
}

/// How a kernel cuts its work. The default is the built-in choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// Threads at most; `None` for all.
    pub threads: Option<u16>,
    /// Products compute the transposed result where the right operand can be read in place then, without packing it: worth it
    /// where there are few rows. Products of at most 128 rows and more columns do so in any case.
    pub turned: bool,
    /// Most rows and columns of a tile of a product.
    pub tile: Option<(u16, u16)>,
    /// Parts of a product for each thread, at most: fewer are packed for less often, more wait less for each other.
    pub parts: Option<u8>,
    /// A frozen weight is read from a transposed copy ([`crate::cpu::transposed`]), if the call has one.
    pub transposed: bool,
    /// Most tokens of a chunk of the head, whose logits stand in memory at once; never more than the built-in number.
    pub chunk: Option<u16>,
}

impl Choice {
    /// The built-in choice.
    pub const BUILT_IN: Choice =
        Choice { threads: None, turned: false, tile: None, parts: None, transposed: false, chunk: None };

    /// The choice that [`Choice::name`] calls so; `None` if there is none.
    pub fn named(name: &str) -> Option<Choice> {
        let mut choice = Choice::BUILT_IN;
        if name == "built-in" {
            return Some(choice);
        }
        for part in name.split(", ") {
            match part.split_once(' ') {
                Some((n, "thread" | "threads")) => choice.threads = Some(n.parse().ok().filter(|n| *n > 0)?),
                Some(("tile", extents)) => {
                    let (rows, columns) = extents.split_once('x')?;
                    let tile = (rows.parse().ok()?, columns.parse().ok()?);
                    choice.tile = Some(TILES.into_iter().find(|t| *t == tile)?);
                }
                Some(("parts", n)) => {
                    let n: u8 = n.parse().ok()?;
                    choice.parts = Some(PARTS.into_iter().find(|p| *p == n)?);
                }
                Some(("chunk", n)) => {
                    let n: u16 = n.parse().ok()?;
                    choice.chunk = Some(CHUNKS.into_iter().find(|c| *c == n)?);
                }
                None if part == "turned" => choice.turned = true,
                None if part == "transposed" => choice.transposed = true,
                _ => return None,
            }
        }
        Some(choice)
    }

    /// In words, as in `transposed, turned, tile 64x512, 1 thread`.
    pub fn name(&self) -> String {
        let transposed = self.transposed.then(|| "transposed".to_string());
        let turned = self.turned.then(|| "turned".to_string());
        let tile = self.tile.map(|(rows, columns)| format!("tile {rows}x{columns}"));
        let cut = self.parts.map(|n| format!("parts {n}"));
        let chunk = self.chunk.map(|n| format!("chunk {n}"));
        let threads = self.threads.map(|n| format!("{n} thread{}", if n == 1 { "" } else { "s" }));
        let parts: Vec<String> =
            [transposed, turned, tile, cut, chunk, threads].into_iter().flatten().collect();
        if parts.is_empty() { "built-in".into() } else { parts.join(", ") }
    }
}

/// What can be chosen for a kernel beside tiles and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Also {
    /// Whether a transposed copy of a weight is held.
    pub transposed: bool,
    /// Tokens of a chunk as built in, if fewer may be chosen.
    pub chunk: Option<usize>,
}

/// The choices that the operation of this name has on so many threads, the built-in one first. `rows` are those of its
/// smallest operand that has more than one axis.
pub fn candidates(op: &str, rows: usize, threads: usize, also: Also) -> Vec<Choice> {
    let mut all = vec![Choice::BUILT_IN];
    // One thread, two, four, and so on.
    let fewer = std::iter::successors(Some(1usize), |n| Some(2 * n)).take_while(|n| *n < threads);
    all.extend(fewer.filter_map(|n| Some(Choice { threads: Some(n.try_into().ok()?), ..Choice::BUILT_IN })));
    if has_products(op) {
        // A turned product reads its result across: with many rows that costs more than packing.
        let turned: &[bool] = if rows <= TURNED_ROWS { &[false, true] } else { &[false] };
        for &turned in turned {
            let turned = Choice { turned, ..Choice::BUILT_IN };
            let tiles = TILES.map(|tile| Choice { tile: Some(tile), ..turned });
            let parts = PARTS.map(|n| Choice { parts: Some(n), ..turned });
            let choices = std::iter::once(turned).chain(tiles).chain(parts);
            all.extend(choices.filter(|c| *c != Choice::BUILT_IN));
        }
    }
    let chunks = CHUNKS.into_iter().filter(|n| also.chunk.is_some_and(|most| usize::from(*n) < most));
    all.extend(chunks.map(|n| Choice { chunk: Some(n), ..Choice::BUILT_IN }));
    if also.transposed {
        let with_copy = |c: &Choice| Choice { transposed: true, ..*c };
        // Products of few rows, for which copies are, are turned in any case.
        let fits = |c: &&Choice| c.threads.is_none() && !c.turned;
        let copies: Vec<Choice> = all.iter().filter(fits).map(with_copy).collect();
        all.extend(copies);
    }
    all
}

/// Rows of the smallest operand up to which turning a product may pay.
const TURNED_ROWS: usize = 1024;

/// Whether an operation's time goes to matrix products whose tiles may be chosen.
fn has_products(op: &str) -> bool {
    op.starts_with("linear") || op.starts_with("lora_linear") || op == "matmul"
}

thread_local! {
    static CURRENT: Cell<Choice> = const { Cell::new(Choice::BUILT_IN) };
}

/// The choice of the kernel that this thread works for.
pub(crate) fn current() -> Choice {
    CURRENT.get()
}

/// Calls `f` under a choice.
pub fn with<R>(choice: Choice, f: impl FnOnce() -> R) -> R {
    /// Puts back what was there, on unwinding too.
    struct Back(Choice);
    impl Drop for Back {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _back = Back(CURRENT.replace(choice));
    f()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cpu::par;

    #[test]
    fn choices_are_known_by_their_names_and_nothing_else_is() {
        for turned in [false, true] {
            for tile in std::iter::once(None).chain(TILES.map(Some)) {
                for threads in [None, Some(1), Some(16)] {
                    let choice = Choice { threads, turned, tile, ..Choice::BUILT_IN };
                    assert_eq!(Choice::named(&choice.name()), Some(choice));
                    for (chunk, parts) in CHUNKS.into_iter().zip(PARTS) {
                        let choice =
                            Choice { transposed: true, chunk: Some(chunk), parts: Some(parts), ..choice };
                        assert_eq!(Choice::named(&choice.name()), Some(choice));
                    }
                }
            }
        }
        for wrong in [
            "",
            "tile 9999x9999",
            "tile 64",
            "0 threads",
            "turned,",
            "fast",
            "70000 threads",
            "parts 3",
            "chunk 33",
            "chunk",
        ] {
            assert_eq!(Choice::named(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tasks_have_the_choice_of_their_kernel_and_its_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for threads in [1, 2, 3] {
            let choice = Choice { threads: Some(threads), ..Choice::BUILT_IN };
            let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
            pool.install(|| {
                with(choice, || {
                    par::tasks(64, |_| {
                        assert_eq!(current(), choice);
                        seen.lock().unwrap().insert(rayon::current_thread_index());
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    });
                });
                assert_eq!(current(), Choice::BUILT_IN);
            });
            let count = seen.into_inner().unwrap().len();
            assert!(count <= threads.into(), "{count} of {threads}");
        }
    }
}
