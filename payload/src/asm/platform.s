# Bodies that use the machine's own devices: panics, resets, the event register, halts.

.globl payload_pvpanic, payload_pvpanic_end
payload_pvpanic:
    mov ecx, 8192
    mov dx, 0x3f8
    mov al, 0x78
1:  out dx, al
    dec ecx
    jnz 1b
    mov al, 0x0a
    out dx, al
    mov dx, 0x505
    in al, dx
    cmp al, 3                       # both events are offered
    jne 2f
    mov al, 1
    out dx, al
2:  jmp 2b
payload_pvpanic_end:

.globl payload_crash_kernel, payload_crash_kernel_end
payload_crash_kernel:
    mov dx, 0x505
    mov al, 2
    out dx, al
    mov al, 0xfe                    # what a crash kernel does in the end
    out 0x64, al
1:  jmp 1b
payload_crash_kernel_end:

.globl payload_panic_silence, payload_panic_silence_end
payload_panic_silence:
    lea rsi, [rip + last_words]
    print_until_zero
1:  jmp 1b
last_words:
    .asciz "[    0.0] Kernel panic - not syncing: dead\r\nCPU: 0\r\n---[ end Kernel panic - not syncing: dead ]---\r\n"
payload_panic_silence_end:

.globl payload_panic_words, payload_panic_words_end
payload_panic_words:
    lea rsi, [rip + mere_words]
    print_until_zero
1:  jmp 1b
mere_words:
    .asciz "# echo Kernel panic - not syncing\r\nKernel panic - not syncing\r\n# "
payload_panic_words_end:

.globl payload_panic_restart, payload_panic_restart_end
payload_panic_restart:
    lea rsi, [rip + restart_words]
    print_until_zero
    mov al, 0xfe
    out 0x64, al
1:  jmp 1b
restart_words:
    .asciz "Kernel panic - not syncing\r\n# reboot\r\n[    2.0] reboot: Restarting system\r\n"
payload_panic_restart_end:

# Counts its lives in a cell of the clock's memory, and leaves a mark on everything else that a reset has to clear.
.globl payload_hundred_lives, payload_hundred_lives_end
payload_hundred_lives:
    mov bl, 1
    mov edi, 0x1f0000               # memory
    cmp qword ptr [rdi], 0
    jne 9f
    mov qword ptr [rdi], rsp
    mov bl, 2
    mov dx, 0x3ff                   # the scratch register of COM1
    in al, dx
    test al, al
    jnz 9f
    mov al, 0x5a
    out dx, al
    mov bl, 3
    mov edi, 0xfec00000             # the I/O APIC's input 4, masked
    mov dword ptr [rdi], 0x18
    cmp dword ptr [rdi + 0x10], 0x10000
    jne 9f
    mov dword ptr [rdi + 0x10], 0x34
    mov al, 0x40                    # the life's number
    out 0x70, al
    in al, 0x71
    inc al
    mov cl, al
    mov al, 0x40
    out 0x70, al
    mov al, cl
    out 0x71, al
    mov bl, 0
    cmp cl, 100
    je 9f
    test cl, 1                      # by turns
    jz 1f
    mov al, 0xfe
    out 0x64, al
1:  mov dx, 0x602
    mov al, 1
    out dx, al
2:  jmp 2b
9:  mov al, bl
    out 0xf4, al
    jmp 2b
payload_hundred_lives_end:

.globl payload_hello_reset, payload_hello_reset_end
payload_hello_reset:
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    mov al, 0xfe
    out 0x64, al
1:  jmp 1b
payload_hello_reset_end:

.globl payload_button, payload_button_end
payload_button:
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    mov dx, 0x603                   # the event register
1:  in al, dx
    cmp al, 1
    jne 1b
    in al, dx                       # read once, gone
    test al, al
    jnz 2f
    mov dx, 0x600
    mov al, 0x34
    out dx, al
2:  mov al, 1
    out 0xf4, al
3:  jmp 3b
payload_button_end:

.globl payload_idle, payload_idle_end
payload_idle:
    sti
1:  hlt
    jmp 1b
payload_idle_end:
