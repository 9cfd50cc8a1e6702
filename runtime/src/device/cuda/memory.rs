//! One allocation for everything: tensors that plans are bound to, those that are written before each run first, then the
//! arena. What the host has of it goes there through two page-locked buffers: one is filled while the other is copied.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned, Stream};
use super::error::{Doing, SOME_KERNEL, describe};
use crate::accounting::Account;
use crate::error::Result;
use crate::exec::Store;
use crate::session::arena_bytes;
use cudarc::driver::sys::CUdeviceptr;
use kfc_graph::{InputKind, TensorType};
use kfc_kernels::plan::{Plan, PlanInput};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Where tensors and the arena begin.
pub(crate) const ALIGN: usize = 256;

/// Bytes of each of the two buffers that tensors go through.
const STAGED: usize = 32 << 20;

/// Bytes that one thread copies into a buffer.
const PIECE: usize = 1 << 20;

/// A tensor on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

/// Where everything is; what is written before each run comes first, so that it goes over in one copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layout {
    tensors: BTreeMap<String, Place>,
    /// Tensors that plans keep between runs. One plan's result may be what another one is given.
    states: BTreeSet<String>,
    arena: usize,
    bytes: usize,
}

impl Layout {
    pub(super) fn of(plans: &[Plan]) -> Layout {
        let inputs = || plans.iter().flat_map(|p| &p.inputs);
        let mut layout = Layout::default();
        let states = inputs().filter(|i| i.kind == InputKind::State);
        layout.states = states.map(|i| i.name.clone()).collect();
        let mut end = 0;
        for is_data in [true, false] {
            let mut chosen: Vec<_> = inputs().filter(|i| layout.is_step_data(i) == is_data).collect();
            // What is alike lies together: gradients are zeroed at once.
            chosen.sort_by_key(|i| i.name.split('.').next());
            for i in chosen {
                layout.tensors.entry(i.name.clone()).or_insert_with(|| {
                    let place = Place { offset: end, bytes: i.ty.bytes() };
                    end = device_bytes(&i.ty, end);
                    place
                });
            }
        }
        layout.arena = end;
        layout.bytes = end + arena_bytes(plans).next_multiple_of(ALIGN);
        layout
    }

    /// Where the tensors are whose name starts with `prefix`; those that lie together as one.
    fn blocks(&self, prefix: &str) -> Vec<Place> {
        let chosen = self.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        let mut places: Vec<Place> = chosen.map(|(_, p)| *p).collect();
        places.sort_by_key(|p| p.offset);
        let mut blocks: Vec<Place> = Vec::new();
        for p in places {
            match blocks.last_mut() {
                Some(b) if (b.offset + b.bytes).next_multiple_of(ALIGN) == p.offset => {
                    b.bytes = p.offset + p.bytes - b.offset;
                }
                _ => blocks.push(p),
            }
        }
        blocks
    }

    /// Whether an input is written before each run of its plan.
    fn is_step_data(&self, i: &PlanInput) -> bool {
        i.kind == InputKind::Data && !self.states.contains(&i.name)
    }
}

/// The end of a tensor that begins at `start`.
fn device_bytes(ty: &TensorType, start: usize) -> usize {
    (start + ty.bytes()).next_multiple_of(ALIGN)
}

/// Tensors and arena on a device.
pub struct CudaMemory {
    layout: Layout,
    memory: DeviceBytes,
    stream: Stream,
    staging: Mutex<Staging>,
    /// What is to be said before the first step.
    pub(super) notes: Vec<String>,
}

/// The buffers that tensors go through, each with the event that says that its last copy is over.
struct Staging {
    buffers: [(Pinned, Event); 2],
    next: usize,
}

impl CudaMemory {
    /// Allocates for `plans` and copies what `store` has. State that the store does not hold is zero.
    ///
    /// # Errors
    /// If memory does not suffice, or a tensor is missing or of another type.
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        plans: &[Plan],
        store: &Store,
        account: &Account,
    ) -> Result<CudaMemory> {
        let layout = Layout::of(plans);
        for i in plans.iter().flat_map(|p| &p.inputs) {
            if !layout.states.contains(&i.name) || store.get(&i.name).is_some() {
                store.expect(&i.name, &i.ty)?;
            }
        }
        let memory = DeviceBytes::new(gpu, layout.bytes, &account.to_string())?;
        let stream = Stream::new(gpu)?;
        let staged = layout.tensors.values().map(|p| p.bytes).max().unwrap_or(0).min(STAGED);
        let buffer = || Ok::<_, CudaError>((Pinned::new(gpu, staged)?, Event::new(gpu)?));
        let staging = Mutex::new(Staging { buffers: [buffer()?, buffer()?], next: 0 });
        let memory = CudaMemory { layout, memory, stream, staging, notes: Vec::new() };
        memory.push(store, &mut |_| true)?;
        Ok(memory)
    }

    /// Bytes allocated on the device.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes as u64
    }

    /// What is to be said before the first step.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        self.stream.gpu()
    }

    /// Address of byte `offset` of the allocation.
    pub(super) fn at(&self, offset: usize) -> CUdeviceptr {
        self.memory.at + offset as CUdeviceptr
    }

    /// Offset of the arena.
    pub(super) fn arena(&self) -> usize {
        self.layout.arena
    }

    /// Whether an input is written before each run of its plan.
    pub(super) fn is_step_data(&self, i: &PlanInput) -> bool {
        self.layout.is_step_data(i)
    }

    pub(super) fn place(&self, name: &str) -> Option<Place> {
        self.layout.tensors.get(name).copied()
    }

    /// Zeroes the tensors whose name starts with `prefix`.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn zero(&self, prefix: &str) -> Result<()> {
        self.gpu().enter()?;
        for p in self.layout.blocks(prefix) {
            // SAFETY: the layout's places lie in the allocation.
            unsafe { self.stream.zero(self.at(p.offset), p.bytes) }?;
        }
        Ok(())
    }

    /// Copies tensors that `which` names from `store` to the device; what the store has not is zeroed.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn push(&self, store: &Store, which: &mut dyn FnMut(&str) -> bool) -> Result<()> {
        self.gpu().enter()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, place) in self.layout.tensors.iter().filter(|(name, _)| which(name)) {
            match store.get(name) {
                Some(tensor) => self.upload(&mut staging, *place, tensor.bytes())?,
                // SAFETY: the layout's places lie in the allocation.
                None => unsafe { self.stream.zero(self.at(place.offset), place.bytes) }?,
            }
        }
        self.wait("copying tensors to the device")
    }

    fn upload(&self, staging: &mut Staging, place: Place, bytes: &[u8]) -> Result<()> {
        let size = staging.buffers[0].0.bytes().len().max(1);
        for (i, part) in bytes.chunks(size).enumerate() {
            let (buffer, copied) = &mut staging.buffers[staging.next];
            staging.next = 1 - staging.next;
            copied.wait()?;
            let to = buffer.bytes_mut()[..part.len()].par_chunks_mut(PIECE);
            to.zip(part.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the place has as many bytes as the tensor; the buffer is not written again before `copied`.
            unsafe { self.stream.upload(self.at(place.offset + i * size), buffer, part.len()) }?;
            self.stream.record(copied)?;
        }
        Ok(())
    }

    /// Copies tensors from the device into those of `store`, which has them.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn pull(&self, store: &mut Store, names: &[String]) -> Result<()> {
        self.gpu().enter()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let (buffer, _) = &mut staging.buffers[0];
        let size = buffer.bytes().len().max(1);
        for name in names {
            let (Some(place), Some(slot)) = (self.place(name), store.slot(name)) else { continue };
            for (i, to) in store.slice_mut::<u8>(slot).chunks_mut(size).enumerate() {
                // SAFETY: the place has as many bytes as the tensor; the buffer is read after waiting.
                unsafe { self.stream.download(buffer, 0, self.at(place.offset + i * size), to.len()) }?;
                self.wait("copying tensors from the device")?;
                to.copy_from_slice(&buffer.bytes()[..to.len()]);
            }
        }
        Ok(())
    }

    fn wait(&self, doing: &'static str) -> Result<()> {
        Ok(self.stream.wait().doing(doing)?)
    }

    /// Waits for the stream after a plan ran.
    ///
    /// # Errors
    /// [`CudaError::Fault`], of `kernel` if it is known which one ran.
    pub(super) fn finish(&self, plan: &str, kernel: Option<&str>) -> std::result::Result<(), CudaError> {
        self.stream.wait().map_err(|e| CudaError::Fault {
            kernel: kernel.map_or_else(|| format!("{SOME_KERNEL} the plan `{plan}`"), String::from),
            step: 0,
            what: describe(e),
        })
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let _ = self.stream.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfc_graph::DType;

    fn plan(inputs: &[(&str, InputKind, usize)], arena_bytes: usize) -> Plan {
        let input = |(name, kind, n): &(&str, InputKind, usize)| PlanInput {
            name: (*name).into(),
            ty: TensorType::new(DType::F32, [*n]),
            kind: *kind,
        };
        let inputs = inputs.iter().map(input).collect();
        let name = "test".into();
        let (steps, outputs, epilogue, decisions) = Default::default();
        Plan { name, steps, inputs, outputs, epilogue, arena_bytes, live_bytes: 0, decisions }
    }

    #[test]
    fn tensors_have_places_of_their_own_and_what_is_alike_lies_together() {
        use InputKind::{Data, State, Weight};
        let micro = [
            ("w", Weight, 1000),
            ("grad.a", State, 65),
            ("tokens", Data, 3),
            ("b", Weight, 1),
            ("grad.c", State, 7),
        ];
        // One plan's state is what the other one is given: no step data.
        let update = [("lr", Data, 1), ("grad.a", Data, 65), ("grad.c", Data, 7), ("b", State, 1)];
        let layout = Layout::of(&[plan(&micro, 1000), plan(&update, 5000)]);
        let mut places: Vec<Place> = layout.tensors.values().copied().collect();
        places.sort_by_key(|p| p.offset);
        assert_eq!(places.len(), 6);
        assert!(
            places.windows(2).all(|w| w[0].offset + w[0].bytes <= w[1].offset && w[1].offset % ALIGN == 0)
        );
        let offset = |name: &str| layout.tensors[name].offset;
        assert!(offset("tokens").max(offset("lr")) < offset("b").min(offset("w")).min(offset("grad.a")));
        assert_eq!(layout.blocks("grad."), [Place { offset: offset("grad.a"), bytes: 512 + 28 }]);
        assert_eq!(layout.blocks(""), [Place { offset: 0, bytes: places[5].offset + places[5].bytes }]);
        assert_eq!((layout.arena % ALIGN, layout.bytes - layout.arena), (0, 5120));
    }
}
