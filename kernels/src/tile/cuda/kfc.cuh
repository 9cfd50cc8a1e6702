// What printed kernels call. Each wrapper of a device instruction has a second body for KFC_HOST, with which the same
// kernels run on a CPU: one fiber a thread, see kernels/tests/cuda/host.h. Needs no header of CUDA.
#pragma once

#ifndef KFC_HOST
#define KFC_INLINE __device__ __forceinline__
#define KFC_CHECK_ALIGNED(p, n)
#define KFC_WROTE(p, n)
#else
#define KFC_INLINE static inline
#define KFC_CHECK_ALIGNED(p, n) kfc_host::check_aligned(p, n)
#define KFC_WROTE(p, n) kfc_host::wrote(p, n)
#endif

// 16-bit floats: storage only. Arithmetic is on float.
struct kfc_bf16 {
    unsigned short bits;
};
struct kfc_f16 {
    unsigned short bits;
};

#ifndef KFC_HOST
KFC_INLINE float kfc_float(kfc_f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
KFC_INLINE kfc_f16 kfc_to_f16(float x) {
    kfc_f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
KFC_INLINE kfc_bf16 kfc_to_bf16(float x) {
    kfc_bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#else
KFC_INLINE float kfc_float(kfc_f16 x) {
    return kfc_host::half_to_float(x.bits);
}
KFC_INLINE kfc_f16 kfc_to_f16(float x) {
    return {kfc_host::float_to_half(x)};
}
KFC_INLINE kfc_bf16 kfc_to_bf16(float x) {
    const unsigned u = __float_as_uint(x);
    return {x != x ? (unsigned short)0x7fff : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
#endif
KFC_INLINE float kfc_float(kfc_bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}
KFC_INLINE float kfc_float(float x) {
    return x;
}

// Functions of elements.
KFC_INLINE float kfc_sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}
// The larger; the first if it is not a number.
KFC_INLINE float kfc_max(float a, float b) {
    return a != a ? a : fmaxf(a, b);
}
KFC_INLINE int kfc_max(int a, int b) {
    return a > b ? a : b;
}
KFC_INLINE unsigned kfc_max(unsigned a, unsigned b) {
    return a > b ? a : b;
}
KFC_INLINE float kfc_min(float a, float b) {
    return fminf(a, b);
}
KFC_INLINE int kfc_min(int a, int b) {
    return a < b ? a : b;
}
KFC_INLINE unsigned kfc_min(unsigned a, unsigned b) {
    return a < b ? a : b;
}
// Integers wrap; shifts by 32 and more give 0.
KFC_INLINE float kfc_add(float a, float b) {
    return a + b;
}
KFC_INLINE int kfc_add(int a, int b) {
    return (int)((unsigned)a + (unsigned)b);
}
KFC_INLINE int kfc_sub(int a, int b) {
    return (int)((unsigned)a - (unsigned)b);
}
KFC_INLINE int kfc_mul(int a, int b) {
    return (int)((unsigned)a * (unsigned)b);
}
KFC_INLINE unsigned kfc_shl(unsigned a, unsigned n) {
    return n < 32 ? a << n : 0;
}
KFC_INLINE unsigned kfc_shr(unsigned a, unsigned n) {
    return n < 32 ? a >> n : 0;
}
// Quotients by 0 are 0.
template <typename T> KFC_INLINE T kfc_div(T a, T b) {
    return b != 0 ? a / b : 0;
}
template <typename T> KFC_INLINE T kfc_rem(T a, T b) {
    return b != 0 ? a % b : 0;
}
// Floats to integers: towards zero, saturating, 0 for what is not a number.
KFC_INLINE int kfc_int(float x) {
#ifndef KFC_HOST
    return __float2int_rz(x);
#else
    return x != x ? 0 : x >= 2147483648.0f ? 2147483647 : x <= -2147483648.0f ? -2147483647 - 1 : (int)x;
#endif
}
KFC_INLINE unsigned kfc_uint(float x) {
#ifndef KFC_HOST
    return __float2uint_rz(x);
#else
    return x != x || x <= 0 ? 0 : x >= 4294967296.0f ? 4294967295u : (unsigned)x;
#endif
}

// V consecutive elements, aligned to all of them where V > 1; zeros where `valid` does not hold.
template <typename T, int V> struct alignas(sizeof(T) * V) kfc_vec {
    T x[V];
};
template <int V, typename T> KFC_INLINE void kfc_load(T *to, const T *from, bool valid = true) {
    kfc_vec<T, V> v = {};
    KFC_CHECK_ALIGNED(from, valid ? sizeof(v) : 1);
    if (valid) v = *reinterpret_cast<const kfc_vec<T, V> *>(from);
#pragma unroll
    for (int k = 0; k < V; ++k) to[k] = v.x[k];
}
template <int V, typename T> KFC_INLINE void kfc_store(T *to, const T *from, bool valid = true) {
    kfc_vec<T, V> v;
#pragma unroll
    for (int k = 0; k < V; ++k) v.x[k] = from[k];
    KFC_CHECK_ALIGNED(to, valid ? sizeof(v) : 1);
    if (valid) {
        *reinterpret_cast<kfc_vec<T, V> *>(to) = v;
        KFC_WROTE(to, sizeof(v));
    }
}

// The block's shared memory; what is above 48 KiB is asked for at launch.
#ifndef KFC_HOST
#define KFC_SHARED(n) __shared__ __align__(16) unsigned char shared[n]
#define KFC_SHARED_AT_LAUNCH(n) extern __shared__ __align__(16) unsigned char shared[]
#else
#define KFC_SHARED(n) unsigned char *const shared = kfc_host::shared_memory(n)
#define KFC_SHARED_AT_LAUNCH(n) KFC_SHARED(n)
#endif

// Shared memory: its address for instructions, and copies into it that go on while the thread does other things, until
// kfc_copy_wait. Copies of less than 4 bytes are done at once.
#ifndef KFC_HOST
KFC_INLINE unsigned kfc_shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
template <int BYTES> KFC_INLINE void kfc_copy_bytes(void *to, const void *from, bool valid) {
    const int n = valid ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(kfc_shared_address(to)), "l"(from), "r"(n)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(kfc_shared_address(to)), "l"(from), "n"(BYTES),
                     "r"(n)
                     : "memory");
}
KFC_INLINE void kfc_copy_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
// Makes the copies since the last call a group; waits for all groups but the last N.
KFC_INLINE void kfc_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> KFC_INLINE void kfc_copy_wait_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else
template <int BYTES> KFC_INLINE void kfc_copy_bytes(void *to, const void *from, bool valid) {
    KFC_CHECK_ALIGNED(to, BYTES);
    KFC_CHECK_ALIGNED(from, BYTES);
    kfc_host::copy_later(to, valid ? from : nullptr, BYTES);
}
KFC_INLINE void kfc_copy_wait() {
    kfc_host::copy_commit();
    kfc_host::copy_wait(0);
}
KFC_INLINE void kfc_copy_commit() {
    kfc_host::copy_commit();
}
template <int N> KFC_INLINE void kfc_copy_wait_but() {
    kfc_host::copy_wait(N);
}
#endif
// Elements of `base` at `index`; `base` itself stands in for those that there are not.
template <int V, typename T> KFC_INLINE void kfc_copy(T *to, const T *base, int index, bool valid = true) {
    constexpr int bytes = V * (int)sizeof(T);
    if constexpr (bytes >= 4) {
        kfc_copy_bytes<bytes>(to, valid ? base + index : base, valid);
    } else {
        *to = valid ? base[index] : T{};
        KFC_WROTE(to, bytes);
    }
}

// Values of other lanes of the warp.
template <typename T> KFC_INLINE T kfc_lane_xor(T x, int mask) {
#ifndef KFC_HOST
    return __shfl_xor_sync(0xffffffffu, x, mask);
#else
    return kfc_host::exchange(x)[kfc_host::lane() ^ mask];
#endif
}
// Reductions over the lanes that differ in these bits of their number, in a fixed order. The same bits in each lane.
template <int LANES, typename T> KFC_INLINE T kfc_lanes_sum(T x) {
#pragma unroll
    for (int bit = 1; bit < 32; bit *= 2)
        if (LANES & bit) x = kfc_add(x, kfc_lane_xor(x, bit));
    return x;
}
template <int LANES, typename T> KFC_INLINE T kfc_lanes_max(T x) {
#pragma unroll
    for (int bit = 1; bit < 32; bit *= 2)
        if (LANES & bit) x = kfc_max(x, kfc_lane_xor(x, bit));
    return x;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8 of matrix l / 8 and gets
// elements 2(l % 4) and the next of row l / 4 of each; with TRANS, of column l / 4.
template <bool TRANS> KFC_INLINE void kfc_ldmatrix(unsigned (&r)[4], const void *row) {
#ifndef KFC_HOST
    const unsigned at = kfc_shared_address(row);
    if (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#else
    KFC_CHECK_ALIGNED(row, 16);
    const auto rows = kfc_host::exchange(static_cast<const unsigned short *>(row));
    const int l = kfc_host::lane(), a = l / 4, b = l % 4 * 2;
    for (int q = 0; q < 4; ++q) {
        const unsigned lo = TRANS ? rows[8 * q + b][a] : rows[8 * q + a][b];
        const unsigned hi = TRANS ? rows[8 * q + b + 1][a] : rows[8 * q + a][b + 1];
        r[q] = lo | hi << 16;
    }
#endif
}

// c += a · b for 16 x 16 times 16 x 8; c: rows l / 4 and l / 4 + 8, columns 2(l % 4) and the next.
#ifndef KFC_HOST
KFC_INLINE void kfc_mma(float *c, const unsigned (&a)[4], unsigned b0, unsigned b1, kfc_bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
KFC_INLINE void kfc_mma(float *c, const unsigned (&a)[4], unsigned b0, unsigned b1, kfc_f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
template <typename T> KFC_INLINE void kfc_mma(float *c, const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
    struct fragments {
        T a[4][2], b[2][2];
    } mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b[0], &b0, 4);
    memcpy(mine.b[1], &b1, 4);
    const auto of = kfc_host::exchange(mine);
    const int g = kfc_host::lane() / 4, t = kfc_host::lane() % 4;
    for (int r = 0; r < 4; ++r) {
        const int column = 2 * t + r % 2;
        double sum = c[r];
        for (int k = 0; k < 16; ++k) {
            const int lane = k % 8 / 2, half = k / 8;
            const float x = kfc_float(of[4 * g + lane].a[2 * half + r / 2][k % 2]);
            sum += (double)x * kfc_float(of[4 * column + lane].b[half][k % 2]);
        }
        c[r] = (float)sum;
    }
}
#endif

// Index of an element of 16 bits in a tile whose rows of WIDTH elements follow each other. Pieces of 16 bytes change places
// within 128 bytes, by a number that differs in 8 consecutive rows (in rows 2 or 4 apart, if 128 bytes hold several): so the
// 8 rows of a matrix of kfc_ldmatrix are in different banks without padding.
template <int WIDTH> KFC_INLINE int kfc_swizzle_of(int row) {
    constexpr int PIECES = WIDTH < 64 ? WIDTH / 8 : 8, ROWS = 8 / PIECES;
    return row / ROWS % PIECES * 8;
}
template <int WIDTH> KFC_INLINE int kfc_swizzle(int row, int column) {
    return row * WIDTH + (column ^ kfc_swizzle_of<WIDTH>(row));
}

// acc += a · b for [M, K] and [K, N] in shared memory, WM x WN warps. A fast k means that elements along it are
// consecutive; they are where kfc_swizzle says for rows of A_WIDTH and B_WIDTH elements. Registers: ((tile row · tile
// columns) + tile column) · 4 + register of kfc_mma. Operands of the next 16 of K are fetched while these are multiplied.
template <int M, int N, int K, int WM, int WN, bool A_FAST_K, int A_WIDTH, bool B_FAST_K, int B_WIDTH, typename T>
KFC_INLINE void kfc_dot(float *acc, const T *a, const T *b) {
    constexpr int MT = M / 16 / WM, NT = N / 8 / WN;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp % WM * (M / WM), column = warp / WM % WN * (N / WN);
    const int low = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
    // Rows that are multiples of 8 apart are swizzled alike, and what is added to a column has bits of its own: one exclusive
    // or serves all rows of a step, or all steps of a row.
    const T *const rows_a = a + (A_FAST_K ? row + low + first : low + second) * A_WIDTH;
    const T *const rows_b = b + (B_FAST_K ? column + low + second : low + first) * B_WIDTH;
    const int from_a = (A_FAST_K ? second : row + first) ^ kfc_swizzle_of<A_WIDTH>(low);
    const int from_b = (B_FAST_K ? first : column + second) ^ kfc_swizzle_of<B_WIDTH>(low);
    unsigned x[2][MT][4], y[2][NT / 2][4];
    const auto fetch = [&](int turn, int k) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            const int at = A_FAST_K ? i * 16 * A_WIDTH + (from_a ^ k) : k * A_WIDTH + (from_a ^ i * 16);
            kfc_ldmatrix<!A_FAST_K>(x[turn][i], rows_a + at);
        }
#pragma unroll
        for (int j = 0; j < NT / 2; ++j) {
            const int at = B_FAST_K ? j * 16 * B_WIDTH + (from_b ^ k) : k * B_WIDTH + (from_b ^ j * 16);
            kfc_ldmatrix<!B_FAST_K>(y[turn][j], rows_b + at);
        }
    };
    fetch(0, 0);
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        const int turn = k / 16 % 2;
        if (k + 16 < K) fetch(1 - turn, k + 16);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
#pragma unroll
            for (int j = 0; j < NT / 2; ++j) {
                kfc_mma(acc + (i * NT + 2 * j) * 4, x[turn][i], y[turn][j][0], y[turn][j][1], T{});
                kfc_mma(acc + (i * NT + 2 * j + 1) * 4, x[turn][i], y[turn][j][2], y[turn][j][3], T{});
            }
        }
    }
}
// The same for float by fused multiply-adds, in order of k; rows are A_PITCH and B_PITCH elements apart.
template <int M, int N, int K, int WM, int WN, bool A_FAST_K, int A_PITCH, bool B_FAST_K, int B_PITCH>
KFC_INLINE void kfc_dot(float *acc, const float *a, const float *b) {
    constexpr int MT = M / 16 / WM, NT = N / 8 / WN;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp % WM * (M / WM) + lane / 4, column = warp / WM % WN * (N / WN) + lane % 4 * 2;
#pragma unroll 4
    for (int k = 0; k < K; ++k) {
        float x[2 * MT], y[2 * NT];
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) x[i] = A_FAST_K ? a[(row + i * 8) * A_PITCH + k] : a[k * A_PITCH + row + i * 8];
#pragma unroll
        for (int j = 0; j < 2 * NT; ++j) {
            const int c = column + j / 2 * 8 + j % 2;
            y[j] = B_FAST_K ? b[c * B_PITCH + k] : b[k * B_PITCH + c];
        }
#pragma unroll
        for (int e = 0; e < 4 * MT * NT; ++e) {
            const int i = e / 4 / NT * 2 + e / 2 % 2, j = e / 4 % NT * 2 + e % 2;
            acc[e] = fmaf(x[i], y[j], acc[e]);
        }
    }
}
