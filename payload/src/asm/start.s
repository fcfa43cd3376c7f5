# Start-up code, linked at 0x100000. Offsets of the tables are those of src/tables.rs.
# The 64-bit entry comes in long mode (Linux 64-bit boot protocol or QEMU's); the 32-bit entry, 0x80 further on,
# in flat protected mode (PVH). Both end in the body at 0x10a000, interrupts off, on a stack below 0x118000.

.macro start_code name, ring3
.globl \name, \name\()_end
\name:
    cli
    mov rax, 0x101000
    mov cr3, rax
    lgdt [0x107000]
    mov rsp, 0x118000
    push 0x10
    lea rax, [rip + long_mode_\name]
    push rax
    retfq
.org \name + 0x80
.code32
    cli
    lgdt [0x107000]
    mov eax, cr4
    or eax, 0x20                    # PAE
    mov cr4, eax
    mov eax, 0x101000
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER
    rdmsr
    or eax, 0x100                   # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000              # PG
    mov cr0, eax
    .byte 0xea                      # jmp 0x10:wide_\name
    .long 0x100000 + wide_\name - \name
    .word 0x10
.code64
wide_\name:
    mov rsp, 0x118000
long_mode_\name:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 0x30
    ltr ax
.if \ring3
    push 0x23
    push 0x118000
    push 0x2
    push 0x2b
    push 0x10a000
    iretq
.else
    mov eax, 0x10a000
    jmp rax
.endif
\name\()_end:
.endm

.text
.balign 16
start_code payload_start_ring0, 0
.balign 16
start_code payload_start_ring3, 1

# The set-up code of a bzImage, at 0x26c of its code segment, in real mode: loads the tables of the image at 1 MiB and
# enters it as PVH does.
.globl payload_real_mode, payload_real_mode_end
payload_real_mode:
.code16
    cli
    .byte 0x2e, 0x0f, 0x01, 0x16    # lgdt cs:[0x26c + the distance]
    .word 0x26c + 2f - payload_real_mode
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov ax, 0x18
    mov ds, ax
    .byte 0x66, 0xea                # jmp 0x08:0x100080, with 32 bits
    .long 0x100080
    .word 0x08
2:  .word 63                        # src/tables.rs: eight descriptors
    .long 0x107010
.code64
payload_real_mode_end:
