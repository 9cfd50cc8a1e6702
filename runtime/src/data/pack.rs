//! Training rows of a fixed length, made of whole documents.
//!
//! Invariants: a document lies in one row, its tokens contiguous; with packing a document is placed in the first of at most
//! [`OPEN_ROWS`] open rows that has room for it (first fit, in the order of the source), else it opens a row, and of too
//! many open rows the fullest is closed; without packing each row has one document. Which document is in which row depends on the documents and `seq_len`
//! only, so a row's index may serve as a key (the teacher cache does).

use super::documents::{Documents, IGNORE};
use super::error::{DataError, Result};
use super::order::mix;

/// How many rows that are not full are looked at for room.
pub const OPEN_ROWS: usize = 64;

/// Rows of `seq_len` tokens.
#[derive(Clone, Debug)]
pub struct RowSet {
    seq_len: usize,
    documents: Documents,
    /// Documents in the order of the rows.
    members: Vec<u32>,
    /// Ends of the rows in `members`.
    ends: Vec<usize>,
    fingerprint: u64,
}

/// One row of a batch, to be filled: slices of `seq_len`.
pub(crate) struct RowSlices<'a> {
    pub(crate) tokens: &'a mut [i32],
    pub(crate) labels: &'a mut [i32],
    pub(crate) positions: &'a mut [i32],
    pub(crate) segments: &'a mut [i32],
}

impl RowSet {
    /// Puts documents into rows. Errors if one is longer than `seq_len`.
    pub fn new(documents: Documents, seq_len: usize, packing: bool) -> Result<RowSet> {
        for document in 0..documents.len() {
            let tokens = documents.tokens(document).len();
            if tokens > seq_len {
                return Err(DataError::LongRow { place: format!("document {document}"), tokens, seq_len });
            }
        }
        if u32::try_from(documents.len()).is_err() {
            let reason =
                format!("{} documents are more than can be addressed; split the data", documents.len());
            return Err(DataError::Config { setting: "data.train", reason });
        }
        let rows = if packing {
            best_fit(&documents, seq_len)
        } else {
            (0..documents.len() as u32).map(|d| vec![d]).collect()
        };
        let (mut members, mut ends) = (Vec::with_capacity(documents.len()), Vec::with_capacity(rows.len()));
        for row in rows {
            members.extend_from_slice(&row);
            ends.push(members.len());
        }
        let fingerprint = fingerprint(&documents, &members, &ends, seq_len);
        Ok(RowSet { seq_len, documents, members, ends, fingerprint })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens of a row, padding included.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The documents, in the order of the source.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The documents of a row, in order.
    pub fn row(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.members[start..self.ends[row]]
    }

    /// A number that changes with any token, label or place in a row.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Writes a row: labels shifted to the position that predicts them, [`IGNORE`] at a document's last token;
    /// positions from 0 in each document; segments are the document's index in the row. What the documents leave free is
    /// padding: token 0, label [`IGNORE`], position 0, segment -1.
    pub(crate) fn fill(&self, row: usize, out: RowSlices<'_>) {
        clear(&mut *out.tokens, 0);
        clear(&mut *out.labels, IGNORE);
        clear(&mut *out.positions, 0);
        clear(&mut *out.segments, -1);
        let mut at = 0;
        for (segment, &document) in self.row(row).iter().enumerate() {
            let (tokens, labels) =
                (self.documents.tokens(document as usize), self.documents.labels(document as usize));
            let end = at + tokens.len();
            out.tokens[at..end].copy_from_slice(tokens);
            for (i, &label) in labels.iter().enumerate().skip(1) {
                out.labels[at + i - 1] = label;
            }
            for (i, position) in out.positions[at..end].iter_mut().enumerate() {
                *position = i as i32;
            }
            clear(&mut out.segments[at..end], segment as i32);
            at = end;
        }
    }
}

fn clear(values: &mut [i32], with: i32) {
    values.iter_mut().for_each(|v| *v = with);
}

fn best_fit(documents: &Documents, seq_len: usize) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    // (row, room), oldest first.
    let mut open: Vec<(usize, usize)> = Vec::with_capacity(OPEN_ROWS + 1);
    for document in 0..documents.len() {
        let need = documents.tokens(document).len();
        let fitting = open.iter().enumerate().filter(|(_, (_, room))| *room >= need);
        if let Some((slot, _)) = fitting.min_by_key(|(_, (_, room))| *room) {
            rows[open[slot].0].push(document as u32);
            open[slot].1 -= need;
            if open[slot].1 == 0 {
                open.remove(slot);
            }
            continue;
        }
        rows.push(vec![document as u32]);
        if need < seq_len {
            open.push((rows.len() - 1, seq_len - need));
        }
        if open.len() > OPEN_ROWS
            && let Some((fullest, _)) = open.iter().enumerate().min_by_key(|(_, (_, room))| *room)
        {
            open.remove(fullest);
        }
    }
    rows
}

fn fingerprint(documents: &Documents, members: &[u32], ends: &[usize], seq_len: usize) -> u64 {
    let mut hash = mix(seq_len as u64);
    let mut take = |value: u64| hash = mix(hash ^ value);
    for document in 0..documents.len() {
        take(documents.tokens(document).len() as u64);
        for (&token, &label) in documents.tokens(document).iter().zip(documents.labels(document)) {
            take(u64::from(token as u32) | u64::from(label as u32) << 32);
        }
    }
    members.iter().for_each(|&m| take(u64::from(m)));
    ends.iter().for_each(|&e| take(e as u64));
    hash
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn documents(lengths: &[usize]) -> Documents {
        let mut out = Documents::new();
        let mut next = 1;
        for &n in lengths {
            let tokens: Vec<i32> = (next..next + n as i32).collect();
            next += n as i32;
            out.push(&tokens, &tokens);
        }
        out
    }

    #[derive(Debug, PartialEq)]
    struct Filled {
        tokens: Vec<i32>,
        labels: Vec<i32>,
        positions: Vec<i32>,
        segments: Vec<i32>,
    }

    fn filled(rows: &RowSet, row: usize) -> Filled {
        let blank = || vec![7; rows.seq_len()];
        let mut out = Filled { tokens: blank(), labels: blank(), positions: blank(), segments: blank() };
        let Filled { tokens, labels, positions, segments } = &mut out;
        rows.fill(row, RowSlices { tokens, labels, positions, segments });
        out
    }

    #[test]
    fn a_packed_row() {
        let rows = RowSet::new(documents(&[3, 7, 2, 2]), 8, true).unwrap();
        assert_eq!(rows.len(), 2);
        let expected = Filled {
            tokens: vec![1, 2, 3, 11, 12, 13, 14, 0],
            labels: vec![2, 3, -100, 12, -100, 14, -100, -100],
            positions: vec![0, 1, 2, 0, 1, 0, 1, 0],
            segments: vec![0, 0, 0, 1, 1, 2, 2, -1],
        };
        assert_eq!(filled(&rows, 0), expected);
    }

    #[test]
    fn unpacked_rows_have_one_document() {
        let rows = RowSet::new(documents(&[2, 3]), 4, false).unwrap();
        assert_eq!((rows.len(), filled(&rows, 1).segments), (2, vec![0, 0, 0, -1]));
    }

    #[test]
    fn a_fingerprint_sees_every_token_and_label() {
        let base = RowSet::new(documents(&[3, 2]), 5, true).unwrap().fingerprint();
        let other = |change: fn(&mut Documents)| {
            let mut docs = documents(&[3]);
            change(&mut docs);
            RowSet::new(docs, 5, true).unwrap().fingerprint()
        };
        assert_eq!(base, other(|d| d.push(&[4, 5], &[4, 5])));
        assert_ne!(base, other(|d| d.push(&[4, 6], &[4, 6])));
        assert_ne!(base, other(|d| d.push(&[4, 5], &[4, -100])));
        assert_ne!(base, RowSet::new(documents(&[3, 2]), 5, false).unwrap().fingerprint());
    }

    #[test]
    fn too_long_is_an_error() {
        let error = RowSet::new(documents(&[2, 9]), 8, true).unwrap_err().to_string();
        assert!(error.contains("document 1: 9 tokens do not fit data.seq_len = 8"), "{error}");
    }

    proptest! {
        #[test]
        fn every_token_is_in_one_place(lengths in prop::collection::vec(1usize..20, 1..200), packing: bool) {
            let docs = documents(&lengths);
            let rows = RowSet::new(docs, 20, packing).unwrap();
            let mut seen = Vec::new();
            for row in 0..rows.len() {
                let f = filled(&rows, row);
                for t in 0..20 {
                    if f.segments[t] < 0 {
                        prop_assert_eq!((f.tokens[t], f.labels[t], f.positions[t]), (0, IGNORE, 0));
                        prop_assert!(f.segments[t..].iter().all(|&s| s < 0));
                        continue;
                    }
                    seen.push(f.tokens[t]);
                    let starts = t == 0 || f.segments[t] != f.segments[t - 1];
                    // Segments count up by one and positions restart with them.
                    prop_assert_eq!(f.segments[t], if t == 0 { 0 } else { f.segments[t - 1] + i32::from(starts) });
                    prop_assert_eq!(f.positions[t], if starts { 0 } else { f.positions[t - 1] + 1 });
                    let same = t + 1 < 20 && f.segments[t + 1] == f.segments[t];
                    prop_assert_eq!(f.labels[t], if same { f.tokens[t + 1] } else { IGNORE });
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (1..=lengths.iter().sum::<usize>() as i32).collect::<Vec<_>>());
        }

        #[test]
        fn packing_leaves_at_most_one_row_half_empty(lengths in prop::collection::vec(1usize..20, 1..60)) {
            let rows = RowSet::new(documents(&lengths), 20, true).unwrap();
            let used = |r: usize| rows.row(r).iter().map(|&d| lengths[d as usize]).sum::<usize>();
            // With fewer rows than stay open, best fit leaves at most one row that is not more than half full.
            prop_assert!((0..rows.len()).filter(|&r| used(r) * 2 <= 20).count() <= 1);
        }
    }
}
