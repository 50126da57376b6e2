/* A stand-in for NVIDIA's driver, for tests on machines without one. Device memory is host memory, and the queues are as
 * lazy as the API allows: a copy or kernel runs only when something waits for it. So whoever reuses or frees memory too
 * early, or relies on an order between the queues that no event makes, sees wrong bytes.
 *
 * The environment describes the device:
 *   FAKE_CUDA_VERSION     the driver's version (default 12040)
 *   FAKE_CUDA_DEVICES     how many devices there are (1)
 *   FAKE_CUDA_CAPABILITY  ten times the compute capability (90)
 *   FAKE_CUDA_MEMORY      bytes of device memory (1 GiB)
 *   FAKE_CUDA_JIT_MS      how long a module takes to compile (0)
 *   FAKE_CUDA_ORDERING    how far writes of other devices are ordered by themselves (0)
 *   FAKE_CUDA_FLUSH       whether they can be waited for (1)
 *   FAKE_CUDA_DMA_BUF     anything: there are dma-bufs
 *   FAKE_CUDA_FAIL        NAME=CODE: the function NAME answers CODE
 *   FAKE_CUDA_TRACE       anything: launches, and waits for other devices, are told to stderr
 * Modules are text; a line ".entry NAME" is a kernel. Known kernels: fill(dst, value, count) stores bytes, crash() faults. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, INVALID_PTX = 218, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
       ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
       INVALID_CLUSTER_SIZE = 912 };

typedef unsigned result;
typedef uint64_t address;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static result injected(const char *name) {
    const char *text = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(name);
    return text && !strncmp(text, name, length) && text[length] == '=' ? (result)atol(text + length + 1) : 0;
}

static int ready;                   /* cuInit was called */
static int context;                 /* the one context; its address is the handle */
static _Thread_local void *current; /* cuCtxSetCurrent */
static result fault;                /* once a kernel has crashed, everything fails */
static size_t used;
static int graphs;
enum { SHARED = 227 << 10 };        /* shared memory that a block can have */

static result entered(const char *name) {
    result r = injected(name);
    return r ? r : !ready ? NOT_INITIALIZED : current != &context ? INVALID_CONTEXT : fault;
}

#define BEGIN_ANYWHERE { result r = injected(__func__); if (r) return r; }
#define BEGIN { result r = entered(__func__); if (r) return r; }

/* Ranges of memory: allocations, and page-locked host memory. */
struct range { char *start; size_t length; };
struct ranges { struct range items[64]; int count; };
static struct ranges allocated, registered;

static int inside(struct ranges *set, const void *start, size_t length) {
    for (int i = 0; i < set->count; i++) {
        struct range *r = &set->items[i];
        if ((char *)start >= r->start && (char *)start + length <= r->start + r->length) return 1;
    }
    return 0;
}

static int removed(struct ranges *set, const void *start, size_t *length) {
    for (int i = 0; i < set->count; i++)
        if (set->items[i].start == start) {
            *length = set->items[i].length;
            set->items[i] = set->items[--set->count];
            return 1;
        }
    return 0;
}

static void add(struct ranges *set, void *start, size_t length) {
    if (set->count == 64) abort();
    set->items[set->count++] = (struct range){start, length};
}

/* Queues. */
struct queue;
struct event { struct queue *queue; size_t position; };
struct work { int kind; char *dst; const char *src; size_t length; unsigned value; struct event after; void (*call)(void *); };
enum { COPY, FILL, CRASH, WAIT, CALL };
struct graph { struct work items[64]; size_t count; int invalid; };
struct queue { struct work items[4096]; size_t done, count; struct graph *capture; };

static result run(struct queue *q, size_t until) {
    while (q->done < until) {
        struct work w = q->items[q->done++ % 4096];
        if (w.kind == WAIT) { if (run(w.after.queue, w.after.position)) return fault; }
        else if (w.kind == CALL) w.call(w.dst);
        else if (w.kind == CRASH) fault = ILLEGAL_ADDRESS;
        else if (!inside(&allocated, w.dst, w.length) && !inside(&registered, w.dst, w.length)) fault = ILLEGAL_ADDRESS;
        else if (w.kind == FILL) memset(w.dst, (int)w.value, w.length);
        else if (!inside(&allocated, w.src, w.length) && !inside(&registered, w.src, w.length)) fault = ILLEGAL_ADDRESS;
        else memmove(w.dst, w.src, w.length);
        if (fault) return fault;
    }
    return 0;
}

/* What a queue that is being captured cannot do. */
static result capturing(struct queue *q) {
    if (q->capture) q->capture->invalid = 1;
    return q->capture ? CAPTURE_UNSUPPORTED : 0;
}
#define NOT_CAPTURED(q) { result r = capturing(q); if (r) return r; }

static result queued(struct queue *q, struct work w) {
    if (q->capture) {
        if (q->capture->count == 64) abort();
        q->capture->items[q->capture->count++] = w;
        return 0;
    }
    if (q->count - q->done == 4096) abort();
    q->items[q->count++ % 4096] = w;
    return 0;
}

result cuGetErrorName(result code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == 46 ? "CUDA_ERROR_DEVICE_UNAVAILABLE" : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
          : code == INVALID_PTX ? "CUDA_ERROR_INVALID_PTX" : code == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : NULL;
    return *text ? 0 : INVALID_VALUE;
}

result cuGetErrorString(result code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
          : code == 46 ? "CUDA-capable device(s) is/are busy or unavailable"
          : code == 803 ? "system has unsupported display driver / cuda driver combination"
          : code == INVALID_PTX ? "a PTX JIT compilation failed" : code == NOT_FOUND ? "named symbol not found" : NULL;
    return *text ? 0 : INVALID_VALUE;
}

result cuDriverGetVersion(int *version) { BEGIN_ANYWHERE *version = (int)setting("FAKE_CUDA_VERSION", 12040); return 0; }

static int devices(void) { return (int)setting("FAKE_CUDA_DEVICES", 1); }

result cuInit(unsigned flags) { BEGIN_ANYWHERE if (flags) return INVALID_VALUE; ready = 1; return devices() ? 0 : NO_DEVICE; }

result cuDeviceGetCount(int *count) { BEGIN_ANYWHERE if (!ready) return NOT_INITIALIZED; *count = devices(); return 0; }

result cuDeviceGet(int *device, int ordinal) {
    BEGIN_ANYWHERE
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    *device = ordinal;
    return 0;
}

result cuDeviceGetName(char *name, int length, int device) { BEGIN_ANYWHERE snprintf(name, length, "Fake %d", device); return 0; }

result cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN_ANYWHERE
    long capability = setting("FAKE_CUDA_CAPABILITY", 90);
    (void)device;
    switch (attribute) {
    case 16: *value = 4; return 0;          /* multiprocessors */
    case 38: *value = 1 << 20; return 0;    /* L2 */
    case 75: *value = (int)(capability / 10); return 0;
    case 76: *value = (int)(capability % 10); return 0;
    case 81: *value = 228 << 10; return 0;  /* shared memory of a multiprocessor */
    case 97: *value = SHARED; return 0;     /* of a block, if it opts in */
    case 111: *value = 1 << 10; return 0;   /* of a block, reserved */
    case 117: *value = (int)setting("FAKE_CUDA_FLUSH", 1); return 0;
    case 118: *value = (int)setting("FAKE_CUDA_ORDERING", 0); return 0;
    default: return INVALID_VALUE;
    }
}

/* How often the context was retained. */
static int retained;

result cuDevicePrimaryCtxRetain(void **handle, int device) {
    BEGIN_ANYWHERE
    (void)device;
    retained++;
    *handle = &context;
    return 0;
}

result cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    if (--retained > 0) return 0;
    if (allocated.count || registered.count || graphs) { fprintf(stderr, "fake driver: memory leaked\n"); abort(); }
    return 0;
}

result cuCtxSetCurrent(void *handle) { BEGIN_ANYWHERE current = handle; return 0; }

result cuCtxGetStreamPriorityRange(int *least, int *greatest) { BEGIN *least = 0; *greatest = -5; return 0; }

result cuStreamCreateWithPriority(struct queue **q, unsigned flags, int priority) {
    BEGIN (void)flags; (void)priority;
    *q = calloc(1, sizeof **q);
    return 0;
}

result cuStreamDestroy_v2(struct queue *q) { run(q, q->count); free(q); return 0; }

result cuStreamSynchronize(struct queue *q) { BEGIN NOT_CAPTURED(q) return run(q, q->count); }

result cuStreamWaitEvent(struct queue *q, struct event *e, unsigned flags) {
    BEGIN NOT_CAPTURED(q) if (flags) return INVALID_VALUE;
    return e->queue ? queued(q, (struct work){.kind = WAIT, .after = *e}) : 0;
}

result cuLaunchHostFunc(struct queue *q, void (*call)(void *), void *data) {
    BEGIN NOT_CAPTURED(q)
    return queued(q, (struct work){.kind = CALL, .call = call, .dst = data});
}

result cuEventCreate(struct event **e, unsigned flags) { BEGIN (void)flags; *e = calloc(1, sizeof **e); return 0; }

result cuEventDestroy_v2(struct event *e) { free(e); return 0; }

result cuEventRecord(struct event *e, struct queue *q) { BEGIN NOT_CAPTURED(q) *e = (struct event){q, q->count}; return 0; }

result cuEventQuery(struct event *e) { BEGIN return e->queue && e->queue->done < e->position ? NOT_READY : 0; }

result cuEventSynchronize(struct event *e) { BEGIN return e->queue ? run(e->queue, e->position) : 0; }

/* A millisecond for each piece of work between the two. */
result cuEventElapsedTime(float *ms, struct event *a, struct event *b) {
    BEGIN
    if (a->queue->done < a->position || b->queue->done < b->position) return NOT_READY;
    *ms = (float)b->position - (float)a->position;
    return 0;
}

result cuMemGetInfo_v2(size_t *unused, size_t *total) {
    BEGIN
    *total = (size_t)setting("FAKE_CUDA_MEMORY", 1L << 30);
    *unused = *total - used;
    return 0;
}

result cuMemAlloc_v2(address *start, size_t length) {
    BEGIN
    if (!length) return INVALID_VALUE;
    if (length > (size_t)setting("FAKE_CUDA_MEMORY", 1L << 30) - used) return OUT_OF_MEMORY;
    void *memory = NULL;
    if (posix_memalign(&memory, length < 4096 ? 256 : 4096, length)) return OUT_OF_MEMORY;
    memset(memory, 0xa5, length);
    add(&allocated, memory, length);
    used += length;
    *start = (address)(uintptr_t)memory;
    return 0;
}

/* Calls that copy return when what they did can be seen from elsewhere. */
result cuPointerSetAttribute(const unsigned *value, unsigned attribute, address start) {
    BEGIN
    if (attribute != 6 || *value != 1 || !inside(&allocated, (void *)(uintptr_t)start, 1)) return INVALID_VALUE;
    if (getenv("FAKE_CUDA_TRACE")) fprintf(stderr, "seen from elsewhere\n");
    return 0;
}

result cuFlushGPUDirectRDMAWrites(int target, int scope) {
    BEGIN
    if (target != 0 || scope != 100) return INVALID_VALUE;
    if (getenv("FAKE_CUDA_TRACE")) fprintf(stderr, "flush\n");
    return 0;
}

/* A file of as many bytes, and not the memory. */
result cuMemGetHandleForAddressRange(int *fd, address start, size_t length, unsigned type, unsigned long long flags) {
    BEGIN
    if (type != 1 || flags || start % 4096 || length % 4096) return INVALID_VALUE;
    if (!getenv("FAKE_CUDA_DMA_BUF")) return NOT_SUPPORTED;
    if (!inside(&allocated, (void *)(uintptr_t)start, length)) return INVALID_VALUE;
    FILE *file = tmpfile();
    if (!file) return OUT_OF_MEMORY;
    *fd = dup(fileno(file));
    fclose(file);
    return *fd < 0 || ftruncate(*fd, (off_t)length) ? OUT_OF_MEMORY : 0;
}

/* Waits for nothing: work still queued for the memory faults when it runs. */
result cuMemFree_v2(address start) {
    size_t length;
    if (!removed(&allocated, (void *)(uintptr_t)start, &length)) return INVALID_VALUE;
    used -= length;
    free((void *)(uintptr_t)start);
    return 0;
}

result cuMemHostRegister_v2(void *start, size_t length, unsigned flags) {
    BEGIN
    if (!length || flags > 7) return INVALID_VALUE;
    if (inside(&registered, start, 1)) return ALREADY_REGISTERED;
    add(&registered, start, length);
    return 0;
}

result cuMemHostUnregister(void *start) {
    size_t length;
    return removed(&registered, start, &length) ? 0 : NOT_REGISTERED;
}

/* Device and host have it at the same address. */
result cuMemHostGetDevicePointer_v2(address *device, void *start, unsigned flags) {
    BEGIN
    if (flags || !inside(&registered, start, 1)) return INVALID_VALUE;
    *device = (address)(uintptr_t)start;
    return 0;
}

/* Page-locked memory is read and written when the queue gets there, pageable memory at once. */
result cuMemcpyHtoDAsync_v2(address dst, const void *src, size_t length, struct queue *q) {
    BEGIN
    struct work copy = {.kind = COPY, .dst = (char *)(uintptr_t)dst, .src = src, .length = length};
    if (inside(&registered, src, length)) return queued(q, copy);
    NOT_CAPTURED(q)
    result r = run(q, q->count);
    if (r) return r;
    if (!inside(&allocated, copy.dst, length)) return INVALID_VALUE;
    memcpy(copy.dst, src, length);
    return 0;
}

result cuMemcpyDtoHAsync_v2(void *dst, address src, size_t length, struct queue *q) {
    BEGIN
    if (inside(&registered, dst, length))
        return queued(q, (struct work){.kind = COPY, .dst = dst, .src = (char *)(uintptr_t)src, .length = length});
    NOT_CAPTURED(q)
    result r = run(q, q->count);
    if (r) return r;
    if (!inside(&allocated, (void *)(uintptr_t)src, length)) return INVALID_VALUE;
    memcpy(dst, (void *)(uintptr_t)src, length);
    return 0;
}

result cuMemcpyDtoDAsync_v2(address dst, address src, size_t length, struct queue *q) {
    BEGIN
    return queued(q, (struct work){.kind = COPY, .dst = (char *)(uintptr_t)dst, .src = (char *)(uintptr_t)src, .length = length});
}

/* A module is its text, a kernel one of its entries. */
struct kernel { char name[64]; int shared, carveout; };
struct module { char *text; struct kernel kernels[8]; };

result cuModuleLoadDataEx(struct module **module, const char *image, unsigned count, int *options, void **values) {
    BEGIN
    struct timespec pause = {setting("FAKE_CUDA_JIT_MS", 0) / 1000, setting("FAKE_CUDA_JIT_MS", 0) % 1000 * 1000000};
    nanosleep(&pause, NULL);
    if (!strstr(image, ".version")) {
        for (unsigned i = 0; i + 1 < count; i++) /* CU_JIT_ERROR_LOG_BUFFER, and its size behind it */
            if (options[i] == 5 && options[i + 1] == 6)
                snprintf(values[i], (size_t)values[i + 1], "ptxas fatal   : Missing .version directive");
        return INVALID_PTX;
    }
    *module = calloc(1, sizeof **module);
    (*module)->text = strdup(image);
    return 0;
}

result cuModuleUnload(struct module *module) { free(module->text); free(module); return 0; }

result cuModuleGetFunction(struct kernel **kernel, struct module *module, const char *name) {
    BEGIN
    char line[128];
    snprintf(line, sizeof line, ".entry %s\n", name);
    if (!strstr(module->text, line)) return NOT_FOUND;
    for (*kernel = module->kernels; (*kernel)->name[0] && strcmp((*kernel)->name, name);) ++*kernel;
    snprintf((*kernel)->name, sizeof (*kernel)->name, "%s", name);
    return 0;
}

result cuFuncSetAttribute(struct kernel *kernel, int attribute, int value) {
    BEGIN
    if (attribute == 9 && value >= -1 && value <= 100) kernel->carveout = value;
    else if (attribute == 8 && value >= 0 && value <= SHARED) kernel->shared = value;
    else return INVALID_VALUE;
    return 0;
}

static result launched(struct kernel *kernel, const unsigned *blocks, const unsigned *threads, unsigned shared,
                       struct queue *q, void **parameters, void **extra) {
    for (int i = 0; i < 3; i++) if (!blocks[i] || !threads[i]) return INVALID_VALUE;
    if (threads[0] * threads[1] * threads[2] > 1024 || extra) return INVALID_VALUE;
    if (shared > (unsigned)(kernel->shared ? kernel->shared : 48 << 10) || (shared && kernel->carveout != 100))
        return INVALID_VALUE;
    if (!strcmp(kernel->name, "crash")) return queued(q, (struct work){.kind = CRASH});
    if (strcmp(kernel->name, "fill")) return INVALID_VALUE;
    return queued(q, (struct work){.kind = FILL, .dst = *(char **)parameters[0], .value = *(unsigned *)parameters[1],
                                   .length = *(unsigned *)parameters[2]});
}

result cuLaunchKernel(struct kernel *kernel, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                      unsigned shared, struct queue *q, void **parameters, void **extra) {
    BEGIN
    if (getenv("FAKE_CUDA_TRACE")) fprintf(stderr, "launch %s\n", kernel->name);
    return launched(kernel, (unsigned[]){x, y, z}, (unsigned[]){tx, ty, tz}, shared, q, parameters, extra);
}

struct attribute { unsigned id; char pad[4]; unsigned value[3]; char rest[52]; };
struct config { unsigned blocks[3], threads[3], shared; struct queue *q; struct attribute *attributes; unsigned count; };

result cuLaunchKernelEx(const struct config *c, struct kernel *kernel, void **parameters, void **extra) {
    BEGIN
    char line[128] = "";
    for (unsigned i = 0; i < c->count; i++) {
        const unsigned *value = c->attributes[i].value;
        size_t used = strlen(line);
        if (c->attributes[i].id == 6 && value[0] == 1) {
            snprintf(line + used, sizeof line - used, ", programmatic");
        } else if (c->attributes[i].id == 4) {
            /* A cluster: its extents divide the grid's, and it has eight blocks at most. */
            for (int k = 0; k < 3; k++) if (!value[k] || c->blocks[k] % value[k]) return INVALID_CLUSTER_SIZE;
            if ((unsigned long long)value[0] * value[1] * value[2] > 8) return INVALID_CLUSTER_SIZE;
            snprintf(line + used, sizeof line - used, ", clusters of %ux%ux%u", value[0], value[1], value[2]);
        } else {
            return INVALID_VALUE;
        }
    }
    if (getenv("FAKE_CUDA_TRACE")) fprintf(stderr, "launch %s%s\n", kernel->name, line);
    return launched(kernel, c->blocks, c->threads, c->shared, c->q, parameters, extra);
}

/* Graphs. An executable graph is a copy. */

static struct graph *copied(const struct graph *from) {
    struct graph *g = calloc(1, sizeof *g);
    if (from) *g = *from;
    graphs++;
    return g;
}

static result destroyed(struct graph *g) { graphs--; free(g); return 0; }

result cuStreamBeginCapture_v2(struct queue *q, int mode) {
    BEGIN
    if (q->capture || mode != 2) return INVALID_VALUE;
    q->capture = copied(NULL);
    return 0;
}

result cuStreamEndCapture(struct queue *q, struct graph **g) {
    BEGIN
    if (!q->capture) return INVALID_VALUE;
    *g = q->capture;
    q->capture = NULL;
    if (!(*g)->invalid) return 0;
    destroyed(*g);
    *g = NULL;
    return CAPTURE_INVALIDATED;
}

result cuGraphInstantiateWithFlags(struct graph **executable, struct graph *g, unsigned long long flags) {
    BEGIN
    if (flags) return INVALID_VALUE;
    *executable = copied(g);
    return 0;
}

result cuGraphLaunch(struct graph *executable, struct queue *q) {
    BEGIN
    if (getenv("FAKE_CUDA_TRACE")) fprintf(stderr, "launch a graph of %zu\n", executable->count);
    for (size_t i = 0; i < executable->count; i++) queued(q, executable->items[i]);
    return 0;
}

result cuGraphDestroy(struct graph *g) { return destroyed(g); }

result cuGraphExecDestroy(struct graph *g) { return destroyed(g); }
