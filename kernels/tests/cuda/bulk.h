// Barriers in shared memory and copies of boxes (TMA) on a CPU, as the PTX ISA tells of them (mbarrier,
// cp.async.bulk.tensor, "Tensors", swizzling modes). Included by host.h.
//
// Copies are as late as they may be: one arrives when no thread of the block can go on without it, the oldest first in ascending
// order of warps, the newest first in descending order. From its beginning until then its tile is NaNs for all readers.
#pragma once
#include "tensor_map.h"
#include <map>

namespace kfc_host {

struct phase_barrier {
    int threads, left;
    long long bytes = 0; // expected and not arrived; below 0 if more arrived
    unsigned phase = 0;
    unsigned maker;
    bool is_announced = false;
};
// By address.
static std::map<const void *, phase_barrier> barriers;

struct box_copy {
    unsigned char *to;
    tensor_map map;
    int fast, slow;
    const void *barrier;
};
static std::deque<box_copy> boxes;

static phase_barrier &barrier_at(const void *p) {
    const auto found = barriers.find(p);
    if (found == barriers.end()) fail("there is no barrier in shared memory");
    if (!found->second.is_announced && found->second.maker != current) fail("a barrier was not announced");
    return found->second;
}

static void make_barrier(const void *p, int threads) {
    check_aligned(p, 8);
    if (barriers.count(p)) fail("a barrier is made twice");
    phase_barrier b;
    b.threads = b.left = threads;
    b.maker = current;
    barriers[p] = b;
}

static void announce_barriers() {
    for (auto &b : barriers)
        if (b.second.maker == current) b.second.is_announced = true;
}

static void complete(phase_barrier &b) {
    if (b.left || b.bytes) return;
    b.left = b.threads;
    ++b.phase;
}

static void arrive(const void *p, int bytes) {
    phase_barrier &b = barrier_at(p);
    if (b.left == 0) fail("more threads arrive at a barrier than it was made for");
    b.bytes += bytes;
    --b.left;
    complete(b);
}

// Whether the phase of this parity has ended.
static bool has_passed(const void *p, int parity) {
    return (barrier_at(p).phase & 1) != (unsigned)parity;
}

static void await(const void *p, int parity) {
    while (!has_passed(p, parity)) {
        fibers[current].barrier = p;
        fibers[current].parity = parity;
        wait(state::in_phase);
    }
}

static void copy_box(void *to, const unsigned char *map, int fast, int slow, const void *barrier) {
    box_copy c = {(unsigned char *)to, {}, fast, slow, barrier};
    if ((uintptr_t)map % 128) fail("a tensor map is not aligned");
    memcpy(&c.map, map, sizeof c.map);
    if (memcmp(c.map.magic, TENSOR_MAP, sizeof TENSOR_MAP)) fail("this is no tensor map");
    check_aligned(to, 128);
    if (!barrier_at(barrier).is_announced) fail("a copy arrives at a barrier that was not announced");
    const size_t at = c.to - shared_bytes, n = (size_t)c.map.box[0] * c.map.box[1] * c.map.element;
    if (c.to < shared_bytes || at + n > shared_size) fail("a box is copied outside of shared memory");
    memset(to, 0xff, n);
    memset(async_bytes + at, 0xff, n);
    boxes.push_back(c);
}

// One of the copies under way arrives.
static void deliver(bool newest) {
    const box_copy c = newest ? boxes.back() : boxes.front();
    newest ? boxes.pop_back() : boxes.pop_front();
    const tensor_map &m = c.map;
    for (unsigned row = 0; row < m.box[1]; ++row)
        for (unsigned column = 0; column < m.box[0]; ++column) {
            const long long x = (long long)c.fast + column, y = (long long)c.slow + row;
            const bool is_there = x >= 0 && y >= 0 && x < (long long)m.extents[0] && y < (long long)m.extents[1];
            // Parts of 16 bytes change places by the bits of the address in shared memory.
            size_t at = c.to - shared_bytes + ((size_t)row * m.box[0] + column) * m.element;
            at ^= (at >> 7 & (m.swizzle / 16 - 1)) << 4;
            const auto from = (const unsigned char *)m.address + y * (long long)m.pitch + x * m.element;
            if (is_there)
                memcpy(shared_bytes + at, from, m.element);
            else
                memset(shared_bytes + at, 0, m.element);
            memcpy(async_bytes + at, shared_bytes + at, m.element);
        }
    phase_barrier &b = barrier_at(c.barrier);
    b.bytes -= (long long)m.box[0] * m.box[1] * m.element;
    complete(b);
}

// The map that the driver would encode.
template <typename T>
static T map_of(const void *p, uint64_t columns, uint64_t rows, uint64_t pitch, uint32_t c, uint32_t r, uint32_t element,
                uint32_t swizzle) {
    tensor_map m = {{}, (uint64_t)p, {columns, rows}, pitch, {c, r}, element, swizzle};
    if (const char *why = wrong_map(m)) fail(why);
    T map;
    encode(m, &map);
    return map;
}

static void end_of_copies() {
    if (!boxes.empty()) fail("boxes are not waited for");
    for (const auto &b : barriers)
        if (b.second.bytes) fail("other bytes arrived at a barrier than were expected");
    barriers.clear();
}

} // namespace kfc_host
