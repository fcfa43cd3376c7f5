//! Carries what is typed or piped into this process to a command in the guest.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle::agent::ProcessInput;
use coracle::command::Escape;
use coracle_devices::backend::chardev::CharSink;

/// Copies standard input until its end. At a terminal, Ctrl-A commands are executed: `leaves` becomes true
/// when the person asks for the end of the machine.
pub(super) fn copy(mut input: ProcessInput, leaves: &AtomicBool) {
    let has_keys = io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut escape = has_keys.then(Escape::default);
    let mut stdin = io::stdin().lock();
    let mut bytes = [0; 4096];
    let mut typed = Vec::with_capacity(bytes.len());
    while let Ok(count @ 1..) = stdin.read(&mut bytes) {
        let bytes = bytes.get(..count).unwrap_or_default();
        typed.clear();
        match &mut escape {
            None => typed.extend_from_slice(bytes),
            Some(escape) => {
                let asked = escape.filter(bytes, &mut typed);
                if asked.end {
                    return leaves.store(true, Ordering::Relaxed);
                }
                if asked.help {
                    show_help();
                }
            }
        }
        // A command that stops reading its input is not a failure.
        if input.write_all(&typed).is_err() {
            return;
        }
    }
}

/// Shows the help for the keys. A terminal that is not taking output misses it, because input must not wait.
fn show_help() {
    if let Ok(sink) = CharSink::new(io::stdout().as_fd()) {
        sink.write(Escape::HELP);
    }
}
