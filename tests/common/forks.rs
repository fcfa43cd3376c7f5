//! Machines whose consoles are pipes, templates of them and forks.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use coracle::config::{MemorySize, VmConfig};
use coracle::outcome::{Ending, Outcome};
use coracle::{ConsolePipe, Fork, Template, Vm, VmBuilder};

use super::LIMIT;

/// Returns the builder of a machine with 16 MiB. A guest that hangs is ended, as its forks are, so that no
/// test waits for what it does not print.
pub fn builder(payload: &str) -> VmBuilder {
    let mut config = VmConfig::new(super::payload(payload));
    config.timeout = Some(GUEST_LIMIT);
    config.memory = MemorySize::from_mib(16).unwrap().into();
    VmBuilder::new(config)
}

/// Far longer than any guest takes.
const GUEST_LIMIT: Duration = Duration::from_secs(60);

/// A machine with the other ends of its console.
pub struct Piped {
    pub vm: Vm,
    pub input: Box<dyn Write + Send>,
    pub output: Box<dyn BufRead + Send>,
}

impl Piped {
    /// Takes the console of a machine that was built with pipes.
    pub fn of(mut vm: Vm) -> Piped {
        let ConsolePipe { input, output, .. } = vm.take_console().unwrap();
        Piped { vm, input: Box::new(input), output: Box::new(BufReader::new(output)) }
    }

    pub fn start(builder: VmBuilder) -> Piped {
        Piped::of(builder.console_piped().start().unwrap())
    }

    /// Starts a guest, and returns when it has printed `!`.
    pub fn start_marked(builder: VmBuilder) -> Piped {
        let mut piped = Piped::start(builder);
        piped.expect(b"!");
        piped
    }

    pub fn forks(template: &Template, count: usize) -> Vec<Piped> {
        let forks = template.fork(count, |_, fork| fork.console_piped()).unwrap();
        forks.into_iter().map(Piped::of).collect()
    }

    /// Starts one fork with these settings.
    pub fn fork(template: &Template, adapt: impl FnOnce(Fork) -> Fork) -> Piped {
        let mut adapt = Some(adapt);
        let adapt = |_, fork: Fork| adapt.take().map_or(fork.clone(), |adapt| adapt(fork.console_piped()));
        Piped::of(template.fork(1, adapt).unwrap().remove(0))
    }

    /// Makes a template of the machine, which is gone then.
    pub fn freeze(self) -> Template {
        let template = self.vm.freeze().unwrap();
        assert_eq!(self.vm.wait().ending, Ending::Stopped);
        template
    }

    /// Reads as many bytes as `bytes` has, which have to be those.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        self.output.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    /// Returns what the guest has printed to its end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).unwrap();
        rest
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    /// Waits for the end of the guest.
    #[track_caller]
    pub fn end(&self) -> Outcome {
        self.vm.handle().wait_for(LIMIT).expect("the guest does not end")
    }

    /// Waits for the guest's exit with this code.
    #[track_caller]
    pub fn exits(&self, code: u32) {
        assert_eq!(self.end().ending, Ending::Exited { code });
    }
}

/// The payload `counter`.
pub struct Counter(pub Piped);

impl Counter {
    pub fn start() -> Counter {
        Counter(Piped::start(builder("counter")))
    }

    pub fn forks(template: &Template, count: usize) -> Vec<Counter> {
        Piped::forks(template, count).into_iter().map(Counter).collect()
    }

    /// Asks for the count.
    pub fn count(&mut self) -> u32 {
        self.0.send(b"?");
        self.next()
    }

    /// Returns the count of a question that was asked before.
    pub fn next(&mut self) -> u32 {
        let mut line = String::new();
        self.0.output.read_line(&mut line).unwrap();
        u32::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"))
    }

    /// Ends the guest, which checks that its register and its memory have the same count.
    #[track_caller]
    pub fn end(mut self) {
        self.0.send(b"q");
        self.0.exits(0);
    }
}

/// The payload `branch-pages`, with 128 MiB.
pub struct Pages(pub Piped);

/// The pages that it writes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Every {
    Page,
    Second,
}

impl Pages {
    pub fn start() -> Pages {
        let builder = builder("branch-pages");
        let builder = builder.configure(|config| config.memory = MemorySize::from_mib(128).unwrap().into());
        Pages(Piped::start_marked(builder))
    }

    /// Writes to each of the pages in `mib` MiB, or to every second one.
    pub fn write(&mut self, mib: u8, every: Every) {
        self.0.send(&[if every == Every::Page { b'w' } else { b's' }, mib]);
        self.0.expect(b".");
    }

    /// Returns a hash of the pages in `mib` MiB.
    pub fn hash(&mut self, mib: u8) -> String {
        self.0.send(&[b'h', mib]);
        let mut line = String::new();
        self.0.output.read_line(&mut line).unwrap();
        assert_eq!(line.len(), 17, "{line:?}");
        line
    }

    #[track_caller]
    pub fn end(mut self) {
        self.0.send(b"q");
        self.0.exits(0);
    }
}
