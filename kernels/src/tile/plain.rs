//! Products that are nothing else: no operand is computed or cast before it is multiplied, and the sum is the result. NVIDIA's
//! library can do them in a program's place; how it does one is an [`Algorithm`].

use super::ir::{Access, Elem, Program};
use std::fmt;

/// `c = a·b`, or `c + a·b`, for matrices `[m, k]` and `[k, n]` in rows; `parts` of them, one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// Rows of the result, columns, depth.
    pub extents: [usize; 3],
    /// Matrices behind one another in each buffer.
    pub parts: usize,
    /// Parameters of a, b and c.
    pub params: [usize; 3],
    /// Whether a and b lie in columns: `[k, m]` and `[n, k]` in rows.
    pub turned: [bool; 2],
    /// Element types of factors, and of the result.
    pub elems: [Elem; 2],
    /// Whether the product is added to what `c` holds.
    pub adds: bool,
}

impl Plain {
    /// The product that a program says it is, if its buffers are multiplied as they are.
    pub fn of(p: &Program) -> Option<Plain> {
        let plain = p.plain.filter(|plain| p.params.len() == 3 && plain.extents.iter().all(|n| *n > 0))?;
        let [a, b, c] = plain.params.map(|i| &p.params[i]);
        let is_float = |e: Elem| [Elem::F32, Elem::Bf16, Elem::F16].contains(&e);
        let is_same = a.elem == b.elem && p.tiled.as_ref().is_some_and(|t| t.shape.elem == a.elem);
        let is_known = is_float(a.elem) && (c.elem == a.elem || c.elem == Elem::F32);
        let reads = [a, b].iter().all(|p| p.access == Access::Read);
        (is_same && is_known && reads).then_some(plain)
    }
}

/// How NVIDIA's library does a product: what its version says of it, which means nothing to another version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Algorithm {
    /// Of the library, as it counts.
    pub version: usize,
    /// The library's own words.
    pub words: [u64; 8],
}

/// How an algorithm's name begins.
const NAME: &str = "cuBLASLt ";

impl fmt::Display for Algorithm {
    /// `cuBLASLt 130100 #…`: hexadecimal words, without zeros at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.words.iter().rposition(|w| *w != 0).map_or(1, |i| i + 1);
        let words: Vec<String> = self.words[..last].iter().map(|w| format!("{w:x}")).collect();
        write!(f, "{NAME}{} #{}", self.version, words.join("."))
    }
}

impl Algorithm {
    /// What [`Display`](fmt::Display) wrote; `None` if it is nothing that it writes.
    pub fn named(name: &str) -> Option<Algorithm> {
        let (version, list) = name.strip_prefix(NAME)?.split_once(" #")?;
        let mut words = [0; 8];
        let parts: Vec<&str> = list.split('.').collect();
        for (i, part) in parts.iter().enumerate() {
            *words.get_mut(i)? = u64::from_str_radix(part, 16).ok()?;
        }
        Some(Algorithm { version: version.parse().ok()?, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for words in [[0; 8], [7, 0, 0xffff_0000_0000_0001, 0, 0, 0, 0, 0], [1; 8]] {
            let a = Algorithm { version: 130_100, words };
            assert_eq!(Algorithm::named(&a.to_string()), Some(a), "{a}");
        }
        for wrong in ["", "cuBLASLt ", "cuBLASLt 1 #", "cuBLASLt x #1", "cuBLASLt 1 #1.2.3.4.5.6.7.8.9"] {
            assert_eq!(Algorithm::named(wrong), None, "{wrong}");
        }
    }
}
