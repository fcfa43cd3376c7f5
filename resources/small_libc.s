# Stands in for parts of the static C library (glibc) that Coracle's programs never call, but that would come along with
# what they do call: 600 kB of each. Only static builds by `cargo xtask` have it, by small_libc.rs, and no program
# that links the library does. All symbols are weak: where another version of glibc cannot do without the real one, that
# one is taken.

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

# It formats and prints nothing: neither the number of an error that it does not know, nor statistics. Failure is -1.
.weak snprintf, __snprintf, sprintf, fprintf, fputs, _IO_fputs, fwrite
snprintf:
__snprintf:
sprintf:
fprintf:
fputs:
_IO_fputs:
fwrite:
    mov eax, -1
    ret

# So it has no streams, which a second thread would make lock, and a new process would unlock: their list is empty.
.weak _IO_enable_locks, _IO_list_lock, _IO_list_unlock, _IO_list_resetlock
.weak _IO_iter_begin, _IO_iter_end, _IO_iter_next, _IO_iter_file
_IO_enable_locks:
_IO_list_lock:
_IO_list_unlock:
_IO_list_resetlock:
_IO_iter_begin:
_IO_iter_end:
_IO_iter_next:
_IO_iter_file:
    xor eax, eax
    ret
.bss
.weak stdout, stderr
.balign 8
stdout:
stderr:
    .zero 8
.text

# The classes of characters are used to skip spaces in front of a number, where there are none.
.weak __ctype_init
__ctype_init:
    ret
.bss
.weak _nl_C_LC_CTYPE_class, _nl_C_LC_CTYPE_toupper, _nl_C_LC_CTYPE_tolower
.balign 16
_nl_C_LC_CTYPE_class:
_nl_C_LC_CTYPE_toupper:
_nl_C_LC_CTYPE_tolower:
    .zero 1536

# The C locale, `struct __locale_struct`: 13 categories, where the tables have the character 0, and 13 names.
.section .data.rel.ro, "aw"
.weak _nl_C_locobj
.balign 8
_nl_C_locobj:
    .zero 13 * 8
    .quad _nl_C_LC_CTYPE_class + 128 * 2
    .quad _nl_C_LC_CTYPE_tolower + 128 * 4
    .quad _nl_C_LC_CTYPE_toupper + 128 * 4
    .zero 13 * 8
.text

# No library is loaded: there is none to look for, and no stack becomes executable because one asks for it.
.weak _dl_init_paths
_dl_init_paths:
    ret
.weak __nptl_change_stack_perm, _dl_make_stack_executable, _dl_make_stacks_executable
__nptl_change_stack_perm:
_dl_make_stack_executable:
_dl_make_stacks_executable:
    mov eax, 38
    ret
# No function is looked up at its first call.
.weak _dl_runtime_resolve_fxsave, _dl_runtime_resolve_xsave, _dl_runtime_resolve_xsavec
.weak _dl_runtime_profile_sse, _dl_runtime_profile_avx, _dl_runtime_profile_avx512
_dl_runtime_resolve_fxsave:
_dl_runtime_resolve_xsave:
_dl_runtime_resolve_xsavec:
_dl_runtime_profile_sse:
_dl_runtime_profile_avx:
_dl_runtime_profile_avx512:
    jmp abort

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

# Only the C library itself looks at strings by these, and at short ones: one byte at a time, in place of a copy for each
# generation of CPUs.
.weak strcmp, strncmp, strcpy, strncpy
strcmp:
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    inc rdi
    inc rsi
    cmp al, cl
    jne .Lstrcmp_end
    test al, al
    jne strcmp
.Lstrcmp_end:
    sub eax, ecx
    ret

strncmp:
    test rdx, rdx
    je .Lstrncmp_same
    movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    inc rdi
    inc rsi
    dec rdx
    cmp al, cl
    jne .Lstrncmp_end
    test al, al
    jne strncmp
.Lstrncmp_end:
    sub eax, ecx
    ret
.Lstrncmp_same:
    xor eax, eax
    ret

strcpy:
    mov rax, rdi
.Lstrcpy_next:
    movzx ecx, byte ptr [rsi]
    mov [rdi], cl
    inc rdi
    inc rsi
    test cl, cl
    jne .Lstrcpy_next
    ret

# The source stays at its end, whose NUL fills the rest.
strncpy:
    mov rax, rdi
.Lstrncpy_next:
    test rdx, rdx
    je .Lstrncpy_end
    movzx ecx, byte ptr [rsi]
    mov [rdi], cl
    inc rdi
    dec rdx
    test cl, cl
    je .Lstrncpy_next
    inc rsi
    jmp .Lstrncpy_next
.Lstrncpy_end:
    ret

# Nothing unwinds: a panic ends the program. `_Unwind_Backtrace` is in small_libc.rs.
.weak _Unwind_RaiseException, _Unwind_Resume, _Unwind_ForcedUnwind, _Unwind_DeleteException, _Unwind_Resume_or_Rethrow
.weak _Unwind_GetIP, _Unwind_GetIPInfo, _Unwind_GetCFA, _Unwind_GetGR, _Unwind_SetGR, _Unwind_SetIP
.weak _Unwind_GetLanguageSpecificData, _Unwind_GetRegionStart, _Unwind_GetDataRelBase, _Unwind_GetTextRelBase
.weak _Unwind_FindEnclosingFunction, __gcc_personality_v0
_Unwind_RaiseException:
_Unwind_Resume:
_Unwind_ForcedUnwind:
_Unwind_DeleteException:
_Unwind_Resume_or_Rethrow:
_Unwind_GetIP:
_Unwind_GetIPInfo:
_Unwind_GetCFA:
_Unwind_GetGR:
_Unwind_SetGR:
_Unwind_SetIP:
_Unwind_GetLanguageSpecificData:
_Unwind_GetRegionStart:
_Unwind_GetDataRelBase:
_Unwind_GetTextRelBase:
_Unwind_FindEnclosingFunction:
__gcc_personality_v0:
    jmp abort

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
