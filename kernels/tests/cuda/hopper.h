// Hopper's asynchronous products on a CPU, as the PTX ISA tells of them (wgmma.mma_async, "Asynchronous Warpgroup Level Matrix
// Shared Memory Layout", "Async proxy"). Included by host.h.
//
// Products are as late as they may be: they read shared memory when they are waited for, and until then their sums are NaNs.
// They see shared memory as it was when each writer last said so by a fence; what was written since is NaNs for them.
#pragma once
#include <deque>
#include <map>

namespace kfc_host {

// A factor of a product: a descriptor and whether elements along k are not the consecutive ones, or registers.
struct factor {
    unsigned long long descriptor;
    int turned;
    const unsigned *registers;
};

struct product {
    float *sums;
    int n;
    factor a, b;
    unsigned short rows[2][16]; // of a from registers
    float (*value)(unsigned short);
};

// What a thread has begun.
struct products {
    bool is_fenced = false;
    std::vector<product> open;
    std::deque<std::vector<product>> committed;
    std::map<float *, std::vector<float>> sums;
    size_t begun = 0;
};
static std::vector<products> products_of(1024);

// What the warps of each group gave for each product: they must agree.
struct agreed {
    unsigned long long a, b;
    int n;
};
static std::vector<agreed> agreed_of[8];

static unsigned shared_address(const void *p) {
    return (unsigned)((const unsigned char *)p - shared_bytes) + SHARED_WINDOW;
}

static void wgmma_fence() {
    exchange(0);
    products_of[current].is_fenced = true;
}

static void wgmma(float *sums, int n, factor a, factor b, float (*value)(unsigned short)) {
    products &mine = products_of[current];
    product p = {sums, n, a, b, {}, value};
    const agreed given = {a.descriptor, b.descriptor, n};
    const auto others = exchange(given);
    for (int l = 0; l < 32; ++l)
        if (others[l].a != given.a || others[l].b != given.b || others[l].n != n) fail("lanes give different descriptors");
    auto &group = agreed_of[current / 128];
    if (mine.begun == group.size()) group.push_back(given);
    const agreed &first = group[mine.begun++];
    if (first.a != given.a || first.b != given.b || first.n != n) fail("warps of a group give different descriptors");
    if (a.registers) {
        struct fragment {
            unsigned of[4];
        } own;
        memcpy(own.of, a.registers, sizeof own.of);
        const auto of = exchange(own);
        for (int row = 0; row < 2; ++row)
            for (int k = 0; k < 16; ++k) {
                const unsigned pair = of[lane() / 4 * 4 + k % 8 / 2].of[row + k / 8 * 2];
                p.rows[row][k] = (unsigned short)(pair >> 16 * (k % 2));
            }
    }
    if (!mine.sums.count(sums)) {
        if (!mine.is_fenced) fail("sums are used by a product without a fence");
        mine.sums[sums] = std::vector<float>(sums, sums + n / 2);
    }
    for (int e = 0; e < n / 2; ++e) sums[e] = NAN;
    mine.open.push_back(p);
}

static void wgmma_commit() {
    products &mine = products_of[current];
    mine.committed.push_back(std::move(mine.open));
    mine.open.clear();
}

// Element (x, k) of a factor, x along the axis that is not k. Offsets are those of the canonical layouts with T = 8.
static unsigned short element(const factor &f, int x, int k) {
    const unsigned long long d = f.descriptor;
    const unsigned start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
    if (d >> 49 & 7) fail("a descriptor has a base offset");
    const unsigned widths[] = {16, 128, 64, 32}, width = widths[d >> 62];
    unsigned at = start;
    if (!f.turned)
        at += x % 8 * width + x / 8 * stride + k % 8 * 2 + k / 8 * (width == 16 ? leading : 16);
    else if (width == 16)
        at += x % 8 * 2 + x / 8 * stride + k % 8 * 16 + k / 8 * leading;
    else
        at += x % 8 * 2 + x / 8 % (width / 16) * 16 + x / (width / 2) * leading + k % 8 * width + k / 8 * stride;
    at ^= (at >> 7 & (width / 16 - 1)) << 4;
    if (at < SHARED_WINDOW || at - SHARED_WINDOW + 2 > shared_size) fail("a descriptor leads out of shared memory");
    unsigned short h;
    memcpy(&h, async_bytes + at - SHARED_WINDOW, 2);
    return h;
}

static void finish(product &p, std::vector<float> &sums) {
    const int row = current / 32 % 4 * 16 + lane() / 4, t = lane() % 4;
    float x[2][16];
    for (int r = 0; r < 2; ++r)
        for (int k = 0; k < 16; ++k)
            x[r][k] = p.value(p.a.registers ? p.rows[r][k] : element(p.a, row + 8 * r, k));
    for (int j = 0; j < p.n / 4; ++j) {
        float y[16];
        for (int k = 0; k < 16; ++k) y[k] = p.value(element(p.b, j / 2 * 8 + 2 * t + j % 2, k));
        for (int r = 0; r < 2; ++r) {
            float &c = sums[j / 2 * 4 + r * 2 + j % 2];
            double sum = c;
            for (int k = 0; k < 16; ++k) sum += (double)x[r][k] * y[k];
            c = (float)sum;
        }
    }
}

static void wgmma_wait(size_t left) {
    exchange(0);
    products &mine = products_of[current];
    mine.is_fenced = false;
    while (mine.committed.size() > left) {
        auto done = std::move(mine.committed.front());
        mine.committed.pop_front();
        for (product &p : done) finish(p, mine.sums[p.sums]);
        for (product &p : done) {
            const auto uses = [&](const std::vector<product> &list) {
                for (const product &q : list)
                    if (q.sums == p.sums) return true;
                return false;
            };
            bool is_used = uses(mine.open);
            for (const auto &list : mine.committed) is_used |= uses(list);
            if (is_used || !mine.sums.count(p.sums)) continue;
            memcpy(p.sums, mine.sums[p.sums].data(), p.n / 2 * sizeof(float));
            mine.sums.erase(p.sums);
        }
    }
}

static void start_of_products() {
    for (auto &group : agreed_of) group.clear();
}

static void end_of_products() {
    products &mine = products_of[current];
    if (!mine.open.empty() || !mine.committed.empty()) fail("products are not waited for");
    mine = products();
}

} // namespace kfc_host
