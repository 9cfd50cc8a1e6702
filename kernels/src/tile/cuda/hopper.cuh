// What kernels printed for sm_90a call besides kfc.cuh: tensor cores that a group of four warps drives, with operands in
// shared memory. Their second bodies, for KFC_HOST, are in kernels/tests/cuda/hopper.h.
#pragma once
#include "kfc.cuh"

// Tiles for these instructions start at multiples of 1024 bytes.
#ifndef KFC_HOST
#define KFC_SHARED_TILES(n) __shared__ __align__(1024) unsigned char shared[n]
#define KFC_SHARED_TILES_AT_LAUNCH(n) extern __shared__ __align__(1024) unsigned char shared[]
#else
#define KFC_SHARED_TILES(n) unsigned char *const shared = kfc_host::shared_memory(n)
#define KFC_SHARED_TILES_AT_LAUNCH(n) KFC_SHARED_TILES(n)
#endif

// Index of a 16-bit element of a tile whose `slow` axis has SLOW elements: panels of BYTES along the fast axis, one after the
// other; in each, a row of BYTES for each element of the slow axis, whose parts of 16 bytes change places from row to row, so
// that reading down a column meets all banks. The address, from a multiple of 1024 on, has bits 4 to 6 (5, 4) exchanged for
// their exclusive or with bits 7 to 9 (8, 7) where BYTES is 128 (64, 32).
template <int BYTES, int SLOW> KFC_INLINE int kfc_swizzled(int slow, int fast) {
    constexpr int along = BYTES / 2;
    const int byte = slow * BYTES + fast % along * 2;
    return fast / along * (SLOW * along) + (byte ^ (byte >> 7 & (BYTES / 16 - 1)) << 4) / 2;
}

// Makes what this thread wrote to shared memory visible to what reads it asynchronously, once others know of it by a barrier.
KFC_INLINE void kfc_fence_shared() {
#ifndef KFC_HOST
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    kfc_host::fence_shared();
#endif
}

// Four warps' number, the same in all lanes for the compiler to see.
KFC_INLINE int kfc_warpgroup() {
#ifndef KFC_HOST
    return __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
#else
    return (int)threadIdx.x / 128;
#endif
}

// Where an operand is in shared memory: address, distances of panels and of groups of eight rows, all in parts of 16 bytes,
// and how parts of rows change places (1: rows of 128 bytes, 2: 64, 3: 32).
template <int BYTES> KFC_INLINE unsigned long long kfc_descriptor(const void *at, int leading, int stride) {
#ifndef KFC_HOST
    const unsigned address = kfc_shared_address(at);
#else
    const unsigned address = kfc_host::shared_address(at);
#endif
    constexpr unsigned long long mode = BYTES == 128 ? 1 : BYTES == 64 ? 2 : 3;
    return (unsigned long long)((address & 0x3ffff) >> 4) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(stride >> 4) << 32 | mode << 62;
}

// Between what this thread did to registers of N sums and the products that are added to them, and between those and what it
// does next. Sums must not be touched before kfc_wgmma_wait.
template <int N> KFC_INLINE void kfc_keep(float *sums) {
#ifndef KFC_HOST
#pragma unroll
    for (int e = 0; e < N; ++e) asm volatile("" : "+f"(sums[e])::"memory");
#endif
}
KFC_INLINE void kfc_wgmma_fence() {
#ifndef KFC_HOST
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    kfc_host::wgmma_fence();
#endif
}
template <int N> KFC_INLINE void kfc_wgmma_begin(float *sums) {
    kfc_keep<N>(sums);
    kfc_wgmma_fence();
}
KFC_INLINE void kfc_wgmma_commit() {
#ifndef KFC_HOST
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    kfc_host::wgmma_commit();
#endif
}
// Waits for all products but those of the last N commits.
template <int N> KFC_INLINE void kfc_wgmma_wait_but() {
#ifndef KFC_HOST
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
    kfc_host::wgmma_wait(N);
#endif
}
template <int N> KFC_INLINE void kfc_wgmma_wait(float *sums) {
#ifndef KFC_HOST
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#else
    kfc_host::wgmma_wait(0);
#endif
    kfc_keep<N>(sums);
}

// c += a · b for 64 x 16 times 16 x N, of four warps: warp w has rows 16w to 16w + 15, in registers as those of kfc_mma for
// each 8 columns. a is in shared memory or in registers as for kfc_mma. TA and TB: elements along k are not the consecutive
// ones.
template <int N> struct kfc_columns {};
#ifndef KFC_HOST
#define KFC_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define KFC_NAMES_16 KFC_NAMES_8 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define KFC_NAMES_32 KFC_NAMES_16 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KFC_NAMES_64 \
    KFC_NAMES_32 ", " "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define KFC_NAMES_128 \
    KFC_NAMES_64 ", " "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, " \
    "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
    "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define KFC_SUMS_8(i)                                                                                                      \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define KFC_SUMS_16(i) KFC_SUMS_8(i), KFC_SUMS_8(i + 8)
#define KFC_SUMS_32(i) KFC_SUMS_16(i), KFC_SUMS_16(i + 16)
#define KFC_SUMS_64(i) KFC_SUMS_32(i), KFC_SUMS_32(i + 32)
#define KFC_SUMS_128(i) KFC_SUMS_64(i), KFC_SUMS_64(i + 64)
// N columns are C sums; I0 to I5 are the numbers of the operands behind them.
#define KFC_DEFINE_WGMMA(N, C, TYPE, T, I0, I1, I2, I3, I4, I5)                                                            \
    template <int TA, int TB>                                                                                              \
    KFC_INLINE void kfc_wgmma(float *c, unsigned long long a, unsigned long long b, kfc_columns<N>, T) {                   \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I4 ", 0;\n"                                                       \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" KFC_NAMES_##C "}, " I0 ", " I1    \
                     ", p, 1, 1, " I2 ", " I3 ";\n}"                                                                       \
                     : KFC_SUMS_##C(0)                                                                                     \
                     : "l"(a), "l"(b), "n"(TA), "n"(TB), "r"(1));                                                          \
    }                                                                                                                      \
    template <int TB>                                                                                                      \
    KFC_INLINE void kfc_wgmma(float *c, const unsigned (&a)[4], unsigned long long b, kfc_columns<N>, T) {                 \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                            \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" KFC_NAMES_##C "}, {" I0 ", " I1   \
                     ", " I2 ", " I3 "}, " I4 ", p, 1, 1, " I5 ";\n}"                                                      \
                     : KFC_SUMS_##C(0)                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TB));                                       \
    }
#define KFC_DEFINE_WGMMAS(TYPE, T)                                                                                         \
    KFC_DEFINE_WGMMA(16, 8, TYPE, T, "%8", "%9", "%10", "%11", "%12", "%13")                                               \
    KFC_DEFINE_WGMMA(32, 16, TYPE, T, "%16", "%17", "%18", "%19", "%20", "%21")                                            \
    KFC_DEFINE_WGMMA(64, 32, TYPE, T, "%32", "%33", "%34", "%35", "%36", "%37")                                            \
    KFC_DEFINE_WGMMA(128, 64, TYPE, T, "%64", "%65", "%66", "%67", "%68", "%69")                                           \
    KFC_DEFINE_WGMMA(256, 128, TYPE, T, "%128", "%129", "%130", "%131", "%132", "%133")
KFC_DEFINE_WGMMAS("bf16", kfc_bf16)
KFC_DEFINE_WGMMAS("f16", kfc_f16)
#else
template <int TA, int TB, int N, typename T>
KFC_INLINE void kfc_wgmma(float *c, unsigned long long a, unsigned long long b, kfc_columns<N>, T) {
    kfc_host::wgmma(c, N, {a, TA, nullptr}, {b, TB, nullptr}, [](unsigned short x) { return kfc_float(T{x}); });
}
template <int TB, int N, typename T>
KFC_INLINE void kfc_wgmma(float *c, const unsigned (&a)[4], unsigned long long b, kfc_columns<N>, T) {
    kfc_host::wgmma(c, N, {0, 0, a}, {b, TB, nullptr}, [](unsigned short x) { return kfc_float(T{x}); });
}
#endif

// An operand in shared memory: BYTES and SLOW as for kfc_swizzled; the axis that is not k starts at `at`.
template <bool FAST_K, int BYTES, int SLOW, typename T>
KFC_INLINE unsigned long long kfc_operand(const T *tile, int at, int k) {
    constexpr int along = BYTES / 2;
    const T *const panel = FAST_K ? tile + k / along * (SLOW * along) + at * along + k % along
                                  : tile + at / along * (SLOW * along) + k * along;
    // Panels are stepped over along the axis that is not k alone; one k of 16 is in one panel.
    return kfc_descriptor<BYTES>(panel, FAST_K ? 16 : SLOW * BYTES, 8 * BYTES);
}

// Begins acc += a · b for [M, K] and [K, N] in shared memory, GM x GN groups of four warps over rows and columns; a fast k as
// for kfc_dot. Registers: tile row (of 64) · columns of a group / 2 + register of kfc_wgmma. kfc_dot_on goes on with sums that
// products under way add to; kfc_dot_groups begins with sums that were computed. Both end with kfc_wgmma_wait.
template <int M, int N, int K, int GM, int GN, bool A_FAST_K, int A_BYTES, int A_SLOW, bool B_FAST_K, int B_BYTES, int B_SLOW,
          typename T>
KFC_INLINE void kfc_dot_on(float *acc, const T *a, const T *b) {
    constexpr int MT = M / 64 / GM, NI = N / GN;
    const int group = kfc_warpgroup(), row = group % GM * MT * 64, column = group / GM % GN * NI;
    kfc_wgmma_fence();
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        const unsigned long long y = kfc_operand<B_FAST_K, B_BYTES, B_SLOW>(b, column, k);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            const unsigned long long x = kfc_operand<A_FAST_K, A_BYTES, A_SLOW>(a, row + i * 64, k);
            kfc_wgmma<!A_FAST_K, !B_FAST_K>(acc + i * NI / 2, x, y, kfc_columns<NI>{}, T{});
        }
    }
    kfc_wgmma_commit();
}
template <int M, int N, int K, int GM, int GN, bool A_FAST_K, int A_BYTES, int A_SLOW, bool B_FAST_K, int B_BYTES, int B_SLOW,
          typename T>
KFC_INLINE void kfc_dot_groups(float *acc, const T *a, const T *b) {
    kfc_keep<M / 64 / GM * (N / GN) / 2>(acc);
    kfc_dot_on<M, N, K, GM, GN, A_FAST_K, A_BYTES, A_SLOW, B_FAST_K, B_BYTES, B_SLOW>(acc, a, b);
}
// The same for a in registers, and to its end: they hold what a result of [M, K] in GM groups would be.
template <int M, int N, int K, int GM, bool B_FAST_K, int B_BYTES, int B_SLOW, typename T>
KFC_INLINE void kfc_dot_registers(float *acc, const T *a, const T *b) {
    constexpr int MT = M / 64 / GM;
    unsigned x[MT][K / 16][4];
#pragma unroll
    for (int e = 0; e < MT * K / 4; ++e) {
        unsigned &pair = x[e / (K / 4)][e % (K / 4) / 4][e % 4];
        pair = (unsigned)a[2 * e].bits | (unsigned)a[2 * e + 1].bits << 16;
#ifndef KFC_HOST
        asm volatile("" : "+r"(pair)::"memory");
#endif
    }
    kfc_wgmma_begin<MT * N / 2>(acc);
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        const unsigned long long y = kfc_operand<B_FAST_K, B_BYTES, B_SLOW>(b, 0, k);
#pragma unroll
        for (int i = 0; i < MT; ++i) kfc_wgmma<!B_FAST_K>(acc + i * N / 2, x[i][k / 16], y, kfc_columns<N>{}, T{});
    }
    kfc_wgmma_commit();
    kfc_wgmma_wait<MT * N / 2>(acc);
}

// Copies that the hardware makes on its own: boxes of a matrix in global memory, into swizzled tiles (TMA). How the matrix lies
// and how large a box is says a map, which the host encodes (`cuTensorMapEncodeTiled`): 128 opaque bytes.
struct alignas(128) kfc_map {
    unsigned char bytes[128];
};

// A barrier in shared memory: a phase ends when so many threads have arrived, and as many bytes as they said to expect. It is
// announced by kfc_announce_barriers of the thread that made it and a barrier of the block.
typedef unsigned long long kfc_barrier;
KFC_INLINE void kfc_make_barrier(kfc_barrier *barrier, int threads) {
#ifndef KFC_HOST
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(kfc_shared_address(barrier)), "r"(threads) : "memory");
#else
    kfc_host::make_barrier(barrier, threads);
#endif
}
KFC_INLINE void kfc_announce_barriers() {
#ifndef KFC_HOST
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#else
    kfc_host::announce_barriers();
#endif
}
// One lane of each warp arrives, once all of them came here.
KFC_INLINE void kfc_arrive(kfc_barrier *barrier) {
#ifndef KFC_HOST
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(kfc_shared_address(barrier)) : "memory");
#else
    kfc_host::exchange(0);
    if (threadIdx.x % 32 == 0) kfc_host::arrive(barrier, 0);
#endif
}
// This thread arrives, and this phase waits for so many bytes.
KFC_INLINE void kfc_arrive_expecting(kfc_barrier *barrier, int bytes) {
#ifndef KFC_HOST
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(kfc_shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    kfc_host::arrive(barrier, bytes);
#endif
}
// Waits until the phase of this parity has ended: 0 for the first one. That before the first one, of parity 1, has.
KFC_INLINE void kfc_await(kfc_barrier *barrier, int parity) {
#ifndef KFC_HOST
    unsigned done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(kfc_shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
#else
    kfc_host::await(barrier, parity);
#endif
}
// Copies the box whose first element is (slow, fast) to a tile, zeros where the matrix ends; its bytes arrive at `barrier`.
template <typename T> KFC_INLINE void kfc_copy_box(T *to, const kfc_map *map, int fast, int slow, kfc_barrier *barrier) {
#ifndef KFC_HOST
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(kfc_shared_address(to)), "l"(map), "r"(kfc_shared_address(barrier)), "r"(fast), "r"(slow)
                 : "memory");
#else
    kfc_host::copy_box(to, map->bytes, fast, slow, barrier);
#endif
}
// A barrier of the first N threads alone.
template <int N> KFC_INLINE void kfc_sync() {
#ifndef KFC_HOST
    asm volatile("bar.sync 1, %0;" ::"n"(N) : "memory");
#else
    kfc_host::sync(1, N);
#endif
}
