// The decoder's layers for up to 8 rows as one kernel, from the first to the last.
//
// So few rows take as long as reading the weights does, if nothing ever waits; blocks that meet between the
// parts of a layer do, 3 to 5 us each time while memory is busy. Each multiprocessor holds one block for
// the whole pass. One warp of it does nothing but read, part after part and layer after layer, weights and
// the keys and values of earlier tokens, into a ring in shared memory: they depend on nothing. The warps
// that compute take them from there. What they hand to other blocks lies in buffers that are full of a
// value no result has: whoever needs a result asks for it until it is there, half a microsecond after it
// was written; meanwhile the ring fills. A layer's buffers are emptied during the next one, when everybody
// has read them; the layer after that takes them again.
//
// Every block takes an even share of a weight's rows. A tile is 16 * RB of them (gates and their
// values half each), a stage of the ring 16 rows by 1 KiB; warps divide its columns and add up in
// shared memory. 16 bytes go to a thread and load, in the order in which mma wants them: which column
// is which does not matter as long as weights and tokens agree.
//
// Given when it is compiled: HIDDEN INNER HEADS KV_HEADS PAGE, FP8, HEAD_NORM, STAGES,
// AWAY (stages on their way), CHUNK (16s of a tile's rows that are put together at a time) and RB by
// part. few_rows.py says what they may be.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define D 128
#define WARPS 8
#define THREADS (WARPS * 32)
#define TOTAL ((HEADS + 2 * KV_HEADS) * D)
#define MIXED (HEADS * D)
#define HEADS_EACH (HEADS / KV_HEADS)
#define WIDTH (FP8 ? 1 : 2)
#define XV (FP8 ? 4 : 2)
#define UNIT (FP8 ? 0.0625f : 1.0f)
#define TOKENS 8
#define LINE 1024
#define STAGE (16 * LINE)
#define RUN 32  // tokens of a stage that holds keys and values
#define NOTHING (~0u)
#define HELPERS 128  // a warp that reads, one that cleans

struct Layer {
  const char *w[4];        // qkv, out, gate and up, down
  const float *scale[4];   // of their rows; FP8 alone
  const u16 *mlp_norm, *next_norm, *q_norm, *k_norm;
  u16 *k_pages, *v_pages;  // [pages, PAGE, KV_HEADS, D]
  const float *cos_sin;    // [positions, D]
  u64 nothing;
};

// What blocks hand to each other in a layer.
struct Handed {
  u16 *first, *qkv, *mixed, *second, *inner;  // [rows, ...]: before qkv, out of it, before out, before gate, before down
  float *first_squares, *second_squares;      // [rows, pieces]
  float *parts, *part_max, *part_sum;         // of the runs of a row's tokens

  __device__ __forceinline__ Handed(const struct Given &given, int layer);
};

struct Given {
  const Layer *layers;
  const u16 *x;            // [rows, HIDDEN]
  const u64 *positions;
  const int *indptr, *indices;
  const u16 *first_norm, *final_norm;
  u16 *h, *out;
  char *handed;            // two layers' of handed_bytes each
  int *counter;
  u64 first, qkv, mixed, second, inner, first_squares, second_squares, parts, part_max, part_sum, handed_bytes;
  int rows, count, splits;
  int pieces;              // of a token's sum of squares: each block's tiles of the residual sum
  float eps, softmax_scale;
};

__device__ __forceinline__ Handed::Handed(const Given &given, int layer) {
  char *at = given.handed + (layer % 2) * given.handed_bytes;
  first = (u16 *)(at + given.first), qkv = (u16 *)(at + given.qkv), mixed = (u16 *)(at + given.mixed);
  second = (u16 *)(at + given.second), inner = (u16 *)(at + given.inner);
  first_squares = (float *)(at + given.first_squares), second_squares = (float *)(at + given.second_squares);
  parts = (float *)(at + given.parts), part_max = (float *)(at + given.part_max), part_sum = (float *)(at + given.part_sum);
}

__device__ __forceinline__ float wide(u16 v) { return __uint_as_float((u32)v << 16); }

__device__ __forceinline__ u16 narrow(float v) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
}

// A value handed from part to part: bf16, or float16 at a sixteenth against 8-bit weights.
__device__ __forceinline__ u16 formed(float v) {
#if FP8
  v = fminf(fmaxf(v * UNIT, -65504.0f), 65504.0f);
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return r;
#else
  return narrow(v);
#endif
}

__device__ __forceinline__ void multiply(float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if FP8
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
               " {%8, %9}, {%0, %1, %2, %3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
               " {%8, %9}, {%0, %1, %2, %3};"
#endif
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void widened(u32 four, u32 &low, u32 &high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high) : "r"(four));
}

enum Kind { PLAIN, GATED, ADDED };

// Of the warps that compute; the others go their own ways.
__device__ __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// Registers are divided evenly among warps when a block begins; those of the four that do not compute
// are of more use to the others.
template <int N, bool MORE>
__device__ __forceinline__ void registers() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  if (MORE)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// What another block may not have written yet; the first level's copies would never change.
__device__ __forceinline__ uint4 handed_at(const void *at) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ u32 word_at(const float *at) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ bool there(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)) != NOTHING; }

__device__ __forceinline__ float number_at(const float *at) {
  u32 v;
  do v = word_at(at);
  while (v == NOTHING);
  return __uint_as_float(v);
}

__device__ __forceinline__ void hand(void *to, u32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

__device__ __forceinline__ void wait(u32 barrier, u32 phase) {
  u32 done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
  } while (!done);
}

__device__ __forceinline__ void signal(u32 barrier) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(barrier) : "memory");
}

// All warps of a block that compute meet those of all others: once, when the buffers are empty.
__device__ __forceinline__ void meet(int *counter) {
  together();
  if (threadIdx.x == 0) {
    int seen;
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while (seen < (int)gridDim.x);
  }
  together();
}

// This block's part of a layer's buffers is emptied, by threads me, me + all, ...
__device__ __forceinline__ void clean(const Given &given, int layer, int me, int all) {
  u32 lines = given.handed_bytes / 16;
  char *at = given.handed + (layer % 2) * given.handed_bytes;
  u32 last = (u64)lines * (blockIdx.x + 1) / gridDim.x;
  for (u32 i = (u64)lines * blockIdx.x / gridDim.x + me; i < last; i += all)
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(at + (u64)i * 16), "r"(NOTHING) : "memory");
}

// Barriers of a block besides the ring's: its warps have read a layer's first values, so the layer
// before is past everywhere; the buffers of that one are empty again.
struct Turns {
  u32 past, empty;
};

// Which tokens of a row a task attends to: begin .. end, its last one being the step's own if it is
// at `position`.
struct Run {
  int split, kv, row, position, begin, end, old;
  const int *pages;

  __device__ __forceinline__ Run(int task, const Given &given) {
    split = task % given.splits, kv = task / given.splits % KV_HEADS, row = task / (given.splits * KV_HEADS);
    position = (int)given.positions[row];
    int share = this->share(given);
    begin = split * share, end = min(begin + share, position + 1);
    old = min(end, position);
    pages = given.indices + given.indptr[row];
  }
  __device__ __forceinline__ int page(int i) const { return i * PAGE < old ? pages[i] : 0; }
  __device__ __forceinline__ int splits(int share) const { return position / share + 1; }
  __device__ __forceinline__ int share(const Given &given) const {
    return max(2 * RUN, ((position + given.splits) / given.splits + RUN - 1) / RUN * RUN);
  }
};

// Where a warp stands in a ring of N stages of SIZE bytes; all of them go through the same ones. Each
// stage has a barrier that says it is full and one that says it is empty again.
template <int N, int SIZE>
struct Stages {
  u32 data, full, empty;
  int stage;
  u32 phase;

  __device__ __forceinline__ Stages(u32 data, u32 barriers) {
    this->data = data, full = barriers, empty = barriers + 8 * N, stage = 0, phase = 0;
  }
  __device__ __forceinline__ void advance() {
    if (++stage == N) stage = 0, phase ^= 1;
  }
  __device__ __forceinline__ u32 here() const { return data + stage * SIZE; }
  __device__ __forceinline__ u32 taken() {  // a stage that is full
    wait(full + 8 * stage, phase);
    return here();
  }
  __device__ __forceinline__ u32 given() {  // one that is empty
    wait(empty + 8 * stage, phase ^ 1);
    return here();
  }
  __device__ __forceinline__ void leave() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) signal(empty + 8 * stage);
    advance();
  }
};

struct Ring : Stages<STAGES, STAGE> {
  using Stages::Stages;
  __device__ __forceinline__ void filled() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full + 8 * stage) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group %0;" ::"n"(AWAY - 1) : "memory");
    advance();
  }
  // Rows of PITCH bytes, 1 KiB of each. Odd rows have their halves of 128 bytes the other way
  // round, so that eight threads that read two rows find them in different banks.
  template <int PITCH>
  __device__ __forceinline__ void fill(const char *from, int rows) {
    int lane = threadIdx.x % 32;
    u32 to = given();
    from += lane * 16;
#pragma unroll
    for (int r = 0; r < 16; r++)
      if (r < rows) {
        u32 at = to + r * LINE + (lane ^ (r % 2 * 4)) * 16;
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at), "l"(from + (u64)r * PITCH) : "memory");
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at + 512), "l"(from + (u64)r * PITCH + 512) : "memory");
      }
    filled();
  }
  // Keys of 32 tokens, then their values; zeros for those that are not there.
  // held: numbers of the run's first 32 pages, one to a thread.
  __device__ __forceinline__ void fill(const u16 *k_pages, const u16 *v_pages, const Run &run, int held) {
    int lane = threadIdx.x % 32, first = run.begin / PAGE;
#pragma unroll 1
    for (int t = run.begin; t < run.old; t += RUN) {
      if ((t + RUN - 1) / PAGE >= first + 32) {
        first = t / PAGE;
        held = run.page(first + lane);
      }
      u32 to = given() + lane * 16;
#pragma unroll 2
      for (int i = 0; i < RUN / 2; i++) {
        int token = t + i * 2 + lane / 16;
        u64 in = __shfl_sync(~0u, held, min(token / PAGE - first, 31));
        u64 at = ((in * PAGE + token % PAGE) * KV_HEADS + run.kv) * D + lane % 16 * 8;
        u32 bytes = token < run.old ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i * 512), "l"(k_pages + at), "r"(bytes) : "memory");
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + STAGE / 2 + i * 512), "l"(v_pages + at), "r"(bytes) : "memory");
      }
      filled();
    }
  }
};

__device__ __forceinline__ uint4 shared_at(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

// 1 / root mean square of each token's residual sum, for the norm in front of a matmul.
__device__ __forceinline__ void scales(const Given &given, const float *squares, float *rms) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int token = warp; token < given.rows; token += WARPS) {
    float sum = 0.0f;
#pragma unroll 4
    for (int piece = lane; piece < given.pieces; piece += 32) sum += number_at(squares + token * given.pieces + piece);
    for (int far = 16; far; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
    if (lane == 0) rms[token] = rsqrtf(sum / HIDDEN + given.eps);
  }
}

// One matmul of a layer: OUTS results a token, of which this block has from .. to.
template <Kind KIND, int OUTS, int RB>
struct Part {
  static constexpr int SETS = KIND == GATED ? RB / 2 : RB;  // of 16 results
  static constexpr int ROWS = 16 * SETS;
  static constexpr int AHEAD = 2;
  static constexpr int CAN = KIND == GATED ? CHUNK / 2 : CHUNK;
  static constexpr int ONCE = CAN < SETS ? CAN : SETS;  // sets put together at a time
  static constexpr int ITEMS = (16 * ONCE * TOKENS + 2 * THREADS - 1) / (2 * THREADS);
  static_assert(KIND != ADDED || (RB == 2 && ONCE == 2), "");

  static __device__ __forceinline__ int from() { return (u32)(OUTS / 2) * blockIdx.x / gridDim.x * 2; }
  static __device__ __forceinline__ int to() { return (u32)(OUTS / 2) * (blockIdx.x + 1) / gridDim.x * 2; }
  // Rows of a tile's 16 that there are, of which `here` are left.
  static __device__ __forceinline__ int rows_of(int block, int here) { return min(here - block % SETS * 16, 16); }

  // K: values that a result is made of.
  template <int K>
  static __device__ __forceinline__ void read(Ring &ring, const char *w) {
    for (int first = from(); first < to(); first += ROWS)
#pragma unroll 1
      for (int slice = 0; slice < K * WIDTH / LINE; slice++)
#pragma unroll 1
        for (int b = 0; b < RB; b++) {
          int rows = rows_of(b, to() - first);
          if (rows > 0)
            ring.fill<K * WIDTH>(w + (u64)(b / SETS * OUTS + first + b % SETS * 16) * (K * WIDTH) + slice * LINE, rows);
        }
  }

  static __device__ __forceinline__ void tokens(uint4 *xs, const u16 *x, int K, int rows, int slice) {
    int lane = threadIdx.x % 32;
    int column = (slice * WARPS + threadIdx.x / 32) * (128 / WIDTH), token = lane / 4;
    const char *at = (const char *)(x + (u64)token * K + column);
#pragma unroll
    for (int i = 0; i < XV; i++) {
      int byte = FP8 ? (i / 2) * 128 + lane % 4 * 32 + (i % 2) * 16 : i * 64 + lane % 4 * 16;
      xs[i] = token < rows ? handed_at(at + byte) : make_uint4(0, 0, 0, 0);
    }
  }

  // Until those of a slice are there. Which of them are not is not asked: they come within a moment.
  static __device__ __forceinline__ void ready(uint4 *xs, const u16 *x, int K, int rows, int slice) {
    while (true) {
      bool all = true;
#pragma unroll
      for (int i = 0; i < XV; i++) all = all && there(xs[i]);
      if (__all_sync(~0u, all)) return;
      tokens(xs, x, K, rows, slice);
    }
  }

  static __device__ __forceinline__ void add_up(float *sums, u32 stage, const uint4 *xs) {
    int lane = threadIdx.x % 32, odd = lane / 4 % 2;
    u32 at = stage + lane / 4 * LINE + threadIdx.x / 32 * 128 + lane % 4 * 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint4 low = shared_at(at + (half ^ odd) * 64), high = shared_at(at + 8 * LINE + (half ^ odd) * 64);
#if FP8
      u32 l[8], h[8];
      widened(low.x, l[0], l[1]), widened(low.y, l[2], l[3]);
      widened(low.z, l[4], l[5]), widened(low.w, l[6], l[7]);
      widened(high.x, h[0], h[1]), widened(high.y, h[2], h[3]);
      widened(high.z, h[4], h[5]), widened(high.w, h[6], h[7]);
      uint4 x = xs[half * 2], y = xs[half * 2 + 1];
      multiply(sums, l[0], h[0], l[1], h[1], x.x, x.y);
      multiply(sums, l[2], h[2], l[3], h[3], x.z, x.w);
      multiply(sums, l[4], h[4], l[5], h[5], y.x, y.y);
      multiply(sums, l[6], h[6], l[7], h[7], y.z, y.w);
#else
      uint4 x = xs[half];
      multiply(sums, low.x, high.x, low.y, high.y, x.x, x.y);
      multiply(sums, low.z, high.z, low.w, high.w, x.z, x.w);
#endif
    }
  }

  // What two results below each other are put together with, asked for before they are needed.
  struct Beside {
    float scale[2], up_scale[2];
    u32 h, norm;

    __device__ __forceinline__ void fetch(int item, int first, int here, const float *w_scale, const Given &given,
                                          const u16 *next_norm) {
      int token = item / (8 * ONCE), row = item % (8 * ONCE) * 2, n = first + row;
      scale[0] = scale[1] = up_scale[0] = up_scale[1] = 1.0f, h = norm = 0;
      if (token >= given.rows || row >= here) return;
      if (FP8) scale[0] = w_scale[n], scale[1] = w_scale[n + 1];
      if (FP8 && KIND == GATED) up_scale[0] = w_scale[OUTS + n], up_scale[1] = w_scale[OUTS + n + 1];
      if (KIND == ADDED) {
        h = *(const u32 *)(given.h + (u64)token * HIDDEN + n);
        norm = *(const u32 *)(next_norm + n);
      }
    }
  };

  // x: what the weights are multiplied with, [rows, K]. out, squares: where results go. past(): when all that they
  // are made of has been read; may(): when results may be handed out.
  template <class Past, class May>
  static __device__ __forceinline__ void run(Ring &ring, const u16 *x, int K, const float *w_scale, const Given &given,
                                             const float *squares_in, const u16 *next_norm, float *rms, float *shared,
                                             u16 *out, float *squares, Past past, May may) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = given.rows, slices = K * WIDTH / LINE;
    uint4 xs[AHEAD][XV];
    tokens(xs[0], x, K, rows, 0);
    ready(xs[0], x, K, rows, 0);
#pragma unroll
    for (int r = 1; r < AHEAD; r++) tokens(xs[r], x, K, rows, r < slices ? r : 0);
#pragma unroll 1
    for (int first = from(); first < to(); first += ROWS) {
      int here = min(to() - first, ROWS);
      float sums[RB][4];
#pragma unroll
      for (int b = 0; b < RB; b++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[b][i] = 0.0f;
#pragma unroll 1
      for (int slice = 0; slice < slices; slice += AHEAD) {
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
          if (slice + r >= slices) break;
          ready(xs[r], x, K, rows, slice + r);
#pragma unroll
          for (int b = 0; b < RB; b++)
            if (rows_of(b, here) > 0) {
              add_up(sums[b], ring.taken(), xs[r]);
              ring.leave();
            }
          int then = slice + AHEAD + r;
          if (then >= slices) then = r < slices && first + ROWS < to() ? r : -1;
          if (then >= 0) tokens(xs[r], x, K, rows, then);
        }
      }
      if (KIND != ADDED && first == from()) scales(given, squares_in, rms);
#pragma unroll
      for (int set = 0; set < SETS; set += ONCE) {
        if (set * 16 >= here) break;
        int at = first + set * 16, left = here - set * 16;
        Beside beside[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) beside[i].fetch(threadIdx.x + i * THREADS, at, left, w_scale, given, next_norm);
        together();
        float *mine = shared + warp * (16 * CHUNK * (TOKENS + 1));
#pragma unroll
        for (int b = 0; b < CHUNK; b++) {
          int own = KIND == GATED ? b / ONCE * SETS + set + b % ONCE : set + b;
          if (set + b % ONCE < SETS && own < RB)
#pragma unroll
            for (int i = 0; i < 4; i++)
              mine[(b * 16 + lane / 4 + (i / 2) * 8) * (TOKENS + 1) + lane % 4 * 2 + i % 2] = sums[own][i];
        }
        together();
        if (set == 0 && first + ROWS >= to()) past();
        if (set == 0) may();
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
          settle(shared, threadIdx.x + i * THREADS, at, left, beside[i], given, rms, out, squares);
      }
    }
  }

  static __device__ __forceinline__ float whole(const float *shared, int row, int token) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += shared[w * (16 * CHUNK * (TOKENS + 1)) + row * (TOKENS + 1) + token];
    return sum * (1.0f / UNIT);
  }

  static __device__ __forceinline__ void settle(const float *shared, int item, int first, int here, const Beside &beside,
                                                const Given &given, const float *rms, u16 *out, float *squares) {
    int token = item / (8 * ONCE), row = item % (8 * ONCE) * 2, n = first + row;
    if (token >= given.rows) return;  // whole halves of warps where squares are added up
    bool here_too = row < here;
    float sum[2] = {0.0f, 0.0f};
    u32 packed = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (here_too) sum[i] = whole(shared, row + i, token) * beside.scale[i];
      u16 v;
      if (KIND == ADDED) {
        sum[i] += wide((u16)(beside.h >> 16 * i));
        v = formed(sum[i] * wide((u16)(beside.norm >> 16 * i)));
      } else if (KIND == GATED) {
        float gate = sum[i] * rms[token], up = 0.0f;
        if (here_too) up = whole(shared, 16 * ONCE + row + i, token) * beside.up_scale[i] * rms[token];
        v = formed(gate / (1.0f + __expf(-gate)) * up);
      } else {
        v = narrow(sum[i] * rms[token]);
      }
      packed |= (u32)v << 16 * i;
    }
    u64 at = (u64)token * OUTS + n;
    if (here_too) hand(out + at, packed);
    if (KIND == ADDED) {
      if (here_too) *(u32 *)(given.h + at) = (u32)narrow(sum[0]) | (u32)narrow(sum[1]) << 16;
      squared(sum[0] * sum[0] + sum[1] * sum[1], given, token, first, squares);
    }
  }

  // Of 32 values of a token's residual sum, two to a thread: the block's part of its sum of squares.
  static __device__ __forceinline__ void squared(float square, const Given &given, int token, int first, float *squares) {
#pragma unroll
    for (int far = 8; far; far /= 2) square += __shfl_xor_sync(0xffffu << (threadIdx.x & 16), square, far);
    int each = given.pieces / gridDim.x, piece = blockIdx.x * each + (first - from()) / 32;
    if (threadIdx.x % 16 == 0) hand(squares + token * given.pieces + piece, __float_as_uint(square));
  }
  // Tiles of the most that a block may have which this one has not.
  static __device__ __forceinline__ void rest(const Given &given, float *squares) {
    int each = given.pieces / gridDim.x, own = (to() - from() + 31) / 32;
    for (int item = threadIdx.x; item < given.rows * (each - own); item += THREADS)
      hand(squares + item / (each - own) * given.pieces + blockIdx.x * each + own + item % (each - own), 0);
  }
};

typedef Part<PLAIN, TOTAL, RB_QKV> Qkv;
typedef Part<ADDED, HIDDEN, 2> Sum;  // out and down
typedef Part<GATED, INNER, RB_GATE> GateUp;

__device__ __forceinline__ void eight(float *to, uint4 v) {
  u32 a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) to[2 * i] = __uint_as_float(a[i] << 16), to[2 * i + 1] = __uint_as_float(a[i] & 0xffff0000u);
}

// A head's 8 values of this thread (16 threads to a head), normed and turned, rounded to bf16.
__device__ __forceinline__ void turned(float *v, const float *cos, const float *sin, const u16 *norm, float eps) {
  int part = threadIdx.x % 16;
#if HEAD_NORM
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += v[i] * v[i];
  for (int far = 8; far; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
  float scale = rsqrtf(sum / D + eps);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = wide(narrow(wide(narrow(v[i] * scale)) * wide(norm[part * 8 + i])));
#endif
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float other = __shfl_xor_sync(~0u, v[i], 8);
    v[i] = wide(narrow(part < 8 ? v[i] * cos[i] - other * sin[i] : v[i] * cos[i] + other * sin[i]));
  }
}

// What this thread has of a row of qkv, once it is there.
__device__ __forceinline__ void sixteenth(float *to, const u16 *at) {
  uint4 v;
  do v = handed_at(at + threadIdx.x % 16 * 8);
  while (!there(v));
  __syncwarp();
  eight(to, v);
}

// A run of one row's tokens against the query heads of one kv head. Half a warp to a token; the
// block of a row's first run puts its runs together.
__device__ __forceinline__ void attend(const Run &run, Ring &ring, const Given &given, const Handed &handed,
                                       const Layer &layer, float *shared) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % 16, half = lane / 16;
  int split = run.split, kv = run.kv, row = run.row, position = run.position;
  if (run.begin > position) return;  // fewer tokens than runs
  const u16 *token = handed.qkv + (u64)row * TOTAL;
  float cos[8], sin[8];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    *(float4 *)(cos + 4 * i) = *(const float4 *)(layer.cos_sin + (u64)position * D + part % 8 * 8 + 4 * i);
    *(float4 *)(sin + 4 * i) = *(const float4 *)(layer.cos_sin + (u64)position * D + D / 2 + part % 8 * 8 + 4 * i);
  }
  float q[HEADS_EACH][8], total[HEADS_EACH][8], best[HEADS_EACH], mass[HEADS_EACH];
#pragma unroll
  for (int g = 0; g < HEADS_EACH; g++) {
    sixteenth(q[g], token + (kv * HEADS_EACH + g) * D);
    turned(q[g], cos, sin, layer.q_norm, given.eps);
    best[g] = -1e30f, mass[g] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) q[g][i] *= given.softmax_scale * 1.44269504f, total[g][i] = 0.0f;
  }
  // N tokens, of which this thread's half has one each; `counts`: a bit for each that does.
  auto attend_to = [&](const uint4 *keys, const uint4 *values, u32 counts) {
    constexpr int N = 2;
    float scores[N][HEADS_EACH];
#pragma unroll
    for (int n = 0; n < N; n++) {
      float k[8];
      eight(k, keys[n]);
#pragma unroll
      for (int g = 0; g < HEADS_EACH; g++) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) score += q[g][i] * k[i];
        scores[n][g] = score;
      }
    }
#pragma unroll
    for (int far = 8; far; far /= 2)
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int g = 0; g < HEADS_EACH; g++) scores[n][g] += __shfl_xor_sync(~0u, scores[n][g], far);
#pragma unroll
    for (int g = 0; g < HEADS_EACH; g++) {
      float top = best[g];
#pragma unroll
      for (int n = 0; n < N; n++) top = fmaxf(top, counts >> n & 1 ? scores[n][g] : -1e30f);
      float shrink = exp2f(best[g] - top), sum = 0.0f;
#pragma unroll
      for (int n = 0; n < N; n++) sum += scores[n][g] = counts >> n & 1 ? exp2f(scores[n][g] - top) : 0.0f;
      mass[g] = mass[g] * shrink + sum, best[g] = top;
#pragma unroll
      for (int i = 0; i < 8; i++) total[g][i] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
      float v[8];
      eight(v, values[n]);
#pragma unroll
      for (int g = 0; g < HEADS_EACH; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) total[g][i] += scores[n][g] * v[i];
    }
  };
  bool last = position < run.end;  // this step's own token is the run's
#pragma unroll 1
  for (int t = run.begin; t < run.old || last; t += RUN) {
    uint4 keys[2], values[2];
    u32 counts = 0;
    if (t < run.old) {
      u32 at = ring.taken() + warp * 512 + lane * 16;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        keys[i] = shared_at(at + i * (16 * D * 2)), values[i] = shared_at(at + STAGE / 2 + i * (16 * D * 2));
        counts |= (u32)(t + i * 16 + warp * 2 + half < run.old) << i;
      }
      ring.leave();
    } else {
      last = false;
      if (warp != WARPS - 1) break;
      float k[8], v[8];
      sixteenth(k, token + (HEADS + kv) * D);
      turned(k, cos, sin, layer.k_norm, given.eps);
      sixteenth(v, token + (HEADS + KV_HEADS + kv) * D);
      keys[1] = values[1] = make_uint4(0, 0, 0, 0);
      u32 *packed = &keys[0].x, *plain = &values[0].x;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        packed[i] = (u32)narrow(k[2 * i]) | (u32)narrow(k[2 * i + 1]) << 16;
        plain[i] = (u32)narrow(v[2 * i]) | (u32)narrow(v[2 * i + 1]) << 16;
      }
      u64 at = (((u64)run.pages[position / PAGE] * PAGE + position % PAGE) * KV_HEADS + kv) * D + part * 8;
      if (half == 0) {
        *(uint4 *)(layer.k_pages + at) = keys[0];
        *(uint4 *)(layer.v_pages + at) = values[0];
        counts = 1;
      }
    }
    attend_to(keys, values, counts);
  }
  float *tops = shared, *masses = tops + 2 * WARPS * HEADS_EACH, *totals = masses + 2 * WARPS * HEADS_EACH;
  together();  // until everybody has left what is in there
#pragma unroll
  for (int g = 0; g < HEADS_EACH; g++) {
    float top = fmaxf(best[g], __shfl_xor_sync(~0u, best[g], 16)), shrink = exp2f(best[g] - top);
    float sum = mass[g] * shrink;
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (lane == 0) tops[warp * HEADS_EACH + g] = top, masses[warp * HEADS_EACH + g] = sum;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float v = total[g][i] * shrink;
      v += __shfl_xor_sync(~0u, v, 16);
      if (half == 0) totals[(warp * HEADS_EACH + g) * D + part * 8 + i] = v;
    }
  }
  together();
  int share = run.share(given), runs = run.splits(share);
  int first = (row * KV_HEADS + kv) * given.splits;
  for (int item = threadIdx.x; item < HEADS_EACH * D / 2; item += THREADS) {
    int g = item / (D / 2), d = item % (D / 2) * 2;
    float top = -1e30f, sum = 0.0f, value[2] = {0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w * HEADS_EACH + g]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float shrink = exp2f(tops[w * HEADS_EACH + g] - top);
      sum += masses[w * HEADS_EACH + g] * shrink;
      value[0] += totals[(w * HEADS_EACH + g) * D + d] * shrink;
      value[1] += totals[(w * HEADS_EACH + g) * D + d + 1] * shrink;
    }
    if (split > 0) {
      int at = first + split;
#pragma unroll
      for (int i = 0; i < 2; i++) hand(handed.parts + ((u64)at * HEADS_EACH + g) * D + d + i, __float_as_uint(value[i]));
      if (d == 0) {
        hand(handed.part_max + at * HEADS_EACH + g, __float_as_uint(top));
        hand(handed.part_sum + at * HEADS_EACH + g, __float_as_uint(sum));
      }
    } else {
#pragma unroll 1
      for (int s = 1; s < runs; s += 8) {  // asked for together: each takes as long as all
        u32 most[8], mass[8], low[8], high[8];
        bool all;
        do {
          all = true;
#pragma unroll
          for (int i = 0; i < 8; i++) {
            int at = (first + min(s + i, runs - 1)) * HEADS_EACH + g;
            most[i] = word_at(handed.part_max + at), mass[i] = word_at(handed.part_sum + at);
            low[i] = word_at(handed.parts + (u64)at * D + d), high[i] = word_at(handed.parts + (u64)at * D + d + 1);
          }
#pragma unroll
          for (int i = 0; i < 8; i++) all = all && max(max(most[i], mass[i]), max(low[i], high[i])) != NOTHING;
        } while (!all);
#pragma unroll
        for (int i = 0; i < 8; i++) {
          if (s + i >= runs) break;
          float both = fmaxf(top, __uint_as_float(most[i]));
          float mine = exp2f(top - both), its = exp2f(__uint_as_float(most[i]) - both);
          sum = sum * mine + __uint_as_float(mass[i]) * its;
          value[0] = value[0] * mine + __uint_as_float(low[i]) * its;
          value[1] = value[1] * mine + __uint_as_float(high[i]) * its;
          top = both;
        }
      }
      u64 at = (u64)row * MIXED + (kv * HEADS_EACH + g) * D + d;
      hand(handed.mixed + at, (u32)formed(value[0] / sum) | (u32)formed(value[1] / sum) << 16);
    }
  }
}

// What the layers begin with: a copy, its norm's first half, and its squares.
__device__ __forceinline__ void begin(const Given &given, const Handed &handed) {
  int first = Sum::from(), tiles = (Sum::to() - first + 31) / 32;
  for (int item = threadIdx.x; item < given.rows * tiles * 16; item += THREADS) {
    int token = item / (tiles * 16), tile = item / 16 % tiles * 32, n = first + tile + item % 16 * 2;
    float v[2] = {0.0f, 0.0f};
    if (n < Sum::to()) {
      u64 at = (u64)token * HIDDEN + n;
      u32 x = *(const u32 *)(given.x + at), norm = *(const u32 *)(given.first_norm + n), packed = 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        v[i] = wide((u16)(x >> 16 * i));
        packed |= (u32)formed(v[i] * wide((u16)(norm >> 16 * i))) << 16 * i;
      }
      *(u32 *)(given.h + at) = x;
      hand(handed.first + at, packed);
    }
    Sum::squared(v[0] * v[0] + v[1] * v[1], given, token, first + tile, handed.first_squares);
  }
  Sum::rest(given, handed.first_squares);
}

__device__ __forceinline__ void begin(u32 barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// The warp that reads.
__device__ __forceinline__ void read(Ring &ring, const Given &given) {
  int tasks = given.rows * KV_HEADS * given.splits, lane = threadIdx.x % 32;
  Run own(min((int)blockIdx.x, tasks - 1), given);
  int held = own.page(own.begin / PAGE + lane);
  const char *w[4];
  const u16 *k_pages = given.layers->k_pages, *v_pages = given.layers->v_pages;
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = given.layers->w[i];
#pragma unroll 1
  for (int at = 0; at < given.count; at++) {
    const Layer *next = given.layers + min(at + 1, given.count - 1);  // asked for long before
    Qkv::read<HIDDEN>(ring, w[0]);
    w[0] = next->w[0];
    if (blockIdx.x < tasks) ring.fill(k_pages, v_pages, own, held);
#pragma unroll 1
    for (int task = blockIdx.x + gridDim.x; task < tasks; task += gridDim.x) {
      Run run(task, given);
      ring.fill(k_pages, v_pages, run, run.page(run.begin / PAGE + lane));
    }
    k_pages = next->k_pages, v_pages = next->v_pages;
    Sum::read<MIXED>(ring, w[1]);
    w[1] = next->w[1];
    GateUp::read<HIDDEN>(ring, w[2]);
    w[2] = next->w[2];
    Sum::read<INNER>(ring, w[3]);
    w[3] = next->w[3];
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS + HELPERS, 1) few_rows(Given given) {
  extern __shared__ char room[];
  __shared__ float rms[TOKENS];
  __shared__ Layer layer;
  __shared__ u64 barriers[2 * STAGES + 2];
  float *shared = (float *)(room + STAGES * STAGE);
  u32 at_room = (u32)__cvta_generic_to_shared(room);
  Ring ring(at_room, (u32)__cvta_generic_to_shared(barriers));
  Turns turns = {ring.full + 16 * STAGES, ring.full + 16 * STAGES + 8};
  if (threadIdx.x < 2 * STAGES + 2)
    begin(ring.full + 8 * threadIdx.x,
          threadIdx.x < STAGES ? 32 : threadIdx.x < 2 * STAGES ? WARPS : threadIdx.x == 2 * STAGES ? 1 : 32);
  __syncthreads();
  if (threadIdx.x >= THREADS) {
    registers<72, false>();
    if (threadIdx.x < THREADS + 32) {
      read(ring, given);
    } else if (threadIdx.x < THREADS + 64) {
#pragma unroll 1
      for (int at = 1; at < given.count; at++) {
        wait(turns.past, (at - 1) % 2);
        clean(given, at - 1, threadIdx.x % 32, 32);
        __threadfence();
        signal(turns.empty);
      }
    }
    return;
  }
  registers<216, true>();
  for (int i = 0; i < 2; i++) clean(given, i, threadIdx.x, THREADS);
  meet(given.counter);
  begin(given, Handed(given, 0));
  auto nothing = [] {};
  int tasks = given.rows * KV_HEADS * given.splits;
  Run own(min((int)blockIdx.x, tasks - 1), given);
  const int words = sizeof(Layer) / 8;
  u64 upcoming = threadIdx.x < words ? ((const u64 *)given.layers)[threadIdx.x] : 0;
#pragma unroll 1
  for (int at = 0; at < given.count; at++) {
    Handed handed(given, at), next(given, at + 1);
    if (threadIdx.x < words) ((u64 *)&layer)[threadIdx.x] = upcoming;
    together();
    if (threadIdx.x < words && at + 1 < given.count) upcoming = ((const u64 *)(given.layers + at + 1))[threadIdx.x];
    Qkv::run(ring, handed.first, HIDDEN, layer.scale[0], given, handed.first_squares, nullptr, rms, shared, handed.qkv, nullptr,
             [&] { if (at && threadIdx.x == 0) signal(turns.past); }, nothing);
#pragma unroll 1
    for (int task = blockIdx.x; task < tasks; task += gridDim.x)
      attend(task == blockIdx.x ? own : Run(task, given), ring, given, handed, layer, shared);
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
      float *squares = half ? next.first_squares : handed.second_squares;
      Sum::run(ring, half ? handed.inner : handed.mixed, half ? INNER : MIXED, layer.scale[1 + 2 * half], given, nullptr,
               half ? layer.next_norm : layer.mlp_norm, rms, shared, half ? next.first : handed.second, squares, nothing, nothing);
      Sum::rest(given, squares);
      if (half == 0)
        GateUp::run(ring, handed.second, HIDDEN, layer.scale[2], given, handed.second_squares, nullptr, rms, shared, handed.inner,
                    nullptr, nothing, [&] { if (at) wait(turns.empty, (at - 1) % 2); });
    }
    together();
  }
  scales(given, Handed(given, given.count).first_squares, rms);
  together();
  int first = Sum::from(), mine = Sum::to() - first;
  for (int item = threadIdx.x; item < mine * given.rows; item += THREADS) {
    int token = item / mine, n = first + item % mine;
    u64 place = (u64)token * HIDDEN + n;
    given.out[place] = narrow(wide(given.h[place]) * rms[token] * wide(given.final_norm[n]));
  }
  together();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(given.counter) : "memory");
    if (before == 2 * (int)gridDim.x - 1) *given.counter = 0;  // the next pass begins anew
  }
}
