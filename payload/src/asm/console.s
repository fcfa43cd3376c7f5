# Bodies that use the serial port COM1 at 0x3f8.

.macro print_until_zero             # rsi: text; ends at a zero byte
    mov dx, 0x3f8
1:  mov al, [rsi]
    test al, al
    jz 2f
    out dx, al
    inc rsi
    jmp 1b
2:
.endm

# Writes 0 to the debug-exit port, or else powers off by the ACPI register of Cloud Hypervisor, or else resets by the
# keyboard controller, which ends a Firecracker.
.macro end_in_every_vmm
    xor eax, eax
    out 0xf4, al
    mov dx, 0x600
    mov al, 0x34
    out dx, al
    mov al, 0xfe
    out 0x64, al
9:  jmp 9b
.endm

.globl payload_panic_text, payload_panic_text_end
payload_panic_text:
    lea rsi, [rip + panic_words]
    print_until_zero
    mov dx, 0x602
    mov al, 1
    out dx, al
1:  jmp 1b
panic_words:
    .asciz "[    0.000000] Kernel panic - not syncing: a payload that panics\r\n"
payload_panic_text_end:

.globl payload_hello, payload_hello_end
payload_hello:
    lea rsi, [rip + hello_words]
    print_until_zero
    mov dx, 0x600
    mov al, 0x34
    out dx, al
1:  jmp 1b
hello_words:
    .asciz "hello\r\n"
payload_hello_end:

# Prints its initrd, then powers off. Byte 0xfe waits for 500 million cycles, 0xfd goes on for ever, 0xfc ends with code 7.
.globl payload_print_initrd, payload_print_initrd_end
payload_print_initrd:
    mov ebx, ebx
    cmp dword ptr [rbx], 0x336ec578 # start information of PVH
    jne 1f
    mov rax, [rbx + 16]             # its list of modules
    mov rsi, [rax]
    mov rcx, [rax + 8]
    jmp 2f
1:  mov ecx, [rsi + 0x21c]          # ramdisk_size of the boot parameters
    mov esi, [rsi + 0x218]          # ramdisk_image
2:  test rcx, rcx
    jz 5f
    dec rcx
    lodsb
    cmp al, 0xfc
    je 6f
    cmp al, 0xfd
    je 7f
    cmp al, 0xfe
    je 3f
    mov edx, 0x3f8
    out dx, al
    jmp 2b
3:  rdtsc
    mov edi, eax
4:  rdtsc
    sub eax, edi
    cmp eax, 500000000
    jb 4b
    jmp 2b
5:  mov edx, 0x600
    mov al, 0x34
    out dx, al
6:  mov al, 7
    out 0xf4, al
7:  jmp 7b
payload_print_initrd_end:

.globl payload_hello_halt, payload_hello_halt_end
payload_hello_halt:
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    cli
1:  hlt
    jmp 1b
payload_hello_halt_end:

.globl payload_flood, payload_flood_end
payload_flood:
    mov dx, 0x3f8
    mov al, 0x2e
1:  out dx, al
    jmp 1b
payload_flood_end:

.globl payload_bug_at_last, payload_bug_at_last_end
payload_bug_at_last:
    mov ecx, 3600
3:  lea rsi, [rip + long_line]
    print_until_zero
    dec ecx
    jnz 3b
    lea rsi, [rip + bug_line]
    print_until_zero
    mov dx, 0x600
    mov al, 0x34
    out dx, al
4:  jmp 4b
long_line:
    .asciz "one of 3600 lines, which are together longer than any pipe\n"
bug_line:
    .asciz "BUG: the last line\n"
payload_bug_at_last_end:

.globl payload_echo, payload_echo_end
payload_echo:
    mov dx, 0x3fd                   # line status: bit 0, data ready
1:  in al, dx
    test al, 1
    jz 1b
    mov dx, 0x3f8
    in al, dx
    out dx, al
    cmp al, 0x71
    mov dx, 0x3fd
    jne 1b
    mov dx, 0x600
    mov al, 0x34
    out dx, al
2:  jmp 2b
payload_echo_end:

.globl payload_serial_registers, payload_serial_registers_end
payload_serial_registers:
    mov ecx, 20000
    mov ebx, 0x2545f491
1:  mov eax, ebx                    # xorshift32
    shl eax, 13
    xor ebx, eax
    mov eax, ebx
    shr eax, 17
    xor ebx, eax
    mov eax, ebx
    shl eax, 5
    xor ebx, eax
    mov edx, ebx
    and edx, 7
    add edx, 0x3f8
    mov eax, ebx
    shr eax, 8
    test ebx, 0x10000
    jz 2f
    in al, dx
    jmp 3f
2:  out dx, al
3:  dec ecx
    jnz 1b
    xor eax, eax
    out 0xf4, al
4:  jmp 4b
payload_serial_registers_end:

.globl payload_hello_exit, payload_hello_exit_end
payload_hello_exit:
    mov dx, 0x3f8
    mov al, 0x21
    out dx, al
    end_in_every_vmm
payload_hello_exit_end:

.globl payload_serial_20000, payload_serial_20000_end
payload_serial_20000:
    mov dx, 0x3f8
    mov al, 0x21
    mov ecx, 20000
1:  out dx, al
    mov al, 0x2e
    dec ecx
    jnz 1b
    end_in_every_vmm
payload_serial_20000_end:

# Counts in a register and in memory, and compares the two: exits with 1 when they differ. For each byte that it reads
# from the serial port it prints the count's low 32 bits in hexadecimal and a line feed; a `q` makes it exit with 0.
.globl payload_counter, payload_counter_end
payload_counter:
    xor r12d, r12d
    mov qword ptr [0x130000], 0
1:  inc r12
    inc qword ptr [0x130000]
    cmp r12, [0x130000]
    mov bl, 1
    jne 9f
    test r12b, 0x3f
    jnz 1b
    mov dx, 0x3fd                   # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 1b
    mov dx, 0x3f8
    in al, dx
    xor ebx, ebx
    cmp al, 0x71
    je 9f
    mov ecx, 8
    mov r8d, r12d
2:  rol r8d, 4
    mov eax, r8d
    and eax, 0xf
    add eax, 0x30
    cmp eax, 0x3a
    jb 3f
    add eax, 0x27                   # a to f
3:  out dx, al
    dec ecx
    jnz 2b
    mov al, 0x0a
    out dx, al
    jmp 1b
9:  mov al, bl
    out 0xf4, al
4:  jmp 4b
payload_counter_end:
