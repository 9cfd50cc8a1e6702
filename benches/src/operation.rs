//! One operation alone, on random operands.

use kfc_graph::{Attrs, Composite, DType, Op, Prim, TensorType};
use kfc_kernels::KernelError;
use kfc_kernels::cpu::{self, Call, Kernel};
use kfc_runtime::exec::HostBuffer;
use kfc_runtime::models::write_f32;
use kfc_runtime::random::normal_tensor;

/// A kernel and its buffers.
pub struct Operation {
    kernel: Box<dyn Kernel>,
    inputs: Vec<HostBuffer>,
    outputs: Vec<HostBuffer>,
    workspace: HostBuffer,
}

impl Operation {
    /// A composite of the registry; `None` if it has none of that name. Float operands are normal with a deviation of 0.1, or
    /// one where they are scalars; integers count up.
    ///
    /// # Errors
    /// If operands do not fit.
    pub fn composite(
        name: &str,
        attrs: Attrs,
        inputs: &[TensorType],
    ) -> Option<Result<Operation, KernelError>> {
        let def = kfc_ops::registry().get(name)?;
        Operation::new(&Op::Composite(Composite { def, attrs }), inputs).transpose()
    }

    /// A product of matrices, `[m,k]·[k,n]`, either of which may be stored transposed.
    ///
    /// # Errors
    /// If operands do not fit. `None` if there is not the memory.
    pub fn product(
        (m, n, k): (usize, usize, usize),
        (ta, tb): (bool, bool),
        [a, b, out]: [DType; 3],
    ) -> Option<Result<Operation, KernelError>> {
        let dims = |rows: usize, columns: usize, t: bool| if t { [columns, rows] } else { [rows, columns] };
        let types = [TensorType::new(a, dims(m, k, ta)), TensorType::new(b, dims(k, n, tb))];
        Operation::new(&Op::Prim(Prim::MatMul { ta, tb, out }), &types).transpose()
    }

    fn new(op: &Op, inputs: &[TensorType]) -> Result<Option<Operation>, KernelError> {
        let outputs = op.infer(inputs)?;
        let kernel = cpu::build(op, inputs, &outputs)?;
        let zeroed = |types: &[TensorType]| -> Option<Vec<HostBuffer>> {
            types.iter().map(|t| HostBuffer::zeroed(t.bytes())).collect()
        };
        let (Some(mut operands), Some(results), Some(workspace)) =
            (zeroed(inputs), zeroed(&outputs), HostBuffer::zeroed(kernel.workspace_bytes()))
        else {
            return Ok(None);
        };
        for (i, (buffer, t)) in operands.iter_mut().zip(inputs).enumerate() {
            match t.dtype {
                DType::I32 => (0..).zip(buffer.slice_mut::<i32>()).for_each(|(n, x)| *x = n),
                DType::F32 if t.elements() == 1 => buffer.slice_mut::<f32>().fill(1.0),
                dtype => {
                    let values = normal_tensor(0, &i.to_string(), t.elements(), 0.1);
                    write_f32(&values, dtype, buffer.bytes_mut());
                }
            }
        }
        Ok(Some(Operation { kernel, inputs: operands, outputs: results, workspace }))
    }

    /// Bytes of its workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// Runs it.
    pub fn run(&mut self) {
        let inputs: Vec<_> = self.inputs.iter().map(HostBuffer::buf).collect();
        let outputs: Vec<_> = self.outputs.iter().map(HostBuffer::buf).collect();
        // SAFETY: the buffers have the sizes of the types that the kernel was built for, and do not overlap.
        unsafe {
            self.kernel.run(&Call {
                inputs: &inputs,
                outputs: &outputs,
                workspace: self.workspace.buf(),
                transposed: None,
            });
        }
    }
}
