// A stand-in for NVIDIA's driver, for tests alone: the functions of libcuda.so.1 that kfc calls, over memory of the host.
//
// Kernels are the printed CUDA source compiled for the CPU (library.h), found by the hash of the binary that is loaded:
//     KFC_STANDIN        folder with kernels.so and index: lines of HASH NUMBER ENTRY HIDDEN
//     KFC_STANDIN_LOG    file that gets what was called, in order, at the end
//     KFC_STANDIN_SET    NAME=VALUE separated by spaces: how it behaves (see `setting`)
//
// It is as late as it may be: copies, kernels and events happen when somebody waits for them and not before. Who reads
// results without waiting, or writes to a buffer whose copy is not over, gets what a fast host and a slow device would give.
// Memory is filled with NaNs when it is allocated. Calls without a current context, copies outside of allocations and wrong
// handles are refused.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include "tensor_map.h"

typedef int result;
typedef unsigned long long deviceptr;
enum : result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    STREAM_CAPTURE_INVALIDATED = 901,
};

// What the driver knows how to do differently: version, devices, capability, processors, clock, free, total, shared, alloc (the error of an
// allocation), init (that of starting), fault (ENTRY:N breaks at its Nth launch), parameters (so many fewer), order (1 for
// descending warps), simulated (1: a kernel takes 10 to 106 us as its binary's hash has it, nothing else takes time); and what
// the kernel does whose binary has this hash, or that is ENTRY/HIDDEN: faulty (breaks), idle (writes nothing), slow (takes 2 ms more of simulated time), nudged (flips the last bit of each word of
// 32 bits that it changes: results are right, with other bits).
static std::string setting(const std::string &name, const std::string &usual) {
    const char *all = getenv("KFC_STANDIN_SET");
    std::istringstream words(all ? all : "");
    for (std::string w; words >> w;)
        if (w.rfind(name + "=", 0) == 0) return w.substr(name.size() + 1);
    return usual;
}
static bool is_set(const std::string &name, const std::string &hash, const std::string &kernel) {
    const std::string which = setting(name, "");
    return which == hash || which == kernel;
}
static long long number(const std::string &name, long long usual) {
    return std::stoll(setting(name, std::to_string(usual)));
}

namespace {
struct Event;
struct Stream {
    std::vector<std::function<void()>> queue;
    bool capturing = false;
    std::vector<std::function<void()>> captured;
};
struct Event {
    Stream *stream = nullptr;
    bool passed = true;
    double at = 0; // ms
};
struct Module {
    std::string hash;
    unsigned kernel, hidden;
    std::string entry;
    std::map<std::string, struct Function *> functions;
};
struct Function {
    Module *module;
    int dynamic_shared = 48 << 10;
};
struct Graph {
    std::vector<std::function<void()>> work;
};

struct alignas(128) map_bytes {
    unsigned char bytes[128];
};

struct Driver {
    bool started = false;
    std::map<deviceptr, size_t> memory;
    std::set<void *> streams, events, modules, functions, graphs, executables, pinned;
    result error = SUCCESS; // of an earlier kernel; nothing works after it
    std::map<std::string, int> launches;
    double simulated = 0; // ms
    std::ostringstream log;
    void *library = nullptr;
    ~Driver() {
        if (const char *path = getenv("KFC_STANDIN_LOG")) {
            log << "left " << memory.size() << " " << streams.size() + events.size() + modules.size() + executables.size()
                << " " << pinned.size() << "\n";
            std::ofstream(path, std::ios::app) << log.str();
        }
    }
};
Driver driver;
thread_local int current = 0;

void *symbol(const char *name) {
    if (!driver.library) {
        const std::string path = std::string(getenv("KFC_STANDIN")) + "/kernels.so";
        driver.library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!driver.library) {
            fprintf(stderr, "stand-in: %s\n", dlerror());
            exit(1);
        }
    }
    return dlsym(driver.library, name);
}

// Size of an ELF file, from its tables.
size_t elf_size(const unsigned char *p) {
    auto read = [&](size_t at, int n) {
        uint64_t x = 0;
        memcpy(&x, p + at, n);
        return x;
    };
    size_t end = 64;
    const size_t programs = read(32, 8), sections = read(40, 8), program = read(54, 2), section = read(58, 2);
    for (size_t i = 0; i < read(56, 2); ++i) end = std::max<size_t>(end, read(programs + i * program + 8, 8) + read(programs + i * program + 32, 8));
    for (size_t i = 0; i < read(60, 2); ++i) {
        const size_t s = sections + i * section;
        if (read(s + 4, 4) != 8) end = std::max<size_t>(end, read(s + 24, 8) + read(s + 32, 8));
    }
    return std::max({end, programs + program * read(56, 2), sections + section * read(60, 2)});
}

bool inside(deviceptr at, size_t bytes) {
    auto next = driver.memory.upper_bound(at);
    if (next == driver.memory.begin()) return bytes == 0;
    const auto &block = *--next;
    return at + bytes <= block.first + block.second;
}

void drain(Stream *s) {
    std::vector<std::function<void()>> work;
    work.swap(s->queue);
    for (auto &w : work)
        if (driver.error == SUCCESS) w();
}

result enqueue(Stream *s, std::function<void()> work) {
    if (!driver.streams.count(s)) return INVALID_HANDLE;
    if (driver.error) return driver.error;
    (s->capturing ? s->captured : s->queue).push_back(std::move(work));
    return SUCCESS;
}
} // namespace

#define CURRENT \
    if (!current) return INVALID_CONTEXT
#define API extern "C" __attribute__((visibility("default"))) result

API cuDriverGetVersion(int *version) {
    *version = (int)number("version", 13000);
    return SUCCESS;
}
API cuInit(unsigned) {
    if (number("devices", 1) == 0) return NO_DEVICE;
    driver.started = true;
    return (result)number("init", SUCCESS);
}
// NVRTC looks for tables of the driver, and reads through a null pointer where this function itself is not there.
API cuGetExportTable(const void **table, const void *) {
    *table = nullptr;
    return NOT_FOUND;
}
extern "C" __attribute__((visibility("default"))) result cuGetErrorString(result e, const char **text) {
    *text = e == ILLEGAL_ADDRESS  ? "an illegal memory access was encountered"
            : e == OUT_OF_MEMORY  ? "out of memory"
            : e == INVALID_IMAGE  ? "device kernel image is invalid"
            : e == NOT_FOUND      ? "named symbol not found"
            : e == INVALID_HANDLE ? "invalid resource handle"
                                  : "an error of the stand-in";
    return SUCCESS;
}
API cuDeviceGetCount(int *count) {
    if (!driver.started) return NOT_INITIALIZED;
    *count = (int)number("devices", 1);
    return SUCCESS;
}
API cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= number("devices", 1)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}
API cuDeviceGetName(char *name, int size, int) {
    snprintf(name, size, "Stand-in");
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = (size_t)number("total", 1ll << 32);
    return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    const int capability = (int)number("capability", 90);
    switch (attribute) {
    case 75: *value = capability / 10; return SUCCESS;
    case 76: *value = capability % 10; return SUCCESS;
    case 16: *value = (int)number("processors", 132); return SUCCESS;
    case 13: *value = (int)number("clock", 1980000); return SUCCESS;
    case 36: *value = 2619000; return SUCCESS;
    case 37: *value = 5120; return SUCCESS;
    case 97: *value = (int)number("shared", 232448); return SUCCESS;
    default: return INVALID_VALUE;
    }
}
API cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(intptr_t)(device + 1);
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) {
    driver.log << "release\n";
    return SUCCESS;
}
API cuCtxSetCurrent(void *context) {
    current = (int)(intptr_t)context;
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t *available, size_t *total) {
    CURRENT;
    *available = (size_t)number("free", 1ll << 32);
    *total = (size_t)number("total", 1ll << 32);
    return SUCCESS;
}
API cuMemAlloc_v2(deviceptr *at, size_t bytes) {
    CURRENT;
    if (const result e = (result)number("alloc", SUCCESS)) return e;
    void *p = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!p) return OUT_OF_MEMORY;
    memset(p, 0xff, bytes);
    *at = (deviceptr)p;
    driver.memory[*at] = bytes;
    driver.log << "allocate " << bytes << "\n";
    return SUCCESS;
}
API cuMemFree_v2(deviceptr at) {
    CURRENT;
    if (!driver.memory.erase(at)) return INVALID_VALUE;
    free((void *)at);
    return SUCCESS;
}
API cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    CURRENT;
    *at = aligned_alloc(64, (bytes + 63) / 64 * 64);
    driver.pinned.insert(*at);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemFreeHost(void *at) {
    CURRENT;
    if (!driver.pinned.erase(at)) return INVALID_VALUE;
    free(at);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(deviceptr to, const void *from, size_t bytes, Stream *s) {
    CURRENT;
    if (!inside(to, bytes)) return INVALID_VALUE;
    driver.log << "upload\n";
    return enqueue(s, [=] { memcpy((void *)to, from, bytes); });
}
API cuMemcpyDtoHAsync_v2(void *to, deviceptr from, size_t bytes, Stream *s) {
    CURRENT;
    if (!inside(from, bytes)) return INVALID_VALUE;
    return enqueue(s, [=] { memcpy(to, (void *)from, bytes); });
}
API cuMemcpyDtoDAsync_v2(deviceptr to, deviceptr from, size_t bytes, Stream *s) {
    CURRENT;
    if (!inside(from, bytes) || !inside(to, bytes)) return INVALID_VALUE;
    return enqueue(s, [=] { memmove((void *)to, (void *)from, bytes); });
}
API cuMemsetD8Async(deviceptr at, unsigned char value, size_t bytes, Stream *s) {
    CURRENT;
    if (!inside(at, bytes)) return INVALID_VALUE;
    return enqueue(s, [=] { memset((void *)at, value, bytes); });
}

API cuStreamCreate(Stream **s, unsigned) {
    CURRENT;
    driver.streams.insert(*s = new Stream);
    return SUCCESS;
}
API cuStreamDestroy_v2(Stream *s) {
    CURRENT;
    if (!driver.streams.erase(s)) return INVALID_HANDLE;
    delete s;
    return SUCCESS;
}
API cuStreamSynchronize(Stream *s) {
    CURRENT;
    if (!driver.streams.count(s)) return INVALID_HANDLE;
    if (s->capturing) return STREAM_CAPTURE_INVALIDATED;
    drain(s);
    return driver.error;
}
API cuStreamBeginCapture_v2(Stream *s, int) {
    CURRENT;
    s->capturing = true;
    return SUCCESS;
}
API cuStreamEndCapture(Stream *s, Graph **graph) {
    CURRENT;
    s->capturing = false;
    driver.graphs.insert(*graph = new Graph{std::move(s->captured)});
    s->captured.clear();
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long) {
    CURRENT;
    if (!driver.graphs.count(graph)) return INVALID_HANDLE;
    driver.executables.insert(*executable = new Graph(*graph));
    return SUCCESS;
}
API cuGraphDestroy(Graph *graph) {
    if (!driver.graphs.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return SUCCESS;
}
API cuGraphExecDestroy(Graph *graph) {
    if (!driver.executables.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return SUCCESS;
}
API cuGraphLaunch(Graph *graph, Stream *s) {
    CURRENT;
    if (!driver.executables.count(graph)) return INVALID_HANDLE;
    driver.log << "graph " << graph->work.size() << "\n";
    return enqueue(s, [=] {
        for (auto &w : graph->work)
            if (driver.error == SUCCESS) w();
    });
}

API cuEventCreate(Event **e, unsigned) {
    CURRENT;
    driver.events.insert(*e = new Event);
    return SUCCESS;
}
API cuEventDestroy_v2(Event *e) {
    CURRENT;
    if (!driver.events.erase(e)) return INVALID_HANDLE;
    delete e;
    return SUCCESS;
}
API cuEventRecord(Event *e, Stream *s) {
    CURRENT;
    e->stream = s;
    e->passed = false;
    return enqueue(s, [=] {
        e->passed = true;
        const std::chrono::duration<double, std::milli> now = std::chrono::steady_clock::now().time_since_epoch();
        e->at = number("simulated", 0) ? driver.simulated : now.count();
    });
}
API cuEventSynchronize(Event *e) {
    CURRENT;
    if (!e->passed) drain(e->stream);
    return driver.error;
}
static result elapsed(float *ms, Event *from, Event *to) {
    CURRENT;
    if (!from->stream || !to->stream) return INVALID_HANDLE;
    if (!from->passed || !to->passed) return NOT_READY;
    *ms = (float)(to->at - from->at);
    return SUCCESS;
}
API cuEventElapsedTime(float *ms, Event *from, Event *to) {
    return elapsed(ms, from, to);
}
API cuEventElapsedTime_v2(float *ms, Event *from, Event *to) {
    return elapsed(ms, from, to);
}

API cuModuleLoadData(Module **module, const unsigned char *image) {
    CURRENT;
    if (memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0, n = elf_size(image); i < n; ++i) hash = (hash ^ image[i]) * 0x100000001b3;
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    std::ifstream index(std::string(getenv("KFC_STANDIN")) + "/index");
    std::string known, entry;
    unsigned kernel, hidden;
    while (index >> known >> kernel >> entry >> hidden)
        if (known == text) {
            driver.log << "load " << known << "\n";
            driver.modules.insert(*module = new Module{known, kernel, hidden, entry, {}});
            return SUCCESS;
        }
    fprintf(stderr, "stand-in: no kernel for a binary of hash %s\n", text);
    return NO_BINARY_FOR_GPU;
}
API cuModuleUnload(Module *module) {
    CURRENT;
    if (!driver.modules.erase(module)) return INVALID_HANDLE;
    for (auto &f : module->functions) delete f.second;
    delete module;
    return SUCCESS;
}
API cuModuleGetFunction(Function **f, Module *module, const char *name) {
    CURRENT;
    if (module->entry != name) return NOT_FOUND;
    driver.functions.insert(module->functions[name] = *f = new Function{module});
    return SUCCESS;
}
API cuFuncSetAttribute(Function *f, int attribute, int value) {
    CURRENT;
    if (attribute != 8 || value > number("shared", 232448)) return INVALID_VALUE;
    f->dynamic_shared = value;
    return SUCCESS;
}
static size_t maps_of(unsigned kernel) {
    return ((unsigned (*)(unsigned))symbol("kfc_maps"))(kernel);
}
API cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *extents, const uint64_t *pitches,
                           const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int, int fill) {
    CURRENT;
    // 16-bit floats, rows that are swizzled over 32, 64 or 128 bytes, zeros where a matrix ends.
    if ((type != 6 && type != 9) || rank != 2 || steps[0] != 1 || steps[1] != 1 || interleave || fill) return INVALID_VALUE;
    if (swizzle < 1 || swizzle > 3 || (uintptr_t)map % 64) return INVALID_VALUE;
    const kfc_host::tensor_map m = {{},     (uint64_t)address, {extents[0], extents[1]}, pitches[0], {box[0], box[1]},
                                    2,      16u << swizzle};
    if (kfc_host::wrong_map(m)) return INVALID_VALUE;
    if (!inside((deviceptr)address, (extents[1] - 1) * pitches[0] + extents[0] * 2)) return INVALID_VALUE;
    kfc_host::encode(m, map);
    return SUCCESS;
}
API cuFuncGetParamInfo(Function *f, size_t i, size_t *offset, size_t *size) {
    CURRENT;
    const auto count = (unsigned (*)(unsigned))symbol("kfc_parameters");
    const size_t all = count(f->module->kernel), buffers = all - maps_of(f->module->kernel);
    const size_t has = all + f->module->hidden - (size_t)number("parameters", 0);
    if (i >= has) return INVALID_VALUE;
    const bool is_map = i >= buffers && i < all;
    *offset = i * 8;
    *size = is_map ? 128 : 8;
    return SUCCESS;
}
// For cublaslt.cc: work in a stream that takes so many ms, and whether memory is there.
extern "C" __attribute__((visibility("default"))) result kfc_standin_enqueue(Stream *s, double ms, void (*work)(void *), void *what) {
    CURRENT;
    driver.log << "library\n";
    return enqueue(s, [=] {
        driver.simulated += ms;
        work(what);
    });
}
extern "C" __attribute__((visibility("default"))) bool kfc_standin_inside(deviceptr at, size_t bytes) {
    return inside(at, bytes);
}
API cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                   Stream *s, void **parameters, void **) {
    CURRENT;
    if (!driver.functions.count(f)) return INVALID_HANDLE;
    if (!x || !y || !z || y > 65535 || z > 65535 || tx > 1024 || ty != 1 || tz != 1) return INVALID_VALUE;
    if ((int)shared > f->dynamic_shared) return INVALID_VALUE;
    // The driver copies the parameters now.
    const auto count = (unsigned (*)(unsigned))symbol("kfc_parameters");
    std::vector<void *> args(count(f->module->kernel));
    const size_t buffers = args.size() - maps_of(f->module->kernel);
    for (size_t i = 0; i < buffers; ++i) memcpy(&args[i], parameters[i], 8);
    const auto maps = std::make_shared<std::vector<map_bytes>>(args.size() - buffers);
    for (size_t i = buffers; i < args.size(); ++i) {
        memcpy(&(*maps)[i - buffers], parameters[i], sizeof(map_bytes));
        args[i] = &(*maps)[i - buffers];
    }
    for (size_t i = 0; i < f->module->hidden; ++i)
        if (*(deviceptr *)parameters[args.size() + i] != 0) return INVALID_VALUE;
    for (size_t i = 0; i < buffers; ++i)
        if (!inside((deviceptr)args[i], 1)) return INVALID_VALUE;
    const unsigned kernel = f->module->kernel;
    const std::string entry = f->module->entry, hash = f->module->hash;
    const std::string known = entry + "/" + std::to_string(f->module->hidden);
    if (!s->capturing) driver.log << "launch\n";
    return enqueue(s, [=, keep = maps]() mutable {
        if (setting("fault", "") == entry + ":" + std::to_string(++driver.launches[entry])) {
            driver.error = ILLEGAL_ADDRESS;
            return;
        }
        if (is_set("faulty", hash, known)) {
            driver.error = ILLEGAL_ADDRESS;
            return;
        }
        driver.simulated += 0.01 + 0.001 * (double)(std::stoull(hash.substr(0, 8), nullptr, 16) % 97);
        if (is_set("slow", hash, known)) driver.simulated += 2;
        if (is_set("idle", hash, known)) return;
        const auto run = (void (*)(unsigned, void **, unsigned, unsigned, unsigned, unsigned, bool))symbol("kfc_run");
        std::map<deviceptr, std::vector<uint32_t>> before;
        if (is_set("nudged", hash, known))
            for (const auto &block : driver.memory) {
                const auto *words = (const uint32_t *)block.first;
                before[block.first].assign(words, words + block.second / 4);
            }
        run(kernel, args.data(), x, y, z, tx, number("order", 0) != 0);
        for (const auto &block : before)
            for (size_t i = 0; i < block.second.size(); ++i)
                if (((uint32_t *)block.first)[i] != block.second[i]) ((uint32_t *)block.first)[i] ^= 1;
    });
}
