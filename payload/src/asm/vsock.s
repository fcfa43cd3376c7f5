# A socket device: connects from port 1000 to port 52 of the host and sends everything back that comes. When the host
# has no more, it ends the connection both ways and waits for the reset. It polls; rbx: the register window.
# ebp: bytes sent. r12: packets seen. r13: packets sent. r14: 1 once it has ended the connection.
.globl payload_virtio_vsock, payload_virtio_vsock_end
payload_virtio_vsock:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 19
    jne 90f
    mov r15d, 2
    virtio_negotiate 90f
    virtio_queue 0, 16, 0x200000
    virtio_queue 1, 16, 0x208000
    mov r15d, 3
    virtio_status 15, 90f
    mov r15d, 4
    cmp dword ptr [rbx + 0x100], 3
    jne 90f
    virtio_receive 16, 0x220000
    mov dword ptr [rbx + 0x50], 0
    mov edi, 0x208000
    virtio_descriptor 0x240000, 44, 0, 1
    # The header of what is sent: a request
    mov edi, 0x240000
    mov qword ptr [rdi], 3
    mov qword ptr [rdi + 8], 2
    mov dword ptr [rdi + 16], 1000
    mov dword ptr [rdi + 20], 52
    mov word ptr [rdi + 28], 1
    mov word ptr [rdi + 30], 1
    mov dword ptr [rdi + 36], 0x4000
    xor ebp, ebp
    xor r12d, r12d
    xor r13d, r13d
    xor r14d, r14d
    call vsock_send
2:  cmp [0x204002], r12w            # the next packet
    je 2b
    mov edi, r12d
    and edi, 15
    mov r9d, [rdi * 8 + 0x204004]
    inc r12d
    mov esi, r9d
    shl esi, 12
    add esi, 0x220000
    movzx eax, word ptr [rsi + 30]
    cmp eax, 5
    je 3f
    cmp eax, 4
    je 5f
    cmp eax, 3
    jne 6f
    mov r15d, 6                     # a reset, at the right time or not
    cmp r14d, 1
    jne 90f
    xor r15d, r15d
    jmp 90f
3:  mov ecx, [rsi + 24]             # data: room as the newest packet tells it
4:  movzx eax, word ptr [0x204002]
    dec eax
    and eax, 15
    mov edi, [rax * 8 + 0x204004]
    shl edi, 12
    add edi, 0x220000
    mov edx, ebp
    sub edx, [rdi + 40]
    add edx, ecx
    cmp edx, [rdi + 36]
    ja 4b
    add ebp, ecx
    mov [0x240018], ecx
    mov word ptr [0x24001e], 5
    add [0x240028], ecx
    lea rax, [rsi + 44]
    mov [0x208010], rax
    mov [0x208018], ecx
    mov word ptr [0x20800c], 1
    call vsock_send
    jmp 6f
5:  mov dword ptr [0x240018], 0     # the host has no more, and says so once or twice
    test r14d, r14d
    jnz 6f
    mov r14d, 1
    mov word ptr [0x24001e], 4
    mov dword ptr [0x240020], 3
    mov word ptr [0x20800c], 0
    call vsock_send
6:  movzx eax, word ptr [0x202002]  # the buffer again
    mov edi, eax
    and edi, 15
    mov [rdi * 2 + 0x202004], r9w
    inc eax
    mov [0x202002], ax
    mov dword ptr [rbx + 0x50], 0
    jmp 2b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
vsock_send:
    mov eax, r13d
    and eax, 15
    mov word ptr [rax * 2 + 0x20a004], 0
    inc r13d
    mov [0x20a002], r13w
    mov dword ptr [rbx + 0x50], 1
7:  cmp [0x20c002], r13w
    jne 7b
    ret
payload_virtio_vsock_end:
