//! The registers of virtio over MMIO, version 2 (virtio 1.2, section 4.2.2).
//!
//! vCPU threads call it through the bus. The interrupt registers and the doorbell take no lock, so that they
//! work while another vCPU waits for a reset.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::core::{TransportCore, TransportParts};
use super::state::MmioState;
use super::{Doorbell, OnStart, Transport};
use crate::bus::BusDevice;
use crate::lock;
use crate::memory::GuestMemory;
use crate::state::{Restoration, StateError};
use crate::virtio::VirtioDevice;
use crate::virtio::handler::{IfLate, Stuck};
use crate::virtio::irq::VirtioIrq;
use crate::virtio::queue::QueueConfig;
use crate::virtio::state::SavedDevice;

/// A device with its register window.
pub struct MmioTransport {
    device: Arc<dyn VirtioDevice>,
    irq: VirtioIrq,
    doorbells: Vec<Arc<EventFd>>,
    registers: Mutex<Registers>,
}

/// The registers that need the lock.
struct Registers {
    core: TransportCore,
    device_features_half: u32,
    driver_features_half: u32,
    queue: u32,
}

impl MmioTransport {
    /// The offset of the doorbell: the driver writes a queue's number to it after it has offered chains.
    pub const QUEUE_NOTIFY: u64 = 0x50;

    /// Makes the registers of a device.
    pub fn new(parts: TransportParts) -> Self {
        let (device, irq, doorbells) = (parts.device.clone(), parts.irq.clone(), parts.doorbells.clone());
        let core = TransportCore::new(parts);
        let registers = Registers { core, device_features_half: 0, driver_features_half: 0, queue: 0 };
        Self { device, irq, doorbells, registers: Mutex::new(registers) }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            VERSION => 2,
            DEVICE_ID => self.device.kind() as u32,
            VENDOR_ID => u32::from_le_bytes(*b"CORA"),
            INTERRUPT_STATUS => self.irq.status(),
            CONFIG_GENERATION => self.irq.generation(),
            _ => lock(&self.registers).read(offset),
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            Self::QUEUE_NOTIFY => {
                let doorbell = usize::try_from(value).ok().and_then(|queue| self.doorbells.get(queue));
                // The only failure is a counter at its maximum, and then the doorbell is already rung.
                let _ = doorbell.map(|doorbell| doorbell.write(1));
            }
            INTERRUPT_ACK => self.irq.acknowledge(value),
            _ => lock(&self.registers).write(offset, value),
        }
    }

    /// Reads the configuration space. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.device.config();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = config.get(start..).unwrap_or_default();
        let bytes = there.iter().copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(target, byte)| *target = byte);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let Ok(start) = usize::try_from(offset) else { return };
        let end = start.checked_add(data.len());
        if end.is_some_and(|end| end <= self.device.config().len()) {
            self.device.write_config(start, data);
        }
    }
}

impl Transport for MmioTransport {
    fn name(&self) -> String {
        self.device.name()
    }

    fn window_len(&self) -> u64 {
        WINDOW_LEN
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let doorbell = |(queue, event): (u32, &Arc<EventFd>)| Doorbell {
            offset: Self::QUEUE_NOTIFY,
            value: queue,
            event: event.clone(),
        };
        (0..).zip(&self.doorbells).map(doorbell).collect()
    }

    fn connect(&self, memory: GuestMemory, on_start: OnStart) {
        lock(&self.registers).core.connect(memory, on_start);
    }

    fn disconnect(&self) -> Result<(), Stuck> {
        let mut registers = lock(&self.registers);
        let Registers { core, device_features_half, driver_features_half, queue } = &mut *registers;
        (*device_features_half, *driver_features_half, *queue) = (0, 0, 0);
        core.disconnect()
    }

    fn ask_for_queues(&self, if_late: IfLate) {
        lock(&self.registers).core.ask_for_queues(if_late);
    }

    fn pause(&self) -> Result<(), Stuck> {
        lock(&self.registers).core.pause()
    }

    fn resume(&self) {
        lock(&self.registers).core.resume();
    }

    fn can_be_saved(&self) -> bool {
        self.device.saving().is_some()
    }

    fn save(&self) -> Option<SavedDevice> {
        let device = self.device.saving()?;
        let registers = lock(&self.registers);
        let Registers { core, device_features_half, driver_features_half, queue } = &*registers;
        let state = MmioState {
            device_features_half: *device_features_half,
            driver_features_half: *driver_features_half,
            queue: *queue,
            core: core.save()?,
        };
        Some(SavedDevice { transport: state.encode(), device: device.save() })
    }

    fn prepare(&self, state: &SavedDevice) -> Result<Restoration<'_>, StateError> {
        let saving = self.device.saving().ok_or(StateError::Unsupported)?;
        let SavedDevice { transport, device } = state;
        let MmioState { device_features_half, driver_features_half, queue, core } =
            MmioState::decode(transport)?;
        let prepared = lock(&self.registers).core.prepare(&core)?;
        let device = saving.prepare(device, &core.driver(self.irq.clone()))?;
        Ok(Restoration::new(move || {
            let mut registers = lock(&self.registers);
            registers.core.reset();
            if registers.core.is_lost() {
                return;
            }
            device.apply();
            registers.core.restore(prepared);
            registers.device_features_half = device_features_half;
            registers.driver_features_half = driver_features_half;
            registers.queue = queue;
        }))
    }
}

impl BusDevice for MmioTransport {
    /// Reads a register: 32 bits at a multiple of 4. Other accesses to registers read all ones, as do
    /// registers that can only be written. The configuration space takes any width.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.read_config(offset, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) => *register = self.read_register(offset).to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.write_config(offset, data);
        }
        if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl Registers {
    fn read(&self, offset: u64) -> u32 {
        let queue = self.core.queue(self.queue);
        match offset {
            DEVICE_FEATURES => half(self.core.offered(), self.device_features_half),
            QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size.into()),
            QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            STATUS => self.core.status().into(),
            // No single queue can be reset. (There are no shared memory regions either: their lengths read
            // all ones.)
            QUEUE_RESET => 0,
            _ => u32::MAX,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let queue = self.queue;
        let mut set_up =
            |change: &dyn Fn(&mut QueueConfig)| self.core.set_up_queue(queue, |queue| change(queue));
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_half = value,
            DRIVER_FEATURES_SEL => self.driver_features_half = value,
            DRIVER_FEATURES => self.core.write_features(self.driver_features_half, value),
            QUEUE_SEL => self.queue = value,
            // A number above 16 bits is not a possible size either.
            QUEUE_NUM => set_up(&|queue| queue.size = u16::try_from(value).unwrap_or_default()),
            QUEUE_READY => self.core.set_queue_ready(queue, value & 1 == 1),
            // A value above 8 bits has a bit that no driver sets.
            STATUS => self.core.write_status(u8::try_from(value).unwrap_or(u8::MAX)),
            QUEUE_DESC_LOW => set_up(&|queue| set_low(&mut queue.descriptors, value)),
            QUEUE_DESC_HIGH => set_up(&|queue| set_high(&mut queue.descriptors, value)),
            QUEUE_DRIVER_LOW => set_up(&|queue| set_low(&mut queue.available, value)),
            QUEUE_DRIVER_HIGH => set_up(&|queue| set_high(&mut queue.available, value)),
            QUEUE_DEVICE_LOW => set_up(&|queue| set_low(&mut queue.used, value)),
            QUEUE_DEVICE_HIGH => set_up(&|queue| set_high(&mut queue.used, value)),
            _ => {}
        }
    }
}

fn half(features: u64, half: u32) -> u32 {
    match half {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

/// The length of the window in bytes: the registers, and space for the configuration space. One page, so that
/// no two devices share one.
const WINDOW_LEN: u64 = 0x1000;
const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
const QUEUE_RESET: u64 = 0xc0;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;
