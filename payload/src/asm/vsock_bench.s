# A polling driver of a socket device, for benchmarks: 256 MiB one way on a connection that the host makes, without
# interrupts. Packets of up to 64 KiB go out, and 128 buffers of 4 KiB take what comes, and are offered again when half of
# them have been used, as Linux has it.
# rbx: registers, r8: bytes to send, r9: the buffer of a packet, r10: buffers offered or to be offered, r11: bytes that the host was last told of, r12: packets
# received, r13: packets sent, r14: the most bytes that the host takes in all, r15: bytes received, ebp: bytes sent.
# Slot n of those that are sent: descriptors 2n and 2n + 1, header at 3 MiB + 64n, data at 32 MiB + n * 64 KiB.

.macro virtio_vsock_bench name, count
.globl payload_\name, payload_\name\()_end
payload_\name:
    mov ebx, 0xd0000000
    mov eax, 1
    cmp dword ptr [rbx + 8], 19
    jne 90f
    mov eax, 2
    mov dword ptr [rbx + 0x70], 0
    mov dword ptr [rbx + 0x70], 3
    mov dword ptr [rbx + 0x24], 0
    mov dword ptr [rbx + 0x20], 0
    mov dword ptr [rbx + 0x24], 1
    mov dword ptr [rbx + 0x20], 1   # VERSION_1, nothing else
    mov dword ptr [rbx + 0x70], 11
    cmp dword ptr [rbx + 0x70], 11
    jne 90f
    virtio_queue 0, 128, 0x200000
    virtio_queue 1, 16, 0x208000
    mov word ptr [0x202000], 1      # no interrupts
    mov word ptr [0x20a000], 1
    virtio_receive 128, 0x1000000
    xor ecx, ecx
2:  mov edi, ecx
    shl edi, 5
    add edi, 0x208000
    mov eax, ecx
    shl eax, 6
    add eax, 0x300000
    mov [rdi], rax
    mov dword ptr [rdi + 8], 44
    lea edx, [rcx + rcx + 1]
    mov [rdi + 14], dx
    mov edx, ecx
    shl edx, 16
    add edx, 0x2000000
    mov [rdi + 16], rdx
    mov qword ptr [rax], 3
    mov qword ptr [rax + 8], 2
    mov word ptr [rax + 28], 1
    mov dword ptr [rax + 36], 0x100000  # room for 1 MiB
    inc ecx
    cmp ecx, 8
    jb 2b
    mov r8d, \count
    mov r10d, 128
    xor r11d, r11d
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    xor r15d, r15d
    xor ebp, ebp
    mov dword ptr [rbx + 0x70], 15
    mov dword ptr [rbx + 0x50], 0
3:  cmp [0x204002], r12w
    jne 5f
    mov ecx, r14d                   # as much as there is room for
    sub ecx, ebp
    mov eax, 0x10000
    cmp ecx, eax
    cmova ecx, eax
    cmp ecx, r8d
    cmova ecx, r8d
    test ecx, ecx
    jnz 4f
    pause
    jmp 3b
4:  mov esi, 5
    call 20f
    add ebp, ecx
    sub r8d, ecx
    jnz 3b
    mov esi, 4                      # all is sent
    xor ecx, ecx
    call 20f
    jmp 3b
5:  mov edi, r12d
    and edi, 127
    mov r9d, [rdi * 8 + 0x204004]
    inc r12d
    mov esi, r9d
    shl esi, 12
    add esi, 0x1000000
    mov r14d, [rsi + 36]
    add r14d, [rsi + 40]
    movzx eax, word ptr [rsi + 30]
    cmp eax, 5
    je 7f
    cmp eax, 1
    je 6f
    cmp eax, 4
    je 8f
    cmp eax, 3
    jne 9f
    mov eax, r8d                    # a reset: 0 when all is sent, and as much has come as was to come
    or eax, ebp
    or eax, r15d
    xor eax, 0x10000000
    jz 90f
    mov eax, 3
    jmp 90f
6:  mov eax, [rsi + 16]             # a request: its ports, for all that is sent
    mov edx, [rsi + 20]
    mov edi, 0x300000
61: mov [rdi + 16], edx
    mov [rdi + 20], eax
    add edi, 64
    cmp edi, 0x300200
    jb 61b
    mov esi, 2
    xor ecx, ecx
    call 20f
    jmp 9f
7:  add r15d, [rsi + 24]            # data: the host hears of the room at every 256 KiB
    mov eax, r15d
    sub eax, r11d
    cmp eax, 0x40000
    jb 9f
    mov r11d, r15d
    mov esi, 6
    xor ecx, ecx
    call 20f
    jmp 9f
8:  mov esi, 4
    xor ecx, ecx
    call 20f
9:  mov edi, r10d                   # the buffer again
    and edi, 127
    mov [rdi * 2 + 0x202004], r9w
    inc r10d
    mov eax, r10d
    sub ax, [0x202002]
    cmp ax, 64
    jb 3b
    mov [0x202002], r10w
    mfence
    test word ptr [0x204000], 1
    jnz 3b
    mov dword ptr [rbx + 0x50], 0
    jmp 3b
# Sends a packet of kind esi with ecx bytes.
20: movzx eax, word ptr [0x20c002]
    mov edx, r13d
    sub dx, ax
    cmp dx, 8
    jae 20b
    mov eax, r13d
    and eax, 7
    mov edi, eax
    shl edi, 6
    add edi, 0x300000
    mov [rdi + 24], ecx
    mov [rdi + 30], si
    mov dword ptr [rdi + 32], 0
    mov [rdi + 40], r15d
    cmp esi, 4
    jne 21f
    mov dword ptr [rdi + 32], 3     # an end of both ways
21: mov edx, eax
    shl edx, 5
    add edx, 0x208000
    mov word ptr [rdx + 12], 0
    test ecx, ecx
    jz 22f
    mov word ptr [rdx + 12], 1
    mov [rdx + 24], ecx
22: mov edx, r13d
    and edx, 15
    add eax, eax
    mov [rdx * 2 + 0x20a004], ax
    inc r13d
    mov [0x20a002], r13w
    mfence
    test word ptr [0x20c000], 1
    jnz 23f
    mov dword ptr [rbx + 0x50], 1
23: ret
90: out 0xf4, al
93: jmp 93b
payload_\name\()_end:
.endm

virtio_vsock_bench vsock_send, 0x10000000
virtio_vsock_bench vsock_receive, 0
