# Guests that go on with another end of their device on the host.

# Asks the host for the address of 10.9.0.1 (ARP) from 10.9.0.2, again and again, whether there is an answer or not. A byte
# on the serial port is a command: `q` exits with 0, any other prints the number of answers.
# Queues and registers as in payload_virtio_net; r12: answers.
.globl payload_net_answers, payload_net_answers_end
payload_net_answers:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 1
    jne 90f
    mov r15d, 2
    net_negotiate 90f
    mov edi, 0x200000
    mov eax, 0x230000
    xor ecx, ecx
1:  mov [rdi], rax
    mov dword ptr [rdi + 8], 2048
    mov word ptr [rdi + 12], 2
    mov [rcx * 2 + 0x202004], cx
    add edi, 16
    add eax, 2048
    inc ecx
    cmp ecx, 8
    jne 1b
    mov edi, 0x210000
    virtio_descriptor 0x240000, 12, 1, 1
    add edi, 16
    virtio_descriptor 0x24000c, 42, 0, 0
    mov qword ptr [0x240000], 0
    mov dword ptr [0x240008], 0
    mov rax, 0x0002ffffffffffff
    mov [0x24000c], rax
    mov rax, 0x0100060801000000
    mov [0x240014], rax
    mov rax, 0x0002010004060008
    mov [0x24001c], rax
    mov rax, 0x0200090a01000000
    mov [0x240024], rax
    mov rax, 0x090a000000000000
    mov [0x24002c], rax
    mov word ptr [0x240034], 0x0100
    xor r8d, r8d
    mov r9d, 8
    xor r10d, r10d
    xor r12d, r12d
    mov word ptr [0x202002], 8
    mov r15d, 3
    virtio_status 15, 90f
    mov dword ptr [rbx + 0x50], 0
2:  mov eax, r10d                   # ask
    and eax, 15
    mov word ptr [rax * 2 + 0x212004], 0
    inc r10d
    mov [0x212002], r10w
    mov dword ptr [rbx + 0x50], 1
    mov r15d, 4
    mov ecx, 2000000
3:  cmp [0x214002], r10w            # it went out
    je 4f
    dec ecx
    jnz 3b
    jmp 90f
4:  mov ecx, 3000                   # for some milliseconds
5:  cmp [0x204002], r8w
    jne 6f
    dec ecx
    jnz 5b
    jmp 7f
6:  mov eax, r8d
    and eax, 15
    mov edx, [rax * 8 + 0x204004]
    inc r8d
    mov r15d, 5
    cmp edx, 8
    jae 90f
    mov edi, edx
    shl edi, 11
    add edi, 0x230000
    mov r11w, [rdi + 24]
    mov esi, [rdi + 40]
    mov eax, r9d
    and eax, 15
    mov [rax * 2 + 0x202004], dx
    inc r9d
    mov [0x202002], r9w
    mov dword ptr [rbx + 0x50], 0
    cmp r11w, 0x0608
    jne 7f
    cmp esi, 0x0100090a
    jne 7f
    inc r12d
7:  mov dx, 0x3fd                   # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    xor r15d, r15d
    cmp al, 0x71
    je 90f
    mov ecx, 8
    mov edi, r12d
8:  rol edi, 4
    mov eax, edi
    and eax, 0xf
    add eax, 0x30
    cmp eax, 0x3a
    jb 9f
    add eax, 0x27                   # a to f
9:  out dx, al
    dec ecx
    jnz 8b
    mov al, 0x0a
    out dx, al
    jmp 2b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_net_answers_end:

# Connects from port 1000 to port 52 of the host, and sends everything back that comes. If the host refuses, it tries again
# from the next port; after the event that its connections are gone, too, with the address that it then has. Exits with 0
# when the host ends the connection. It polls; rbx: the register window. r8: events seen. r12: packets seen. r13: packets
# sent. r14: its port.
.globl payload_vsock_again, payload_vsock_again_end
payload_vsock_again:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 19
    jne 90f
    mov r15d, 2
    virtio_negotiate 90f
    virtio_queue 0, 16, 0x200000
    virtio_queue 1, 16, 0x208000
    virtio_queue 2, 16, 0x210000
    mov r15d, 3
    virtio_status 15, 90f
    virtio_receive 16, 0x220000
    mov dword ptr [rbx + 0x50], 0
    mov edi, 0x208000
    virtio_descriptor 0x240000, 44, 0, 1
    mov edi, 0x210000
    virtio_descriptor 0x250000, 8, 2, 0
    mov dword ptr [0x250000], 0xeeeeeeee
    mov word ptr [0x212004], 0
    mov word ptr [0x212002], 1
    mov dword ptr [rbx + 0x50], 2
    xor r8d, r8d
    xor r12d, r12d
    xor r13d, r13d
    mov r14d, 1000
1:  mov edi, 0x240000               # a request
    mov eax, [rbx + 0x100]
    mov [rdi], rax
    mov qword ptr [rdi + 8], 2
    mov [rdi + 16], r14d
    mov dword ptr [rdi + 20], 52
    mov dword ptr [rdi + 24], 0
    mov word ptr [rdi + 28], 1
    mov word ptr [rdi + 30], 1
    mov dword ptr [rdi + 32], 0
    mov dword ptr [rdi + 36], 0x4000
    mov dword ptr [rdi + 40], 0
    mov word ptr [0x20800c], 0
    call vsock_again_send
2:  cmp [0x214002], r8w             # an event
    jne 8f
    cmp [0x204002], r12w            # a packet
    je 2b
    mov edi, r12d
    and edi, 15
    mov r9d, [rdi * 8 + 0x204004]
    inc r12d
    mov esi, r9d
    shl esi, 12
    add esi, 0x220000
    xor r10d, r10d
    cmp [rsi + 20], r14d            # of a former connection
    jne 5f
    movzx r10d, word ptr [rsi + 30]
    cmp r10d, 5
    jne 5f
    mov ecx, [rsi + 24]             # data goes back
    mov [0x240018], ecx
    mov word ptr [0x24001e], 5
    add [0x240028], ecx
    lea rax, [rsi + 44]
    mov [0x208010], rax
    mov [0x208018], ecx
    mov word ptr [0x20800c], 1
    call vsock_again_send
5:  movzx eax, word ptr [0x202002]  # the buffer again
    mov edi, eax
    and edi, 15
    mov [rdi * 2 + 0x202004], r9w
    inc eax
    mov [0x202002], ax
    mov dword ptr [rbx + 0x50], 0
    xor r15d, r15d
    cmp r10d, 4
    je 90f
    cmp r10d, 3
    jne 2b
    mov ecx, 2000                   # refused
6:  dec ecx
    jnz 6b
    inc r14d
    jmp 1b
8:  mov r15d, 4
    cmp dword ptr [0x250000], 0     # the connections are gone
    jne 90f
    mov r15d, 5
    mov eax, r8d
    and eax, 15
    cmp dword ptr [rax * 8 + 0x214008], 4
    jne 90f
    mov dword ptr [0x250000], 0xeeeeeeee
    inc r8d
    mov eax, r8d
    and eax, 15
    mov word ptr [rax * 2 + 0x212004], 0
    lea eax, [r8d + 1]
    mov [0x212002], ax
    mov dword ptr [rbx + 0x50], 2
    inc r14d
    jmp 1b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
vsock_again_send:
    mov eax, r13d
    and eax, 15
    mov word ptr [rax * 2 + 0x20a004], 0
    inc r13d
    mov [0x20a002], r13w
    mov dword ptr [rbx + 0x50], 1
7:  cmp [0x20c002], r13w
    jne 7b
    ret
payload_vsock_again_end:
