# Bodies that look where RAM begins and ends. They assume the size that their description states.

.globl payload_last_byte, payload_last_byte_end
payload_last_byte:
    mov edi, 128 << 20
    mov byte ptr [rdi - 1], 0x5a
    cmp byte ptr [rdi - 1], 0x5a
    mov bl, 1
    jne 9f
    mov byte ptr [rdi], 0x5a        # one past the end: ignored, and reads all ones
    cmp byte ptr [rdi], 0xff
    mov bl, 2
    jne 9f
    mov rax, [rdi - 4]              # across the end: half RAM, half nothing
    mov bl, 3
    mov rcx, 0xffffffff5a000000
    cmp rax, rcx
    jne 9f
    xor ebx, ebx
9:  mov al, bl
    out 0xf4, al
1:  jmp 1b
payload_last_byte_end:

.globl payload_ram_hole, payload_ram_hole_end
payload_ram_hole:
    mov edi, 0xc0000000
    mov byte ptr [rdi - 1], 0x5a
    cmp byte ptr [rdi - 1], 0x5a
    mov bl, 1
    jne 9f
    cmp byte ptr [rdi], 0xff        # the hole begins
    mov bl, 2
    jne 9f
    mov rax, 0x140007               # PDPT[4]: a page directory at 0x140000
    mov [0x102020], rax
    mov rax, 0x100000087            # its first entry: the 2 MiB at 4 GiB
    mov [0x140000], rax
    mov rdi, 0x100000000
    mov byte ptr [rdi], 0xa5
    cmp byte ptr [rdi], 0xa5
    mov bl, 3
    jne 9f
    mov edi, 0xbfffffff
    cmp byte ptr [rdi], 0x5a # and it is not an alias of what lies below
    mov bl, 4
    jne 9f
    xor ebx, ebx
9:  mov al, bl
    out 0xf4, al
1:  jmp 1b
payload_ram_hole_end:
