// Included after the kernels and the table KERNELS of functions that call them.
//
//     main CASES RESULTS asc|desc
//
// CASES: for each case its label's length and the label, the number of the kernel, the grid, the threads of a block, the
// number of buffers, and for each buffer its bytes' number and the bytes; numbers are 32 bits. RESULTS: bytes of all buffers.
#include <string>

static unsigned read_number(FILE *file) {
    unsigned n = 0;
    if (fread(&n, 4, 1, file) != 1) n = ~0u;
    return n;
}

int main(int, char **argv) {
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    const bool descending = !strcmp(argv[3], "desc");
    for (unsigned length; (length = read_number(in)) != ~0u;) {
        std::string label(length, 0);
        size_t read = fread(&label[0], 1, length, in);
        kfc_host::label = label.c_str();
        kfc_host::kernel = KERNELS[read_number(in)];
        const unsigned x = read_number(in), y = read_number(in), z = read_number(in), threads = read_number(in);
        std::vector<void *> buffers(read_number(in));
        std::vector<size_t> sizes;
        for (void *&b : buffers) {
            sizes.push_back(read_number(in));
            // Exactly as large as it is, so that the sanitizer sees what lies beyond.
            b = malloc(sizes.back());
            read += fread(b, 1, sizes.back(), in);
        }
        kfc_host::arguments = buffers.data();
        for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) kfc_host::run_block(threads, descending);
        for (size_t i = 0; i < buffers.size(); ++i) {
            fwrite(buffers[i], 1, sizes[i], out);
            free(buffers[i]);
        }
    }
    fclose(in);
    return fclose(out);
}
