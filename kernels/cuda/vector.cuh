// Four or eight neighboring numbers in fp32 registers, read and written as bf16 or fp32 in one access.
//
// Loads go through the read-only path and say nothing about memory, so that the compiler may start those of the next
// token before the stores of this one: nothing here reads what the same launch writes. For the same reason it may move one whose
// address does not change out of a loop, past the test around it: an address that may be null is not read so within a loop.
#pragma once
#include "common.cuh"

DEVICE uint4 load_16(const void* source) {
    uint4 raw;
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w) : "l"(source));
    return raw;
}
DEVICE uint2 load_8(const void* source) {
    uint2 raw;
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(raw.x), "=r"(raw.y) : "l"(source));
    return raw;
}
DEVICE u32 load_4(const void* source) {
    u32 raw;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(raw) : "l"(source));
    return raw;
}

struct Eight {
    static constexpr int SIZE = 8;
    float value[8];
    DEVICE void load(const bf16* source) {
        const uint4 raw = load_16(source);
        const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            value[2 * e] = low_float(words[e]);
            value[2 * e + 1] = high_float(words[e]);
        }
    }
    DEVICE void load(const float* source) {
#pragma unroll
        for (int e = 0; e < 8; e += 4) {
            const uint4 raw = load_16(source + e);
            value[e] = __uint_as_float(raw.x);
            value[e + 1] = __uint_as_float(raw.y);
            value[e + 2] = __uint_as_float(raw.z);
            value[e + 3] = __uint_as_float(raw.w);
        }
    }
    // As the program says: not kept in registers from before a loop, not started before the stores above it.
    DEVICE void load_in_order(const float* source) {
#pragma unroll
        for (int e = 0; e < 8; e++) value[e] = source[e];
    }
    DEVICE void store(bf16* destination) const {
        *reinterpret_cast<uint4*>(destination) = make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                                                            pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
    }
    DEVICE void store(float* destination) const {
        *reinterpret_cast<float4*>(destination) = make_float4(value[0], value[1], value[2], value[3]);
        *reinterpret_cast<float4*>(destination + 4) = make_float4(value[4], value[5], value[6], value[7]);
    }
    DEVICE void clear() {
#pragma unroll
        for (int e = 0; e < 8; e++) value[e] = 0.0f;
    }
};

struct Four {
    static constexpr int SIZE = 4;
    float value[4];
    DEVICE void load(const bf16* source) {
        const uint2 raw = load_8(source);
        value[0] = low_float(raw.x);
        value[1] = high_float(raw.x);
        value[2] = low_float(raw.y);
        value[3] = high_float(raw.y);
    }
    DEVICE void load(const float* source) {
        const uint4 raw = load_16(source);
        value[0] = __uint_as_float(raw.x);
        value[1] = __uint_as_float(raw.y);
        value[2] = __uint_as_float(raw.z);
        value[3] = __uint_as_float(raw.w);
    }
    DEVICE void load_in_order(const float* source) {
#pragma unroll
        for (int e = 0; e < 4; e++) value[e] = source[e];
    }
    DEVICE void store(bf16* destination) const {
        *reinterpret_cast<uint2*>(destination) = make_uint2(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]));
    }
    DEVICE void store(float* destination) const {
        *reinterpret_cast<float4*>(destination) = make_float4(value[0], value[1], value[2], value[3]);
    }
    DEVICE void clear() { value[0] = value[1] = value[2] = value[3] = 0.0f; }
};

// The same as bf16 in memory.
struct RawEight {
    uint4 words;
    DEVICE void load(const bf16* source) { words = load_16(source); }
    DEVICE u32 word(int pair) const { return pair == 0 ? words.x : pair == 1 ? words.y : pair == 2 ? words.z : words.w; }
    DEVICE void unpack(Eight& x) const {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            x.value[2 * pair] = low_float(word(pair));
            x.value[2 * pair + 1] = high_float(word(pair));
        }
    }
};
struct RawFour {
    uint2 words;
    DEVICE void load(const bf16* source) { words = load_8(source); }
    DEVICE u32 word(int pair) const { return pair == 0 ? words.x : words.y; }
    DEVICE void unpack(Four& x) const {
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            x.value[2 * pair] = low_float(word(pair));
            x.value[2 * pair + 1] = high_float(word(pair));
        }
    }
};

// Four floats as they lie in memory.
struct RawFloats {
    uint4 words;
    DEVICE void load(const float* source) { words = load_16(source); }
    DEVICE void unpack(Four& x) const {
        x.value[0] = __uint_as_float(words.x);
        x.value[1] = __uint_as_float(words.y);
        x.value[2] = __uint_as_float(words.z);
        x.value[3] = __uint_as_float(words.w);
    }
};
