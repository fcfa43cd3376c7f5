# Bodies that are frozen, and that go on in forks.

# Touches 8 MiB from 2 MiB on and prints a byte. Prints another one when kvm-clock tells of a pause (see payload_clock),
# as it does in each fork, and halts.
.globl payload_fork_mark, payload_fork_mark_end
payload_fork_mark:
    mov edi, 0x200000
1:  mov [rdi], rdi
    add edi, 0x1000
    cmp edi, 0xa00000
    jb 1b
    mov ecx, 0x4b564d01             # MSR_KVM_SYSTEM_TIME_NEW
    mov eax, 0x130001
    xor edx, edx
    wrmsr
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
2:  pause
    test byte ptr [0x13001d], 2
    jz 2b
    mov al, 0x2e
    out dx, al
    cli
3:  hlt
    jmp 3b
payload_fork_mark_end:

# In ring 3: has values of its own in the AVX registers, on the stack of the x87 and in both control words, and prints a
# byte. Finds them again after each look at the serial port, until a byte comes: exits with 0 then, and with 1 to 4 when
# something has changed. See payload_avx.
.globl payload_fork_fpu, payload_fork_fpu_end
payload_fork_fpu:
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 26
    jnc 1f
    mov rax, cr4
    or eax, 1 << 18
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 7                      # x87, SSE, AVX
    xsetbv
1:  push 0x23
    push 0x118000
    push 0x2
    push 0x2b
    lea rax, [rip + fpu_ring3]
    push rax
    iretq
fpu_ring3:
    lea rsi, [rsp - 0x200]
    fninit
    mov word ptr [rsi], 0x0e7f      # round down, 64 bits
    fldcw [rsi]
    fldpi
    fld1
    mov dword ptr [rsi], 0x7f80     # round toward zero
    ldmxcsr [rsi]
    mov eax, 0x3fc00000             # 1.5
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    add eax, 0x10000
    mov [rsi], eax
    vbroadcastss ymm\n, dword ptr [rsi]
.endr
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
2:  mov eax, 0x3fc00000
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    add eax, 0x10000
    vmovups [rsi], ymm\n
    mov ecx, 8
3:  cmp eax, [rsi + rcx * 4 - 4]
    mov bl, 1
    jne 9f
    loop 3b
.endr
    stmxcsr [rsi]
    mov bl, 2
    mov eax, [rsi]
    and eax, 0xffc0                 # without the flags of exceptions
    cmp eax, 0x7f80
    jne 9f
    fnstcw [rsi]
    mov bl, 3
    cmp word ptr [rsi], 0x0e7f
    jne 9f
    fnstsw ax
    mov bl, 4
    and eax, 0x3800                 # the top of the stack: two values
    cmp eax, 0x3000
    jne 9f
    fld st(1)                       # the second is pi
    fistp dword ptr [rsi]
    cmp dword ptr [rsi], 3
    jne 9f
    mov dx, 0x3fd                   # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 2b
    xor ebx, ebx
9:  mov al, bl
    out 0xf4, al
8:  jmp 8b
payload_fork_fpu_end:

# Starts the timer of the local APIC for a second, prints a byte and halts. The interrupt makes it exit: with 0, or with 1
# when fewer than 2^28 ticks have passed.
.globl payload_fork_timer, payload_fork_timer_end
payload_fork_timer:
    mov edi, 0x1f0000               # vector 0x30
    lea rax, [rip + timer_interrupt]
    mov [rdi + 0x300], ax
    mov word ptr [rdi + 0x302], 0x10
    mov word ptr [rdi + 0x304], 0x8e00
    shr rax, 16
    mov [rdi + 0x306], ax
    shr rax, 16
    mov [rdi + 0x308], eax
    mov word ptr [rdi + 0xff0], 0x3ff
    mov [rdi + 0xff2], rdi
    lidt [rdi + 0xff0]
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r8, rax
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff       # the local APIC, on
    mov dword ptr [rdi + 0x320], 0x30       # its timer, once
    mov dword ptr [rdi + 0x3e0], 0xb        # 1 ns a step, KVM's frequency
    mov dword ptr [rdi + 0x380], 1000000000
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    sti
1:  hlt
    jmp 1b
timer_interrupt:
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, r8
    shr rax, 28
    setz al
    out 0xf4, al
2:  jmp 2b
payload_fork_timer_end:

# Four CPUs. CPU 1 counts in a register and in memory, CPU 2 halts with interrupts off, CPU 3 is not started. Prints a byte
# and waits for one. Then CPU 1 still has to count, an NMI has to wake CPU 2 in its place, and CPU 3 has to start: exits
# with 0, or with the number of the CPU that does not, plus 4 when it has done so before.
.globl payload_fork_cpus, payload_fork_cpus_end
payload_fork_cpus:
    lea rsi, [rip + fork_cpus_start]        # the start-up code, at vector 8: 0x8000
    mov edi, 0x8000
    mov ecx, 0xc0                   # it is shorter than that
    cld
    rep movsb
    mov edi, 0x9000                 # bytes: started, by CPU; 0x9008: the NMI; 0x9010: the count; 0x9018: it differs
    xor eax, eax
    mov ecx, 8
    rep stosq
    mov word ptr [8], 0x8080        # vector 2 of real mode
    mov word ptr [10], 0
    mov edi, 0xfee00000
    mov eax, 1 << 24
    call fork_cpus_init
    mov eax, 2 << 24
    call fork_cpus_init
    mov bl, 1
    mov esi, 0x9001
    call fork_cpus_wait
    mov bl, 2
    mov esi, 0x9002
    call fork_cpus_wait
    mov ecx, 1000000                # it has halted by then
1:  pause
    loop 1b
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    mov dx, 0x3fd                   # line status: bit 0, data ready
2:  in al, dx
    test al, 1
    jz 2b
    mov bl, 1
    mov eax, [0x9010]
    mov ecx, 1 << 26
3:  pause
    dec ecx
    jz fork_cpus_exit
    cmp eax, [0x9010]
    je 3b
    cmp dword ptr [0x9018], 0
    jne fork_cpus_exit
    mov bl, 6
    cmp byte ptr [0x9008], 0
    jne fork_cpus_exit
    mov dword ptr [rdi + 0x310], 2 << 24
    mov dword ptr [rdi + 0x300], 0x4400     # NMI
    mov bl, 2
    mov esi, 0x9008
    call fork_cpus_wait
    mov bl, 7
    cmp byte ptr [0x9003], 0
    jne fork_cpus_exit
    mov eax, 3 << 24
    call fork_cpus_init
    mov bl, 3
    mov esi, 0x9003
    call fork_cpus_wait
    xor ebx, ebx
fork_cpus_exit:
    mov al, bl
    out 0xf4, al
4:  jmp 4b
fork_cpus_init:                     # eax: the destination; INIT, and SIPI with vector 8
    mov [rdi + 0x310], eax
    mov dword ptr [rdi + 0x300], 0x4500
    mov [rdi + 0x310], eax
    mov dword ptr [rdi + 0x300], 0x4608
    mov [rdi + 0x310], eax
    mov dword ptr [rdi + 0x300], 0x4608
    ret
fork_cpus_wait:                     # esi: a byte that another CPU sets
    mov ecx, 1 << 26
5:  pause
    dec ecx
    jz fork_cpus_exit
    cmp byte ptr [rsi], 0
    je 5b
    ret
fork_cpus_start:
.code16
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    cmp bl, 2
    je 7f
    mov byte ptr [bx + 0x9000], 1
    cmp bl, 1
    jne 8f
    xor ecx, ecx
6:  inc ecx
    inc dword ptr [0x9010]
    cmp ecx, dword ptr [0x9010]
    je 6b
    mov byte ptr [0x9018], 1
8:  hlt
    jmp 8b
7:  mov sp, 0x8f00
    mov ebp, 0x12345678             # it has to be there when the NMI comes
    mov byte ptr [bx + 0x9000], 1
9:  hlt
    jmp 9b
.org fork_cpus_start + 0x80         # the NMI's handler
    cmp ebp, 0x12345678
    jne 8b
    mov byte ptr [0x9008], 1
    iret
.code64
payload_fork_cpus_end:

# Prints 32,000 bytes by one instruction, each of which is its number modulo 251, and exits with 0.
.globl payload_fork_print, payload_fork_print_end
payload_fork_print:
    mov edi, 0x200000
    xor eax, eax
1:  mov [rdi], al
    inc edi
    inc eax
    cmp eax, 251
    jb 2f
    xor eax, eax
2:  cmp edi, 0x200000 + 32000
    jb 1b
    mov esi, 0x200000
    mov ecx, 32000
    mov dx, 0x3f8
    cld
    rep outsb
    xor eax, eax
    out 0xf4, al
3:  jmp 3b
payload_fork_print_end:

# Prints the generation id (16 bytes) and waits for interrupt 9: prints the event register (1 byte) and the id again at
# each. A byte of the serial port ends it with 0: it is looked for after each interrupt and, every millisecond or so, in
# between, so that a guest without interrupts ends too.
.globl payload_generation, payload_generation_end
payload_generation:
    mov edi, 0x1f0000               # vector 0x30
    lea rax, [rip + generation_interrupt]
    mov [rdi + 0x300], ax
    mov word ptr [rdi + 0x302], 0x10
    mov word ptr [rdi + 0x304], 0x8e00
    shr rax, 16
    mov [rdi + 0x306], ax
    shr rax, 16
    mov [rdi + 0x308], eax
    mov word ptr [rdi + 0xff0], 0x3ff
    mov [rdi + 0xff2], rdi
    lidt [rdi + 0xff0]
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff   # the local APIC, on
    mov edi, 0xfec00000
    mov dword ptr [rdi], 0x23       # the upper half of input 9: CPU 0
    mov dword ptr [rdi + 0x10], 0
    mov dword ptr [rdi], 0x22       # edge, vector 0x30, not masked
    mov dword ptr [rdi + 0x10], 0x30
    call generation_print
    sti
1:  mov dx, 0x3fd                   # line status: is there a byte?
    in al, dx
    test al, 1
    jnz 3f
    mov ecx, 100
2:  pause
    dec ecx
    jnz 2b
    jmp 1b
3:  xor eax, eax
    out 0xf4, al
4:  jmp 4b
generation_interrupt:
    push rax
    push rdx
    mov dx, 0x603                   # the event register
    in al, dx
    mov dx, 0x3f8
    out dx, al
    call generation_print
    mov eax, 0xfee000b0             # the end of the interrupt
    mov dword ptr [rax], 0
    pop rdx
    pop rax
    iretq
generation_print:
    push rsi
    push rcx
    mov esi, 0xfe000
    mov ecx, 16
    mov dx, 0x3f8
5:  mov al, [rsi]
    out dx, al
    inc esi
    dec ecx
    jnz 5b
    pop rcx
    pop rsi
    ret
payload_generation_end:
