//! The error of a whole run.

use crate::data::DataError;
use crate::device::cuda::CudaError;
use crate::exec::{ExecError, StoreError};
use crate::files::FileError;
use kfc_graph::GraphError;
use kfc_kernels::KernelError;
use kfc_ops::model::ModelError;
use std::io::ErrorKind;
use thiserror::Error;

/// Why a command could not be carried out.
#[derive(Debug, Error)]
pub enum RunError {
    /// What the user gave does not fit: says what, where, and what to do.
    #[error("{0}")]
    Input(String),
    /// Something failed while running.
    #[error("{0}")]
    Failed(String),
    /// A model's configuration or a LoRA target.
    #[error("{path}: {source}")]
    Model {
        /// The model folder.
        path: String,
        /// What is wrong.
        source: ModelError,
    },
    /// Training or evaluation data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file that is read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Binding a plan.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Compiling a graph.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A CUDA device.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// Building a graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl From<StoreError> for RunError {
    fn from(e: StoreError) -> Self {
        RunError::Exec(ExecError::Store(e))
    }
}

impl RunError {
    /// The same with the optimiser step in which it happened, where that is part of it.
    pub(crate) fn at_step(self, step: usize) -> RunError {
        match self {
            RunError::Cuda(e) => RunError::Cuda(e.at_step(step)),
            other => other,
        }
    }

    /// Whether the user's input is at fault, rather than the run itself.
    pub fn is_input(&self) -> bool {
        match self {
            RunError::Data(DataError::Io { source, .. }) => !matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
            ),
            RunError::Input(_) | RunError::Model { .. } | RunError::Data(_) => true,
            RunError::Cuda(e) => e.is_input(),
            RunError::File(FileError::Invalid { .. }) => true,
            RunError::File(FileError::Io { reason, .. }) => reason.kind() == std::io::ErrorKind::NotFound,
            RunError::File(FileError::DiskFull { .. }) => false,
            RunError::Failed(_) | RunError::Exec(_) | RunError::Kernel(_) | RunError::Graph(_) => false,
        }
    }
}

/// Shorthand for results of a run.
pub type Result<T> = std::result::Result<T, RunError>;
