//! Work of the primitives, for predictions and reports.

use crate::op::{Composite, Cost, Op};
use crate::prim::Prim;
use crate::types::TensorType;

impl Prim {
    /// Work of one application: what an ideal kernel has to compute and move. A conversion or a movement is no arithmetic,
    /// an elementary function is one operation, and of a table or a sliced tensor only what is taken counts.
    pub fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let elements = |types: &[TensorType]| types.iter().map(|t| t.elements() as u64).max().unwrap_or(0);
        let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as u64).sum::<u64>();
        match self {
            Prim::Reshape { .. } => Cost::default(),
            Prim::Const { .. } | Prim::Iota { .. } | Prim::Random { .. } => {
                Cost { flops: 0, bytes: bytes(outputs) }
            }
            Prim::Cast(_)
            | Prim::Compare(_)
            | Prim::Select
            | Prim::Transpose { .. }
            | Prim::Broadcast { .. }
            | Prim::Pad { .. }
            | Prim::Concat { .. } => Cost::streaming(0, inputs, outputs),
            Prim::Slice { .. } => Cost { flops: 0, bytes: 2 * bytes(outputs) },
            Prim::Gather => Cost { flops: 0, bytes: 2 * bytes(outputs) + bytes(&inputs[1..]) },
            Prim::ScatterAdd { .. } => Cost::streaming(elements(&inputs[1..]), inputs, outputs),
            Prim::MatMul { ta, .. } => {
                let dims = &inputs[0].dims;
                let depth = dims[dims.len() - if *ta { 2 } else { 1 }] as u64;
                Cost::streaming(2 * depth * elements(outputs), inputs, outputs)
            }
            Prim::ReduceSum { .. } | Prim::ReduceMax { .. } => {
                Cost::streaming(elements(inputs), inputs, outputs)
            }
            Prim::Neg
            | Prim::Exp
            | Prim::Log
            | Prim::Sqrt
            | Prim::Sigmoid
            | Prim::Erf
            | Prim::Add
            | Prim::Sub
            | Prim::Mul
            | Prim::Div
            | Prim::Max => Cost::streaming(elements(outputs), inputs, outputs),
        }
    }
}

impl Op {
    /// Work of one application at these types.
    pub fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        match self {
            Op::Prim(p) => p.cost(inputs, outputs),
            Op::Composite(Composite { def, attrs }) => def.cost(attrs, inputs, outputs),
            Op::Group(g) => g.cost(inputs, outputs),
            Op::Fused(f) => f.cost(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DType;

    fn f32(dims: &[usize]) -> TensorType {
        TensorType::new(DType::F32, dims)
    }

    #[test]
    fn a_product_counts_multiply_adds_whatever_the_layout() {
        let y = [f32(&[5, 3, 7])];
        for (ta, a) in [(false, f32(&[5, 3, 11])), (true, f32(&[5, 11, 3]))] {
            let p = Prim::MatMul { ta, tb: false, out: DType::F32 };
            let cost = p.cost(&[a, f32(&[5, 11, 7])], &y);
            assert_eq!(cost, Cost { flops: 2 * 5 * 3 * 7 * 11, bytes: 4 * 5 * (33 + 77 + 21) });
        }
    }

    #[test]
    fn only_what_is_taken_of_a_table_counts() {
        let cost = Prim::Gather.cost(&[f32(&[32_000, 8]), TensorType::new(DType::I32, [6])], &[f32(&[6, 8])]);
        assert_eq!(cost, Cost { flops: 0, bytes: 2 * 6 * 8 * 4 + 6 * 4 });
    }
}
