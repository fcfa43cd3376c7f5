# A polling driver of a virtio disk, for benchmarks: requests of one kind, kept at a depth. With `interrupts` it asks for
# them, so that the host's share in them can be counted; none reaches a CPU. It finds the disk in the first slot of Coracle's machine or of QEMU's microvm, and prints four hexadecimal numbers: cycles of the TSC from
# the first request to the last completion, doorbells rung, and the median and the 99th percentile of the cycles of one
# request, in steps of 128.
# rbx: registers, r8: descriptors, r9: available ring, r10: used ring, r11: headers and status, r12: requests to complete,
# r13: completions seen, r14: index of the available ring, r15: random numbers.
# At r11 + 32n: header, status at 16, when it was offered at 24. At r11 + 0x4000: doorbells; at 0x4008: the start.
# At 0x400000: requests by their cycles / 128, at most 65,535.

.macro block_now
    rdtsc
    shl rdx, 32
    or rax, rdx
.endm

.macro virtio_block_bench name, kind, depth, count, bytes, mask, interrupts=0
.globl payload_\name, payload_\name\()_end
payload_\name:
    virtio_bench_device 2, 90f
    mov r8d, 0x200000
    mov r9d, 0x202000
    mov r10d, 0x204000
    mov r11d, 0x210000
    virtio_bench_queue 0, 256, 0x200000
    virtio_bench_start
.if \interrupts == 0
    mov word ptr [r9], 1            # no interrupts
.endif
    # Slot n: descriptors 3n to 3n + 2, header at r11 + 32n, status 16 bytes further, data at 16 MiB + n * bytes.
    xor ecx, ecx
1:  imul edx, ecx, 48
    lea rdi, [r8 + rdx]
    mov eax, ecx
    shl eax, 5
    add rax, r11
    mov [rdi], rax
    mov dword ptr [rdi + 8], 16
    mov word ptr [rdi + 12], 1
    lea edx, [rcx + rcx * 2 + 1]
    mov [rdi + 14], dx
    mov dword ptr [rax], \kind
    add rax, 16
    mov [rdi + 32], rax
    mov dword ptr [rdi + 40], 1
    mov word ptr [rdi + 44], 2
    imul rax, rcx, \bytes
    add rax, 0x1000000
    mov [rdi + 16], rax
    mov dword ptr [rdi + 24], \bytes
.if \kind == 0
    mov word ptr [rdi + 28], 3
.else
    mov word ptr [rdi + 28], 1
.endif
    inc edx
    mov [rdi + 30], dx
    inc ecx
    cmp ecx, \depth
    jb 1b
    mov r12d, \count
    xor r13d, r13d
    xor r14d, r14d
    mov r15, 0x2545f4914f6cdd1d
    block_now
    mov [r11 + 0x4008], rax
    xor ebp, ebp                    # the first round: slot ebp, not one that was used
2:  mov eax, ebp
    call 20f
    inc ebp
    cmp ebp, \depth
    jb 2b
3:  mov [r9 + 2], r14w              # offer
    mfence
    test word ptr [r10], 1
    jnz 4f
    mov dword ptr [rbx + 0x50], 0   # ring
    inc dword ptr [r11 + 0x4000]
4:  cmp [r10 + 2], r13w             # poll
    je 4b
5:  movzx eax, r13b                 # each that is done
    mov eax, [r10 + rax * 8 + 4]
    xor edx, edx
    mov ecx, 3
    div ecx
    mov ecx, eax
    shl ecx, 5
    cmp byte ptr [r11 + rcx + 16], 0
    jne 91f
    mov esi, ecx
    mov edi, eax
    block_now
    sub rax, [r11 + rsi + 24]
    shr rax, 7
    mov ecx, 0xffff
    cmp rax, rcx
    cmova rax, rcx
    mov edx, 0x400000
    inc dword ptr [rdx + rax * 4]
    mov eax, edi
    inc r13d
    dec r12d
    jz 92f
    call 20f
    cmp [r10 + 2], r13w
    jne 5b
    jmp 3b
# Puts slot eax into the available ring, at a random place of the disk.
20: mov rdx, r15
    shl rdx, 13
    xor r15, rdx
    mov rdx, r15
    shr rdx, 7
    xor r15, rdx
    mov rdx, r15
    shl rdx, 17
    xor r15, rdx
    mov rdx, r15
    and edx, \mask
    mov ecx, eax
    shl ecx, 5
    mov byte ptr [r11 + rcx + 16], 0xee
    mov [r11 + rcx + 8], rdx
    lea ecx, [rax + rax * 2]
    movzx edx, r14b
    mov [r9 + rdx * 2 + 4], cx
    inc r14d
    shl eax, 5
    mov esi, eax
    block_now
    mov [r11 + rsi + 24], rax
    ret
# The least cycles, in steps, that esi requests did not exceed.
30: mov edi, 0x400000
    xor eax, eax
    xor ecx, ecx
31: add ecx, [rdi + rax * 4]
    cmp ecx, esi
    jae 32f
    inc eax
    cmp eax, 0xffff
    jb 31b
32: shl rax, 7
# Prints rax.
40: virtio_bench_print
    ret
91: mov eax, 3
90: virtio_bench_end
92: block_now
    sub rax, [r11 + 0x4008]
    call 40b
    mov eax, [r11 + 0x4000]
    call 40b
    mov esi, \count / 2
    call 30b
    mov esi, \count - \count / 100
    call 30b
    xor eax, eax
    jmp 90b
payload_\name\()_end:
.endm

# Sectors of a disk of 64 MiB, at multiples of 4 KiB or 1 MiB.
virtio_block_bench block_read_1, 0, 1, 20000, 4096, 0x1fff8
virtio_block_bench block_read_32, 0, 32, 500000, 4096, 0x1fff8
virtio_block_bench block_read_cold, 0, 32, 8000, 4096, 0x1fff8
virtio_block_bench block_write_32, 1, 32, 100000, 4096, 0x1fff8
virtio_block_bench block_stream_read, 0, 8, 8000, 1048576, 0x1f800
virtio_block_bench block_stream_write, 1, 8, 2000, 1048576, 0x1f800
virtio_block_bench block_count_1, 0, 1, 2000, 4096, 0x1fff8, 1
virtio_block_bench block_count_32, 0, 32, 8000, 4096, 0x1fff8, 1
virtio_block_bench block_count_write_32, 1, 32, 8000, 4096, 0x1fff8, 1
