//! Results that may stand where an operand stood: what kernels of either backend say of their first result.

/// Most leading operands that there are pairs for.
const MOST: usize = 64;

static LEADING: [(usize, usize); MOST] = {
    let mut pairs = [(0, 0); MOST];
    let mut i = 0;
    while i < pairs.len() {
        pairs[i] = (i, 0);
        i += 1;
    }
    pairs
};

/// The first result over each of so many leading operands.
pub(crate) fn leading(operands: usize) -> &'static [(usize, usize)] {
    &LEADING[..operands.min(MOST)]
}
