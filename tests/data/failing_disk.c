/*
 * Makes writes and syncs of files below a folder fail, as the switches in the file $FAILING_DISK say.
 * The program under test maps the same file, so it changes the switches at any moment. See tests/helpers/failing_disk.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EXTENDING_ONLY = 1, SHORT_WRITES = 2, SYNCS = 4, SYNCS_ONLY = 8 };

struct switches {
    uint32_t chance;      /* of 65536 calls, this many fail */
    uint32_t error;       /* errno of those */
    uint32_t flags;       /* see above */
    uint32_t after;       /* calls that succeed before the first failure */
    uint32_t calls;       /* calls since this was set to 0 */
    uint32_t failed;      /* of those, the calls that failed or wrote less */
    uint64_t random;      /* state of the generator */
    char folder[4096];    /* only files below it; "" before it is set */
};

static struct switches *shared(void)
{
    static struct switches *mapped;
    const char *name = getenv("FAILING_DISK");
    if (!mapped && name) {
        int descriptor = open(name, O_RDWR);
        if (descriptor >= 0) {
            void *found = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
            mapped = found == MAP_FAILED ? NULL : found;
            close(descriptor);
        }
    }
    return mapped;
}

static int is_below(const char *folder, int descriptor)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0 || !*folder)
        return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* Returns whether this call fails. `end` is where a write ends, -1 for a sync. */
static int fails(int descriptor, int64_t end)
{
    struct switches *now = shared();
    struct stat file;
    if (!now || !now->chance || !is_below(now->folder, descriptor))
        return 0;
    if (end < 0 ? !(now->flags & (SYNCS | SYNCS_ONLY)) : now->flags & SYNCS_ONLY)
        return 0;
    if (end >= 0 && now->flags & EXTENDING_ONLY && fstat(descriptor, &file) == 0 && end <= file.st_size)
        return 0;
    if (now->calls++ < now->after)
        return 0;
    now->random = now->random * 6364136223846793005u + 1442695040888963407u;
    if ((now->random >> 33) % 65536 >= now->chance)
        return 0;
    now->failed++;
    errno = now->error;
    return 1;
}

/* Returns how many bytes of a write that fails still reach the file: none, or half of them. */
static size_t before_failure(size_t bytes)
{
    struct switches *now = shared();
    return now->flags & SHORT_WRITES && now->random >> 40 & 1 ? bytes / 2 : 0;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

#define INTERCEPT_WRITE(name, offset_type) \
    ssize_t name(int descriptor, const void *data, size_t bytes, offset_type offset) \
    { \
        ssize_t (*real)(int, const void *, size_t, offset_type) = \
            REAL(#name, ssize_t (*)(int, const void *, size_t, offset_type)); \
        if (fails(descriptor, (int64_t)offset + (int64_t)bytes)) { \
            int error = errno; \
            size_t some = before_failure(bytes); \
            if (some) \
                return real(descriptor, data, some, offset); \
            errno = error; \
            return -1; \
        } \
        return real(descriptor, data, bytes, offset); \
    }

INTERCEPT_WRITE(pwrite, off_t)
INTERCEPT_WRITE(pwrite64, off64_t)

ssize_t write(int descriptor, const void *data, size_t bytes)
{
    ssize_t (*real)(int, const void *, size_t) = REAL("write", ssize_t (*)(int, const void *, size_t));
    off_t offset = lseek(descriptor, 0, SEEK_CUR);
    if (offset >= 0 && fails(descriptor, (int64_t)offset + (int64_t)bytes)) {
        int error = errno;
        size_t some = before_failure(bytes);
        if (some)
            return real(descriptor, data, some);
        errno = error;
        return -1;
    }
    return real(descriptor, data, bytes);
}

#define INTERCEPT_SYNC(name) \
    int name(int descriptor) \
    { \
        int (*real)(int) = REAL(#name, int (*)(int)); \
        return fails(descriptor, -1) ? -1 : real(descriptor); \
    }

INTERCEPT_SYNC(fsync)
INTERCEPT_SYNC(fdatasync)

#define INTERCEPT_RESIZE(name, offset_type) \
    int name(int descriptor, offset_type size) \
    { \
        int (*real)(int, offset_type) = REAL(#name, int (*)(int, offset_type)); \
        return fails(descriptor, (int64_t)size) ? -1 : real(descriptor, size); \
    }

INTERCEPT_RESIZE(ftruncate, off_t)
INTERCEPT_RESIZE(ftruncate64, off64_t)
