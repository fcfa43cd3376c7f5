# Keeps a letter in sector 7 of a disk. For a `?` on the serial port it reads sectors 6 and 7 and prints the first byte of
# each; a `q` makes it exit with 0; any other byte is the next letter. Exits with another code if a request fails. It
# polls; rbx: the register window. r13: the index of the available ring. r8, r9: length and flags of the data.
.globl payload_disk_cell, payload_disk_cell_end
payload_disk_cell:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 2
    jne 90f
    mov r15d, 2
    virtio_negotiate 90f
    virtio_queue 0, 16, 0x200000
    virtio_status 15, 90f
    xor r13d, r13d
1:  mov dx, 0x3fd                   # line status: bit 0, data ready
    in al, dx
    test al, 1
    jz 1b
    mov dx, 0x3f8
    in al, dx
    xor r15d, r15d
    cmp al, 0x71
    je 90f
    cmp al, 0x3f
    je 2f
    mov edi, 0x211000
    mov ecx, 512
    cld
    rep stosb
    mov dword ptr [0x210000], 1
    mov dword ptr [0x210008], 7
    mov r8d, 512
    mov r9d, 1
    call disk_cell_request
    jmp 1b
2:  mov dword ptr [0x210000], 0
    mov dword ptr [0x210008], 6
    mov r8d, 1024
    mov r9d, 3
    call disk_cell_request
    mov dx, 0x3f8
    mov al, [0x211000]
    out dx, al
    mov al, [0x211200]
    out dx, al
    jmp 1b
disk_cell_request:
    mov edi, 0x200000
    virtio_descriptor 0x210000, 16, 1, 1
    mov edi, 0x200010
    virtio_descriptor 0x211000, 0, 0, 2
    mov [rdi + 8], r8d
    mov [rdi + 12], r9w
    mov edi, 0x200020
    virtio_descriptor 0x212000, 1, 2, 0
    mov byte ptr [0x212000], 0xff
    mov eax, r13d
    and eax, 15
    mov word ptr [rax * 2 + 0x202004], 0
    inc r13d
    mov [0x202002], r13w
    mov dword ptr [rbx + 0x50], 0
3:  cmp [0x204002], r13w
    jne 3b
    mov r15d, 3
    cmp byte ptr [0x212000], 0
    jne 90f
    ret
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
payload_disk_cell_end:
