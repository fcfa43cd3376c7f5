# Drivers of virtio devices over MMIO. rbx: the register window of the device; its first queue is at 0x200000.

# Leaves with the code in `failed` unless the status register reads `value`.
.macro virtio_status value, failed
    mov dword ptr [rbx + 0x70], \value
    mov eax, [rbx + 0x70]
    cmp eax, \value
    jne \failed
.endm

# Resets the device and takes every feature that it offers.
.macro virtio_negotiate failed
    mov dword ptr [rbx + 0x70], 0
    virtio_status 1, \failed
    virtio_status 3, \failed
    mov dword ptr [rbx + 0x14], 0
    mov dword ptr [rbx + 0x24], 0
    mov eax, [rbx + 0x10]
    mov [rbx + 0x20], eax
    mov dword ptr [rbx + 0x14], 1
    mov dword ptr [rbx + 0x24], 1
    mov eax, [rbx + 0x10]
    mov [rbx + 0x20], eax
    virtio_status 11, \failed
.endm

# Makes queue `index` of `size` descriptors: the table at `at`, the available ring 8 KiB and the used ring 16 KiB above.
.macro virtio_queue index, size, at
    mov dword ptr [rbx + 0x30], \index
    mov dword ptr [rbx + 0x38], \size
    mov dword ptr [rbx + 0x80], \at
    mov dword ptr [rbx + 0x84], 0
    mov dword ptr [rbx + 0x90], \at + 0x2000
    mov dword ptr [rbx + 0x94], 0
    mov dword ptr [rbx + 0xa0], \at + 0x4000
    mov dword ptr [rbx + 0xa4], 0
    mov dword ptr [rbx + 0x44], 1
.endm

# Clears the rings of queue 0.
.macro virtio_clear_rings
    mov edi, 0x200000
    xor eax, eax
    mov ecx, 0x6000 / 8
    cld
    rep stosq
.endm

# Has the first interrupt of virtio, input 5 of the I/O APIC, call `handler` by vector 0x30 of a table at 0x1f0000.
.macro virtio_interrupt handler
    mov edi, 0x1f0000
    lea rax, [rip + \handler]
    mov [rdi + 0x300], ax
    mov word ptr [rdi + 0x302], 0x10
    mov word ptr [rdi + 0x304], 0x8e00
    shr rax, 16
    mov [rdi + 0x306], ax
    shr rax, 16
    mov [rdi + 0x308], eax
    mov word ptr [rdi + 0xff0], 0x3ff
    mov [rdi + 0xff2], rdi
    lidt [rdi + 0xff0]
    mov edi, 0xfee00000             # the local APIC, on
    mov dword ptr [rdi + 0xf0], 0x1ff
    mov edi, 0xfec00000
    mov dword ptr [rdi], 0x1b
    mov dword ptr [rdi + 0x10], 0
    mov dword ptr [rdi], 0x1a
    mov dword ptr [rdi + 0x10], 0x30
.endm

# One descriptor; rdi: its place.
.macro virtio_descriptor address, len, flags, next
    mov rax, \address
    mov [rdi], rax
    mov dword ptr [rdi + 8], \len
    mov word ptr [rdi + 12], \flags
    mov word ptr [rdi + 14], \next
.endm

# Offers queue 0 `count` receive buffers of 4 KiB each, from address `at` on, as the chains with the heads 0 and up.
.macro virtio_receive count, at
    xor ecx, ecx
1:  mov edi, ecx
    shl edi, 4
    add edi, 0x200000
    mov eax, ecx
    shl eax, 12
    add eax, \at
    mov [rdi], rax
    mov dword ptr [rdi + 8], 0x1000
    mov word ptr [rdi + 12], 2
    mov [rcx * 2 + 0x202004], cx
    inc ecx
    cmp ecx, \count
    jb 1b
    mov word ptr [0x202002], \count
.endm

# Three lives of an entropy device: each asks for random bytes, waits for them and for the interrupt.
.globl payload_virtio_rng, payload_virtio_rng_end
payload_virtio_rng:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx], 0x74726976
    jne 90f
    mov r15d, 2
    cmp dword ptr [rbx + 4], 2
    jne 90f
    mov r15d, 3
    cmp dword ptr [rbx + 8], 4
    jne 90f
    virtio_interrupt rng_interrupt
    xor ebp, ebp                    # interrupts
    mov r14d, 3                     # lives
1:  mov r15d, 4
    virtio_negotiate 90f
    virtio_clear_rings
    virtio_queue 0, 16, 0x200000
    mov r15d, 5
    cmp dword ptr [rbx + 0x44], 1
    jne 90f
    virtio_status 15, 90f
    mov edi, 0x200000
    virtio_descriptor 0x210000, 64, 3, 1
    add edi, 16
    virtio_descriptor 0x211000, 64, 2, 0
    mov qword ptr [0x210000], 0
    mov qword ptr [0x211038], 0
    mov word ptr [0x202004], 0
    mov word ptr [0x202002], 1
    mov r12d, ebp
    sti
    mov dword ptr [rbx + 0x50], 0
    mov r15d, 6
    mov ecx, 2000000
2:  cmp word ptr [0x204002], 1      # used
    je 3f
    dec ecx
    jnz 2b
    jmp 90f
3:  mov r15d, 7
    cmp dword ptr [0x204004], 0
    jne 90f
    cmp dword ptr [0x204008], 128
    jne 90f
    mov r15d, 8
    cmp qword ptr [0x210000], 0
    je 90f
    cmp qword ptr [0x211038], 0
    je 90f
    mov r15d, 9
    mov ecx, 2000000
4:  cmp ebp, r12d                   # interrupted
    jne 5f
    dec ecx
    jnz 4b
    jmp 90f
5:  cli
    mov r15d, 10
    cmp dword ptr [rbx + 0x60], 0   # and acknowledged
    jne 90f
    dec r14d
    jnz 1b
    xor r15d, r15d
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
rng_interrupt:
    inc ebp
    push rax
    push rdi
    mov eax, [rbx + 0x60]
    mov [rbx + 0x64], eax
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xb0], 0
    pop rdi
    pop rax
    iretq
payload_virtio_rng_end:
