// What sm_90 has beyond common.cuh: barriers that count bytes, clusters of blocks, the copy engine.
//
// A tensor copy takes a box out of a strided tensor of four axes by itself, lays it out swizzled, and fills what lies
// outside the tensor with zeros. A single thread asks for it.
#pragma once
#include "common.cuh"

// Later GPUs have clusters and the copy engine too, but no `wgmma`: they take the way of sm_80.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define BULK 1
#else
#define BULK 0
#endif

// `CUtensorMap`, filled in by the driver.
struct __align__(64) TensorMap {
    u64 words[16];
};

// Every map is made for this box: 64 columns (128 bytes, one swizzled row) by 64 rows.
static constexpr int BOX_COLUMNS = 64, BOX_ROWS = 64, BOX_BYTES = BOX_ROWS * BOX_COLUMNS * 2;

// This warp's number, known to the compiler to be the same for all its threads.
DEVICE int warp_number() { return __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0); }

// This thread's place in its warp, read where the compiler cannot tie it to threadIdx: where a branch for one thread has
// told it which thread that is, it rebuilds what follows for that thread apart from the rest (seen: the stores of a
// result, four bytes at a time in three versions, twice as slow as the kernel had been).
DEVICE int opaque_lane() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Where a shared address of this block lies in block `rank` of the cluster.
DEVICE u32 remote_address(u32 address, u32 rank) {
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// What comes by copies is there when the barrier says so. Nothing here reads another block's ordinary stores, so that the
// scope of the block is enough: that of the cluster drops the whole L1 cache at every wait.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
}

// Between ordinary stores to shared memory and a copy out of it.
DEVICE void fence_before_copy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// `bytes` in a row (a multiple of 16) from global to this block's shared memory, counted on `barrier`.
DEVICE void copy_bulk(u32 destination, const void* source, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
                 "l"(source), "r"(bytes), "r"(barrier)
                 : "memory");
}
// One box, whose first element has these coordinates.
DEVICE void copy_box(u32 destination, const TensorMap* map, int column, int row, int slice, int batch, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
            destination),
        "l"(map), "r"(column), "r"(row), "r"(slice), "r"(batch), "r"(barrier)
        : "memory");
}
