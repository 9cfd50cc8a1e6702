// Included after kernels and the tables KERNELS of functions that call them, NAMES, PARAMETERS and MAPS: what the stand-in for the
// driver (driver.cc) calls.
#define KFC_EXPORT extern "C" __attribute__((visibility("default")))

KFC_EXPORT unsigned kfc_parameters(unsigned kernel) {
    return PARAMETERS[kernel];
}

// How many of them, the last ones, are tensor maps.
KFC_EXPORT unsigned kfc_maps(unsigned kernel) {
    return MAPS[kernel];
}

KFC_EXPORT void kfc_run(unsigned kernel, void **arguments, unsigned x, unsigned y, unsigned z, unsigned threads,
                        bool descending) {
    kfc_host::label = NAMES[kernel];
    kfc_host::kernel = KERNELS[kernel];
    kfc_host::arguments = arguments;
    for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) kfc_host::run_block(threads, descending);
}
