// A stand-in for libcublasLt.so.13, for tests alone: the functions that kfc calls, over the memory of the stand-in for the
// driver (driver.cc), in whose streams it works. Matrices lie in columns; sums are in f32, one after the other.
//
// KFC_STANDIN_SET, beside what driver.cc knows: lt_version, lt_ms (what a product takes of simulated time), lt_nudge (1: the last bit of
// each result is flipped), lt_workspace (bytes that algorithms ask for), lt_none (1: there is no algorithm).
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <sstream>
#include <string>
#include <vector>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
typedef unsigned long long deviceptr;

static double number(const std::string &name, double usual) {
    const char *all = getenv("KFC_STANDIN_SET");
    std::istringstream words(all ? all : "");
    for (std::string w; words >> w;)
        if (w.rfind(name + "=", 0) == 0) return std::stod(w.substr(name.size() + 1));
    return usual;
}

namespace {
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t pitch;
    int32_t parts = 1;
    int64_t apart = 0;
    size_t bytes() const { return type == 0 ? 4 : 2; }
};
struct Desc {
    int compute, scale;
    int32_t turned[2] = {0, 0};
};
struct Preference {
    uint64_t workspace = 1 << 20;
    uint32_t reductions = 0xffffffff, aligned[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t words[8];
};
struct Proposal {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
struct Product {
    Desc desc;
    Layout a, b, c;
    const char *pa, *pb;
    char *pc;
    float alpha, beta;
    bool nudge;
};

float read(const char *p, int type) {
    if (type == 0) {
        float x;
        memcpy(&x, p, 4);
        return x;
    }
    uint16_t h;
    memcpy(&h, p, 2);
    if (type == 2) {
        _Float16 x;
        memcpy(&x, p, 2);
        return (float)x;
    }
    const uint32_t wide = (uint32_t)h << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}
void write(char *p, int type, float x) {
    if (type == 0) {
        memcpy(p, &x, 4);
    } else if (type == 2) {
        const _Float16 h = (_Float16)x;
        memcpy(p, &h, 2);
    } else {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        const uint16_t h = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        memcpy(p, &h, 2);
    }
}
// The element of a factor after it is turned, if it is.
float at(const char *p, const Layout &l, bool turned, int part, uint64_t i, uint64_t j) {
    if (turned) std::swap(i, j);
    return read(p + (part * l.apart + i + j * l.pitch) * l.bytes(), l.type);
}
void multiply(void *what) {
    Product *x = (Product *)what;
    const uint64_t depth = x->desc.turned[0] ? x->a.rows : x->a.columns;
    for (int part = 0; part < x->c.parts; ++part)
        for (uint64_t j = 0; j < x->c.columns; ++j)
            for (uint64_t i = 0; i < x->c.rows; ++i) {
                char *c = x->pc + (part * x->c.apart + i + j * x->c.pitch) * x->c.bytes();
                float sum = x->beta ? x->beta * read(c, x->c.type) : 0;
                for (uint64_t k = 0; k < depth; ++k)
                    sum = fmaf(at(x->pa, x->a, x->desc.turned[0], part, i, k), at(x->pb, x->b, x->desc.turned[1], part, k, j), sum);
                write(c, x->c.type, x->alpha * sum);
                if (x->nudge) *c ^= 1;
            }
}
bool fits(const Desc &d, const Layout &a, const Layout &b, const Layout &c) {
    const uint64_t m = d.turned[0] ? a.columns : a.rows, k = d.turned[0] ? a.rows : a.columns;
    const uint64_t n = d.turned[1] ? b.rows : b.columns, other = d.turned[1] ? b.columns : b.rows;
    for (const Layout *l : {&a, &b, &c})
        if (l->pitch < (int64_t)l->rows || !l->rows || !l->columns || l->parts != c.parts) return false;
    return d.compute == 68 && d.scale == 0 && m == c.rows && n == c.columns && k == other && a.type == b.type &&
           (c.type == a.type || c.type == 0);
}
void *driver(const char *name) {
    static void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    return cuda ? dlsym(cuda, name) : nullptr;
}
bool inside(const void *p, const Layout &l) {
    const size_t end = (l.parts - 1) * l.apart + (l.columns - 1) * l.pitch + l.rows;
    const auto inside = (bool (*)(deviceptr, size_t))driver("kfc_standin_inside");
    return inside && (uintptr_t)p % 16 == 0 && inside((deviceptr)p, end * l.bytes());
}
} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() {
    return (size_t)number("lt_version", 130100);
}
API cublasLtCreate(void **handle) {
    *handle = (void *)1;
    return SUCCESS;
}
API cublasLtMatmulDescCreate(Desc **d, int compute, int scale) {
    *d = new Desc{compute, scale};
    return SUCCESS;
}
API cublasLtMatmulDescSetAttribute(Desc *d, int attribute, const void *value, size_t bytes) {
    if ((attribute != 3 && attribute != 4) || bytes != 4) return INVALID_VALUE;
    memcpy(&d->turned[attribute - 3], value, 4);
    return SUCCESS;
}
API cublasLtMatmulDescDestroy(Desc *d) {
    delete d;
    return SUCCESS;
}
API cublasLtMatrixLayoutCreate(Layout **l, int type, uint64_t rows, uint64_t columns, int64_t pitch) {
    if (type != 0 && type != 2 && type != 14) return NOT_SUPPORTED;
    *l = new Layout{type, rows, columns, pitch};
    return SUCCESS;
}
API cublasLtMatrixLayoutSetAttribute(Layout *l, int attribute, const void *value, size_t bytes) {
    if (attribute == 5 && bytes == 4) return memcpy(&l->parts, value, 4), SUCCESS;
    if (attribute == 6 && bytes == 8) return memcpy(&l->apart, value, 8), SUCCESS;
    return INVALID_VALUE;
}
API cublasLtMatrixLayoutDestroy(Layout *l) {
    delete l;
    return SUCCESS;
}
API cublasLtMatmulPreferenceCreate(Preference **p) {
    *p = new Preference;
    return SUCCESS;
}
API cublasLtMatmulPreferenceSetAttribute(Preference *p, int attribute, const void *value, size_t bytes) {
    if (attribute == 1 && bytes == 8) return memcpy(&p->workspace, value, 8), SUCCESS;
    if (attribute == 3 && bytes == 4) return memcpy(&p->reductions, value, 4), SUCCESS;
    if (attribute >= 5 && attribute <= 8 && bytes == 4) return memcpy(&p->aligned[attribute - 5], value, 4), SUCCESS;
    return INVALID_VALUE;
}
API cublasLtMatmulPreferenceDestroy(Preference *p) {
    delete p;
    return SUCCESS;
}
// The second algorithm adds parts of the depth up afterwards, in any order: for those who allow it.
API cublasLtMatmulAlgoGetHeuristic(void *, Desc *d, Layout *a, Layout *b, Layout *c, Layout *r, Preference *p, int most,
                                   Proposal *proposals, int *count) {
    *count = 0;
    if (!fits(*d, *a, *b, *c) || c->type != r->type || number("lt_none", 0)) return NOT_SUPPORTED;
    for (uint32_t aligned : p->aligned)
        if (aligned > 16) return INVALID_VALUE;
    const size_t workspace = (size_t)number("lt_workspace", 0);
    const int all = p->reductions ? 2 : 1;
    for (int i = 0; i < all && i < most && workspace <= p->workspace; ++i)
        proposals[(*count)++] = Proposal{{{0x4242, (uint64_t)i, 7}}, workspace, 0, 1, {}};
    return *count ? SUCCESS : NOT_SUPPORTED;
}
API cublasLtMatmulAlgoCheck(void *, Desc *d, Layout *a, Layout *b, Layout *c, Layout *, const Algorithm *x, Proposal *result) {
    if (!fits(*d, *a, *b, *c) || x->words[0] != 0x4242) return INVALID_VALUE;
    *result = Proposal{*x, (size_t)number("lt_workspace", 0), 0, 1, {}};
    return SUCCESS;
}
API cublasLtMatmul(void *, Desc *d, const float *alpha, const void *pa, Layout *a, const void *pb, Layout *b, const float *beta,
                   const void *pc, Layout *c, void *pd, Layout *, const Algorithm *x, void *, size_t, void *stream) {
    if (!fits(*d, *a, *b, *c) || x->words[0] != 0x4242 || x->words[1]) return INVALID_VALUE;
    if (pc != pd || !inside(pa, *a) || !inside(pb, *b) || !inside(pc, *c)) return INVALID_VALUE;
    const auto enqueue = (int (*)(void *, double, void (*)(void *), void *))driver("kfc_standin_enqueue");
    if (!enqueue) return NOT_INITIALIZED;
    // A graph runs it more than once: it stays.
    auto *what = new Product{*d, *a, *b, *c, (const char *)pa, (const char *)pb, (char *)pd, *alpha, *beta, number("lt_nudge", 0) != 0};
    return enqueue(stream, number("lt_ms", 0.005), multiply, what) == 0 ? SUCCESS : NOT_INITIALIZED;
}
