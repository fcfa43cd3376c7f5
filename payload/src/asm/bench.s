# What the benchmarks' drivers of virtio devices begin with.

# Finds the device `id` where one of the monitors has it; resets it and takes VERSION_1 and nothing else. rbx: its
# registers. Leaves with a code in eax: 1 if there is none, 2 for one that refuses.
.macro virtio_bench_device id, failed
    lea rsi, [rip + 87f]
    jmp 88f
87: .long 0xd0000000                # Coracle, older versions of Firecracker
    .long 0xd0001000                # the same with a device that takes the time of its boot
    .long 0xc0001000                # Firecracker
    .long 0xfeb00e00                # QEMU's microvm without ACPI
    .long 0xd3000000                # kvmtool
    .long 0
88: mov ebx, [rsi]
    add rsi, 4
    mov eax, 1
    test ebx, ebx
    jz \failed
    cmp dword ptr [rbx], 0x74726976
    jne 88b
    cmp dword ptr [rbx + 8], \id
    jne 88b
    mov eax, 2
    mov dword ptr [rbx + 0x70], 0
    mov dword ptr [rbx + 0x70], 1
    mov dword ptr [rbx + 0x70], 3
    mov dword ptr [rbx + 0x24], 0
    mov dword ptr [rbx + 0x20], 0
    mov dword ptr [rbx + 0x24], 1
    mov dword ptr [rbx + 0x20], 1
    mov dword ptr [rbx + 0x70], 11
    cmp dword ptr [rbx + 0x70], 11
    jne \failed
.endm

# Ends with the code in al in Coracle and QEMU, and in any way in the others: by the debug-exit port, by the ACPI register
# of Cloud Hypervisor, or by the keyboard controller.
.macro virtio_bench_end
    out 0xf4, al
    mov dx, 0x600
    mov al, 0x34
    out dx, al
    mov al, 0xfe
    out 0x64, al
99: jmp 99b
.endm
