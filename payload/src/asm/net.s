# Resets the card, takes its features, and makes its two queues, empty, at 0x200000 and 0x210000.
.macro net_negotiate failed
    virtio_negotiate \failed
    mov edi, 0x200000
    xor eax, eax
    mov ecx, 0x20000 / 8
    cld
    rep stosq
    virtio_queue 0, 16, 0x200000
    virtio_queue 1, 16, 0x210000
.endm

# Three lives of a network card, which ask the host 50 times each for the address of 10.9.0.1 (ARP) from 10.9.0.2.
#
# Queue 0 is at 0x200000 with eight buffers of 2 KiB from 0x230000 on, queue 1 at 0x210000 with the question at 0x240000.
# r8: answers seen, r9: buffers offered, r10: questions asked, r12: questions left, r14: lives left.
.globl payload_virtio_net, payload_virtio_net_end
payload_virtio_net:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 1
    jne 90f
    mov r15d, 2
    cmp dword ptr [rbx + 0x100], 0x00000002     # the address 02:00:00:00:00:01
    jne 90f
    cmp word ptr [rbx + 0x104], 0x0100
    jne 90f
    mov r15d, 3
    cmp word ptr [rbx + 0x106], 1               # the link is up
    jne 90f
    mov r14d, 3
1:  mov r15d, 4
    net_negotiate 90f
    mov edi, 0x200000                           # eight buffers, which the heads 0 to 7 name
    mov eax, 0x230000
    xor ecx, ecx
2:  mov [rdi], rax
    mov dword ptr [rdi + 8], 2048
    mov word ptr [rdi + 12], 2
    mov [rcx * 2 + 0x202004], cx
    add edi, 16
    add eax, 2048
    inc ecx
    cmp ecx, 8
    jne 2b
    mov edi, 0x210000                           # header and question lie apart
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
    mov r12d, 50
    mov word ptr [0x202002], 8
    mov r15d, 5
    virtio_status 15, 90f
    mov dword ptr [rbx + 0x50], 0
3:  mov eax, r10d                               # ask
    and eax, 15
    mov word ptr [rax * 2 + 0x212004], 0
    inc r10d
    mov [0x212002], r10w
    mov dword ptr [rbx + 0x50], 1
    mov r15d, 6
    mov ecx, 4000000
4:  cmp [0x214002], r10w                        # it went out
    je 5f
    dec ecx
    jnz 4b
    jmp 90f
5:  mov r15d, 7
    mov ecx, 4000000
6:  cmp [0x204002], r8w                         # something came
    jne 7f
    dec ecx
    jnz 6b
    jmp 90f
7:  mov eax, r8d
    and eax, 15
    mov edx, [rax * 8 + 0x204004]               # into which buffer
    mov ebp, [rax * 8 + 0x204008]               # and how much
    inc r8d
    mov r15d, 8
    cmp edx, 8
    jae 90f
    mov edi, edx
    shl edi, 11
    add edi, 0x230000
    mov eax, r9d                                # which is offered again, after a look
    and eax, 15
    mov r11w, [rdi + 24]                        # the protocol
    mov esi, [rdi + 40]                         # who answers
    mov [rax * 2 + 0x202004], dx
    inc r9d
    mov r15d, 9
    cmp ebp, 54
    jb 90f
    cmp word ptr [rdi + 10], 1                  # buffers of this frame
    jne 90f
    mov [0x202002], r9w
    mov dword ptr [rbx + 0x50], 0
    cmp r11w, 0x0608
    jne 5b                                      # the host says other things, too
    cmp esi, 0x0100090a
    jne 5b
    dec r12d
    jnz 3b
    dec r14d
    jnz 1b
    xor r15d, r15d
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_virtio_net_end:

# Starts a network card, waits until its link goes down, says so with one byte on the serial port, and halts for ever.
.globl payload_virtio_net_down, payload_virtio_net_down_end
payload_virtio_net_down:
    mov ebx, 0xd0000000
    mov r15d, 1
    net_negotiate 90f
    mov r15d, 2
    virtio_status 15, 90f
    mov r15d, 3
    cmp word ptr [rbx + 0x106], 1
    jne 90f
    mov dx, 0x3f8
    mov al, 'u'
    out dx, al
1:  test dword ptr [rbx + 0x60], 2              # the configuration has changed
    jz 1b
    mov r15d, 4
    cmp word ptr [rbx + 0x106], 0
    jne 90f
    mov al, 'd'
    out dx, al
2:  hlt
    jmp 2b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_virtio_net_down_end:

# Starts a network card, and prints `!`. A byte on the serial port is a command: `q` exits with 0, `d` starts the driver
# again, any other prints the card's address (6 bytes) and whether the configuration has changed (1 byte), which it
# acknowledges.
.globl payload_net_address, payload_net_address_end
payload_net_address:
    mov ebx, 0xd0000000
1:  mov r15d, 1
    net_negotiate 90f
    mov r15d, 2
    virtio_status 15, 90f
    mov dx, 0x3f8
    mov al, '!'
    out dx, al
2:  mov dx, 0x3fd                               # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    xor r15d, r15d
    cmp al, 'q'
    je 90f
    cmp al, 'd'
    je 1b
    lea esi, [rbx + 0x100]
    mov ecx, 6
3:  mov al, [rsi]
    out dx, al
    inc esi
    dec ecx
    jnz 3b
    mov eax, [rbx + 0x60]
    shr eax, 1
    and eax, 1
    out dx, al
    mov dword ptr [rbx + 0x64], 2
    jmp 2b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_net_address_end:
