// A matmul for up to 64 rows of tokens: x W^T, or silu(x Wgate^T) * (x Wup^T).
//
// So few rows take as long as reading the weights does. Weights are the tall operand of wgmma, tokens the
// narrow one. Each block has a band of the weight's rows. One thread of it asks for its parts, up to 512 bytes
// of a row at a time, by bulk copies of tensors into a ring in shared memory; one or two groups of four warps
// multiply. Whatever the band, wgmma takes 64 rows: those behind it are somebody else's bytes, and
// what comes of them is left.
//
// The kernel is launched while the one before it still runs (programmatic dependent launch). It asks for
// its first weights, which depend on nothing, and then waits.
//
// Given when it is compiled: GATED (W holds OUTS gate rows, then OUTS up rows), KIND (1 e4m3 with scales of tokens and
// rows, 2 bfloat16, 3 float16), HALF (results are float16, else bfloat16), BIAS, DEPTH (values that a result is made
// of), OUTS, BAND, TOKENS (16, 24, 32, 48 or 64), STAGES, LINES (of 128 bytes of a row, in a stage). skinny.py
// says what they may be.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define LINE 128
#define COLUMNS (KIND == 1 ? 128 : 64)  // of a line
#define ROWS (GATED ? 2 * BAND : BAND)
#define TILES ((BAND + 63) / 64)
#define GROUPS (TILES > 1 ? 2 : 1)  // of four warps
#define EACH ((TILES + GROUPS - 1) / GROUPS)
#define OWN (GATED ? 2 * EACH : EACH)
#define THREADS (GROUPS * 128)
#define WARPS (THREADS / 32)
#define WEIGHTS (ROWS * LINE * LINES)
#define STAGE (WEIGHTS + TOKENS * LINE * LINES)
#define PITCH ((BAND + 31) / 32 * 32 + 4)
#define CHUNKS ((DEPTH + COLUMNS * LINES - 1) / (COLUMNS * LINES))
#define FIRST (CHUNKS < STAGES ? CHUNKS : STAGES)

struct alignas(64) Map {
  u64 words[16];
};

struct Given {
  Map weights, tokens;
  const float *token_scale, *weight_scale;  // [rows], of the weight's rows; e4m3 alone
  const u16 *bias;                          // [OUTS]
  u16 *out;                                 // [rows, OUTS]
  int rows;
};

__device__ __forceinline__ float wide(u16 v) {
#if HALF
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
#else
  return __uint_as_float((u32)v << 16);
#endif
}

__device__ __forceinline__ u16 narrow(float v) {
  u16 r;
#if HALF
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
#endif
  return r;
}

__device__ __forceinline__ u32 shared_address(const void *at) {
  u32 r;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(r) : "l"(at));
  return r;
}

__device__ __forceinline__ void wait(u32 barrier, u32 phase) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
  } while (!done);
}

__device__ __forceinline__ void copy(u32 to, const Map *map, int column, int row, u32 barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// Rows of 128 bytes by eights, turned by the copy so that they lie in different banks.
__device__ __forceinline__ u64 operand(u32 at) {
  return (u64)((at & 0x3ffff) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

#if KIND == 1
#define PRODUCT(n) "wgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 "
#define WAYS ", 1, 1, 1;"
#elif KIND == 2
#define PRODUCT(n) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 "
#define WAYS ", 1, 1, 1, 0, 0;"
#else
#define PRODUCT(n) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 "
#define WAYS ", 1, 1, 1, 0, 0;"
#endif

// 32 bytes of 64 rows of the weight times 32 bytes of so many tokens.
template <int N> struct Sums;
template <> struct Sums<16> {
  float v[8];
  __device__ __forceinline__ void add(u64 a, u64 b) {
    asm volatile(PRODUCT("16") "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9" WAYS
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]), "+f"(v[7])
                 : "l"(a), "l"(b));
  }
};
template <> struct Sums<24> {
  float v[12];
  __device__ __forceinline__ void add(u64 a, u64 b) {
    asm volatile(PRODUCT("24")
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11}, %12, %13" WAYS
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]), "+f"(v[7]),
                   "+f"(v[8]), "+f"(v[9]), "+f"(v[10]), "+f"(v[11])
                 : "l"(a), "l"(b));
  }
};
template <> struct Sums<32> {
  float v[16];
  __device__ __forceinline__ void add(u64 a, u64 b) {
    asm volatile(PRODUCT("32")
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17" WAYS
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]), "+f"(v[7]),
                   "+f"(v[8]), "+f"(v[9]), "+f"(v[10]), "+f"(v[11]), "+f"(v[12]), "+f"(v[13]), "+f"(v[14]), "+f"(v[15])
                 : "l"(a), "l"(b));
  }
};
template <> struct Sums<48> {
  float v[24];
  __device__ __forceinline__ void add(u64 a, u64 b) {
    asm volatile(PRODUCT("48")
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23}, %24, %25" WAYS
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]), "+f"(v[7]),
                   "+f"(v[8]), "+f"(v[9]), "+f"(v[10]), "+f"(v[11]), "+f"(v[12]), "+f"(v[13]), "+f"(v[14]), "+f"(v[15]),
                   "+f"(v[16]), "+f"(v[17]), "+f"(v[18]), "+f"(v[19]), "+f"(v[20]), "+f"(v[21]), "+f"(v[22]), "+f"(v[23])
                 : "l"(a), "l"(b));
  }
};
template <> struct Sums<64> {
  float v[32];
  __device__ __forceinline__ void add(u64 a, u64 b) {
    asm volatile(PRODUCT("64")
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33" WAYS
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3]), "+f"(v[4]), "+f"(v[5]), "+f"(v[6]), "+f"(v[7]),
                   "+f"(v[8]), "+f"(v[9]), "+f"(v[10]), "+f"(v[11]), "+f"(v[12]), "+f"(v[13]), "+f"(v[14]), "+f"(v[15]),
                   "+f"(v[16]), "+f"(v[17]), "+f"(v[18]), "+f"(v[19]), "+f"(v[20]), "+f"(v[21]), "+f"(v[22]), "+f"(v[23]),
                   "+f"(v[24]), "+f"(v[25]), "+f"(v[26]), "+f"(v[27]), "+f"(v[28]), "+f"(v[29]), "+f"(v[30]), "+f"(v[31])
                 : "l"(a), "l"(b));
  }
};

// Of the warps that multiply; the one that reads goes its own way.
__device__ __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// What the kernel in front writes is read behind this.
__device__ __forceinline__ void behind() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

struct Reader {
  const Given &given;
  u32 ring, full;
  int band;

  __device__ __forceinline__ void weights(int chunk, int stage) const {
    u32 to = ring + stage * STAGE, barrier = full + 8 * stage;
    asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1; }" ::"r"(barrier), "n"(STAGE) : "memory");
#pragma unroll
    for (int line = 0; line < LINES; line++) {
      int column = (chunk * LINES + line) * COLUMNS;
      copy(to + line * ROWS * LINE, &given.weights, column, band, barrier);
      if (GATED) copy(to + line * ROWS * LINE + BAND * LINE, &given.weights, column, OUTS + band, barrier);
    }
  }
  __device__ __forceinline__ void tokens(int chunk, int stage) const {
    u32 to = ring + stage * STAGE + WEIGHTS, barrier = full + 8 * stage;
#pragma unroll
    for (int line = 0; line < LINES; line++)
      copy(to + line * TOKENS * LINE, &given.tokens, (chunk * LINES + line) * COLUMNS, 0, barrier);
  }
  __device__ __forceinline__ void run(u32 empty) const {
#pragma unroll 1
    for (int i = 0; i < FIRST; i++) weights(i, i);
    behind();
#pragma unroll 1
    for (int i = 0; i < FIRST; i++) tokens(i, i);
    int stage = 0;
    u32 phase = 0;
#pragma unroll 1
    for (int i = FIRST; i < CHUNKS; i++) {
      wait(empty + 8 * stage, phase);
      weights(i, stage);
      tokens(i, stage);
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS + 32) skinny(const __grid_constant__ Given given) {
  extern __shared__ char dynamic[];
  __shared__ u64 barriers[2 * STAGES];
  __shared__ float scales[TOKENS];  // of tokens
  u32 ring = (shared_address(dynamic) + 1023) & ~1023u;
  u32 full = shared_address(barriers), empty = full + 8 * STAGES;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, band = blockIdx.x * BAND;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
      asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(full + 8 * i) : "memory");
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(empty + 8 * i), "n"(WARPS) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  if (warp == WARPS) {
    if (lane == 0) Reader{given, ring, full, band}.run(empty);
    return;
  }

  int group = warp / 4;
  float scale[EACH][2], up_scale[EACH][2], bias[EACH][2];
#pragma unroll
  for (int t = 0; t < EACH; t++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = (t * GROUPS + group) * 64 + warp % 4 * 16 + lane / 4 + half * 8, n = band + row;
      bool there = row < BAND && n < OUTS;
      scale[t][half] = KIND == 1 && there ? given.weight_scale[n] : 1.0f;
      up_scale[t][half] = KIND == 1 && GATED && there ? given.weight_scale[OUTS + n] : 1.0f;
      bias[t][half] = BIAS && there ? wide(given.bias[n]) : 0.0f;
    }
  behind();
  if (KIND == 1 && threadIdx.x < TOKENS) scales[threadIdx.x] = threadIdx.x < given.rows ? given.token_scale[threadIdx.x] : 0.0f;
  Sums<TOKENS> sums[OWN];
#pragma unroll
  for (int t = 0; t < OWN; t++)
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[t].v[i] = 0.0f;
  int stage = 0;
  u32 phase = 0;
#pragma unroll 1
  for (int i = 0; i < CHUNKS; i++) {
    wait(full + 8 * stage, phase);
    u32 at = ring + stage * STAGE;
#pragma unroll
    for (int t = 0; t < OWN; t++)
#pragma unroll
      for (int j = 0; j < TOKENS / 2; j++) asm volatile("" : "+f"(sums[t].v[j])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int line = 0; line < LINES; line++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        u64 b = operand(at + WEIGHTS + line * TOKENS * LINE) + k * 2;
#pragma unroll
        for (int t = 0; t < OWN; t++) {
          int row = ((GATED ? t / 2 : t) * GROUPS + group) * 64 + (GATED ? t % 2 * BAND : 0);
          sums[t].add(operand(at + line * ROWS * LINE + row * LINE) + k * 2, b);
        }
      }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int t = 0; t < OWN; t++)
#pragma unroll
      for (int j = 0; j < TOKENS / 2; j++) asm volatile("" : "+f"(sums[t].v[j])::"memory");
    if (lane == 0) asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(empty + 8 * stage) : "memory");
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }

  together();  // everybody has left the ring; results go through it, [TOKENS, PITCH], so that rows lie side by side
  float *shared = (float *)(dynamic + (ring - shared_address(dynamic)));
#pragma unroll
  for (int t = 0; t < EACH; t++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = (t * GROUPS + group) * 64 + warp % 4 * 16 + lane / 4 + half * 8;
#pragma unroll
      for (int i = 0; i < TOKENS / 4; i++) {
        int token = i / 2 * 8 + lane % 4 * 2 + i % 2, from = i / 2 * 4 + half * 2 + i % 2;
        float v = sums[GATED ? 2 * t : t].v[from], own = KIND == 1 ? scales[token] : 1.0f;
        v *= own * scale[t][half];
        if (GATED) v = v / (1.0f + __expf(-v)) * (sums[2 * t + 1].v[from] * (own * up_scale[t][half]));
        if (row < BAND) shared[token * PITCH + row] = v + bias[t][half];
      }
    }
  together();
  for (int token = warp; token < given.rows; token += WARPS)
#pragma unroll 2
    for (int row = lane; row < BAND; row += 32)
      if (band + row < OUTS) given.out[(u64)token * OUTS + band + row] = narrow(shared[token * PITCH + row]);
}
