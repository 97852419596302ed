/* Makes locking a file fail as on a network file system without a lock service, while the file $NO_LOCKS exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int fcntl_function(int, int, ...);

static int filtered(const char *name, int descriptor, int command, void *argument)
{
    const char *wanted = getenv("NO_LOCKS");
    fcntl_function *real = (fcntl_function *)dlsym(RTLD_NEXT, name);
    if ((command == F_SETLK || command == F_SETLKW) && wanted && access(wanted, F_OK) == 0) {
        if (((struct flock *)argument)->l_type != F_UNLCK) {
            errno = ENOLCK;
            return -1;
        }
    }
    return real(descriptor, command, argument);
}

#define INTERCEPT(name) \
    int name(int descriptor, int command, ...) \
    { \
        va_list arguments; \
        va_start(arguments, command); \
        void *argument = va_arg(arguments, void *); \
        va_end(arguments); \
        return filtered(#name, descriptor, command, argument); \
    }

INTERCEPT(fcntl)
INTERCEPT(fcntl64)
