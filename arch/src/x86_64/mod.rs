//! The x86-64 machine.
//!
//! Preparing a machine takes these steps. [`image::KernelImage::open`] and [`initrd::InitrdFile::open`] check
//! the files. [`layout::ram_regions`] lays out RAM. [`acpi::write_tables`] describes the devices, or
//! [`mptable::write_table`] the processors and interrupts of a machine without ACPI. [`load::load`] fills
//! guest memory and returns the [`registers::BootState`] of the first CPU.
//! [`cpu_template::CpuTemplate::apply`], [`cpuid::for_vcpu`] and [`lapic::set_virtual_wire`] prepare each
//! CPU. [`vcpu_state`] is the state of a CPU that has run.

pub mod acpi;
mod boot_params;
mod bytes;
pub mod cpu_template;
pub mod cpuid;
mod gdt;
pub mod image;
pub mod initrd;
pub mod input_file;
pub mod lapic;
pub mod layout;
pub mod load;
pub mod mptable;
mod msr;
mod paging;
mod pvh;
pub mod registers;
mod reset_vector;
pub mod vcpu_state;
