# Pieces of code for the tests: position-independent, at 0x10000, data at 0x20000 and 0x28000. A byte written to port
# 0x10 is a place at which the test may stop, one written to port 0x11 is the end; port 0x12 is data.

.macro code name
.globl vcpu_state_\name, vcpu_state_\name\()_end
vcpu_state_\name:
.endm
.macro code_end name
vcpu_state_\name\()_end:
.endm

# Counts in a register and in memory, until the byte at 0x20008 is set.
code count
1:  inc rcx
    inc qword ptr [0x20000]
    cmp byte ptr [0x20008], 0
    je 1b
    out 0x11, al
2:  jmp 2b
code_end count

# Adds up 40 bytes that it reads, and writes each to the port again.
code ports
1:  in al, 0x12
    movzx eax, al
    add rbx, rax
    out 0x12, al
    inc rcx
    cmp rcx, 40
    jne 1b
    mov [0x20000], rbx
    out 0x11, al
2:  jmp 2b
code_end ports

# Reads 5,000 bytes by one instruction, in double words.
code string_in
    mov edi, 0x20000
    mov ecx, 1250
    mov edx, 0x12
    rep insd
    out 0x11, al
1:  jmp 1b
code_end string_in

# Writes 30 words by one instruction.
code string_out
    mov esi, 0x20000
    mov ecx, 30
    mov edx, 0x12
    rep outsw
    mov [0x28000], rcx
    mov [0x28008], rsi
    out 0x11, al
1:  jmp 1b
code_end string_out

# Reads and writes memory that is not there, 8 and 16 bytes wide, and copies 20 bytes from it.
code mmio
    mov rax, [0x50000000]
    mov [0x20000], rax
    mov rax, 0x1122334455667788
    mov [0x50000008], rax
    movups xmm0, [0x50000010]
    movups [0x20010], xmm0
    movups xmm1, [0x28000]
    movups [0x50000020], xmm1
    mov esi, 0x50000040
    mov edi, 0x20040
    mov ecx, 20
    rep movsb
    out 0x11, al
1:  jmp 1b
code_end mmio

# Loads x87 and SSE registers, stops, and stores them.
code sse
    fninit
    fld qword ptr [0x20100]
    fld qword ptr [0x20108]
    ldmxcsr [0x20110]
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups xmm\n, [0x20000 + \n * 16]
.endr
    out 0x10, al
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups [0x28000 + \n * 16], xmm\n
.endr
    fstp qword ptr [0x28108]
    fstp qword ptr [0x28100]
    stmxcsr [0x28110]
    out 0x11, al
1:  jmp 1b
code_end sse

# The same with AVX registers.
code avx
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups ymm\n, [0x20000 + \n * 32]
.endr
    out 0x10, al
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups [0x28000 + \n * 32], ymm\n
.endr
    out 0x11, al
1:  jmp 1b
code_end avx

# Sets breakpoints that never match, and reads them again.
code debug
    mov rax, 0x111000
    mov dr0, rax
    add rax, 0x1000
    mov dr1, rax
    add rax, 0x1000
    mov dr2, rax
    add rax, 0x1000
    mov dr3, rax
    mov eax, 0x4aa
    mov dr7, rax
    out 0x10, al
    mov rax, dr0
    mov [0x20000], rax
    mov rax, dr1
    mov [0x20008], rax
    mov rax, dr2
    mov [0x20010], rax
    mov rax, dr3
    mov [0x20018], rax
    mov rax, dr7
    mov [0x20020], rax
    out 0x11, al
1:  jmp 1b
code_end debug

# The handler of an interrupt: counts at 0x20000, and writes the end of interrupt.
code handler
    inc qword ptr [0x20000]
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
code_end handler

# The handler of a page fault: stores the address and the error code, and ends.
code fault
    mov rax, cr2
    mov [0x20000], rax
    pop rax
    mov [0x20008], rax
    out 0x11, al
1:  jmp 1b
code_end fault

# Arms the one-shot timer of the local APIC with the count at 0x28000, stops, and waits for the interrupt.
code one_shot
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff       # on
    mov dword ptr [rbx + 0x3e0], 0xb        # divided by 1
    mov dword ptr [rbx + 0x320], 0x40       # one-shot, vector 0x40
    mov eax, [0x28000]
    mov [rbx + 0x380], eax
    out 0x10, al
1:  sti
    hlt
    cli
    cmp qword ptr [0x20000], 0
    je 1b
    out 0x11, al
2:  jmp 2b
code_end one_shot

# The same with a deadline, so many ticks from now.
code deadline
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x320], 0x40040    # deadline, vector 0x40
    rdtsc
    shl rdx, 32
    add rax, rdx
    add rax, [0x28000]
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x6e0
    wrmsr
    out 0x10, al
1:  sti
    hlt
    cli
    cmp qword ptr [0x20000], 0
    je 1b
    out 0x11, al
2:  jmp 2b
code_end deadline

# Sends an interrupt to itself while interrupts are off, stops, and lets it come.
code pending
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x300], 0x44040    # to itself, vector 0x40
    out 0x10, al
    sti
1:  pause
    cmp qword ptr [0x20000], 0
    je 1b
    mov ecx, 5000                           # time for another
2:  loop 2b
    cli
    out 0x11, al
3:  jmp 3b
code_end pending

# Stops, and ends.
code pass
    nop
    out 0x10, al
    nop
    nop
    out 0x11, al
1:  jmp 1b
code_end pass

# Stores the time-stamp counter twice, with a stop between.
code tsc
    rdtsc
    shl rdx, 32
    add rax, rdx
    mov [0x20000], rax
    out 0x10, al
    rdtsc
    shl rdx, 32
    add rax, rdx
    mov [0x20008], rax
    out 0x11, al
1:  jmp 1b
code_end tsc

# Turns SVM on and the global interrupt flag off, as a hypervisor does before it enters its guest; stops, and turns the
# flag on again.
code nested
    mov ecx, 0xc0000080             # EFER
    rdmsr
    or eax, 1 << 12                 # SVME
    wrmsr
    clgi
    out 0x10, al
    stgi
    out 0x11, al
1:  jmp 1b
code_end nested

# Sends an INIT to CPU 2, stops, sends start-up interrupts with vector 0xb (0xb000) to CPUs 1 and 2, and ends.
code start_others
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x310], 2 << 24
    mov dword ptr [rbx + 0x300], 0x4500
    out 0x10, al
    mov dword ptr [rbx + 0x310], 1 << 24
    mov dword ptr [rbx + 0x300], 0x460b
    mov dword ptr [rbx + 0x310], 2 << 24
    mov dword ptr [rbx + 0x300], 0x460b
    out 0x11, al
1:  jmp 1b
code_end start_others

# Real mode, at 0xb000: ends.
code real_mode
.code16
    out 0x11, al
1:  jmp 1b
.code64
code_end real_mode
