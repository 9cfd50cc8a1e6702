//! Tokenised documents in one arena: no allocation a document.

/// The label of a token that is not trained.
pub const IGNORE: i32 = -100;

/// Tokens and labels of many documents, one after the other. Labels stand at their own token (not shifted): the token
/// itself, or [`IGNORE`].
#[derive(Clone, Debug, Default)]
pub struct Documents {
    tokens: Vec<i32>,
    labels: Vec<i32>,
    /// Ends of the documents in `tokens`.
    ends: Vec<usize>,
}

impl Documents {
    /// No documents.
    pub fn new() -> Documents {
        Documents::default()
    }

    /// Appends a document. Labels beyond the tokens are dropped, missing ones are [`IGNORE`].
    pub fn push(&mut self, tokens: &[i32], labels: &[i32]) {
        self.tokens.extend_from_slice(tokens);
        self.labels.extend_from_slice(&labels[..labels.len().min(tokens.len())]);
        self.labels.resize(self.tokens.len(), IGNORE);
        self.ends.push(self.tokens.len());
    }

    /// Gives back what was reserved for more documents.
    pub(crate) fn shrink(&mut self) {
        self.tokens.shrink_to_fit();
        self.labels.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The tokens of all documents together.
    pub fn total_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of a document.
    pub fn tokens(&self, document: usize) -> &[i32] {
        &self.tokens[self.range(document)]
    }

    /// Labels of a document, each at its own token.
    pub fn labels(&self, document: usize) -> &[i32] {
        &self.labels[self.range(document)]
    }

    fn range(&self, document: usize) -> std::ops::Range<usize> {
        let start = if document == 0 { 0 } else { self.ends[document - 1] };
        start..self.ends[document]
    }
}

/// Whether some position of a document has a target: the first token never is one.
pub fn is_trainable(labels: &[i32]) -> bool {
    labels.iter().skip(1).any(|&l| l != IGNORE)
}
