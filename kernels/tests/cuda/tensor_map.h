// What stands in the 128 bytes of a tensor map here: what the host tells `cuTensorMapEncodeTiled`, instead of NVIDIA's own
// encoding, which is not documented. Shared by the stand-in for the driver and by the emulation of the copies.
#pragma once
#include <cstdint>
#include <cstring>

namespace kfc_host {

struct tensor_map {
    char magic[8];
    uint64_t address;
    uint64_t extents[2]; // elements, the consecutive ones first
    uint64_t pitch;      // bytes from row to row
    uint32_t box[2];
    uint32_t element; // bytes
    uint32_t swizzle; // bytes of a row: 32, 64 or 128
};
static_assert(sizeof(tensor_map) <= 128, "a tensor map has 128 bytes");
static constexpr char TENSOR_MAP[8] = {'t', 'e', 'n', 's', 'o', 'r', ' ', '2'};

// Why the driver would not encode it, after its documentation; null if it would.
inline const char *wrong_map(const tensor_map &m) {
    if (m.address % 16) return "its address is no multiple of 16";
    if (m.pitch % 16 || m.pitch >= 1ull << 40) return "its pitch is no multiple of 16";
    if (m.pitch < m.extents[0] * m.element) return "its rows overlap";
    for (int i = 0; i < 2; ++i) {
        if (m.extents[i] == 0 || m.extents[i] > 1ull << 32) return "an extent is 0 or too large";
        if (m.box[i] == 0 || m.box[i] > 256) return "an extent of its box is 0 or above 256";
    }
    if (m.box[0] * m.element % 16) return "rows of its box are no multiples of 16 bytes";
    if (m.swizzle != 32 && m.swizzle != 64 && m.swizzle != 128) return "it has no such swizzle";
    if (m.box[0] * m.element > m.swizzle) return "rows of its box are longer than what is swizzled";
    return nullptr;
}

inline void encode(const tensor_map &m, void *to) {
    memset(to, 0, 128);
    memcpy(to, &m, sizeof m);
    memcpy(to, TENSOR_MAP, sizeof TENSOR_MAP);
}

} // namespace kfc_host
