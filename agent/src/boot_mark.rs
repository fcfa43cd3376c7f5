//! The byte by which the first process of a guest reports that it runs, so that Coracle knows how far a guest
//! came. It costs one exit, needs no console and no driver, and a machine without the port ignores it. The
//! module also has the line with which Coracle's own first process explains why it ends.

/// The port, which `docs/diagnosis.md` gives to the authors of other inits.
pub const PORT: u16 = 0xf8;

/// The value for "the first process runs".
pub const INIT_RUNS: u8 = 1;

/// The prefix of the line in the kernel's log with which a first process reports that it cannot go on.
/// Coracle takes the rest of the line as the reason of the panic that follows.
pub const INIT_ERROR: &str = "coracle-agent: cannot go on: ";
