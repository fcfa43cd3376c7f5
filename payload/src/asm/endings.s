# One way each for a virtual machine to end, or not to.

.globl payload_poweroff, payload_poweroff_end
payload_poweroff:
    mov dx, 0x600                   # ACPI sleep control: SLP_EN, SLP_TYP 5
    mov al, 0x34
    out dx, al
1:  jmp 1b                          # reached only where there is no such register
payload_poweroff_end:

.globl payload_poweroff_ring3, payload_poweroff_ring3_end
payload_poweroff_ring3:
    mov dx, 0x600
    mov al, 0x34
    out dx, al
1:  jmp 1b
payload_poweroff_ring3_end:

.globl payload_exit_7, payload_exit_7_end
payload_exit_7:
    mov al, 7
    out 0xf4, al
1:  jmp 1b
payload_exit_7_end:

.globl payload_boot_mark, payload_boot_mark_end
payload_boot_mark:
    mov al, 1
    out 0xf8, al                    # the boot mark: init runs
    mov al, 0
    out 0xf4, al
1:  jmp 1b
payload_boot_mark_end:

.globl payload_boot_mark_spin, payload_boot_mark_spin_end
payload_boot_mark_spin:
    mov al, 1
    out 0xf8, al                    # the boot mark: init runs
1:  jmp 1b
payload_boot_mark_spin_end:

.globl payload_exit_200, payload_exit_200_end
payload_exit_200:
    mov eax, 200
    out 0xf4, eax
1:  jmp 1b
payload_exit_200_end:

.globl payload_reset_acpi, payload_reset_acpi_end
payload_reset_acpi:
    mov dx, 0x602
    mov al, 1
    out dx, al
1:  jmp 1b
payload_reset_acpi_end:

.globl payload_reset_i8042, payload_reset_i8042_end
payload_reset_i8042:
    mov al, 0xfe
    out 0x64, al
1:  jmp 1b
payload_reset_i8042_end:

.globl payload_triple_fault, payload_triple_fault_end
payload_triple_fault:
    push 0
    push 0
    lidt [rsp]
    ud2
payload_triple_fault_end:

.globl payload_int3, payload_int3_end
payload_int3:
    push 0
    push 0
    lidt [rsp]
    int3
payload_int3_end:

.globl payload_spin, payload_spin_end
payload_spin:
1:  jmp 1b
payload_spin_end:

.globl payload_spin_ring3, payload_spin_ring3_end
payload_spin_ring3:
1:  jmp 1b
payload_spin_ring3_end:

.globl payload_halt, payload_halt_end
payload_halt:
    cli
1:  hlt
    jmp 1b
payload_halt_end:

.globl payload_jump_to_mmio, payload_jump_to_mmio_end
payload_jump_to_mmio:
    mov eax, 0xd0000000
    jmp rax
payload_jump_to_mmio_end:
