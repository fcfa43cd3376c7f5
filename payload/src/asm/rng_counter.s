# Asks an entropy device for 64 bytes, halts until the interrupt has come, and so on. Every request is answered by one
# interrupt; anything else ends it with a code, or with no end at all. A byte on the serial port is a command: `q` exits
# with 0, `d` starts the driver again, `m` resets the machine, any other prints the number of requests.
# rbx: the register window. r12: requests. ebp: interrupts. r13: the index of the available ring.
.globl payload_rng_counter, payload_rng_counter_end
payload_rng_counter:
    mov ebx, 0xd0000000
    xor r12d, r12d
    xor ebp, ebp
    virtio_interrupt rng_counter_interrupt
1:  mov r15d, 1
    virtio_negotiate 90f
    virtio_clear_rings
    virtio_queue 0, 16, 0x200000
    mov r15d, 2
    virtio_status 15, 90f
    mov edi, 0x200000
    virtio_descriptor 0x210000, 64, 2, 0
    xor r13d, r13d
2:  mov qword ptr [0x210000], 0
    mov qword ptr [0x210038], 0
    mov [0x202024], r13w            # the index that this request passes, for an interrupt
    mov eax, r13d
    and eax, 15
    mov word ptr [rax * 2 + 0x202004], 0
    inc r13d
    inc r12d
    mov [0x202002], r13w
    mov dword ptr [rbx + 0x50], 0
3:  cli
    cmp ebp, r12d
    je 4f
    sti
    hlt
    jmp 3b
4:  sti
    mov r15d, 3
    cmp [0x204002], r13w
    jne 90f
    mov r15d, 4
    cmp qword ptr [0x210000], 0
    je 90f
    cmp qword ptr [0x210038], 0
    je 90f
    mov dx, 0x3fd                   # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    xor r15d, r15d
    cmp al, 0x71
    je 90f
    cmp al, 0x64
    je 1b
    cmp al, 0x6d
    je 7f
    mov ecx, 8
    mov r8d, r12d
5:  rol r8d, 4
    mov eax, r8d
    and eax, 0xf
    add eax, 0x30
    cmp eax, 0x3a
    jb 6f
    add eax, 0x27                   # a to f
6:  out dx, al
    dec ecx
    jnz 5b
    mov al, 0x0a
    out dx, al
    jmp 2b
7:  mov al, 0xfe
    out 0x64, al
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
rng_counter_interrupt:
    push rax
    push rdi
    mov eax, [rbx + 0x60]
    mov [rbx + 0x64], eax
    and eax, 1                      # a restored device may interrupt without a cause
    add ebp, eax
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xb0], 0
    pop rdi
    pop rax
    iretq
payload_rng_counter_end:
