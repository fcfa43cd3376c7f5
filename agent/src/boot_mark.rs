//! The byte by which the first process of a guest says that it runs: what Coracle goes by when it tells how far a
//! guest came. It costs one exit, needs no console and no driver, and a machine without the port ignores it.

/// The port. `docs/diagnosis.md` tells it to the authors of other inits.
pub const PORT: u16 = 0xf8;

/// The first process runs.
pub const INIT_RUNS: u8 = 1;
