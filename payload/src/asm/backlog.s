# Drivers that offer each of their disks 256 requests of one kind at once, the longest that a disk takes, and print a
# `q`. Then they do what they read: a `p` powers off, a `w` waits for all completions and leaves with 0 if each request
# was done once and well; with 1 for a disk that does not start, 3 for a bad completion, 4 for wrong data. rbx:
# registers of a disk, ebp: its slot, r8: its queue, r9: its requests, r10: bytes of one. Request n is at r9 + 64n:
# three descriptors, and the status at 48. The range of a discard is at r9 + 0x4000. Bytes are read into and written
# from 0x2000000 on: each page begins with its number, counted from 1.

.macro virtio_backlog name, kind, data_flags
.globl payload_\name, payload_\name\()_end
payload_\name:
    mov dword ptr [0x1800000], \kind
    mov dword ptr [0x1800004], 0
    mov qword ptr [0x1800008], 0
.if \kind == 1
    mov edi, 0x2000000
    mov eax, 1
2:  mov [rdi], rax
    add edi, 4096
    inc eax
    cmp edi, 0x4000000
    jb 2b
.endif
    xor ebp, ebp
    mov r8d, 0x1000000
    mov r9d, 0x1400000
3:  mov ebx, ebp
    shl ebx, 12
    add ebx, 0xd0000000
    cmp dword ptr [rbx], 0x74726976
    jne 6f
    cmp dword ptr [rbx + 8], 2
    jne 5f
    mov dword ptr [rbx + 0x70], 0
    mov dword ptr [rbx + 0x70], 1
    mov dword ptr [rbx + 0x70], 3
    mov dword ptr [rbx + 0x14], 0
    mov dword ptr [rbx + 0x24], 0
    mov eax, [rbx + 0x10]
    btr eax, 29                     # doorbells and interrupts without an index
    mov [rbx + 0x20], eax
    mov dword ptr [rbx + 0x14], 1
    mov dword ptr [rbx + 0x24], 1
    mov eax, [rbx + 0x10]
    mov [rbx + 0x20], eax
    mov dword ptr [rbx + 0x70], 11
    mov dword ptr [rbx + 0x30], 0
    mov dword ptr [rbx + 0x38], 256
    mov [rbx + 0x80], r8d
    mov dword ptr [rbx + 0x84], 0
    lea eax, [r8 + 0x2000]
    mov [rbx + 0x90], eax
    mov dword ptr [rbx + 0x94], 0
    lea eax, [r8 + 0x4000]
    mov [rbx + 0xa0], eax
    mov dword ptr [rbx + 0xa4], 0
    mov dword ptr [rbx + 0x44], 1
    mov dword ptr [rbx + 0x70], 15
    mov r15d, 1
    cmp dword ptr [rbx + 0x70], 15
    jne 90f
    mov eax, [rbx + 0x100]          # sectors
    mov edx, eax
    mov ecx, 1 << 21
    cmp edx, ecx
    cmova edx, ecx
    mov qword ptr [r9 + 0x4000], 0
    mov [r9 + 0x4008], edx
    mov dword ptr [r9 + 0x400c], 0
    mov ecx, 1 << 16
    cmp eax, ecx
    cmova eax, ecx
    shl eax, 9
    mov r10d, eax
    xor ecx, ecx
4:  mov esi, ecx
    shl esi, 6
    add rsi, r9
    mov qword ptr [rsi], 0x1800000
    mov dword ptr [rsi + 8], 16
    mov dword ptr [rsi + 12], 0x10001
.if \kind <= 1
    mov qword ptr [rsi + 16], 0x2000000
    mov [rsi + 24], r10d
.else
    lea rax, [r9 + 0x4000]
    mov [rsi + 16], rax
.if \kind == 4
    mov dword ptr [rsi + 24], 0
.else
    mov dword ptr [rsi + 24], 16
.endif
.endif
    mov dword ptr [rsi + 28], 0x20000 + \data_flags
    lea rax, [rsi + 48]
    mov [rsi + 32], rax
    mov dword ptr [rsi + 40], 1
    mov dword ptr [rsi + 44], 2
    mov byte ptr [rsi + 48], 0xee
    mov edi, ecx
    shl edi, 4
    add rdi, r8
    mov [rdi], rsi
    mov dword ptr [rdi + 8], 48
    mov dword ptr [rdi + 12], 4
    mov [r8 + rcx * 2 + 0x2004], cx
    inc ecx
    cmp ecx, 256
    jb 4b
    mov word ptr [r8 + 0x2002], 256
    mov dword ptr [rbx + 0x50], 0
    add r8d, 0x10000
    add r9d, 0x10000
5:  inc ebp
    cmp ebp, 17                     # all the devices that a machine has interrupts for
    jb 3b
6:  mov edx, 0x3f8
    mov al, 'q'
    out dx, al
7:  mov edx, 0x3fd
    in al, dx
    test al, 1
    jz 7b
    mov edx, 0x3f8
    in al, dx
    cmp al, 'p'
    je 80f
    cmp al, 'w'
    jne 7b
    mov edi, 0x1000000
    mov esi, 0x1400000
20: cmp edi, r8d
    jae 30f
21: cmp word ptr [rdi + 0x4002], 256
    jne 21b
    mov r15d, 3
    xor ecx, ecx
22: mov eax, [rdi + rcx * 8 + 0x4004]
    cmp eax, 255
    ja 90f
    shl eax, 6
    add rax, rsi
    cmp byte ptr [rax + 48], 0
    jne 90f
    mov byte ptr [rax + 48], 0xdd   # it may come once
    inc ecx
    cmp ecx, 256
    jb 22b
    cmp word ptr [rdi + 0x4002], 256
    jne 90f
    add edi, 0x10000
    add esi, 0x10000
    jmp 20b
30: mov r15d, 4
.if \kind == 0
    mov edi, 0x2000000
    lea edx, [rdi + r10]
    mov eax, 1
31: cmp [rdi], rax
    jne 90f
    add edi, 4096
    inc eax
    cmp edi, edx
    jb 31b
.endif
    xor r15d, r15d
    jmp 90f
80: mov edx, 0x600
    mov al, 0x34
    out dx, al
81: jmp 81b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_\name\()_end:
.endm

virtio_backlog backlog_read, 0, 3
virtio_backlog backlog_write, 1, 1
virtio_backlog backlog_flush, 4, 1
virtio_backlog backlog_discard, 11, 1
virtio_backlog backlog_zeroes, 13, 1
