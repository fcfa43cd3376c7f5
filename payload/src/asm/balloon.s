# Touches 64 MiB from 16 MiB on, and gives them back by a balloon: first reported, then by their numbers. Between the
# steps it prints a letter and waits for any byte.

.macro balloon_step letter
    mov dx, 0x3f8
    mov al, \letter
    out dx, al
    mov dx, 0x3fd
74: in al, dx
    test al, 1
    jz 74b
    mov dx, 0x3f8
    in al, dx
.endm

# Every page has to be zero, and gets a mark.
.macro balloon_touch failed
    mov edi, 0x1000000
75: cmp dword ptr [rdi], 0
    jne \failed
    mov [rdi], edi
    add edi, 0x1000
    cmp edi, 0x5000000
    jne 75b
.endm

# Offers head 0 of queue `queue`, whose rings are at `at`, and waits for it; `index` is the new index.
.macro balloon_offer queue, at, index, failed
    mov word ptr [\at + 0x2004 + 2 * (\index - 1)], 0
    mov word ptr [\at + 0x2002], \index
    mov dword ptr [rbx + 0x50], \queue
    mov ecx, 4000000
76: cmp word ptr [\at + 0x4002], \index
    je 77f
    dec ecx
    jnz 76b
    jmp \failed
77:
.endm

.globl payload_virtio_balloon, payload_virtio_balloon_end
payload_virtio_balloon:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 5
    jne 90f
    mov r15d, 2
    balloon_touch 90f
    balloon_step 't'
    mov r15d, 3
    virtio_negotiate 90f
    virtio_queue 0, 16, 0x200000
    virtio_queue 1, 16, 0x210000
    virtio_queue 2, 16, 0x220000
    virtio_status 15, 90f
    mov edi, 0x220000                           # eight buffers of 8 MiB
    mov eax, 0x1000000
    mov ecx, 1
1:  mov [rdi], rax
    mov dword ptr [rdi + 8], 0x800000
    mov word ptr [rdi + 12], 3
    mov [rdi + 14], cx
    add edi, 16
    add eax, 0x800000
    inc ecx
    cmp ecx, 9
    jne 1b
    mov word ptr [rdi - 4], 2
    mov r15d, 4
    balloon_offer 2, 0x220000, 1, 90f
    balloon_step 'r'
    mov r15d, 5
    balloon_touch 90f
    balloon_step 't'
    mov edi, 0x200000                           # lists of 4,096 numbers
    virtio_descriptor 0x230000, 0x4000, 0, 0
    mov edi, 0x210000
    virtio_descriptor 0x230000, 0x4000, 0, 0
    mov r15d, 6
    mov eax, 0x1000
.irp index, 1, 2, 3, 4
    mov edi, 0x230000
2:  mov [rdi], eax
    inc eax
    add edi, 4
    cmp edi, 0x234000
    jne 2b
    mov r12d, eax
    balloon_offer 0, 0x200000, \index, 90f
    mov eax, r12d
.endr
    balloon_step 'i'
    mov r15d, 7
    balloon_offer 1, 0x210000, 1, 90f
    mov r15d, 8
    balloon_touch 90f
    xor r15d, r15d
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_virtio_balloon_end:
