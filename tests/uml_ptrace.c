/* For user-mode Linux on processors whose registers are more than it knows of.

   It sets a process's floating point registers with as many bytes as AVX-512 has of them (Linux 6.1), but the
   kernel takes only all that the processor has, and refuses less with EFAULT where that has AMX, too. Preloaded, this
   sets the others as well: to nothing, for inside of user-mode Linux nobody may use them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static char registers[1 << 16];        /* in the form of the instruction XSAVE */
static size_t size;                    /* of all that the processor has */

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, pid_t, void *, void *);
    struct iovec all = {registers, sizeof registers};
    va_list arguments;

    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (!real)
        real = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
        const struct iovec *known = data;
        if (!size && real(PTRACE_GETREGSET, pid, address, &all) == 0) {
            size = all.iov_len;
            memset(registers, 0, size);
        }
        if (known->iov_len < size) {
            memcpy(registers, known->iov_base, known->iov_len);
            all.iov_len = size;
            data = &all;
        }
    }
    return real(request, pid, address, data);
}
