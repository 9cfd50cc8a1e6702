//! Running plans on the host: buffers, the store of named tensors, and bound plans.
//!
//! Invariants:
//! - a plan is bound once; running it looks nothing up and allocates nothing;
//! - all plans of a session share one arena, since they run one after the other.

mod bound;
mod buffer;
mod store;
pub(crate) mod transposed;

pub(crate) use bound::Kept;
pub use bound::{BoundPlan, ExecError};
pub use buffer::HostBuffer;
pub use store::{Slot, Store, StoreError, Tensor};
pub use transposed::{Copied, Copies, Held};
