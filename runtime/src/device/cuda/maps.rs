//! Tensor maps: what the copies of boxes in Hopper's kernels are told of a matrix, in the driver's own encoding.

use super::CudaError;
use super::error::Doing;
use cudarc::driver::sys::{self, CUdeviceptr};
use kfc_kernels::tile::cuda::TensorMap;
use kfc_kernels::tile::ir::Elem;
use std::mem::MaybeUninit;

/// A kernel's parameter.
pub(super) type Encoded = sys::CUtensorMap;

/// The map of a matrix that begins at this address.
///
/// # Errors
/// If the driver refuses it.
pub(super) fn encode(map: &TensorMap, at: CUdeviceptr) -> Result<Encoded, CudaError> {
    use sys::CUtensorMapDataType_enum as Type;
    use sys::CUtensorMapSwizzle_enum as Swizzle;
    let ty = match map.elem {
        Elem::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let swizzle = match map.swizzle {
        128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
    };
    let extents = map.extents.map(|n| n as u64);
    let (pitch, tile) = ([map.pitch as u64], map.tile.map(|n| n as u32));
    let mut encoded = MaybeUninit::<Encoded>::uninit();
    // SAFETY: all arrays have an entry for each of two axes, pitches one less, and the call writes the whole map if it succeeds.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            encoded.as_mut_ptr(),
            ty,
            2,
            at as *mut std::ffi::c_void,
            extents.as_ptr(),
            pitch.as_ptr(),
            tile.as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
        .doing("describing a matrix to copy from")?;
        Ok(encoded.assume_init())
    }
}
