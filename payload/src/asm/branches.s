# Bodies that go on beside their children.

# In ring 3: waits at the serial port for a command and a number N of MiB, from 16 MiB on. `w` writes to each page of them,
# and `s` to every second one; then it prints a `.`. Each page gets a number of its own. `h` prints a hash of the first
# and the last words of the pages, as 16 hexadecimal digits and a line feed. `g`, without a number, prints the longest time
# between two looks at the serial port since the last command, in ticks of the time-stamp counter. `q` exits with 0, or with 1
# when the number of pages written is not the same in a register and in memory.
.globl payload_branch_pages, payload_branch_pages_end
payload_branch_pages:
    xor r12d, r12d                  # the pages that were written
    xor r9d, r9d                    # the longest time
    mov [0x200000], r12
    mov al, 0x21
    call branch_put
1:  call branch_get
    mov bl, al
    cmp bl, 0x71                    # q
    je 8f
    mov r14, r9
    xor r9d, r9d
    cmp bl, 0x67                    # g
    je 6f
    call branch_get
    movzx r13d, al
    shl r13, 20
    mov edi, 0x1000000
    add r13, rdi                    # the end
    cmp bl, 0x68                    # h
    je 4f
    mov esi, 0x1000
    cmp bl, 0x73                    # s
    jne 2f
    mov esi, 0x2000
2:  cmp rdi, r13
    jae 3f
    inc r12
    mov [rdi], r12
    mov [rdi + 0xff8], r12
    mov [0x200000], r12
    add rdi, rsi
    jmp 2b
3:  mov al, 0x2e
    call branch_put
    jmp 1b
4:  xor r14d, r14d
    mov rcx, 0x9e3779b97f4a7c15
5:  cmp rdi, r13
    jae 6f
    xor r14, [rdi]
    imul r14, rcx
    rol r14, 29
    add r14, [rdi + 0xff8]
    add rdi, 0x1000
    jmp 5b
6:  mov r15d, 16
7:  rol r14, 4
    mov al, r14b
    and al, 15
    add al, 0x30
    cmp al, 0x3a
    jb 9f
    add al, 0x27
9:  call branch_put
    dec r15d
    jnz 7b
    mov al, 10
    call branch_put
    jmp 1b
8:  xor eax, eax
    cmp r12, [0x200000]
    setne al
    out 0xf4, al
10: jmp 10b
branch_get:                         # al: the next byte of the serial port
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r8, rax
11: rdtsc
    shl rdx, 32
    or rax, rdx
    mov r10, rax
    sub rax, r8
    mov r8, r10
    cmp rax, r9
    cmova r9, rax
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz 11b
    mov dx, 0x3f8
    in al, dx
    ret
branch_put:
    mov dx, 0x3f8
    out dx, al
    ret
payload_branch_pages_end:

# Starts the timer of the local APIC for 2 ms, once, and counts its interrupts. Prints a byte after the first, and another
# one for each byte of the serial port: the count as a digit. Exits with 0 after a `q`. A `t` starts the timer again.
.globl payload_branch_timer, payload_branch_timer_end
payload_branch_timer:
    mov edi, 0x1f0000               # vector 0x30
    lea rax, [rip + branch_timer_interrupt]
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
    xor r12d, r12d
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff       # the local APIC, on
    mov dword ptr [rdi + 0x320], 0x30       # its timer, once
    mov dword ptr [rdi + 0x3e0], 0xb        # 1 ns a step, KVM's frequency
    mov dword ptr [rdi + 0x380], 2000000
    sti
1:  pause
    test r12d, r12d
    jz 1b
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
2:  mov dx, 0x3fd                   # line status: bit 0, data ready
3:  pause
    in al, dx
    test al, 1
    jz 3b
    mov dx, 0x3f8
    in al, dx
    cmp al, 0x71                    # q
    je 5f
    cmp al, 0x74                    # t
    jne 4f
    mov dword ptr [rdi + 0x380], 2000000
4:  mov eax, r12d
    add eax, 0x30
    out dx, al
    jmp 2b
5:  xor eax, eax
    out 0xf4, al
6:  jmp 6b
branch_timer_interrupt:
    inc r12d
    mov dword ptr [rdi + 0xb0], 0           # end of interrupt
    iretq
payload_branch_timer_end:
