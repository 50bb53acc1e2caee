/* A libcuda.so.1 over files in memory, for what placer/memory/cuda.py calls. It is as strict as the
   real one where that says so, and hands out memory that is not zero. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef unsigned long long ptr;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_FOUND = 500, GRANULARITY = 2 << 20, MOST = 256 };
static struct { ptr at; size_t size; int accessible; } maps[MOST];
static struct { ptr at; size_t size; } ranges[MOST];

static int range_of(ptr at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (ranges[i].size && at >= ranges[i].at && at + size <= ranges[i].at + ranges[i].size) return i;
    return -1;
}
static int overlapping(ptr at, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (maps[i].size && at < maps[i].at + maps[i].size && maps[i].at < at + size) return i;
    return -1;
}
static int slot(void) { for (int i = 0; i < MOST; i++) if (!maps[i].size) return i; return -1; }

int cuInit(unsigned flags) { return flags ? INVALID : OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &maps; return device; }
int cuCtxSetCurrent(void *context) { return context == &maps ? OK : INVALID; }
int cuCtxSynchronize(void) { return OK; }
int cuMemGetAllocationGranularity(size_t *size, const void *kind, int which) { *size = GRANULARITY; return OK; }

int cuMemCreate(ptr *handle, size_t size, const int *kind, ptr flags) {
    if (size == 0 || size % GRANULARITY || kind[0] != 1 || kind[1] != 1) return INVALID; /* pinned, by file */
    int file = memfd_create("stand-in", 0);
    if (file < 0 || ftruncate(file, size)) return NO_MEMORY;
    void *all = mmap(0, size, PROT_WRITE, MAP_SHARED, file, 0);
    memset(all, 0xAB, size);
    munmap(all, size);
    *handle = file + 1;
    return OK;
}
int cuMemRelease(ptr handle) { return handle && close(handle - 1) == 0 ? OK : INVALID; }
int cuMemExportToShareableHandle(int *file, ptr handle, int type, ptr flags) {
    return type == 1 && (*file = dup(handle - 1)) >= 0 ? OK : INVALID;
}
int cuMemImportFromShareableHandle(ptr *handle, void *file, int type) {
    int own = type == 1 ? dup((int)(size_t)file) : -1;
    *handle = own + 1;
    return own >= 0 ? OK : INVALID;
}
int cuMemAddressReserve(ptr *at, size_t size, size_t alignment, ptr wish, ptr flags) {
    if (size == 0 || size % GRANULARITY) return INVALID;
    char *room = mmap(0, size + GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *at = ((ptr)room + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    for (int i = 0; i < MOST; i++)
        if (!ranges[i].size) { ranges[i].at = *at; ranges[i].size = size; return OK; }
    return NO_MEMORY;
}
int cuMemAddressFree(ptr at, size_t size) {
    int range = range_of(at, size);
    if (range < 0 || ranges[range].at != at || ranges[range].size != size || overlapping(at, size) >= 0) return INVALID;
    ranges[range].size = 0;
    return munmap((void *)at, size) ? INVALID : OK;
}
int cuMemMap(ptr at, size_t size, size_t offset, ptr handle, ptr flags) {
    struct stat found;
    int free = slot();
    if (offset || flags || size == 0 || size % GRANULARITY || at % GRANULARITY || free < 0) return INVALID;
    if (fstat(handle - 1, &found) || (size_t)found.st_size != size) return INVALID;
    if (range_of(at, size) < 0 || overlapping(at, size) >= 0) return INVALID;
    if (mmap((void *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle - 1, 0) == MAP_FAILED) return INVALID;
    maps[free].at = at; maps[free].size = size; maps[free].accessible = 0;
    return OK;
}
int cuMemSetAccess(ptr at, size_t size, const int *access, size_t count) {
    int i = overlapping(at, size);
    if (i < 0 || maps[i].at != at || maps[i].size != size || count != 1) return INVALID;
    maps[i].accessible = 1;
    return mprotect((void *)at, size, PROT_READ | PROT_WRITE) ? INVALID : OK;
}
int cuMemUnmap(ptr at, size_t size) {
    int i = overlapping(at, size);
    if (i < 0 || maps[i].at != at || maps[i].size != size) return INVALID;
    maps[i].size = 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap((void *)at, size, PROT_NONE, flags, -1, 0) == MAP_FAILED ? INVALID : OK;
}
int cuMemsetD8(ptr at, unsigned char value, size_t count) {
    int i = overlapping(at, count);
    if (i < 0 || !maps[i].accessible || maps[i].at > at || maps[i].size < count) return INVALID;
    memset((void *)at, value, count);
    return OK;
}
int cuGetProcAddress_v2(const char *name, void **found, int version, ptr flags, int *status) {
    *found = dlsym(RTLD_DEFAULT, name);
    if (!*found) { void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD); *found = self ? dlsym(self, name) : 0; }
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
