//! Named tensors that plans are bound to: parameters, moments, mapped weights, step data.

use super::buffer::HostBuffer;
use bytemuck::Pod;
use kfc_graph::TensorType;
use kfc_kernels::cpu::Buf;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// What can go wrong with named tensors.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system has not enough memory.
    #[error("out of memory: `{name}` needs {bytes} bytes; use a smaller batch, sequence or model")]
    OutOfMemory {
        /// The tensor.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// A plan needs a tensor that is not there.
    #[error("the plan needs `{name}` ({ty}), which is not loaded")]
    Missing {
        /// The tensor.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor has another type than the plan was compiled for.
    #[error("`{name}` is {found}, the plan needs {expected}")]
    Mismatch {
        /// The tensor.
        name: String,
        /// What the store holds.
        found: TensorType,
        /// What the plan was compiled for.
        expected: TensorType,
    },
    /// A plan updates a tensor that is mapped from a file.
    #[error("`{name}` is mapped read-only and cannot be updated")]
    ReadOnly {
        /// The tensor.
        name: String,
    },
}

/// Memory behind a tensor.
enum Storage {
    Owned(HostBuffer),
    /// Bytes of a mapped file; kept alive by the owner.
    Mapped {
        ptr: *const u8,
        bytes: usize,
        _owner: Arc<dyn std::any::Any + Send + Sync>,
    },
}

/// A tensor in a store.
pub struct Tensor {
    ty: TensorType,
    storage: Storage,
}

// SAFETY: mapped bytes are read-only and live as long as their owner, which is Send + Sync.
unsafe impl Send for Tensor {}
// SAFETY: as above; owned buffers are Sync.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// Type and shape.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// Contents as bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(b) => b.bytes(),
            // SAFETY: `ptr` points at `bytes` bytes that the owner keeps mapped.
            Storage::Mapped { ptr, bytes, .. } => unsafe { std::slice::from_raw_parts(*ptr, *bytes) },
        }
    }

    /// Contents as elements.
    pub fn slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    fn buf(&self) -> Buf {
        match &self.storage {
            Storage::Owned(b) => b.buf(),
            Storage::Mapped { ptr, bytes, .. } => Buf { ptr: ptr.cast_mut(), bytes: *bytes },
        }
    }

    fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }
}

/// Position of a tensor in its store: what the step loop uses instead of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

/// Tensors by name. Memory never moves once inserted, so plans bound to it stay valid while it lives.
#[derive(Default)]
pub struct Store {
    tensors: Vec<Tensor>,
    by_name: BTreeMap<String, Slot>,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Store::default()
    }

    /// Adds a zeroed tensor, unless one of this name and type is there already.
    ///
    /// # Errors
    /// [`StoreError::OutOfMemory`], or [`StoreError::Mismatch`] if the name is taken by another type.
    pub fn allocate(&mut self, name: &str, ty: &TensorType) -> Result<Slot, StoreError> {
        if let Some(&slot) = self.by_name.get(name) {
            let found = &self.tensors[slot.0].ty;
            return if found == ty {
                Ok(slot)
            } else {
                Err(StoreError::Mismatch { name: name.into(), found: found.clone(), expected: ty.clone() })
            };
        }
        let buffer = HostBuffer::zeroed(ty.bytes())
            .ok_or_else(|| StoreError::OutOfMemory { name: name.into(), bytes: ty.bytes() })?;
        Ok(self.push(name, Tensor { ty: ty.clone(), storage: Storage::Owned(buffer) }))
    }

    /// Adds a tensor whose bytes are mapped from a file that `owner` keeps open. `bytes` must lie inside what `owner`
    /// maps and be aligned to the element size.
    pub fn insert_mapped(
        &mut self,
        name: &str,
        ty: TensorType,
        bytes: &[u8],
        owner: Arc<dyn std::any::Any + Send + Sync>,
    ) -> Slot {
        let storage = Storage::Mapped { ptr: bytes.as_ptr(), bytes: bytes.len(), _owner: owner };
        self.push(name, Tensor { ty, storage })
    }

    /// Adds an owned tensor with these contents.
    ///
    /// # Errors
    /// As [`Store::allocate`].
    pub fn insert<T: Pod>(&mut self, name: &str, ty: &TensorType, data: &[T]) -> Result<Slot, StoreError> {
        let slot = self.allocate(name, ty)?;
        self.write(slot, data);
        Ok(slot)
    }

    /// Where the tensor of this name is.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.slot(name).map(|s| self.at(s))
    }

    /// The tensor at this position.
    pub fn at(&self, slot: Slot) -> &Tensor {
        &self.tensors[slot.0]
    }

    /// Names and tensors in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(n, s)| (n.as_str(), self.at(*s)))
    }

    /// Positions of the tensors whose name starts with `prefix`, in order of name.
    pub fn slots_with_prefix(&self, prefix: &str) -> Vec<Slot> {
        self.by_name.iter().filter(|(n, _)| n.starts_with(prefix)).map(|(_, s)| *s).collect()
    }

    /// Contents of an owned tensor as elements, writable; empty for a mapped one.
    pub fn slice_mut<T: Pod>(&mut self, slot: Slot) -> &mut [T] {
        match &mut self.tensors[slot.0].storage {
            Storage::Owned(buffer) => buffer.slice_mut(),
            Storage::Mapped { .. } => &mut [],
        }
    }

    /// Overwrites an owned tensor with `data`, which must have its size.
    pub fn write<T: Pod>(&mut self, slot: Slot, data: &[T]) {
        self.slice_mut::<T>(slot).copy_from_slice(data);
    }

    /// Bytes of owned tensors, and of mapped ones.
    pub fn resident(&self) -> (u64, u64) {
        self.tensors.iter().fold((0, 0), |(owned, mapped), t| match &t.storage {
            Storage::Owned(b) => (owned + b.len() as u64, mapped),
            Storage::Mapped { bytes, .. } => (owned, mapped + *bytes as u64),
        })
    }

    /// A tensor that a plan needs, which must have this type.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Mismatch`].
    pub fn expect(&self, name: &str, ty: &TensorType) -> Result<&Tensor, StoreError> {
        let tensor =
            self.get(name).ok_or_else(|| StoreError::Missing { name: name.into(), ty: ty.clone() })?;
        if tensor.ty != *ty {
            let (found, expected) = (tensor.ty.clone(), ty.clone());
            return Err(StoreError::Mismatch { name: name.into(), found, expected });
        }
        Ok(tensor)
    }

    /// The memory of a tensor that a plan needs.
    pub(super) fn bind(&self, name: &str, ty: &TensorType, updated: bool) -> Result<Buf, StoreError> {
        let tensor = self.expect(name, ty)?;
        if updated && tensor.is_mapped() {
            return Err(StoreError::ReadOnly { name: name.into() });
        }
        Ok(tensor.buf())
    }

    fn push(&mut self, name: &str, tensor: Tensor) -> Slot {
        let slot = Slot(self.tensors.len());
        self.tensors.push(tensor);
        self.by_name.insert(name.into(), slot);
        slot
    }
}
