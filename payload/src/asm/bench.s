# What the benchmarks' drivers of virtio devices begin with.

# Finds the device `id` where one of the monitors has it, by MMIO or else on the PCI bus; resets it and takes VERSION_1
# and nothing else. rbx: its registers, of which the drivers use the doorbell at 0x50. At 0x1f0000: 0, or of a device on
# the PCI bus the common configuration, the doorbells, and the distance of two doorbells, 8 bytes each (virtio 1.2,
# "Virtio Over PCI Bus"). Leaves with a code in eax: 1 if there is none, 2 for one that refuses, 4 for one above 4 GiB.
.macro virtio_bench_device id, failed
    mov qword ptr [0x1f0000], 0
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
    test ebx, ebx
    jz 86f
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
    jmp 85f
86: virtio_bench_pci \id, \failed
85:
.endm

# Reads the configuration space at eax.
.macro virtio_bench_pci_read
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
.endm

# The same on the PCI bus. rsi: the function, rdi: a capability, rbp: its kind.
.macro virtio_bench_pci id, failed
    mov esi, 0x80000000             # bus 0
71: mov eax, esi
    virtio_bench_pci_read
    cmp eax, 0x10401af4 + (\id << 16)
    je 72f
    add esi, 0x800
    cmp esi, 0x80010000
    jb 71b
    mov eax, 1
    jmp \failed
72: lea eax, [rsi + 4]              # memory and bus master
    virtio_bench_pci_read
    or eax, 6
    out dx, eax
    lea eax, [rsi + 0x34]
    virtio_bench_pci_read
    movzx edi, al
73: test edi, edi
    jz 75f
    lea eax, [rsi + rdi]
    virtio_bench_pci_read
    mov ecx, eax
    cmp cl, 9
    jne 74f
    mov ebp, ecx
    shr ebp, 24
    cmp ebp, 2                      # 1: common configuration, 2: doorbells
    ja 74f
    lea eax, [rsi + rdi + 4]
    virtio_bench_pci_read
    and eax, 7
    lea r9d, [rsi + rax * 4 + 0x10]
    mov eax, r9d
    virtio_bench_pci_read
    mov r8d, eax
    and eax, 6
    cmp eax, 4
    jne 76f
    lea eax, [r9 + 4]               # the upper half
    virtio_bench_pci_read
    test eax, eax
    jz 76f
    mov eax, 4
    jmp \failed
76: and r8d, -16
    lea eax, [rsi + rdi + 8]
    virtio_bench_pci_read
    add r8d, eax
    mov [rbp * 8 + 0x1efff8], r8
    cmp ebp, 2
    jne 74f
    lea eax, [rsi + rdi + 16]
    virtio_bench_pci_read
    mov [0x1f0010], eax
74: shr ecx, 8
    movzx edi, cl
    jmp 73b
75: mov eax, 2
    mov ebx, [0x1f0000]
    test ebx, ebx
    jz \failed
    mov byte ptr [rbx + 20], 0
    mov byte ptr [rbx + 20], 1
    mov byte ptr [rbx + 20], 3
    mov dword ptr [rbx + 8], 0
    mov dword ptr [rbx + 12], 0
    mov dword ptr [rbx + 8], 1
    mov dword ptr [rbx + 12], 1
    mov byte ptr [rbx + 20], 11
    cmp byte ptr [rbx + 20], 11
    jne \failed
.endm

# Makes a queue as virtio_queue does. On the PCI bus, each queue has a doorbell of its own: the last one made is rung.
.macro virtio_bench_queue index, size, at
    mov edi, [0x1f0000]
    test edi, edi
    jnz 81f
    virtio_queue \index, \size, \at
    jmp 82f
81: mov word ptr [rdi + 22], \index
    mov word ptr [rdi + 24], \size
    mov dword ptr [rdi + 32], \at
    mov dword ptr [rdi + 36], 0
    mov dword ptr [rdi + 40], \at + 0x2000
    mov dword ptr [rdi + 44], 0
    mov dword ptr [rdi + 48], \at + 0x4000
    mov dword ptr [rdi + 52], 0
    movzx eax, word ptr [rdi + 30]
    imul eax, [0x1f0010]
    add eax, [0x1f0008]
    lea ebx, [rax - 0x50]
    mov word ptr [rdi + 28], 1
82:
.endm

# Starts the device.
.macro virtio_bench_start
    mov edi, [0x1f0000]
    test edi, edi
    jnz 83f
    mov dword ptr [rbx + 0x70], 15
    jmp 84f
83: mov byte ptr [rdi + 20], 15
84:
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

# Prints rax as 16 hexadecimal digits and a space.
.macro virtio_bench_print
    mov rsi, rax
    mov ecx, 16
    mov edx, 0x3f8
87: rol rsi, 4
    mov eax, esi
    and eax, 15
    add eax, '0'
    cmp eax, '9'
    jbe 88f
    add eax, 'a' - '9' - 1
88: out dx, al
    dec ecx
    jnz 87b
    mov al, ' '
    out dx, al
.endm
