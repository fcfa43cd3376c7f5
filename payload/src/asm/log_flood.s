# For ever: the first virtio device is set up with a queue of a wrong size, then with one whose ring has a chain outside of
# RAM, the same chain twice, and at last an index that is further ahead than the ring is long. Each is worth a log line.

.globl payload_log_flood, payload_log_flood_end
payload_log_flood:
    mov ebx, 0xd0000000
1:  virtio_negotiate 1b
    mov dword ptr [rbx + 0x30], 0
    mov dword ptr [rbx + 0x38], 3
    mov dword ptr [rbx + 0x44], 1
    mov edi, 0x200000
    virtio_descriptor 0xd0000000, 512, 0, 0
    mov dword ptr [0x202004], 0
    mov word ptr [0x202002], 2
    virtio_queue 0, 16, 0x200000
    mov dword ptr [rbx + 0x70], 15
    mov dword ptr [rbx + 0x50], 0
    mov ecx, 2000
2:  pause
    dec ecx
    jnz 2b
    mov word ptr [0x202002], 1000
    mov dword ptr [rbx + 0x50], 0
    mov ecx, 2000
3:  pause
    dec ecx
    jnz 3b
    jmp 1b
payload_log_flood_end:
