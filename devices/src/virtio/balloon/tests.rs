//! The balloon through its rings.

use std::sync::Arc;

use super::*;
use crate::virtio::testing::{
    BUFFERS, Buffer, HIGH_RAM, HIGH_RAM_LEN, LOW_RAM_LEN, Machine, Ring, Usual, conform,
};

const PAGE: u64 = 4096;
/// The pages that tests fill and give.
const PAGES: u64 = BUFFERS + (1 << 20);
const RAM: u64 = LOW_RAM_LEN + HIGH_RAM_LEN;

struct Setup {
    machine: Machine,
    rings: Vec<Ring>,
    balloon: Arc<Balloon>,
}

fn setup() -> Setup {
    let balloon = Arc::new(Balloon::new(RAM));
    let machine = Machine::new(balloon.clone());
    let rings = machine.start(0);
    Setup { machine, rings, balloon }
}

fn number(address: u64) -> u32 {
    (address >> 12) as u32
}

impl Setup {
    /// Gives or takes pages by their numbers.
    #[track_caller]
    fn name(&mut self, queue: u16, numbers: &[u32]) {
        let list: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.machine.put(BUFFERS, &list);
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.offer(&[Buffer::readable(BUFFERS, list.len() as u32)]);
        self.machine.kick(queue);
        assert_eq!(ring.completed(), Some((head.into(), 0)));
    }

    #[track_caller]
    fn report(&mut self, buffers: &[Buffer]) {
        let head = self.rings[2].offer(buffers);
        self.machine.kick(2);
        assert_eq!(self.rings[2].completed(), Some((head.into(), 0)));
    }

    fn fill(&self, address: u64, pages: usize) {
        self.machine.put(address, &vec![0x77; pages * PAGE as usize]);
    }

    fn is(&self, byte: u8, address: u64, pages: usize) -> bool {
        self.machine.bytes(address, pages * PAGE as usize).iter().all(|there| *there == byte)
    }
}

#[test]
fn conforms_in_every_queue() {
    for queue in [INFLATE, DEFLATE] {
        let prepare = |machine: &Machine| machine.put(BUFFERS, &number(PAGES).to_le_bytes());
        let buffers = vec![Buffer::readable(BUFFERS, 4)];
        conform(&|| Arc::new(Balloon::new(RAM)), &Usual { queue, prepare, buffers });
    }
    let buffers = vec![Buffer::writable(PAGES, 8192)];
    conform(&|| Arc::new(Balloon::new(RAM)), &Usual { queue: REPORT, prepare: |_| (), buffers });
}

#[test]
fn given_pages_go_back_and_work_again() {
    let mut setup = setup();
    setup.fill(PAGES, 8);
    let first = number(PAGES);
    setup.name(INFLATE, &[first + 1, first + 2, first + 3, first + 5, first + 4]);
    assert!(setup.is(0x77, PAGES, 1) && setup.is(0, PAGES + PAGE, 5) && setup.is(0x77, PAGES + 6 * PAGE, 2));
    assert_eq!(setup.balloon.status().released_bytes, 5 * PAGE);
    setup.name(DEFLATE, &[first + 1]);
    setup.fill(PAGES + PAGE, 1);
    assert!(setup.is(0x77, PAGES, 2));
}

#[test]
fn reported_memory_goes_back_in_whole_pages() {
    let mut setup = setup();
    setup.fill(PAGES, 16);
    let (one, other) = (Buffer::writable(PAGES, 8192), Buffer::writable(PAGES + 3 * PAGE + 5, 3 * 4096));
    setup.report(&[one, other]);
    assert!(setup.is(0, PAGES, 2) && setup.is(0x77, PAGES + 2 * PAGE, 2));
    assert!(setup.is(0, PAGES + 4 * PAGE, 2) && setup.is(0x77, PAGES + 6 * PAGE, 10));
    assert_eq!(setup.balloon.status().released_bytes, 4 * PAGE);
}

#[test]
fn pages_that_are_not_ram_are_left_out_and_others_served() {
    let mut setup = setup();
    setup.fill(LOW_RAM_LEN - PAGE, 1);
    setup.fill(HIGH_RAM, 1);
    let (last, high) = (number(LOW_RAM_LEN - PAGE), number(HIGH_RAM));
    // Across the end of RAM, far away, the largest number, and the first page after the hole, twice.
    let end = number(HIGH_RAM + HIGH_RAM_LEN);
    setup.name(INFLATE, &[last, last + 1, last + 2, u32::MAX, u32::MAX, 0, end, high - 1, high, high]);
    assert!(setup.is(0, LOW_RAM_LEN - PAGE, 1) && setup.is(0, HIGH_RAM, 1));
    assert_eq!(setup.balloon.status().released_bytes, 4 * PAGE, "one of them twice, and page 0");
    assert!(!setup.machine.needs_reset());
}

#[test]
fn lists_of_odd_and_zero_length_are_served_as_far_as_they_go() {
    let mut setup = setup();
    setup.fill(PAGES, 2);
    let head = setup.rings[0].offer(&[Buffer::readable(BUFFERS, 0)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((head.into(), 0)));
    setup.machine.put(BUFFERS, &[number(PAGES).to_le_bytes(), number(PAGES + PAGE).to_le_bytes()].concat());
    let head = setup.rings[0].offer(&[Buffer::readable(BUFFERS, 3), Buffer::readable(BUFFERS + 3, 4)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((head.into(), 0)));
    assert!(setup.is(0, PAGES, 1) && setup.is(0x77, PAGES + PAGE, 1));
}

#[test]
fn lists_without_end_are_refused() {
    let mut setup = setup();
    let head = setup.rings[0].offer(&[Buffer::readable(BUFFERS, 16 << 10), Buffer::readable(BUFFERS, 4)]);
    setup.machine.kick(0);
    assert_eq!(setup.rings[0].completed(), Some((head.into(), 0)));
    assert_eq!(setup.balloon.status().released_bytes, 0);
}

#[test]
fn giving_pages_of_the_rings_harms_only_the_guest() {
    let mut setup = setup();
    let rings: Vec<u32> = (number(1 << 16)..number(4 << 16)).collect();
    for _ in 0..3 {
        setup
            .machine
            .put(BUFFERS, &rings.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
        setup.rings[0].offer(&[Buffer::readable(BUFFERS, 4 * rings.len() as u32)]);
        setup.machine.kick(0);
    }
    setup.rings = setup.machine.start(0);
    setup.fill(PAGES, 1);
    setup.name(INFLATE, &[number(PAGES)]);
    assert!(setup.is(0, PAGES, 1));
}

#[test]
fn endless_work_is_done_in_parts() {
    let mut setup = setup();
    // Alternating between two pages, so that each is a range of its own.
    let pair = [number(PAGES), number(PAGES + 2 * PAGE)];
    let list: Vec<u8> = pair.iter().cycle().take(4096).flat_map(|number| number.to_le_bytes()).collect();
    setup.machine.put(BUFFERS, &list);
    for _ in 0..16 {
        setup.rings[0].offer(&[Buffer::readable(BUFFERS, 16 << 10)]);
    }
    for _ in 0..16 {
        setup.machine.kick(0);
    }
    let count = std::iter::from_fn(|| setup.rings[0].completed()).count();
    assert_eq!(count, 16);
    assert_eq!(setup.balloon.status().released_bytes, 16 * 4096 * PAGE);
}

#[test]
fn target_is_reported_to_the_driver_and_outlives_resets() {
    let mut setup = setup();
    setup.machine.interrupts();
    setup.balloon.set_target(2 << 20);
    assert_eq!((setup.machine.interrupts(), setup.machine.read(0x60)), (1, 2));
    assert_eq!(setup.machine.read(0x100), 512);
    setup.machine.write(0x104, 300);
    let status = BalloonStatus { target_bytes: 2 << 20, given_bytes: 300 * PAGE, released_bytes: 0 };
    assert_eq!(setup.balloon.status(), status);
    setup.machine.write(0x100, 7);
    assert_eq!(setup.machine.read(0x100), 512, "the driver cannot change the target");
    setup.rings = setup.machine.start(0);
    assert_eq!((setup.machine.read(0x100), setup.machine.read(0x104)), (512, 0));
    setup.balloon.set_target(u64::MAX);
    assert_eq!(setup.balloon.status().target_bytes, RAM);
}

#[test]
fn driver_that_does_not_report_needs_no_reporting_queue() {
    let machine = Machine::new(Arc::new(Balloon::new(RAM)));
    let rings = machine.start(0);
    machine.negotiate(machine.offered() & !(1 << REPORTING));
    for queue in [0, 1] {
        machine.set_up_queue(queue, &rings[usize::from(queue)]);
    }
    machine.write(0x70, 15);
    machine.settle();
    assert_eq!(machine.status(), 15);
}
