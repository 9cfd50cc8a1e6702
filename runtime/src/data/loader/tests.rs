//! The loader: rows in order, streams, general text, ranks.

#![allow(clippy::unwrap_used)]
use super::super::documents::Documents;
use super::general::general_share;
use super::*;
use proptest::prelude::*;

/// Rows of `seq_len` 4; row `i` holds the tokens `10·i + base`, of which the first is not trained.
fn rows(n: usize, base: i32) -> RowSet {
    let mut docs = Documents::new();
    for i in 0..n as i32 {
        let tokens = [0, 1, 2].map(|t| 10 * i + base + t);
        docs.push(&tokens, &tokens);
    }
    RowSet::new(docs, 4, false).unwrap()
}

fn config(batch: usize, accumulation: usize) -> LoaderConfig {
    LoaderConfig { batch, accumulation, shuffle: false, seed: 7, general_fraction: 0.25, rank: 0, world: 1 }
}

fn ids(step: &StepBatch) -> Vec<u64> {
    step.micro.iter().flat_map(|m| m.row_ids.clone()).collect()
}

#[test]
fn rows_in_order_and_the_tail_dropped() {
    let mut loader = Loader::new(rows(13, 1), None, config(2, 2)).unwrap();
    assert_eq!(loader.steps_per_epoch().unwrap(), 3);
    for step in 0..7u64 {
        let expected: Vec<u64> = (0..4).map(|i| (4 * step + i) % 12).collect();
        assert_eq!((loader.epoch(), ids(&loader.next_step().unwrap())), (step / 3, expected));
    }
}

#[test]
fn a_step_has_static_shapes_and_counts() {
    let step = Loader::new(rows(4, 1), None, config(2, 2)).unwrap().next_step().unwrap();
    assert_eq!((step.ce_tokens, step.kd_tokens, step.tokens), (8, 8, 12));
    let micro = &step.micro[1];
    assert_eq!((micro.rows, micro.seq_len, micro.general.clone()), (2, 4, vec![false; 2]));
    assert_eq!(micro.tokens, [21, 22, 23, 0, 31, 32, 33, 0]);
    assert_eq!(micro.labels, [22, 23, -100, -100, 32, 33, -100, -100]);
    assert_eq!(micro.positions, [0, 1, 2, 0, 0, 1, 2, 0]);
    assert_eq!(micro.segments, [0, 0, 0, -1, 0, 0, 0, -1]);
}

/// The prediction is of what vectors hold, counted here from a step.
#[test]
fn steps_hold_what_is_predicted() {
    let step = Loader::new(rows(12, 1), None, config(2, 3)).unwrap().next_step().unwrap();
    let of = |m: &MicroBatch| {
        let numbers = [&m.tokens, &m.labels, &m.positions, &m.segments].map(|v| 4 * v.len());
        numbers.iter().sum::<usize>() + 8 * m.row_ids.len() + m.general.len()
    };
    let bytes: usize = step.micro.iter().map(of).sum();
    assert_eq!(held_bytes(2, 3, 4), ALIVE * bytes as u64);
    assert_eq!(held_bytes(1 << 20, 1 << 20, 1 << 20), u64::MAX);
}

#[test]
fn an_epoch_shorter_than_a_step_is_padded_with_empty_rows() {
    let mut loader = Loader::new(rows(3, 1), None, config(2, 3)).unwrap();
    for epoch in 0..2 {
        assert_eq!((loader.epoch(), loader.steps_per_epoch().unwrap()), (epoch, 1));
        let step = loader.next_step().unwrap();
        let none = u64::MAX;
        assert_eq!(ids(&step), [0, 1, 2, none, none, none]);
        assert_eq!((step.ce_tokens, step.tokens), (6, 9));
        let last = &step.micro[2];
        assert!(last.tokens.iter().all(|&t| t == 0) && last.labels.iter().all(|&l| l == IGNORE));
        assert!(last.segments.iter().all(|&s| s == -1));
    }
}

#[test]
fn shuffling_sees_every_row_once_an_epoch_in_a_new_order() {
    let mut loader = Loader::new(rows(12, 1), None, LoaderConfig { shuffle: true, ..config(2, 2) }).unwrap();
    let mut epoch = || (0..3).flat_map(|_| ids(&loader.next_step().unwrap())).collect::<Vec<_>>();
    let (first, second) = (epoch(), epoch());
    assert_ne!(first, second);
    for mut order in [first, second] {
        order.sort_unstable();
        assert_eq!(order, (0..12).collect::<Vec<_>>());
    }
}

#[test]
fn general_rows_stand_last_and_go_round_on_their_own() {
    let mut loader = Loader::new(rows(12, 1), Some(rows(5, 1001)), config(4, 2)).unwrap();
    assert_eq!((loader.steps_per_epoch().unwrap(), loader.general_rows_per_micro_batch()), (2, &[1, 1][..]));
    for step in 0..6u64 {
        let batch = loader.next_step().unwrap();
        for (m, micro) in batch.micro.iter().enumerate() {
            assert_eq!(micro.general, [false, false, false, true]);
            assert_eq!(micro.row_ids[3], (2 * step + m as u64) % 5);
            assert!(micro.tokens[12] > 1000);
            assert_eq!(micro.row_ids[0], (6 * step + 3 * m as u64) % 12);
        }
        assert_eq!((batch.ce_tokens, batch.kd_tokens), (12, 16));
    }
}

#[test]
fn general_shares() {
    assert_eq!(general_share(8, 2, 0.25), [2, 2]);
    assert_eq!(general_share(2, 1, 0.01), [1]);
    assert_eq!(general_share(2, 1, 0.99), [1]);
    assert_eq!(general_share(1, 8, 0.25), [0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(general_share(1, 3, 0.1), [0, 0, 1]);
}

#[test]
fn settings_that_cannot_work() {
    let error = |main, general, config| Loader::new(main, general, config).unwrap_err().to_string();
    assert!(error(rows(3, 1), None, config(0, 1)).contains("at least 1"));
    assert!(error(rows(0, 1), None, config(1, 1)).contains("data.train"));
    assert!(error(rows(3, 1), Some(rows(0, 1)), config(2, 1)).contains("distill.general"));
    assert!(error(rows(3, 1), Some(rows(2, 1)), config(1, 1)).contains("no room for general"));
    let all = LoaderConfig { general_fraction: 1.0, ..config(4, 1) };
    assert!(error(rows(3, 1), Some(rows(2, 1)), all).contains("1 is not a share"));
    let none = LoaderConfig { general_fraction: 0.0, ..config(1, 1) };
    assert!(Loader::new(rows(3, 1), Some(rows(2, 1)), none).unwrap().general_rows().is_none());
}

#[test]
fn a_cursor_of_other_data_is_refused() {
    let mut loader = Loader::new(rows(6, 1), None, config(2, 1)).unwrap();
    loader.next_step().unwrap();
    let written = loader.cursor().to_json();
    let cursor = Cursor::from_json(&serde_json::from_str(&written.to_string()).unwrap()).unwrap();
    assert_eq!(cursor, loader.cursor());
    assert_eq!((cursor.epoch, cursor.step_in_epoch), (0, 1));
    for (main, config) in [(rows(6, 2), config(2, 1)), (rows(6, 1), config(1, 1))] {
        let error = Loader::new(main, None, config).unwrap().seek(&cursor).unwrap_err().to_string();
        assert!(error.contains("not that of the checkpoint"), "{error}");
    }
    let far = Cursor { step_in_epoch: 3, ..cursor };
    assert!(loader.seek(&far).unwrap_err().to_string().contains("step 3 of an epoch that has 3"));
    let never = Cursor { epoch: u64::MAX, ..loader.cursor() };
    assert!(loader.seek(&never).unwrap_err().to_string().contains("there was no epoch"));
    assert!(Cursor::from_json(&json!({"epoch": 1})).unwrap_err().to_string().contains("damaged"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn seeking_gives_the_same_stream(
        n in 1usize..30, g in 0usize..9, batch in 1usize..4, accumulation in 2usize..4, shuffle: bool,
        at in 0usize..12,
    ) {
        let config = LoaderConfig { shuffle, ..config(batch, accumulation) };
        let general = (g > 0).then(|| rows(g, 1001));
        let mut loader = Loader::new(rows(n, 1), general.clone(), config.clone()).unwrap();
        for _ in 0..at {
            loader.next_step().unwrap();
        }
        let cursor = loader.cursor();
        let stream: Vec<StepBatch> = (0..5).map(|_| loader.next_step().unwrap()).collect();
        let mut resumed = Loader::new(rows(n, 1), general, config).unwrap();
        resumed.next_step().unwrap();
        resumed.seek(&cursor).unwrap();
        for expected in &stream {
            prop_assert_eq!(&resumed.next_step().unwrap(), expected);
        }
        loader.seek(&cursor).unwrap();
        prop_assert_eq!(&loader.next_step().unwrap(), &stream[0]);
        for step in &stream {
            prop_assert_eq!(step.micro.len(), accumulation);
            let trained = |general: bool| step.micro.iter().map(|m| (0..m.rows)
                .filter(|&r| m.general[r] == general)
                .map(|r| m.labels[4 * r..4 * r + 4].iter().filter(|&&l| l != IGNORE).count()).sum::<usize>()).sum::<usize>();
            prop_assert_eq!(step.ce_tokens, trained(false));
            prop_assert_eq!(step.kd_tokens, trained(false) + trained(true));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The steps of all ranks together are those of one process that takes as many rows a step.
    #[test]
    fn ranks_together_are_one(n in 1usize..60, batch in 1usize..4, world in 1usize..5, shuffle: bool) {
        let of = |rank, world, accumulation| {
            let config = LoaderConfig { shuffle, rank, world, ..config(batch, accumulation) };
            Loader::new(rows(n, 1), None, config).unwrap()
        };
        let mut one = of(0, 1, 2 * world);
        let mut ranks: Vec<Loader> = (0..world).map(|rank| of(rank, world, 2)).collect();
        for _ in 0..5 {
            let together: Vec<u64> = ranks.iter_mut().flat_map(|r| ids(&r.next_step().unwrap())).collect();
            prop_assert_eq!(together, ids(&one.next_step().unwrap()));
        }
    }
}

#[test]
fn a_rank_goes_on_only_as_itself() {
    let of = |rank, world| {
        let config = LoaderConfig { rank, world, ..config(2, 1) };
        Loader::new(rows(20, 1), None, config).unwrap()
    };
    let cursor = of(1, 2).cursor();
    assert!(of(0, 2).seek(&cursor).is_err() && of(0, 1).seek(&cursor).is_err());
    assert!(of(1, 2).seek(&cursor).is_ok());
    let error =
        Loader::new(rows(3, 1), None, LoaderConfig { rank: 2, world: 2, ..config(1, 1) }).unwrap_err();
    assert!(error.to_string().contains("2 is not below data.world = 2"));
}
