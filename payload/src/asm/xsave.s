# XSAVE and AVX: what CPUID says of them, and what they do.

# Checks CPUID leaf 0xd against XCR0 (Intel SDM vol. 1, chapter 13). Exits with 0 when EBX of sub-leaf 0 follows XCR0 for
# the x87 state alone, with SSE, and for all states of the CPU, and when XCR0 outlives an exit; with 50 when the CPU has no
# XSAVE and nothing that needs it is announced; with 51 when ring 3 has more in XCR0 than was set; else with the number of
# what is wrong.
.globl payload_xsave, payload_xsave_end
payload_xsave:
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 26
    jc 2f
    mov bl, 1                       # AVX, FMA, F16C or OSXSAVE without XSAVE
    test ecx, 0x38001000
    jnz 9f
    mov eax, 0xd
    xor ecx, ecx
    cpuid
    or eax, ebx
    or eax, ecx
    or eax, edx
    mov bl, 2                       # states without XSAVE
    jnz 9f
    mov bl, 50
    jmp 9f
2:  mov rax, cr4
    or eax, 1 << 18                 # OSXSAVE
    mov cr4, rax
    mov eax, 1
    call xsave_set
    mov bl, 3                       # x87 alone: 512 bytes and the header of 64
    cmp r9d, 576
    jne 9f
    mov eax, 3
    call xsave_set
    mov bl, 4
    cmp r9d, 576
    jne 9f
    mov eax, 0xd
    xor ecx, ecx
    cpuid
    mov r8d, eax                    # the states of the CPU
    mov r11d, ecx                   # the bytes of all of them
    mov r10d, 576                   # the end of the last
    mov edi, 2
3:  bt r8d, edi
    jnc 4f
    mov eax, 0xd
    mov ecx, edi
    cpuid
    add eax, ebx
    cmp eax, r10d
    cmova r10d, eax
4:  inc edi
    cmp edi, 32
    jb 3b
    mov bl, 5
    cmp r11d, r10d
    jne 9f
    mov eax, r8d
    call xsave_set
    mov bl, 6
    cmp r9d, r10d
    jne 9f
    push 0x23                       # ring 3, where every KVM has XGETBV
    push 0x118000
    push 0x2
    push 0x2b
    lea rax, [rip + xsave_ring3]
    push rax
    iretq
xsave_ring3:
    mov al, 0
    out 0x80, al                    # an exit
    xor ecx, ecx
    xgetbv
    mov r9d, eax
    and r9d, r8d
    mov bl, 7
    cmp r9d, r8d
    jne 9f
    mov bl, 51
    cmp eax, r8d
    jne 9f
    mov bl, 0
9:  mov al, bl
    out 0xf4, al
8:  jmp 8b
xsave_set:                          # XCR0 = EAX; R9D: EBX of leaf 0xd.0 then
    xor ecx, ecx
    xor edx, edx
    xsetbv
    mov eax, 0xd
    cpuid
    mov r9d, ebx
    ret
payload_xsave_end:

# In ring 3: adds in all sixteen AVX registers, and finds the sums again after each of 1,000 exits. Exits with 0, or with 1
# when a register has changed. Where CPUID shows no XSAVE it needs a KVM that leaves AVX to ring 3.
.globl payload_avx, payload_avx_end
payload_avx:
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
    lea rax, [rip + avx_ring3]
    push rax
    iretq
avx_ring3:
    lea rsi, [rsp - 0x200]
    mov eax, 0x3fc00000             # 1.5
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    add eax, 0x10000
    mov [rsi], eax
    vbroadcastss ymm\n, dword ptr [rsi]
    vaddps ymm\n, ymm\n, ymm\n      # one more in the exponent
.endr
    mov edi, 1000
2:  mov al, 0
    out 0x80, al
    mov eax, 0x40400000
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    add eax, 0x10000
    vmovups [rsi], ymm\n
    mov ecx, 8
3:  cmp eax, [rsi + rcx * 4 - 4]
    jne 4f
    loop 3b
.endr
    dec edi
    jnz 2b
    xor eax, eax
    out 0xf4, al
5:  jmp 5b
4:  mov al, 1
    out 0xf4, al
    jmp 5b
payload_avx_end:
