//! A split queue in guest RAM, from the driver's side. A test can write all of it wrong, too.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// A ring whose three parts follow one another from one address.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

/// A buffer of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The guest-physical address.
    pub address: u64,
    /// The length in bytes.
    pub len: u32,
    /// Whether the device writes it; otherwise the device reads it.
    pub writable: bool,
}

impl Buffer {
    /// Makes a buffer that the device reads.
    pub fn readable(address: u64, len: u32) -> Self {
        Self { address, len, writable: false }
    }

    /// Makes a buffer that the device writes.
    pub fn writable(address: u64, len: u32) -> Self {
        Self { address, len, writable: true }
    }
}

impl Ring {
    /// Makes an empty ring of `size` descriptors at `base`, a multiple of 4 KiB. It takes 24 KiB, whatever
    /// its size up to 256.
    pub fn new(memory: GuestMemory, base: u64, size: u16) -> Self {
        let ring = Self { memory, base, size, next_descriptor: 0, next_available: 0, next_used: 0 };
        ring.put(base, &[0; 0x6000]);
        ring
    }

    /// Returns the driver's side of this ring in another memory, which has a copy of it.
    pub fn in_memory(&self, memory: GuestMemory) -> Self {
        let Self { memory: _, base, size, next_descriptor, next_available, next_used } = *self;
        Self { memory, base, size, next_descriptor, next_available, next_used }
    }

    /// Returns the number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Returns the address of the descriptor table.
    pub fn descriptors(&self) -> u64 {
        self.base
    }

    /// Returns the address of the available ring.
    pub fn available(&self) -> u64 {
        self.base.wrapping_add(0x2000)
    }

    /// Returns the address of the used ring.
    pub fn used(&self) -> u64 {
        self.base.wrapping_add(0x4000)
    }

    /// Offers a request in the next descriptors, and returns its head.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.place(buffers);
        self.offer_head(head);
        head
    }

    /// Writes a request into the next descriptors without offering it, and returns its head.
    pub fn place(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = index.wrapping_add(1).checked_rem(self.size).unwrap_or_default();
            let is_last = position.wrapping_add(1) == buffers.len();
            let flags = u16::from(!is_last) | u16::from(buffer.writable) << 1;
            self.descriptor(index, buffer.address, buffer.len, flags, self.next_descriptor);
        }
        head
    }

    /// Writes a descriptor of the table.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base.wrapping_add(u64::from(index) << 4);
        self.put(at, &descriptor_bytes(address, len, flags, next));
    }

    /// Offers the chain at `head`, whatever is there.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.next_available.checked_rem(self.size).unwrap_or_default());
        self.put(self.available().wrapping_add(4).wrapping_add(slot << 1), &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Writes the driver's index.
    pub fn set_available_index(&self, index: u16) {
        self.put(self.available().wrapping_add(2), &index.to_le_bytes());
    }

    /// Sets or clears the flag by which the driver wants no interrupts.
    pub fn refuse_interrupts(&self, yes: bool) {
        self.put(self.available(), &u16::from(yes).to_le_bytes());
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = self.available().wrapping_add(4).wrapping_add(u64::from(self.size) << 1);
        self.put(at, &index.to_le_bytes());
    }

    /// Returns the index at which the device wants its doorbell rung next.
    pub fn available_event(&self) -> u16 {
        self.load(self.used().wrapping_add(4).wrapping_add(u64::from(self.size) << 3))
    }

    /// Returns whether the device has set the flag by which it wants no doorbell.
    pub fn refuses_doorbells(&self) -> bool {
        self.load(self.used()) & 1 == 1
    }

    /// Returns the device's index.
    pub fn used_index(&self) -> u16 {
        self.load(self.used().wrapping_add(2))
    }

    /// Returns the next completion: the head and the number of bytes written.
    pub fn completed(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used.checked_rem(self.size).unwrap_or_default());
        self.next_used = self.next_used.wrapping_add(1);
        let entry = self.used().wrapping_add(4).wrapping_add(slot << 3);
        let word = |at: u64| u32::from(self.load(at)) | u32::from(self.load(at.wrapping_add(2))) << 16;
        Some((word(entry), word(entry.wrapping_add(4))))
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.mmap().read_obj(GuestAddress(address)).unwrap_or_default()
    }

    fn put(&self, address: u64, data: &[u8]) {
        let _ = self.memory.mmap().write_slice(data, GuestAddress(address));
    }
}

/// Returns the bytes of a descriptor.
pub fn descriptor_bytes(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    let fields = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
    bytes.iter_mut().zip(fields.concat()).for_each(|(target, byte)| *target = byte);
    bytes
}
