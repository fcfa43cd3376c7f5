# Bodies with more than one CPU, and bodies that watch time.

# Starts every other CPU by INIT and SIPI, waits until each has set the bit of its APIC id, and exits with the number
# of CPUs. The number comes from CPUID leaf 1 EBX bits 23:16; ids have to be 0 to that number less one.
.globl payload_smp, payload_smp_end
payload_smp:
    lea rsi, [rip + smp_start]      # the start-up code, at vector 8: 0x8000
    mov edi, 0x8000
    mov ecx, 64                     # it is shorter than that
    rep movsb
    mov qword ptr [0x9000], 0       # one bit for each CPU
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0x300], 0xc4500        # INIT to all but this one
    mov dword ptr [rdi + 0x300], 0xc4608        # SIPI with vector 8, twice as the SDM says
    mov dword ptr [rdi + 0x300], 0xc4608
    mov eax, 1
    xor ecx, ecx
    cpuid
    mov ecx, ebx
    shr ebx, 24
    bts qword ptr [0x9000], rbx     # this one's own bit
    shr ecx, 16
    and ecx, 0xff
    mov r8d, ecx
    mov eax, 64                     # as many ones as CPUs
    sub eax, ecx
    mov ecx, eax
    mov rax, -1
    shr rax, cl
1:  pause
    cmp rax, [0x9000]
    jne 1b
    mov eax, r8d
    out 0xf4, al
2:  jmp 2b
smp_start:
.code16
    cli
    xor ax, ax
    mov ds, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    mov cl, bl
    shr bx, 5                       # the word of 32 bits
    shl bx, 2
    mov eax, 1
    and cl, 31
    shl eax, cl
    lock or dword ptr [bx + 0x9000], eax
3:  hlt
    jmp 3b
.code64
payload_smp_end:

# Prints a byte and watches the TSC until kvm-clock tells of a pause (flag bit 1 of the structure at 0x130000, see
# Linux, Documentation/virt/kvm/x86/msr.rst). Exits with 0; 1 when the TSC went back, 2 when it stood still meanwhile:
# no step of 2^29 ticks, some 0.2 s.
.globl payload_clock, payload_clock_end
payload_clock:
    mov ecx, 0x4b564d01             # MSR_KVM_SYSTEM_TIME_NEW
    mov eax, 0x130001
    xor edx, edx
    wrmsr
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    xor r10d, r10d                  # the longest step
    xor r11d, r11d                  # 1 for the last round
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r8, rax
1:  rdtsc
    shl rdx, 32
    or rax, rdx
    mov bl, 1
    cmp rax, r8
    jb 9f
    mov r9, rax
    sub r9, r8
    mov r8, rax
    cmp r9, r10
    cmova r10, r9
    test r11d, r11d
    jnz 2f
    test byte ptr [0x13001d], 2
    jz 1b
    inc r11d                        # the pause may lie between the last rdtsc and the test
    jmp 1b
2:  shr r10, 29
    mov bl, 2
    jz 9f
    xor ebx, ebx
9:  mov al, bl
    out 0xf4, al
3:  jmp 3b
payload_clock_end:
