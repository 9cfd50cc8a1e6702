//! The `kfc` command.
fn main() {}
