// Runs printed CUDA kernels on a CPU: each thread of a block is a fiber, warps run one after the other as far as they can
// go, in ascending or descending order. What depends on a barrier that is not there comes out wrong in one of the two.
// Shared memory starts as NaNs; the target of an asynchronous copy is NaNs from its beginning until it is waited for.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define KFC_HOST
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct kfc_host_index {
    unsigned x, y, z;
};
static kfc_host_index threadIdx, blockIdx;

namespace kfc_host {

enum class state { ready, in_warp, in_block, in_phase, done };

struct copy {
    void *to;
    const void *from;
    int bytes;
};

// Switching between fibers. On x86-64 by hand: that of the C library asks the kernel each time.
#ifdef __x86_64__
struct context {
    void *stack;
};
extern "C" void kfc_host_switch(void **from, void *to);
asm(R"(
    .text
kfc_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
static inline void go(context &from, context &to) {
    kfc_host_switch(&from.stack, to.stack);
}
static void prepare(context &c, unsigned char *stack, size_t size, void (*entry)()) {
    // Six registers, the address that is returned to, and one that makes the stack aligned as after a call.
    void **top = (void **)(((uintptr_t)stack + size) & ~(uintptr_t)15) - 2;
    top[0] = (void *)entry;
    top[1] = nullptr;
    c.stack = top - 6;
    memset(c.stack, 0, 6 * sizeof(void *));
}
#else
typedef ucontext_t context;
static inline void go(context &from, context &to) {
    swapcontext(&from, &to);
}
static void prepare(context &c, unsigned char *stack, size_t size, void (*entry)()) {
    getcontext(&c);
    c.uc_stack.ss_sp = stack;
    c.uc_stack.ss_size = size;
    c.uc_link = nullptr;
    makecontext(&c, entry, 0);
}
#endif

struct fiber {
    context at_rest;
    std::vector<unsigned char> stack;
    state at = state::done;
    unsigned phase = 0;
    // The barrier of the block that it waits at, and how many threads that is for; 0 for all.
    unsigned block_barrier = 0, block_threads = 0;
    // The barrier in shared memory that it waits at, and the parity of the phase.
    const void *barrier = nullptr;
    int parity = 0;
    // Copies that are in no group yet, and groups that have not been waited for, the oldest first.
    std::vector<copy> copies;
    std::deque<std::vector<copy>> groups;
    // Parts of shared memory that it wrote and did not say so to what reads asynchronously.
    std::vector<std::pair<size_t, size_t>> written;
};

// What one lane shows to the others; of two phases, so that one is read while the next is written.
struct slot {
    alignas(16) unsigned char bytes[64];
};

static constexpr size_t STACK = 1 << 18;
static std::vector<fiber> fibers(1024);
static slot slots[32][2][32];
static context scheduler;
static unsigned current;
static void (*kernel)(void **);
static void **arguments;
static unsigned char *shared_bytes;
static size_t shared_size;
// Shared memory as what reads it asynchronously sees it.
static unsigned char *async_bytes;
// Where shared memory begins for instructions that take its addresses.
static constexpr unsigned SHARED_WINDOW = 1024;
static const char *label = "";

[[noreturn]] static void fail(const char *what) {
    fprintf(stderr, "%s: thread %u of block (%u, %u, %u): %s\n", label, current, blockIdx.x, blockIdx.y, blockIdx.z, what);
    exit(1);
}

static void wait(state at) {
    fiber &f = fibers[current];
    f.at = at;
    go(f.at_rest, scheduler);
}

static inline int lane() {
    return current % 32;
}

// What all lanes of the warp gave.
template <typename T> struct lanes {
    const slot *of;
    T operator[](int lane) const {
        T x;
        memcpy(&x, of[lane].bytes, sizeof x);
        return x;
    }
};
template <typename T> static lanes<T> exchange(const T &x) {
    static_assert(sizeof(T) <= sizeof(slot));
    slot *of = slots[current / 32][fibers[current].phase++ % 2];
    memcpy(of[lane()].bytes, &x, sizeof x);
    wait(state::in_warp);
    return {of};
}

// What reads shared memory asynchronously does not see these bytes until a fence.
static inline void hide(const void *p, size_t n) {
    const size_t at = (uintptr_t)p - (uintptr_t)shared_bytes;
    if (shared_bytes && at < shared_size) memset(async_bytes + at, 0xff, n);
}

// What was there is gone from now on, for all that anyone knows; what is copied is there when it has been waited for.
static inline void copy_later(void *to, const void *from, int bytes) {
    memset(to, 0xff, bytes);
    hide(to, bytes);
    fibers[current].copies.push_back({to, from, bytes});
}

// A thread wrote here.
static inline void wrote(const void *p, size_t n) {
    const size_t at = (uintptr_t)p - (uintptr_t)shared_bytes;
    if (!shared_bytes || at >= shared_size) return;
    hide(p, n);
    fibers[current].written.push_back({at, n});
}

static inline void fence_shared() {
    for (const auto &w : fibers[current].written) memcpy(async_bytes + w.first, shared_bytes + w.first, w.second);
    fibers[current].written.clear();
}

static inline void copy_commit() {
    fiber &f = fibers[current];
    f.groups.push_back(std::move(f.copies));
    f.copies.clear();
}

// All groups but the last `n` arrive.
static inline void copy_wait(size_t n) {
    fiber &f = fibers[current];
    for (; f.groups.size() > n; f.groups.pop_front()) {
        for (const copy &c : f.groups.front()) {
            if (c.from)
                memcpy(c.to, c.from, c.bytes);
            else
                memset(c.to, 0, c.bytes);
            wrote(c.to, c.bytes);
        }
    }
}

static inline void check_aligned(const void *p, size_t n) {
    if ((uintptr_t)p % n) fail("an address is not aligned");
}

static unsigned char *shared_memory(size_t n) {
    if (!shared_bytes) {
        shared_size = n;
        if (posix_memalign((void **)&shared_bytes, 1024, n)) fail("no memory");
        async_bytes = (unsigned char *)malloc(n);
        memset(shared_bytes, 0xff, n);
        memset(async_bytes, 0xff, n);
    }
    return shared_bytes;
}

static void start_of_products();
static void end_of_products();

static void enter() {
    kernel(arguments);
    copy_commit();
    for (const auto &group : fibers[current].groups)
        if (!group.empty()) fail("copies are not waited for");
    fibers[current].groups.clear();
    fibers[current].written.clear();
    end_of_products();
    fibers[current].at = state::done;
    go(fibers[current].at_rest, scheduler);
}

static bool has_passed(const void *barrier, int parity);
static void deliver(bool newest);
static bool is_copying();
static void end_of_copies();

// Runs a warp as far as it can go. Returns whether any of its lanes went on.
static bool run_warp(unsigned w, bool descending) {
    for (bool any = false;; any = true) {
        unsigned waiting = 0, polling = 0;
        bool went = false;
        for (unsigned i = 0; i < 32; ++i) {
            current = w * 32 + (descending ? 31 - i : i);
            threadIdx.x = current;
            fiber &f = fibers[current];
            if (f.at == state::in_phase && has_passed(f.barrier, f.parity)) f.at = state::ready;
            if (f.at == state::ready) {
                went = true;
                go(scheduler, f.at_rest);
            }
            waiting += f.at == state::in_warp;
            polling += f.at == state::in_phase;
        }
        if (waiting == 32) {
            for (unsigned i = 0; i < 32; ++i) fibers[w * 32 + i].at = state::ready;
        } else if (!went) {
            if (waiting && !polling) fail("lanes of a warp are at different places");
            return any;
        }
    }
}

// Lets threads go on that all wait at one barrier of the block: all there are, or as many as it is for.
static bool release(unsigned threads) {
    unsigned at_all = 0, at_some = 0, done = 0, some = 0;
    for (unsigned t = 0; t < threads; ++t) {
        const fiber &f = fibers[t];
        done += f.at == state::done;
        if (f.at != state::in_block) continue;
        ++(f.block_barrier ? at_some : at_all);
        if (f.block_barrier) some = f.block_threads;
    }
    if (at_all && done) fail("some threads end while others are at a barrier");
    const bool all = at_all == threads, part = at_some && at_some == some;
    for (unsigned t = 0; t < threads; ++t) {
        fiber &f = fibers[t];
        if (f.at == state::in_block && (f.block_barrier ? part : all)) f.at = state::ready;
    }
    return all || part;
}

static void run_block(unsigned threads, bool descending) {
    start_of_products();
    for (unsigned t = 0; t < threads; ++t) {
        fiber &f = fibers[t];
        f.stack.resize(STACK);
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(f.stack.data(), STACK);
#endif
        prepare(f.at_rest, f.stack.data(), STACK, enter);
        f.at = state::ready;
        f.phase = 0;
    }
    for (;;) {
        bool went = false;
        for (unsigned w = 0; w < threads / 32; ++w) went |= run_warp(descending ? threads / 32 - 1 - w : w, descending);
        unsigned done = 0;
        for (unsigned t = 0; t < threads; ++t) done += fibers[t].at == state::done;
        if (done == threads) break;
        if (release(threads) || went) continue;
        if (!is_copying()) fail("threads wait for each other");
        deliver(descending);
    }
    end_of_copies();
    free(shared_bytes);
    free(async_bytes);
    shared_bytes = async_bytes = nullptr;
}

static float half_to_float(unsigned short h) {
    _Float16 x;
    memcpy(&x, &h, 2);
    return (float)x;
}
static unsigned short float_to_half(float x) {
    const _Float16 y = (_Float16)x;
    unsigned short h;
    memcpy(&h, &y, 2);
    return h;
}

} // namespace kfc_host
#include "bulk.h"
#include "hopper.h"

namespace kfc_host {
static bool is_copying() {
    return !boxes.empty();
}
// Waits at a barrier of so many threads, or of all if it is 0.
static void sync(unsigned barrier, unsigned threads) {
    fibers[current].block_barrier = barrier;
    fibers[current].block_threads = threads;
    wait(state::in_block);
}
} // namespace kfc_host

static inline void __syncthreads() {
    kfc_host::sync(0, 0);
}
static inline float __uint_as_float(unsigned u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
static inline unsigned __float_as_uint(float x) {
    unsigned u;
    memcpy(&u, &x, 4);
    return u;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
