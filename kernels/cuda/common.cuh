// What every kernel here stands on: bf16 packing, asynchronous copies, matrix fragments.
//
// No header of CUDA is included, so that NVRTC needs no include path: a bf16 is a 16-bit word
// whose bits are the upper half of a float, and every instruction is written as PTX that sm_80
// already has. Fragment layouts are those of `mma.m16n8k16` (PTX ISA, "Matrix Fragments"):
// with g = lane / 4 and t = lane % 4, an accumulator holds rows g, g + 8 and columns 2t, 2t + 1.
#pragma once

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

static constexpr int WARP = 32;
// Written with an unsigned constant so that no header is needed.
DEVICE float negative_infinity() { return __int_as_float(0xff800000); }

// Two floats rounded to nearest even and packed; `low` lies at the lower address.
DEVICE u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE float low_float(u32 packed) { return __uint_as_float(packed << 16); }
DEVICE float high_float(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
DEVICE float to_float(bf16 value) { return __uint_as_float((u32)value << 16); }
DEVICE bf16 to_bf16(float value) { return (bf16)(pack_bf16(value, 0.0f) & 0xffffu); }

// The same where a source is compiled for either type.
DEVICE float number(float value) { return value; }
DEVICE float number(bf16 value) { return to_float(value); }
DEVICE void put(float* to, float value) { *to = value; }
DEVICE void put(bf16* to, float value) { *to = to_bf16(value); }

// A float from its rounded upper half and the signed byte below it (`rest_of` in mlstm_outputs.cu).
DEVICE float with_rest(u32 upper, u32 rest) { return __int_as_float((int)upper + ((int)(signed char)rest << 8)); }

// Product of two packed pairs. sm_80 has only the fused form; adding minus zero leaves the product.
DEVICE u32 multiply_bf16x2(u32 a, u32 b) {
    u32 product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    return product;
}

DEVICE u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Sixteen or eight bytes in one store; an assignment of a vector may become as many stores as it has parts.
DEVICE void store_16(void* destination, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(destination), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEVICE void store_8(void* destination, u32 a, u32 b) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(destination), "r"(a), "r"(b) : "memory");
}

DEVICE u32 load_shared(u32 address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

// Sixteen bytes from global to shared memory, zeros where `valid` is false (nothing is read then).
DEVICE void copy_async_16(u32 destination, const void* source, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(bytes)
                 : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// accumulator += A (16 x 16) B (16 x 8), bf16 operands, fp32 accumulator.
DEVICE void matrix_multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `first` if the flag is set, as one instruction whatever the compiler knows of the flag: it would rather compile what
// follows once for each of its values, stores included.
DEVICE u32 select(u32 first, u32 second, int flag) {
    u32 chosen;
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\nselp.b32 %0, %1, %2, p;\n}" : "=r"(chosen) : "r"(first), "r"(second), "r"(flag));
    return chosen;
}

// Turns four registers of each of the four lanes that share a row: lane t's register s becomes lane s's
// register t. An accumulator row that a lane holds as one column pair of four fragments becomes sixteen
// contiguous bytes, and back.
DEVICE void quad_transpose(u32 (&r)[4], int lane) {
    const int upper = lane & 2, odd = lane & 1;
    const u32 a = __shfl_xor_sync(0xffffffffu, select(r[0], r[2], upper), 2);
    const u32 b = __shfl_xor_sync(0xffffffffu, select(r[1], r[3], upper), 2);
    const u32 x[4] = {select(a, r[0], upper), select(b, r[1], upper), select(r[2], a, upper), select(r[3], b, upper)};
    const u32 c = __shfl_xor_sync(0xffffffffu, select(x[0], x[1], odd), 1);
    const u32 d = __shfl_xor_sync(0xffffffffu, select(x[2], x[3], odd), 1);
    r[0] = select(c, x[0], odd);
    r[1] = select(x[1], c, odd);
    r[2] = select(d, x[2], odd);
    r[3] = select(x[3], d, odd);
}

// log(sigmoid(x)) without overflow at either end.
DEVICE float log_sigmoid(float x) { return fminf(x, 0.0f) - log1pf(expf(-fabsf(x))); }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The same and tanh from the special-function unit, for loops where their instructions are the time: absolute
// errors near 2^-22, far under the bf16 rounding of what they feed.
DEVICE float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
DEVICE float fast_tanh(float x) {
    const float decay = __expf(-2.0f * fabsf(x));
    return copysignf(__fdividef(1.0f - decay, 1.0f + decay), x);
}

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// Where a kernel was launched to overlap with the one in front of it (sm_90 and later): waits until that one has ended and
// its results can be read, and lets the one behind begin. Before this, only what no kernel near writes may be read. Does
// nothing otherwise.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
