# What the benchmarks' drivers of virtio devices begin with.

# Finds the device `id` in the first slot of Coracle's machine or, like it, of QEMU's microvm; resets it and takes
# VERSION_1 and nothing else. rbx: its registers. Leaves with a code in eax: 1 for another device, 2 for one that refuses.
.macro virtio_bench_device id, failed
    mov ebx, 0xd0000000
    cmp dword ptr [rbx], 0x74726976
    je 89f
    mov ebx, 0xfeb00e00
89: mov eax, 1
    cmp dword ptr [rbx + 8], \id
    jne \failed
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
