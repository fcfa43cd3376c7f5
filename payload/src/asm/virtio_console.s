# A console with control queues: sends back what is typed until a `q` ends what came at once. It offers its buffer first
# and opens the port last; what comes in between ends it with 6. It polls; rbx: the register window.
# r12: messages of the driver. r13: pieces of input.
.globl payload_virtio_console, payload_virtio_console_end
payload_virtio_console:
    mov ebx, 0xd0000000
    mov r15d, 1
    cmp dword ptr [rbx + 8], 3
    jne 90f
    mov r15d, 2
    virtio_negotiate 90f
    virtio_queue 0, 16, 0x200000
    virtio_queue 1, 16, 0x208000
    virtio_queue 2, 16, 0x210000
    virtio_queue 3, 16, 0x218000
    mov r15d, 3
    virtio_status 15, 90f
    xor r12d, r12d
    xor r13d, r13d
    mov edi, 0x200000
    virtio_descriptor 0x220000, 64, 2, 0
    mov word ptr [0x202004], 0
    mov word ptr [0x202002], 1
    mov dword ptr [rbx + 0x50], 0
    mov edi, 0x208000
    virtio_descriptor 0x220000, 0, 0, 0
    mov edi, 0x210000               # three answers
    virtio_descriptor 0x221000, 16, 2, 0
    mov edi, 0x210010
    virtio_descriptor 0x221010, 16, 2, 0
    mov edi, 0x210020
    virtio_descriptor 0x221020, 16, 2, 0
    mov word ptr [0x212004], 0
    mov word ptr [0x212006], 1
    mov word ptr [0x212008], 2
    mov word ptr [0x212002], 3
    mov edi, 0x218000
    virtio_descriptor 0x222000, 8, 0, 0
    mov dword ptr [0x222000], 0
    mov r15d, 4
    mov eax, 0x10000                # the device is ready
    call console_say
1:  cmp word ptr [0x214002], 1
    jb 1b
    cmp dword ptr [0x221004], 0x10001
    jne 90f
    mov r15d, 5
    mov eax, 0x10003                # so is the port
    call console_say
2:  cmp word ptr [0x214002], 3
    jb 2b
    cmp dword ptr [0x221014], 0x10004
    jne 90f
    cmp dword ptr [0x221024], 0x10006
    jne 90f
    mov r15d, 6
    mov ecx, 50000000
3:  cmp word ptr [0x204002], 0
    jne 90f
    dec ecx
    jnz 3b
    mov eax, 0x10006                # and it is open
    call console_say
4:  cmp [0x204002], r13w            # the next input
    je 4b
    mov edi, r13d
    and edi, 15
    inc r13d
    mov ecx, [rdi * 8 + 0x204008]
    mov [0x208008], ecx
    mov word ptr [rdi * 2 + 0x20a004], 0
    mov [0x20a002], r13w
    mov dword ptr [rbx + 0x50], 1
5:  cmp [0x20c002], r13w
    jne 5b
    xor r15d, r15d
    cmp byte ptr [rcx + 0x21ffff], 0x71
    je 90f
    mov edi, r13d                   # the buffer again
    and edi, 15
    mov word ptr [rdi * 2 + 0x202004], 0
    lea eax, [r13 + 1]
    mov [0x202002], ax
    mov dword ptr [rbx + 0x50], 0
    jmp 4b
90: mov eax, r15d
    out 0xf4, al
91: jmp 91b
console_say:                        # eax: the event, and its value in the upper half
    mov [0x222004], eax
    mov edi, r12d
    and edi, 15
    mov word ptr [rdi * 2 + 0x21a004], 0
    inc r12d
    mov [0x21a002], r12w
    mov dword ptr [rbx + 0x50], 3
6:  cmp [0x21c002], r12w
    jne 6b
    ret
payload_virtio_console_end:
