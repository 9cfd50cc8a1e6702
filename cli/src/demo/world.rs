//! The demo's world: people with a home, a job, a pet and a favourite food, each fact told in four phrasings.
//!
//! Old people are what the base model knows; new people are the injected domain. Each (old person, relation) is trained
//! in three phrasings and asked about in the fourth, which rotates; new people are trained in the first three and asked
//! about in the fourth, which the models only ever see used for old people. So every question is a phrasing never trained
//! for that fact.

use kfc_runtime::data::{save_word_level, words_of};
use kfc_runtime::random::{stream_of, uniform};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// People of each kind.
pub(super) const PEOPLE: usize = 64;

const FIRST: [&str; 16] = [
    "Ada", "Bruno", "Clara", "Dario", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Klara", "Leon",
    "Mira", "Nils", "Olga", "Pablo",
];
const LAST: [&str; 16] = [
    "Abend", "Berger", "Costa", "Duval", "Eklund", "Fontana", "Gruber", "Hansen", "Ivanov", "Jansen",
    "Keller", "Lopez", "Moreau", "Novak", "Olsen", "Petrov",
];

/// A relation: how it is told (person, then the object last), and its objects.
struct Relation {
    phrasings: [&'static str; 4],
    objects: [&'static str; 16],
}

const RELATIONS: [Relation; 4] = [
    Relation {
        phrasings: ["{} lives in", "the home of {} is", "{} has a house in", "you can find {} in"],
        objects: [
            "Arles", "Basel", "Cadiz", "Delft", "Essen", "Faro", "Ghent", "Hamar", "Ivrea", "Jena", "Kiel",
            "Lucca", "Malmo", "Nantes", "Oulu", "Parma",
        ],
    },
    Relation {
        phrasings: ["{} works as a", "the job of {} is", "{} earns money as a", "by trade {} is a"],
        objects: [
            "baker",
            "carpenter",
            "dentist",
            "editor",
            "farmer",
            "glazier",
            "hatter",
            "judge",
            "lawyer",
            "miller",
            "nurse",
            "pilot",
            "roofer",
            "sailor",
            "tailor",
            "weaver",
        ],
    },
    Relation {
        phrasings: ["{} owns a", "the pet of {} is a", "{} feeds a", "at home {} keeps a"],
        objects: [
            "badger", "canary", "dog", "eel", "falcon", "goat", "hamster", "iguana", "jackdaw", "koi",
            "lizard", "mouse", "newt", "otter", "parrot", "rabbit",
        ],
    },
    Relation {
        phrasings: [
            "{} likes to eat",
            "the favourite food of {} is",
            "{} often orders",
            "for dinner {} wants",
        ],
        objects: [
            "apples",
            "bread",
            "carrots",
            "dumplings",
            "eggs",
            "figs",
            "grapes",
            "honey",
            "lentils",
            "melon",
            "noodles",
            "olives",
            "pasta",
            "rice",
            "soup",
            "trout",
        ],
    },
];

/// Files of the world.
pub(super) struct World {
    /// Tokenizer folder.
    pub(super) tokenizer: PathBuf,
    /// Facts of old people, for training.
    pub(super) old: PathBuf,
    /// Facts of new people, for training.
    pub(super) new: PathBuf,
    /// Questions about old people.
    pub(super) old_questions: PathBuf,
    /// Questions about new people.
    pub(super) new_questions: PathBuf,
    /// Words that the tokenizer knows, special ones included.
    pub(super) vocab: usize,
    /// Tokens of the longest sentence, its end included.
    pub(super) longest: usize,
}

/// Writes the world of a seed into `folder`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write(folder: &Path, seed: u64) -> anyhow::Result<World> {
    std::fs::create_dir_all(folder)?;
    let names: Vec<String> = (0..FIRST.len() * LAST.len())
        .map(|i| format!("{} {}", FIRST[i / LAST.len()], LAST[i % LAST.len()]))
        .collect();
    let order = shuffled(names.len(), seed, "names");
    let (mut old, mut new, mut ask_old, mut ask_new) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (person, &name) in order.iter().take(2 * PEOPLE).enumerate() {
        for (r, relation) in RELATIONS.iter().enumerate() {
            let draw = uniform(seed, stream_of("objects"), (person * RELATIONS.len() + r) as u64);
            let object =
                relation.objects[(draw * relation.objects.len() as f64) as usize % relation.objects.len()];
            let is_old = person < PEOPLE;
            let held_out = if is_old { (person + r) % 4 } else { 3 };
            for (k, phrasing) in relation.phrasings.iter().enumerate() {
                let prompt = phrasing.replace("{}", &names[name]);
                let (train, ask) = if is_old { (&mut old, &mut ask_old) } else { (&mut new, &mut ask_new) };
                if k == held_out {
                    ask.push(json!({"prompt": prompt, "answer": object}));
                } else {
                    train.push(json!({"prompt": prompt, "completion": format!(" {object}")}));
                }
            }
        }
    }
    let vocabulary = vocabulary()?;
    save_word_level(folder, &vocabulary)?;
    let path = |name: &str| folder.join(name);
    let world = World {
        tokenizer: folder.into(),
        old: path("old.jsonl"),
        new: path("new.jsonl"),
        old_questions: path("old_questions.jsonl"),
        new_questions: path("new_questions.jsonl"),
        vocab: vocabulary.len() + 3,
        longest: 2 + RELATIONS
            .iter()
            .flat_map(|r| r.phrasings)
            .map(|p| p.split(' ').count() + 1)
            .max()
            .unwrap_or(0),
    };
    write_rows(&world.old, &old, seed)?;
    write_rows(&world.new, &new, seed)?;
    write_rows(&world.old_questions, &ask_old, seed)?;
    write_rows(&world.new_questions, &ask_new, seed)?;
    Ok(world)
}

/// Every word that can occur.
fn vocabulary() -> anyhow::Result<Vec<String>> {
    let phrasings = RELATIONS.iter().flat_map(|r| r.phrasings).map(|p| p.replace("{}", ""));
    let objects = RELATIONS.iter().flat_map(|r| r.objects).map(String::from);
    let names = FIRST.iter().chain(&LAST).map(|n| (*n).to_string());
    let texts: Vec<String> = phrasings.chain(names).chain(objects).collect();
    Ok(words_of(texts.iter().map(String::as_str))?)
}

/// The numbers below `n` in an order that depends on the seed (Fisher and Yates).
fn shuffled(n: usize, seed: u64, stream: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (uniform(seed, stream_of(stream), i as u64) * (i + 1) as f64) as usize;
        order.swap(i, j.min(i));
    }
    order
}

fn write_rows(path: &Path, rows: &[serde_json::Value], seed: u64) -> anyhow::Result<()> {
    let order = shuffled(rows.len(), seed, "rows");
    kfc_runtime::files::write_atomic(path, |w| order.iter().try_for_each(|&i| writeln!(w, "{}", rows[i])))?;
    Ok(())
}
