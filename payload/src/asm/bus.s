# Bodies that go where no device is, and cross the edges of those that are.

.globl payload_ports, payload_ports_end
payload_ports:
    xor edx, edx                    # the port
1:  cmp edx, 0x64                   # leave out what would end the machine: keyboard controller,
    je 9f
    cmp edx, 0xf1                   # debug exit (a wider access from below reaches it too),
    jb 2f
    cmp edx, 0xf4
    jbe 9f
2:  cmp edx, 0x61
    jb 3f
    cmp edx, 0x64
    jbe 9f
3:  cmp edx, 0x505                  # pvpanic
    je 9f
    cmp edx, 0x5fd                  # sleep and reset registers
    jb 4f
    cmp edx, 0x602
    jbe 9f
4:  in al, dx
    in ax, dx
    in eax, dx
    mov eax, edx
    out dx, al
    out dx, ax
    out dx, eax
9:  inc edx
    cmp edx, 0x10000
    jb 1b
    xor eax, eax
    out 0xf4, al
5:  jmp 5b
payload_ports_end:

.macro expect_ones bits, code       # rax holds what was read
.if \bits == 8
    cmp al, 0xff
.elseif \bits == 16
    cmp ax, 0xffff
.elseif \bits == 32
    cmp eax, 0xffffffff
.else
    cmp rax, -1
.endif
    mov bl, \code
    jne 99f
.endm

.globl payload_widths, payload_widths_end
payload_widths:
    mov edi, 0xd0000ff8             # an MMIO hole
    xor eax, eax
    mov al, [rdi]
    expect_ones 8, 1
    xor eax, eax
    mov ax, [rdi + 1]
    expect_ones 16, 2
    xor eax, eax
    mov eax, [rdi + 3]
    expect_ones 32, 3
    xor eax, eax
    mov rax, [rdi + 5]              # crosses a page
    expect_ones 64, 4
    mov qword ptr [rdi + 7], 0
    mov rax, [rdi]
    expect_ones 64, 5
    mov edi, 0xfec00000             # I/O APIC: 32-bit registers only
    mov al, [rdi]
    expect_ones 8, 6
    mov rax, [rdi + 0x0c]           # into and past a register
    mov byte ptr [rdi + 0xfff], 0xff
    mov rax, [rdi + 0xffc]          # across the end of the window
    mov dx, 0x3ff                   # the last register of COM1, and beyond it
    in ax, dx
    mov dx, 0x3f7
    in eax, dx
    mov dx, 0x1234                  # nothing there
    xor eax, eax
    in al, dx
    expect_ones 8, 7
    xor eax, eax
    in ax, dx
    expect_ones 16, 8
    xor eax, eax
    in eax, dx
    expect_ones 32, 9
    mov dx, 0xffff                  # the last port
    in al, dx
    expect_ones 8, 10
    in eax, dx
    xor ebx, ebx
99: mov al, bl
    out 0xf4, al
1:  jmp 1b
payload_widths_end:

.globl payload_rep_io, payload_rep_io_end
payload_rep_io:
    cld
    lea rsi, [rip + rep_words]
    mov ecx, 34                      # the length of rep_words
    mov dx, 0x3f8
    rep outsb
    mov edi, 0x120000               # 4096 items each from a port without a device
    mov dx, 0x1234
    mov ecx, 4096
    rep insb
    mov ecx, 4096
    rep insw
    mov ecx, 4096
    rep insd
    mov edi, 0x120000 + 4096 * 7 - 8
    mov rax, [rdi]
    mov bl, 1
    cmp rax, -1
    jne 9f
    cmp qword ptr [rdi + 8], 0      # and not a byte more
    mov bl, 2
    jne 9f
    xor ebx, ebx
9:  mov al, bl
    out 0xf4, al
1:  jmp 1b
rep_words:
    .ascii "repeated output keeps every byte\r\n"
rep_words_end:
payload_rep_io_end:
