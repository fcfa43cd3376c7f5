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
