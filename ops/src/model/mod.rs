//! Model families, built from their configuration.
