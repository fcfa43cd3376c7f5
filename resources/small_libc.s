# Stands in for parts of the static C library (glibc) that Coracle's programs never call, but that would come along with what they
# do call: half a megabyte of each. Only static builds by `cargo xtask` have it, and no program that links the library does.
# All symbols are weak: where another version of glibc cannot do without the real one, that one is taken.

# Nobody has wide characters, and a failed assertion of glibc ends the program without words.
.text
.weak __assert_fail, __assert_perror_fail, __wcsmbs_load_conv, __wcsmbs_clone_conv, __wcsmbs_named_conv
__assert_fail:
__assert_perror_fail:
__wcsmbs_load_conv:
__wcsmbs_clone_conv:
__wcsmbs_named_conv:
    jmp abort

# Its messages are not translated: the text is the second parameter.
.weak dcgettext, __dcgettext
dcgettext:
__dcgettext:
    mov rax, rsi
    ret

# It formats nothing: neither the number of an error that it does not know, nor statistics. Failure is -1.
.weak __vfprintf_internal, __vfwprintf_internal
__vfprintf_internal:
__vfwprintf_internal:
    mov eax, -1
    ret

# Where the guard of a thread's stack is, which is found by scanf: a stack that overflows ends the program by its signal alone.
# Failure is ENOSYS.
.weak pthread_getattr_np
pthread_getattr_np:
    mov eax, 38
    ret

# A static program has no dynamic symbols.
.weak dlsym
dlsym:
    xor eax, eax
    ret

# The conversion functions of the C locale, for the wide characters that nobody has.
.bss
.weak __wcsmbs_gconv_fcts_c
.balign 16
__wcsmbs_gconv_fcts_c:
    .zero 64

# The state of the resolver, which nobody asks, and the pointer to it that each new thread sets.
.weak _res
.balign 16
_res:
    .zero 1024

.section .tbss, "awT", @nobits
.weak __resp, __libc_resp
.balign 8
__resp:
__libc_resp:
    .zero 8

.text
