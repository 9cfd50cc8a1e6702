//! Strided views of dense tensors, read in the order of their elements.

use kfc_graph::TensorType;

/// An axis of a view: its extent and the distance of neighbours in the tensor, in elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) len: usize,
    pub(crate) stride: usize,
}

/// A view of a dense tensor.
pub(crate) struct Strided {
    /// All axes but the innermost, outermost first, merged where possible.
    pub(crate) outer: Vec<Axis>,
    pub(crate) inner: Axis,
    /// First element of the view.
    pub(crate) start: usize,
}

impl Strided {
    pub(crate) fn new(axes: &[Axis], start: usize) -> Strided {
        let mut merged: Vec<Axis> = Vec::new();
        for &axis in axes.iter().filter(|a| a.len != 1) {
            match merged.last_mut() {
                Some(last) if last.stride == axis.len * axis.stride => {
                    *last = Axis { len: last.len * axis.len, stride: axis.stride };
                }
                _ => merged.push(axis),
            }
        }
        let inner = merged.pop().unwrap_or(Axis { len: 1, stride: 1 });
        Strided { outer: merged, inner, start }
    }

    /// Axes of extent 1 repeated up to `dims`.
    pub(crate) fn broadcast(a: &TensorType, dims: &[usize]) -> Strided {
        let axes: Vec<Axis> = strides(&a.dims)
            .into_iter()
            .zip(dims.iter().zip(&a.dims))
            .map(|(s, (&to, &from))| Axis { len: to, stride: if from == to { s } else { 0 } })
            .collect();
        Strided::new(&axes, 0)
    }

    /// Runs of the innermost axis.
    pub(crate) fn runs(&self) -> usize {
        self.outer.iter().map(|a| a.len).product()
    }

    /// First element in the tensor of run `index`.
    pub(crate) fn source(&self, index: usize) -> usize {
        self.start + place(&self.outer, index)
    }

    /// Copies elements of the view from `first` on.
    ///
    /// # Safety
    /// The view lies within the tensor at `from`, and so do the elements within the view.
    pub(crate) unsafe fn copy<T: Copy>(&self, from: *const T, mut first: usize, mut to: &mut [T]) {
        let Axis { len, stride } = self.inner;
        while !to.is_empty() {
            let (run, within) = (first / len, first % len);
            let (part, rest) = to.split_at_mut(to.len().min(len - within));
            // SAFETY: by contract.
            unsafe {
                let at = from.add(self.source(run) + within * stride);
                match stride {
                    1 => part.copy_from_slice(std::slice::from_raw_parts(at, part.len())),
                    0 => part.fill(*at),
                    _ => part.iter_mut().enumerate().for_each(|(i, t)| *t = *at.add(i * stride)),
                }
            }
            first += part.len();
            to = rest;
        }
    }
}

/// Where element `index` of these axes, the outermost first, is from their first element on.
pub(crate) fn place(axes: &[Axis], mut index: usize) -> usize {
    let mut at = 0;
    for axis in axes.iter().rev() {
        at += index % axis.len * axis.stride;
        index /= axis.len;
    }
    at
}

/// Row-major strides.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect()
}
