//! A kernel of a plan, alone, on made-up operands that come from memory and not from caches.

use kfc_graph::{DType, TensorType};
use kfc_kernels::cpu::{self, Buf, Call, Kernel, KernelError};
use kfc_kernels::plan::{Place, Plan, Step};
use kfc_runtime::exec::HostBuffer;
use kfc_runtime::models::write_f32;
use kfc_runtime::random::uniform_tensor;
use std::collections::BTreeMap;

/// Bytes over which the operands of successive runs are spread: several times a last-level cache.
const SPREAD: usize = 128 << 20;

/// Sets of operands at most.
const MOST_SETS: usize = 1024;

/// Values that random operands are made of, over and over.
const BLOCK: usize = 65_521;

/// A kernel with operands to run on.
pub struct Alone {
    kernel: Box<dyn Kernel>,
    sets: Vec<Set>,
    /// As in a plan, where kernels share theirs.
    workspace: HostBuffer,
    next: usize,
}

/// The buffers of one run.
struct Set {
    inputs: Vec<Buf>,
    outputs: Vec<Buf>,
    // Keeps them alive.
    _memory: Vec<HostBuffer>,
}

impl Alone {
    /// The kernel of a step of `plan`. A result that has the place of an operand in the plan has it here too.
    ///
    /// # Errors
    /// If the operation has no kernel.
    ///
    /// # Panics
    /// If memory runs out.
    pub fn new(plan: &Plan, step: &Step) -> Result<Alone, KernelError> {
        let kernel = cpu::build(&step.op, &step.input_types, &step.output_types)?;
        let bytes: usize = step.input_types.iter().chain(&step.output_types).map(TensorType::bytes).sum();
        let sets = (SPREAD / bytes.max(1)).clamp(1, MOST_SETS);
        let workspace = memory_of(kernel.workspace_bytes());
        let sets = (0..sets).map(|_| Set::new(plan, step)).collect();
        Ok(Alone { kernel, sets, workspace, next: 0 })
    }

    /// Runs once, on the operands that were used longest ago.
    pub fn run(&mut self) {
        let set = &self.sets[self.next];
        self.next = (self.next + 1) % self.sets.len();
        let call = Call {
            inputs: &set.inputs,
            outputs: &set.outputs,
            workspace: self.workspace.buf(),
            transposed: None,
        };
        // SAFETY: buffers have the sizes of the types that the kernel was built for and live in the set; a result overlaps
        // an operand only where the plan, made of what the kernel allows, has it so, and holds the operand's content then.
        unsafe { self.kernel.run(&call) }
    }
}

impl Set {
    fn new(plan: &Plan, step: &Step) -> Set {
        let mut memory = Vec::new();
        let mut made: BTreeMap<(usize, usize), Buf> = BTreeMap::new();
        let key = |place: &Place| match *place {
            Place::Input(i) => (usize::MAX, i),
            Place::Arena { offset, bytes } => (offset, bytes),
        };
        let mut buffer = |place: &Place, ty: &TensorType, name: &str| {
            *made.entry(key(place)).or_insert_with(|| {
                let mut block = memory_of(ty.bytes());
                fill(&mut block, ty, name);
                memory.push(block);
                memory[memory.len() - 1].buf()
            })
        };
        let name = |place: &Place| match place {
            Place::Input(i) => plan.inputs[*i].name.as_str(),
            Place::Arena { .. } => "",
        };
        let mut of = |places: &[Place], types: &[TensorType]| {
            places.iter().zip(types).map(|(p, ty)| buffer(p, ty, name(p))).collect::<Vec<Buf>>()
        };
        let (inputs, outputs) = (of(&step.inputs, &step.input_types), of(&step.outputs, &step.output_types));
        Set { inputs, outputs, _memory: memory }
    }
}

#[allow(clippy::expect_used)]
fn memory_of(bytes: usize) -> HostBuffer {
    HostBuffer::zeroed(bytes).expect("memory for operands")
}

/// Values that every kernel can work with: floats between 0 and 1 (second moments and Fisher information are not negative),
/// rows of one document, ids that every vocabulary has.
fn fill(block: &mut HostBuffer, ty: &TensorType, name: &str) {
    if ty.dtype == DType::I32 {
        let row = ty.dims.last().copied().unwrap_or(1).max(1);
        for (i, value) in block.slice_mut::<i32>().iter_mut().enumerate() {
            *value = match name {
                "segments" => 0,
                "positions" => (i % row) as i32,
                "tokens" | "labels" => (i * 7919 % 1000) as i32,
                _ => 1,
            };
        }
        return;
    }
    let values: Vec<f32> = uniform_tensor(0, "operand", BLOCK, 0.5).iter().map(|v| v + 0.5).collect();
    let mut encoded = vec![0u8; BLOCK * ty.dtype.size()];
    write_f32(&values, ty.dtype, &mut encoded);
    for chunk in block.bytes_mut().chunks_mut(encoded.len()) {
        chunk.copy_from_slice(&encoded[..chunk.len()]);
    }
}
