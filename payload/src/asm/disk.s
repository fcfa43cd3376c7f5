# Three lives with a virtio disk. Each writes its number to sector 5 and flushes, reads back what the life before has
# written to it, damages the ring until the device needs a reset, starts it again, and resets the machine with
# requests in work. The last one exits.

# Sends one request of kind `kind` for sector 5 with 512 bytes at 0x212000, and waits for it; the status is in al.
.macro virtio_block_one kind, data_flags
    mov dword ptr [0x211000], \kind
    mov dword ptr [0x211004], 0
    mov qword ptr [0x211008], 5
    mov byte ptr [0x211800], 0xee
    mov edi, 0x200000
    virtio_descriptor 0x211000, 16, 1, 1
    add edi, 16
    virtio_descriptor 0x212000, 512, \data_flags, 2
    add edi, 16
    virtio_descriptor 0x211800, 1, 2, 0
    mov eax, r13d
    and eax, 15
    mov word ptr [rax * 2 + 0x202004], 0
    inc r13d
    mov [0x202002], r13w
    mov dword ptr [rbx + 0x50], 0
    mov ecx, 4000000
71: cmp [0x204002], r13w
    je 72f
    dec ecx
    jnz 71b
    mov r15d, 99
    jmp 90f
72: mov al, [0x211800]
.endm

.macro virtio_block_start failed
    virtio_negotiate \failed
    mov edi, 0x200000
    xor eax, eax
    mov ecx, 0x6000 / 8
    cld
    rep stosq
    virtio_queue 0, 16, 0x200000
    virtio_status 15, \failed
    xor r13d, r13d
.endm

.globl payload_virtio_block, payload_virtio_block_end
payload_virtio_block:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 2
    jne 90f
    mov r15d, 2
    cmp dword ptr [rbx + 0x100], 64 # sectors
    jne 90f
    cmp dword ptr [rbx + 0x70], 0   # as new in every life
    jne 90f
    mov al, 0x40                    # the life's number
    out 0x70, al
    in al, 0x71
    inc al
    mov r14b, al
    mov al, 0x40
    out 0x70, al
    mov al, r14b
    out 0x71, al
    mov r15d, 3
    virtio_block_start 90f
    mov r15d, 4                     # what the life before has written
    virtio_block_one 0, 3
    test al, al
    jne 90f
    mov al, r14b
    dec al
    mov r15d, 5
    cmp [0x212000], al
    jne 90f
    cmp [0x2121ff], al
    jne 90f
    mov edi, 0x212000
    mov ecx, 512
    mov al, r14b
    rep stosb
    mov r15d, 6
    virtio_block_one 1, 1
    test al, al
    jne 90f
    mov r15d, 7
    virtio_block_one 4, 1
    test al, al
    jne 90f
    mov r15d, 8
    lea eax, [r13 + 17]             # more than the ring holds
    mov [0x202002], ax
    mov dword ptr [rbx + 0x50], 0
    mov ecx, 4000000
1:  test dword ptr [rbx + 0x70], 64
    jnz 2f
    dec ecx
    jnz 1b
    jmp 90f
2:  mov r15d, 9
    virtio_block_start 90f
    virtio_block_one 0, 3
    test al, al
    jne 90f
    cmp [0x212000], r14b
    jne 90f
    mov r15d, 0
    cmp r14b, 3
    je 90f
    mov ecx, 16                     # and away, amid sixteen more
3:  lea eax, [rcx - 1]
    mov word ptr [rax * 2 + 0x202004], 0
    dec ecx
    jnz 3b
    add r13d, 16
    mov [0x202002], r13w
    mov dword ptr [rbx + 0x50], 0
    mov al, 0xfe
    out 0x64, al
4:  jmp 4b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_virtio_block_end:

# Starts and resets a disk for ever, with a request in flight at each reset, and prints a `.` after every 64 starts.
# Leaves with 1 if the disk does not start.
.globl payload_restart_disk, payload_restart_disk_end
payload_restart_disk:
    mov ebx, 0xd0000000
    mov r15d, 1
    mov dword ptr [0x211000], 0     # a read of sector 0
    mov dword ptr [0x211004], 0
    mov qword ptr [0x211008], 0
    mov edi, 0x200000
    virtio_descriptor 0x211000, 16, 1, 1
    add edi, 16
    virtio_descriptor 0x212000, 512, 3, 2
    add edi, 16
    virtio_descriptor 0x211800, 1, 2, 0
1:  mov r12d, 64
2:  virtio_negotiate 90f
    mov dword ptr [0x202000], 0
    mov word ptr [0x202004], 0
    mov dword ptr [0x204000], 0
    virtio_queue 0, 16, 0x200000
    virtio_status 15, 90f
    mov word ptr [0x202002], 1
    mov dword ptr [rbx + 0x50], 0
    dec r12d
    jnz 2b
    mov edx, 0x3f8
    mov al, '.'
    out dx, al
    jmp 1b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_restart_disk_end:
