//! Element types and tensor types.

use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Signed 32-bit integer; also booleans (0 or 1), token ids, positions.
    I32,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 4] = [DType::F32, DType::Bf16, DType::F16, DType::I32];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32)
    }

    /// Name in `.kir` text.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
        }
    }

    /// Inverse of [`DType::name`].
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Element type and static, row-major shape. A rank of 0 is not used: scalars are `[1]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis, outermost first.
    pub dims: Vec<usize>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, dims: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype, dims: dims.into() }
    }

    /// `f32[1]`.
    pub fn scalar() -> Self {
        TensorType::new(DType::F32, [1])
    }

    /// Number of elements (product of the extents).
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Size in bytes, dense.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Extent of the last axis (1 if there is none).
    pub fn last(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Product of all extents but the last: the number of rows when seen as a matrix.
    pub fn rows(&self) -> usize {
        self.dims.iter().rev().skip(1).product()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}
