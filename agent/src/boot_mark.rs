//! The byte by which the first process of a guest says that it runs: what Coracle goes by when it tells how far a
//! guest came. It costs one exit, needs no console and no driver, and a machine without the port ignores it. And the line
//! by which Coracle's own first process says why it ends.

/// The port. `docs/diagnosis.md` tells it to the authors of other inits.
pub const PORT: u16 = 0xf8;

/// The first process runs.
pub const INIT_RUNS: u8 = 1;

/// What stands before the reason in the line by which a first process says that it cannot go on, in the kernel's log.
/// Coracle takes the rest of the line as the reason of the panic that follows.
pub const INIT_ERROR: &str = "coracle-agent: cannot go on: ";
