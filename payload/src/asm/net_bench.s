# A polling driver of a network card, for benchmarks: frames of one length one way, up to 256 of them at once, without
# interrupts. It prints a byte before the first and exits after the last. With `interrupts` it asks for them, so that the
# host's share in them can be counted, although none reaches a CPU, and prints the number of doorbells that it rang.
# rbx: registers, r8: descriptors, r9: available ring, r10: used ring, r12: frames to go, r13: completions seen,
# r14: index of the available ring, r15: doorbells rung.

.macro virtio_net_bench name, queue, len, count, interrupts=0
.globl payload_\name, payload_\name\()_end
payload_\name:
    virtio_bench_device 1, 90f
.if \queue == 0
    virtio_bench_queue 1, 256, 0x210000
    virtio_bench_queue 0, 256, 0x200000
.else
    virtio_bench_queue 0, 256, 0x200000
    virtio_bench_queue 1, 256, 0x210000
.endif
    mov r8d, 0x200000 + 0x10000 * \queue
    lea r9, [r8 + 0x2000]
    lea r10, [r8 + 0x4000]
.if \interrupts == 0
    mov word ptr [0x202000], 1      # no interrupts
    mov word ptr [0x212000], 1
.endif
    # Slot n: descriptor n, header and frame at 16 MiB + n * 2 KiB, or 64 KiB for a long one. Short frames lie side by
    # side, as those of Linux do: at a distance of 64 KiB they would share a few lines of the CPU's cache.
    xor ecx, ecx
    mov edi, 0x1000000
    mov rdx, r8
2:  mov [rdx], rdi
    mov dword ptr [rdx + 8], 12 + \len
.if \queue == 0
    mov word ptr [rdx + 12], 2
.endif
    mov rax, 0x0002020000000002     # from 02:00:00:00:00:01 to 02:00:00:00:00:02, a protocol for experiments
    mov [rdi + 12], rax
    mov dword ptr [rdi + 20], 0x01000000
    mov word ptr [rdi + 24], 0xb588
    mov [r9 + rcx * 2 + 4], cx
    add rdx, 16
.if \len < 2000
    add edi, 0x800
.else
    add edi, 0x10000
.endif
    inc ecx
    cmp ecx, 256
    jb 2b
    virtio_bench_start
    mov dx, 0x3f8
    mov al, '!'
    out dx, al
    mov r12d, \count
    xor r13d, r13d
    xor r15d, r15d
    mov r14d, 256
3:  mov [r9 + 2], r14w              # offer
    mfence
    test word ptr [r10], 1
    jnz 4f
    mov dword ptr [rbx + 0x50], \queue  # ring
    inc r15d
4:  pause
    cmp [r10 + 2], r13w             # poll
    je 4b
5:  movzx eax, r13b                 # each that is done goes again
    mov eax, [r10 + rax * 8 + 4]
    movzx edx, r14b
    mov [r9 + rdx * 2 + 4], ax
    inc r14d
    inc r13d
    dec r12d
    jz 92f
    cmp [r10 + 2], r13w
    jne 5b
    jmp 3b
92:
.if \interrupts
    mov eax, r15d
    virtio_bench_print
.endif
    xor eax, eax
90: virtio_bench_end
payload_\name\()_end:
.endm

virtio_net_bench net_send_60, 1, 60, 1000000
virtio_net_bench net_send_1514, 1, 1514, 1000000
virtio_net_bench net_send_64k, 1, 65000, 100000
virtio_net_bench net_receive_60, 0, 60, 500000
virtio_net_bench net_receive_1514, 0, 1514, 500000
virtio_net_bench net_receive_64k, 0, 65000, 50000
virtio_net_bench net_count_send, 1, 1514, 8000, 1
virtio_net_bench net_count_receive, 0, 1514, 8000, 1
