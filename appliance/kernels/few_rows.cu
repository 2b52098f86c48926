// The decoder's layers for few rows as one kernel that stays on the GPU from the first to the last.
//
// With few rows a pass takes as long as reading its weights, if nothing ever waits. Here each
// multiprocessor holds one block for the whole pass; blocks meet between the parts of a layer, and
// before each meeting every thread has asked for the first weights of the part behind it.
//
// A tile is 16 * RB rows of a weight; the warps of a block divide its columns and add up in shared
// memory. A slice is 128 bytes of each row, 16 to a thread and load, in the order in which mma wants
// them: which column is which does not matter as long as weights and tokens agree.
//
// Given when it is compiled: HIDDEN INNER HEADS KV_HEADS PAGE, GROUPS (of 8 tokens), FP8, HEAD_NORM,
// and by part RB and R (slices on their way). few_rows.py says what they may be.

#include "rows_shared.cuh"

#define TOKENS (GROUPS * 8)
#define PIECES (HIDDEN / (16 * RB_OUT))
#define ROWS_MOST 64

struct Given {
  const Layer *layers;
  const u16 *x;            // [rows, HIDDEN]
  const u64 *positions;
  const int *indptr, *indices;
  const u16 *first_norm, *final_norm;
  u16 *h, *weighed, *qkv, *mixed, *inner, *out;
  float *squares, *parts, *part_max, *part_sum;
  int *arrived, *counter;
  int rows, count, splits;
  float eps, softmax_scale;
};

__device__ __forceinline__ uint4 weights_at(const char *at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}

__device__ __forceinline__ uint4 values_at(const void *at) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}

// Everything this block wrote before is seen by every block after it has met the others.
__device__ __forceinline__ void arrive(int *counter) {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ void meet(int *counter, int &target) {
  target += gridDim.x;
  if (threadIdx.x == 0) {
    int seen;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while (seen < target);
  }
  __syncthreads();
}

template <int C>
struct Count {
  static constexpr int N = C;
};

// One matmul of a layer: OUTS results a token from K values. R slices are on their way at a time.
template <Kind KIND, int OUTS, int K, int RB, int R>
struct Part {
  static constexpr int ROWS = 16 * RB / (KIND == GATED ? 2 : 1);
  static constexpr int TILES = OUTS / ROWS;
  static constexpr int SLICES = K * WIDTH / 128 / WARPS;
  static_assert(SLICES % R == 0 && SLICES * 128 * WARPS == K * WIDTH && TILES * ROWS == OUTS, "");
  static_assert(4 * RB * R <= 32, "");

  static __device__ __forceinline__ const char *row_at(const char *w, int tile, int block) {
    int lane = threadIdx.x % 32;
    int row = tile * ROWS + block * 16 + lane / 4;
    if (KIND == GATED && block >= RB / 2) row += OUTS - ROWS;
    return w + (u64)row * (K * WIDTH) + (threadIdx.x / 32) * 128 + lane % 4 * 16;
  }

  static __device__ __forceinline__ void fetch(uint4 *ring, const char *w, int tile, int slice) {
#pragma unroll
    for (int b = 0; b < RB; b++) {
      const char *at = row_at(w, tile, b) + slice * (128 * WARPS);
#pragma unroll
      for (int i = 0; i < 4; i++)
        ring[b * 4 + i] = weights_at(at + (i / 2) * (8 * K * WIDTH) + (i % 2) * 64);
    }
  }

  // The first weights, before what they are multiplied with is there.
  static __device__ __forceinline__ void begin(uint4 *ring, const char *w) {
    if (blockIdx.x >= TILES) return;
#pragma unroll
    for (int r = 0; r < R; r++) fetch(ring + r * 4 * RB, w, blockIdx.x, r);
  }

  static __device__ __forceinline__ void tokens(uint4 *xs, const u16 *x, int rows, int slice) {
    int lane = threadIdx.x % 32;
    int column = (slice * WARPS + threadIdx.x / 32) * (128 / WIDTH);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      int token = g * 8 + lane / 4;
      const char *at = (const char *)(x + (u64)token * K + column);
#pragma unroll
      for (int i = 0; i < XV; i++) {
        int byte = FP8 ? (i / 2) * 128 + lane % 4 * 32 + (i % 2) * 16 : i * 64 + lane % 4 * 16;
        xs[g * XV + i] = token < rows ? values_at(at + byte) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  static __device__ __forceinline__ void add_up(float (*sums)[GROUPS][4], const uint4 *ring, const uint4 *xs) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int b = 0; b < RB; b++) {
        uint4 low = ring[b * 4 + half], high = ring[b * 4 + 2 + half];
#if FP8
        u32 l[8], h[8];
        widened(low.x, l[0], l[1]), widened(low.y, l[2], l[3]);
        widened(low.z, l[4], l[5]), widened(low.w, l[6], l[7]);
        widened(high.x, h[0], h[1]), widened(high.y, h[2], h[3]);
        widened(high.z, h[4], h[5]), widened(high.w, h[6], h[7]);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
          uint4 x = xs[g * XV + half * 2], y = xs[g * XV + half * 2 + 1];
          multiply(sums[b][g], l[0], h[0], l[1], h[1], x.x, x.y);
          multiply(sums[b][g], l[2], h[2], l[3], h[3], x.z, x.w);
          multiply(sums[b][g], l[4], h[4], l[5], h[5], y.x, y.y);
          multiply(sums[b][g], l[6], h[6], l[7], h[7], y.z, y.w);
        }
#else
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
          uint4 x = xs[g * XV + half];
          multiply(sums[b][g], low.x, high.x, low.y, high.y, x.x, x.y);
          multiply(sums[b][g], low.z, high.z, low.w, high.w, x.z, x.w);
        }
#endif
      }
  }

  // x: what the weights are multiplied with, [rows, K]. next(): asks for the next part's weights.
  template <class Next>
  static __device__ __forceinline__ void run(uint4 *ring, const char *w, const float *w_scale, const u16 *x,
                                             const Given &given, const u16 *next_norm, const float *rms,
                                             float *shared, u16 *out, Next next) {
    int rows = given.rows, warp = threadIdx.x / 32, lane = threadIdx.x % 32, parity = 0;
    if (blockIdx.x >= TILES) {
      next();
      return;
    }
    uint4 xs[R][XV * GROUPS];
#pragma unroll
    for (int r = 0; r < R; r++) tokens(xs[r], x, rows, r);
    for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
      float sums[RB][GROUPS][4];
#pragma unroll
      for (int b = 0; b < RB; b++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
          for (int i = 0; i < 4; i++) sums[b][g][i] = 0.0f;
#pragma unroll 1
      for (int slice = 0; slice < SLICES; slice += R) {
#pragma unroll
        for (int r = 0; r < R; r++) {
          add_up(sums, ring + r * 4 * RB, xs[r]);
          bool wraps = slice + R >= SLICES;
          int then = wraps ? r : slice + R + r;
          int at = wraps ? tile + gridDim.x : tile;
          if (at < TILES) {
            fetch(ring + r * 4 * RB, w, at, then);
            tokens(xs[r], x, rows, then);
          }
        }
      }
      if (tile + gridDim.x >= TILES) next();
      float *mine = shared + parity * (WARPS * ROWS_MOST * (TOKENS + 1)) + warp * (16 * RB * (TOKENS + 1));
#pragma unroll
      for (int b = 0; b < RB; b++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            mine[(b * 16 + lane / 4 + (i / 2) * 8) * (TOKENS + 1) + g * 8 + lane % 4 * 2 + i % 2] = sums[b][g][i];
      __syncthreads();
      settle(shared + parity * (WARPS * ROWS_MOST * (TOKENS + 1)), tile, w_scale, given, next_norm, rms, out);
      parity ^= 1;
    }
  }

  static __device__ __forceinline__ float whole(const float *shared, int row, int token) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += shared[w * (16 * RB * (TOKENS + 1)) + row * (TOKENS + 1) + token];
    return sum * (1.0f / UNIT);
  }

  static __device__ __forceinline__ void settle(const float *shared, int tile, const float *w_scale, const Given &given,
                                                const u16 *next_norm, const float *rms, u16 *out) {
    int last = (ROWS * given.rows + 31) / 32 * 32;
    for (int item = threadIdx.x; item < last; item += THREADS) {
      int token = item / ROWS, row = item % ROWS, n = tile * ROWS + row;
      bool there = token < given.rows;
      float sum = there ? whole(shared, row, token) : 0.0f;
      if (KIND != ADDED && there) sum *= rms[token];
      if (FP8) sum *= w_scale[n];
      if (KIND == GATED) {
        float up = there ? whole(shared, row + ROWS, token) * rms[token] : 0.0f;
        if (FP8) up *= w_scale[OUTS + n];
        sum = sum / (1.0f + __expf(-sum)) * up;
        if (there) out[(u64)token * OUTS + n] = formed(sum);
      } else if (KIND == ADDED) {
        u64 at = (u64)token * OUTS + n;
        if (there) {
          sum += wide(given.h[at]);
          given.h[at] = narrow(sum);
          given.weighed[at] = formed(sum * wide(next_norm[n]));
        }
        float square = sum * sum;
        for (int far = ROWS / 2; far; far /= 2) square += __shfl_xor_sync(~0u, square, far);
        if (there && row == 0) given.squares[token * PIECES + tile] = square;
      } else if (there) {
        out[(u64)token * OUTS + n] = narrow(sum);
      }
    }
  }
};

typedef Part<PLAIN, TOTAL, HIDDEN, RB_QKV, R_QKV> Qkv;
typedef Part<ADDED, HIDDEN, MIXED, RB_OUT, R_OUT> Out;
typedef Part<GATED, INNER, HIDDEN, RB_GATE, R_GATE> GateUp;
typedef Part<ADDED, HIDDEN, INNER, RB_DOWN, R_DOWN> Down;

// 1 / root mean square of each token's residual sum, for the norm in front of a matmul.
__device__ __forceinline__ void scales(const Given &given, float *rms) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int token = warp; token < given.rows; token += WARPS) {
    float sum = 0.0f;
    for (int piece = lane; piece < PIECES; piece += 32) sum += given.squares[token * PIECES + piece];
    for (int far = 16; far; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
    if (lane == 0) rms[token] = rsqrtf(sum / HIDDEN + given.eps);
  }
}

#define AT_ONCE (HEADS_EACH > 4 ? 2 : 4)
#define ROUND (2 * WARPS * AT_ONCE)

// Which tokens of a row a task attends to: begin .. end, its last one being the step's own if it is
// at `position`.
struct Run {
  int split, kv, row, position, begin, end, old;
  const int *pages;

  __device__ __forceinline__ Run(int task, const Given &given) {
    split = task % given.splits, kv = task / given.splits % KV_HEADS, row = task / (given.splits * KV_HEADS);
    position = (int)given.positions[row];
    int share = ((position + given.splits) / given.splits + 7) / 8 * 8;
    begin = split * share, end = min(begin + share, position + 1);
    old = min(end, position);
    pages = given.indices + given.indptr[row];
  }
  __device__ __forceinline__ u64 place(int page, int t) const {
    return (((u64)page * PAGE + t % PAGE) * KV_HEADS + kv) * D + threadIdx.x % 16 * 8;
  }
  // The first token of a warp's round, of which this thread's half takes every other one.
  __device__ __forceinline__ int token(int round, int i) const {
    return begin + round * ROUND + i * 2 * WARPS + threadIdx.x / 16;
  }
};

// Keys and values of tokens that earlier steps left: they wait for nothing in this one.
struct Old {
  uint4 key[AT_ONCE], value[AT_ONCE];

  __device__ __forceinline__ void fetch(const Run &run, const Layer &layer, const int *pages, int round) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      int t = run.token(round, i);
      key[i] = value[i] = make_uint4(0, 0, 0, 0);
      if (t < run.old) {
        u64 at = run.place(pages[i], t);
        key[i] = values_at(layer.k_pages + at), value[i] = values_at(layer.v_pages + at);
      }
    }
  }
};

// Pages of the tokens of a round: asked for a round earlier than what lies on them.
__device__ __forceinline__ void look_up(int *pages, const Run &run, int round) {
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++) {
    int t = run.token(round, i);
    pages[i] = t < run.old ? run.pages[t / PAGE] : 0;
  }
}

// A run of one row's tokens against the query heads of one kv head. Half a warp to a token; the last
// block of a row's runs to come merges them. now: the tokens of its first round, on their way.
__device__ __forceinline__ void attend(const Run &run, Old &now, const Given &given, const Layer &layer,
                                       float *shared) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % 16, half = lane / 16;
  int split = run.split, kv = run.kv, row = run.row, position = run.position;
  const float *cos = layer.cos_sin + (u64)position * D + part % 8 * 8, *sin = cos + D / 2;
  const u16 *token = given.qkv + (u64)row * TOTAL;
  int pages[AT_ONCE];
  look_up(pages, run, 1);
  float q[HEADS_EACH][8], total[HEADS_EACH][8], best[HEADS_EACH], mass[HEADS_EACH];
#pragma unroll
  for (int g = 0; g < HEADS_EACH; g++) {
    eight(q[g], values_at(token + (kv * HEADS_EACH + g) * D + part * 8));
    turned(q[g], cos, sin, layer.q_norm, given.eps);
    best[g] = -1e30f, mass[g] = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) q[g][i] *= given.softmax_scale * 1.44269504f, total[g][i] = 0.0f;
  }
  // N tokens, of which this thread's half has one each; `there`: a bit for each that counts.
  auto attend_to = [&](const uint4 *keys, const uint4 *values, auto count, u32 there) {
    constexpr int N = decltype(count)::N;
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
      for (int n = 0; n < N; n++) top = fmaxf(top, there >> n & 1 ? scores[n][g] : -1e30f);
      float shrink = exp2f(best[g] - top), sum = 0.0f;
#pragma unroll
      for (int n = 0; n < N; n++) sum += scores[n][g] = there >> n & 1 ? exp2f(scores[n][g] - top) : 0.0f;
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
  // Two sets in turn: a copy from one to the other would wait for what is still on its way.
  auto go_through = [&](const Old &some, int round) {
    u32 there = 0;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) there |= (u32)(run.token(round, i) < run.old) << i;
    attend_to(some.key, some.value, Count<AT_ONCE>(), there);
  };
  int rounds = (run.old - run.begin + ROUND - 1) / ROUND;
#pragma unroll 1
  for (int round = 0; round < rounds; round += 2) {
    Old next;
    next.fetch(run, layer, pages, round + 1);
    look_up(pages, run, round + 2);
    go_through(now, round);
    now.fetch(run, layer, pages, round + 2);
    look_up(pages, run, round + 3);
    if (round + 1 < rounds) go_through(next, round + 1);
  }
  if (run.begin <= position && position < run.end && warp == WARPS - 1) {  // this step's own token
    float k[8];
    uint4 value = values_at(token + (HEADS + KV_HEADS + kv) * D + part * 8), key;
    eight(k, values_at(token + (HEADS + kv) * D + part * 8));
    turned(k, cos, sin, layer.k_norm, given.eps);
    u32 *packed = &key.x;
#pragma unroll
    for (int i = 0; i < 4; i++) packed[i] = (u32)narrow(k[2 * i]) | (u32)narrow(k[2 * i + 1]) << 16;
    u64 at = run.place(run.pages[position / PAGE], position);
    if (half == 0) {
      *(uint4 *)(layer.k_pages + at) = key;
      *(uint4 *)(layer.v_pages + at) = value;
    }
    attend_to(&key, &value, Count<1>(), half == 0);
  }
  float *tops = shared, *masses = tops + 2 * WARPS * HEADS_EACH, *totals = masses + 2 * WARPS * HEADS_EACH;
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
  __syncthreads();
  int place = row * KV_HEADS + kv;
  for (int item = threadIdx.x; item < HEADS_EACH * D; item += THREADS) {
    int g = item / D, d = item % D;
    float top = -1e30f, sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w * HEADS_EACH + g]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float shrink = exp2f(tops[w * HEADS_EACH + g] - top);
      sum += masses[w * HEADS_EACH + g] * shrink;
      value += totals[(w * HEADS_EACH + g) * D + d] * shrink;
    }
    if (given.splits == 1) {
      given.mixed[(u64)row * MIXED + kv * HEADS_EACH * D + item] = formed(value / sum);
    } else {
      int at = place * given.splits + split;
      given.parts[(u64)at * HEADS_EACH * D + item] = value;
      if (d == 0) given.part_max[at * HEADS_EACH + g] = top, given.part_sum[at * HEADS_EACH + g] = sum;
    }
  }
  if (given.splits > 1) {
    int *last = (int *)shared;
    __syncthreads();
    if (threadIdx.x == 0) {
      int before;
      asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(given.arrived + place) : "memory");
      *last = before == given.splits - 1;
      if (*last) given.arrived[place] = 0;
    }
    __syncthreads();
    if (*last) {
      for (int item = threadIdx.x; item < HEADS_EACH * D; item += THREADS) {
        int g = item / D, at = place * given.splits;
        float top = -1e30f, sum = 0.0f, value = 0.0f;
for (int s = 0; s < given.splits; s++) top = fmaxf(top, given.part_max[(at + s) * HEADS_EACH + g]);
        for (int s = 0; s < given.splits; s++) {
          float shrink = exp2f(given.part_max[(at + s) * HEADS_EACH + g] - top);
          sum += given.part_sum[(at + s) * HEADS_EACH + g] * shrink;
          value += given.parts[(u64)(at + s) * HEADS_EACH * D + item] * shrink;
        }
        given.mixed[(u64)row * MIXED + kv * HEADS_EACH * D + item] = formed(value / sum);
      }
    }
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) few_rows(Given given) {
  extern __shared__ float shared[];
  __shared__ float rms[TOKENS];
  __shared__ Layer layer;
  uint4 ring[32];
  int target = 0;
  {
    const int rows_each = 16 * RB_OUT;
    int last = (rows_each * given.rows + 31) / 32 * 32;
    for (int piece = blockIdx.x; piece < PIECES; piece += gridDim.x)
      for (int item = threadIdx.x; item < last; item += THREADS) {
        int token = item / rows_each, n = piece * rows_each + item % rows_each;
        float v = 0.0f;
        if (token < given.rows) {
          u16 value = given.x[(u64)token * HIDDEN + n];
          v = wide(value);
          given.h[(u64)token * HIDDEN + n] = value;
          given.weighed[(u64)token * HIDDEN + n] = formed(v * wide(given.first_norm[n]));
        }
        v *= v;
        for (int far = rows_each / 2; far; far /= 2) v += __shfl_xor_sync(~0u, v, far);
        if (token < given.rows && item % rows_each == 0) given.squares[token * PIECES + piece] = v;
      }
  }
  arrive(given.counter);
  Qkv::begin(ring, given.layers[0].w[0]);
  meet(given.counter, target);
#pragma unroll 1
  for (int at = 0; at < given.count; at++) {
    if (threadIdx.x < sizeof(Layer) / 8) ((u64 *)&layer)[threadIdx.x] = ((const u64 *)(given.layers + at))[threadIdx.x];
    scales(given, rms);
    __syncthreads();
    Old old;
    int tasks = given.rows * KV_HEADS * given.splits;
    Qkv::run(ring, layer.w[0], layer.scale[0], given.weighed, given, layer.next_norm, rms, shared, given.qkv, [&] {
      if (blockIdx.x < tasks) {
        Run run(blockIdx.x, given);
        int pages[AT_ONCE];
        look_up(pages, run, 0);
        old.fetch(run, layer, pages, 0);
      }
      Out::begin(ring, layer.w[1]);
    });
    arrive(given.counter);
    meet(given.counter, target);
    for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
      Run run(task, given);
      if (task != blockIdx.x) {
        int pages[AT_ONCE];
        look_up(pages, run, 0);
        old.fetch(run, layer, pages, 0);
      }
      attend(run, old, given, layer, shared);
    }
    arrive(given.counter);
    meet(given.counter, target);
    Out::run(ring, layer.w[1], layer.scale[1], given.mixed, given, layer.mlp_norm, rms, shared, nullptr,
             [&] { GateUp::begin(ring, layer.w[2]); });
    arrive(given.counter);
    meet(given.counter, target);
    scales(given, rms);
    GateUp::run(ring, layer.w[2], layer.scale[2], given.weighed, given, layer.next_norm, rms, shared, given.inner,
                [&] { Down::begin(ring, layer.w[3]); });
    arrive(given.counter);
    meet(given.counter, target);
    Down::run(ring, layer.w[3], layer.scale[3], given.inner, given, layer.next_norm, rms, shared, nullptr,
              [&] { if (at + 1 < given.count) Qkv::begin(ring, given.layers[at + 1].w[0]); });
    arrive(given.counter);
    meet(given.counter, target);
  }
  scales(given, rms);
  __syncthreads();
  for (int piece = blockIdx.x; piece < PIECES; piece += gridDim.x)
    for (int item = threadIdx.x; item < 16 * RB_OUT * given.rows; item += THREADS) {
      int token = item / (16 * RB_OUT), n = piece * 16 * RB_OUT + item % (16 * RB_OUT);
      u64 place = (u64)token * HIDDEN + n;
      given.out[place] = narrow(wide(given.h[place]) * rms[token] * wide(given.final_norm[n]));
    }
  __syncthreads();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(given.counter) : "memory");
    if (before == target + (int)gridDim.x - 1) *given.counter = 0;  // the next pass begins anew
  }
}
