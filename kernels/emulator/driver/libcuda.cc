// A stand-in for NVIDIA's driver: device memory is the host's, and a kernel's launch goes to the emulator. With it Candle's own
// CUDA device runs, unchanged, where there is no GPU. The modules of emulated kernels are named by the variable
// DYCONV_EMULATED_KERNELS, by paths with colons between them. One stream, in order; what Candle does not call is not here.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Allocation {
    size_t length;
    bool initialised;
};

// One library of emulated kernels: the interface of engine.cc and checks.cc.
struct Module {
    void (*begin)(size_t);
    void (*buffer)(const char *, void *, size_t, int, int);
    size_t (*unwritten)(const void *);
    void (*seed)(unsigned);
    int (*launch)(const char *, const unsigned *, const unsigned *, void **, const size_t *, size_t);
    const char *(*findings)();
    const struct {
        const char *name;
        void *entry;
    } *kernels;
};

struct Function {
    const Module *module; // null for `ADD`
    const char *name;
};

std::recursive_mutex lock;
std::map<char *, Allocation> allocations;
std::map<std::string, Function> functions;
unsigned launches = 0;

enum Result { SUCCESS = 0, INVALID_VALUE = 1, FILE_NOT_FOUND = 301, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801 };

template <typename T> void find(void *library, const char *name, T &symbol) {
    symbol = reinterpret_cast<T>(dlsym(library, name));
    if (!symbol) {
        fprintf(stderr, "libcuda stand-in: %s\n", dlerror());
        exit(2);
    }
}

void load_modules() {
    const char *list = getenv("DYCONV_EMULATED_KERNELS");
    const std::string paths = list ? list : "";
    for (size_t start = 0; start < paths.size();) {
        const size_t end = std::min(paths.find(':', start), paths.size());
        void *library = dlopen(paths.substr(start, end - start).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "libcuda stand-in: %s\n", dlerror());
            exit(2);
        }
        Module *module = new Module; // lives as long as the process
        find(library, "emulator_begin", module->begin);
        find(library, "emulator_buffer", module->buffer);
        find(library, "emulator_unwritten", module->unwritten);
        find(library, "emulator_seed", module->seed);
        find(library, "emulator_launch", module->launch);
        find(library, "emulator_findings", module->findings);
        find(library, "emulator_kernels", module->kernels);
        for (auto *kernel = module->kernels; kernel->name; kernel++) functions[kernel->name] = {module, kernel->name};
        start = end + 1;
    }
}

// The one kernel of Candle's own that its backward pass cannot do without: sums of gradients, contiguous.
constexpr const char *ADD = "badd_f32";

int add(void **arguments) {
    const size_t count = *static_cast<size_t *>(arguments[0]);
    if (*static_cast<void **>(arguments[2])) return NOT_SUPPORTED; // strides
    const float *a = *static_cast<float **>(arguments[3]), *b = *static_cast<float **>(arguments[4]);
    float *sum = *static_cast<float **>(arguments[5]);
    for (size_t i = 0; i < count; i++) sum[i] = a[i] + b[i];
    return SUCCESS;
}

// Notes that the host has filled an allocation.
void filled(char *p) {
    auto after = allocations.upper_bound(p);
    if (after != allocations.begin()) (--after)->second.initialised = true;
}

} // namespace

#define API extern "C" int
#define GUARD const std::lock_guard<std::recursive_mutex> guard(lock)

API cuInit(unsigned) {
    GUARD;
    if (functions.empty()) {
        load_modules();
        functions[ADD] = {nullptr, ADD};
    }
    return SUCCESS;
}
API cuDeviceGet(int *device, int) { return *device = 0, SUCCESS; }
API cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break; // threads of a block
    case 10: *value = 32; break;  // of a warp
    case 75: *value = 8; break;   // compute capability 8.0
    case 76: *value = 0; break;
    default: *value = 1;
    }
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &lock, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void *) { return SUCCESS; }
API cuCtxGetCurrent(void **context) { return *context = &lock, SUCCESS; }
API cuCtxDestroy_v2(void *) { return SUCCESS; }
API cuStreamCreate(void **stream, unsigned) { return *stream = &lock, SUCCESS; }
API cuStreamDestroy_v2(void *) { return SUCCESS; }
API cuStreamSynchronize(void *) { return SUCCESS; }
API cuStreamIsCapturing(void *, int *capturing) { return *capturing = 0, SUCCESS; }
API cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
API cuEventCreate(void **event, unsigned) { return *event = &lock, SUCCESS; }
API cuEventRecord(void *, void *) { return SUCCESS; }
API cuEventDestroy_v2(void *) { return SUCCESS; }

API cuMemAlloc_v2(char **p, size_t length) {
    GUARD;
    if (!length) return INVALID_VALUE; // as the real one
    *p = static_cast<char *>(aligned_alloc(256, (length + 255) / 256 * 256));
    memset(*p, 0xff, length);
    allocations[*p] = {length, false};
    return SUCCESS;
}
API cuMemAllocAsync(char **p, size_t length, void *) { return cuMemAlloc_v2(p, length); }
API cuMemFree_v2(char *p) {
    GUARD;
    if (!allocations.erase(p)) return INVALID_VALUE;
    free(p);
    return SUCCESS;
}
API cuMemFreeAsync(char *p, void *) { return cuMemFree_v2(p); }
API cuMemcpyHtoDAsync_v2(char *to, const void *from, size_t length, void *) {
    GUARD;
    memcpy(to, from, length);
    filled(to);
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t length, void *) { return memcpy(to, from, length), SUCCESS; }
API cuMemcpyDtoDAsync_v2(char *to, const char *from, size_t length, void *) { return cuMemcpyHtoDAsync_v2(to, from, length, nullptr); }
API cuMemcpyPeerAsync(void *, void *, const void *, void *, size_t, void *) { return NOT_SUPPORTED; }
API cuMemsetD8Async(char *to, unsigned char value, size_t length, void *) {
    GUARD;
    memset(to, value, length);
    filled(to);
    return SUCCESS;
}

API cuModuleLoadData(void **module, const void *) { return *module = &lock, SUCCESS; }
API cuModuleLoad(void **, const char *) { return FILE_NOT_FOUND; }
API cuModuleUnload(void *) { return SUCCESS; }
API cuModuleGetFunction(void **function, void *, const char *name) {
    GUARD;
    const auto found = functions.find(name);
    if (found == functions.end()) return NOT_FOUND;
    *function = &found->second;
    return SUCCESS;
}

API cuLaunchKernel(const Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **arguments, void **) {
    GUARD;
    if (!function->module) {
        const int result = add(arguments);
        if (result == SUCCESS) filled(*static_cast<char **>(arguments[5]));
        return result;
    }
    const Module &module = *function->module;
    module.begin(shared);
    for (auto &[base, allocation] : allocations) module.buffer("an allocation", base, allocation.length, allocation.initialised, 1);
    module.seed(++launches);
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    if (module.launch(function->name, grid, block, arguments, nullptr, 0)) {
        fprintf(stderr, "%s\n", module.findings());
        return ILLEGAL_ADDRESS;
    }
    for (auto &[base, allocation] : allocations)
        if (!allocation.initialised && !module.unwritten(base)) allocation.initialised = true;
    return SUCCESS;
}

API cuGetErrorName(int, const char **text) { return *text = "CUDA_ERROR", SUCCESS; }
API cuGetErrorString(int code, const char **text) {
    *text = code == ILLEGAL_ADDRESS ? "the emulator found mistakes" : code == NOT_FOUND ? "no such kernel" : "the stand-in driver failed";
    return SUCCESS;
}
