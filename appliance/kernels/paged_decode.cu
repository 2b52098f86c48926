// Attention of decode rows over pages of keys and values, divided evenly whatever the rows' lengths.
//
// The page lists of all rows, one after the other, are cut into as many ranges of equal length as
// there are warps to a key-value head. A warp reads its range with several tiles on their way, for
// the query heads that share the key-value head, and knows nothing of other warps. Where a range
// ends within a row it leaves its part; the last of a row's warps puts the parts together, in the
// order of the ranges, so that the result does not depend on who was last.
//
// Query heads are the rows of mma (up to 8 of its 16), tokens of a page its columns. 8-bit pages are
// widened to float16 in registers; which dimension stands where does not matter as long as queries
// and keys agree, and the dimensions of values are put right when the result is written.
//
// Few rows have a kernel that does what comes before as well: it turns queries and keys by their positions
// and writes keys and values to their pages. There a block has a key-value head of one row, or of a piece of
// a row where rows are long and blocks idle; its warps take the tiles in turn, and are put together in shared memory.
//
// Given when it is compiled: HEAD PAGE KV_HEADS EACH (query heads to a key-value head), WARPS,
// STAGES, NARROW (pages of e4m3), HALF (queries and results are float16, else bfloat16), TURNED (0: the first
// kernel; else the second, and so many of its blocks share a multiprocessor), HEAD_NORM (queries and keys are
// normed before they are turned).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define TILE 16
#define TILES (PAGE / TILE)
#define WIDTH (NARROW ? 1 : 2)
#define CHUNKS (HEAD * WIDTH / 16)
#define TILE_BYTES (TILE * HEAD * WIDTH)
#define BLOCKS (HEAD / 8)
#define STEPS (HEAD / 16)
#define NOTHING (-1e30f)
#define STRIDE (TURNED ? WARPS : 1)  // from one tile of a warp to its next

struct Given {
  const u16 *q;          // [rows, KV_HEADS * EACH, HEAD]
  const char *k, *v;     // [pages, PAGE, KV_HEADS, HEAD]
  const int *indptr;     // [rows + 1] pages before each row
  const int *last_len;   // [rows] tokens on each row's last page
  const int *indices;    // pages of the rows, one after the other
  u16 *out;              // as q
  float *parts;          // [2 * ranges, KV_HEADS, EACH, HEAD]
  float2 *sums;          // [2 * ranges, KV_HEADS, EACH]: largest score, sum
  int *arrived;          // [rows, KV_HEADS], zero before and after
  const int *programs;   // blocks that take part; null: all
  int rows;
  float scale;           // of q k^T, times log2(e), times the keys' own
  float value_scale;
  int dependent;         // launched before the kernel in front has ended
};

#if HALF || NARROW
#define KIND "f16"
#else
#define KIND "bf16"
#endif

__device__ __forceinline__ void multiply(float *c, u32 a0, u32 a2, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3},"
               " {%4, %5, %6, %5}, {%7, %8}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 packed(float low, float high) {  // as mma wants it
  u32 r;
  asm("cvt.rn." KIND "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ u32 packed_out(float low, float high) {  // as the result is kept
  u32 r;
#if HALF
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
  return r;
}

__device__ __forceinline__ void widened(u32 four, u32 &low, u32 &high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high) : "r"(four));
}

__device__ __forceinline__ float power(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

// Two values beside each other, as they are kept.
__device__ __forceinline__ float2 unpacked(u32 two) {
#if HALF
  float2 r;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(r.x), "=f"(r.y) : "r"(two));
  return r;
#else
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
#endif
}

// Two queries' values beside each other, in the kind that mma takes.
__device__ __forceinline__ u32 query(u32 two) {
#if NARROW && !HALF
  float2 r = unpacked(two);
  return packed(r.x, r.y);
#else
  return two;
#endif
}

// The first of two dimensions of a query that a lane holds for a step of mma.
__device__ __forceinline__ int dimension(int step, int which, int lane) {
  return step * 16 + (NARROW ? 4 * (lane % 4) + 2 * which : 2 * (lane % 4) + 8 * which);
}

// Where the 16 bytes of `chunk` of a tile's row lie, so that 8 rows' lie in different banks.
__device__ __forceinline__ u32 placed(int row, int chunk) {
  int other = CHUNKS >= 8 ? row & 7 : row >> 1 & (CHUNKS - 1);
  return (row * CHUNKS + (chunk ^ other)) * 16;
}

__device__ __forceinline__ void fetch(u32 to, const char *from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void four_matrices(u32 *r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void four_turned(u32 *r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// A warp's tiles on their way into its part of shared memory.
struct Source {
  const char *k, *v;   // of this head
  const int *indices;
  u32 shared;
  int lane, end, next; // tiles
  int seen;            // of the 32 tiles whose pages' numbers the lanes hold
  int pages, later;    // of these tiles, and of the 32 after them

  __device__ __forceinline__ void begin(int tile) {
    next = tile;
    seen = 0;
    pages = number(tile + lane * STRIDE);
    later = number(tile + (32 + lane) * STRIDE);
  }
  __device__ __forceinline__ int number(int tile) {
    return tile < end ? indices[tile / TILES] : 0;
  }
  __device__ __forceinline__ void ask(int stage) {
    if (next < end) {
      if (seen == 32) {
        seen = 0;
        pages = later;
        later = number(next + (32 + lane) * STRIDE);
      }
      u64 page = __shfl_sync(~0u, pages, seen++);
      u64 token = page * PAGE + next % TILES * TILE;
      u32 to = shared + stage * 2 * TILE_BYTES;
#pragma unroll
      for (int i = 0; i < CHUNKS / 2; i++) {
        int row = (i * 32 + lane) / CHUNKS, chunk = (i * 32 + lane) % CHUNKS;
        u64 at = (token + row) * (KV_HEADS * HEAD * WIDTH) + chunk * 16;
        fetch(to + placed(row, chunk), k + at);
        fetch(to + TILE_BYTES + placed(row, chunk), v + at);
      }
    }
    next += STRIDE;
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

// What one key-value head's queries of one row have seen so far. Lane (g, t) = (lane / 4, lane % 4)
// holds, of query head g, two dimensions of every block; its part of the sum, and the largest score.
struct State {
  u32 q[STEPS][2];
  float out[BLOCKS][4];
  float most, sum;

  __device__ __forceinline__ void begin() {
    most = NOTHING;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) out[i][j] = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) q[s][0] = q[s][1] = 0;
  }

  __device__ __forceinline__ void ask(const u16 *q_row, int lane) {
    if (lane / 4 >= EACH) return;
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) q[s][j] = query(*(const u32 *)(q_row + lane / 4 * HEAD + dimension(s, j, lane)));
  }

  // The tile's tokens from `valid` on count for nothing.
  __device__ __forceinline__ void add(u32 keys, u32 values, int valid, float scale, int lane) {
    int t = lane % 4, matrix = lane / 8, line = lane % 8;
    float s[2][4] = {};
#if NARROW
#pragma unroll
    for (int i = 0; i < STEPS / 2; i++) {
      u32 r[4], b0, b1;
      four_matrices(r, keys + placed((matrix >> 1) * 8 + line, i * 2 + (matrix & 1)));
#pragma unroll
      for (int m = 0; m < 4; m++) {
        widened(r[m], b0, b1);
        multiply(s[m >> 1], q[2 * i + (m & 1)][0], q[2 * i + (m & 1)][1], b0, b1);
      }
    }
#else
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      u32 r[4];
      four_matrices(r, keys + placed((matrix >> 1) * 8 + line, i * 2 + (matrix & 1)));
      multiply(s[0], q[i][0], q[i][1], r[0], r[1]);
      multiply(s[1], q[i][0], q[i][1], r[2], r[3]);
    }
#endif
    float top = most;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        s[n][j] = n * 8 + t * 2 + j < valid ? s[n][j] * scale : NOTHING;
        top = fmaxf(top, s[n][j]);
      }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if (__any_sync(~0u, top > most)) {
      float less = power(most - top);
      most = top;
      sum *= less;
#pragma unroll
      for (int i = 0; i < BLOCKS; i++) {
        out[i][0] *= less;
        out[i][1] *= less;
      }
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        s[n][j] = power(s[n][j] - most);
        sum += s[n][j];
      }
    u32 a0 = packed(s[0][0], s[0][1]), a2 = packed(s[1][0], s[1][1]);
#if NARROW
#pragma unroll
    for (int i = 0; i < STEPS / 2; i++) {
      u32 r[4];
      four_turned(r, values + placed((matrix & 1) * 8 + line, i * 2 + (matrix >> 1)));
#pragma unroll
      for (int m = 0; m < 2; m++) {  // 16 dimensions each: the even ones, then the odd ones
        u32 even0, odd0, even1, odd1;
        widened(__byte_perm(r[2 * m], 0, 0x3120), even0, odd0);
        widened(__byte_perm(r[2 * m + 1], 0, 0x3120), even1, odd1);
        multiply(out[4 * i + 2 * m], a0, a2, even0, even1);
        multiply(out[4 * i + 2 * m + 1], a0, a2, odd0, odd1);
      }
    }
#else
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      u32 r[4];
      four_turned(r, values + placed((matrix & 1) * 8 + line, i * 2 + (matrix >> 1)));
      multiply(out[2 * i], a0, a2, r[0], r[1]);
      multiply(out[2 * i + 1], a0, a2, r[2], r[3]);
    }
#endif
  }

  __device__ __forceinline__ float total() {
    float all = sum + __shfl_xor_sync(~0u, sum, 1);
    return all + __shfl_xor_sync(~0u, all, 2);
  }

  // put(dimension, two values beside each other), every value times `by`.
  template <class Put>
  __device__ __forceinline__ void each(float by, int lane, Put put) {
    int t = lane % 4;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
#if NARROW
      // column c of the even block is dimension 2 c, of the odd one 2 c + 1
      if (i % 2 == 0) {
        put(i * 8 + 4 * t, out[i][0] * by, out[i + 1][0] * by);
        put(i * 8 + 4 * t + 2, out[i][1] * by, out[i + 1][1] * by);
      }
#else
      put(i * 8 + 2 * t, out[i][0] * by, out[i][1] * by);
#endif
    }
  }
};

// A tile's tokens from `valid` on: what was never written may be no number.
__device__ __forceinline__ void forget(u32 values, int valid, int lane) {
  for (int i = valid * CHUNKS + lane; i < TILE * CHUNKS; i += 32)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + placed(i / CHUNKS, i % CHUNKS)), "r"(0) : "memory");
}

// Launched before the kernel in front has ended (Given.dependent): what that writes is read behind this.
__device__ __forceinline__ void behind() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void next_may_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if !TURNED

// Each range may leave two parts: of a row that began before it, and of one that goes on after it.
__device__ __forceinline__ u64 part_at(int range, bool begins, int head) {
  return ((u64)(2 * range + begins) * KV_HEADS + head) * EACH;
}

__device__ __forceinline__ int range_of(u64 page, u64 pages, u64 ranges) {
  return (int)(((page + 1) * ranges - 1) / pages);
}

// The parts of a row's ranges, put together by one warp in the order of the ranges. Those of all its query heads
// are asked for together: each takes as long as all.
__device__ __forceinline__ void join(const Given &given, int row, int head, int from, int to, int lane) {
  const int mine = HEAD / 32;
  float top[EACH], sum[EACH], out[EACH][mine];
#pragma unroll
  for (int g = 0; g < EACH; g++) {
    top[g] = NOTHING, sum[g] = 0.0f;
#pragma unroll
    for (int j = 0; j < mine; j++) out[g][j] = 0.0f;
  }
#pragma unroll 1
  for (int first = from; first <= to; first += 32) {
    int range = first + lane, count = min(32, to + 1 - first);
    float2 part[EACH];
    float share[EACH];
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      part[g] = make_float2(NOTHING, 0.0f);
      if (lane < count) part[g] = __ldcg(given.sums + part_at(range, range == from, head) + g);
    }
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      float next = fmaxf(top[g], part[g].x);
#pragma unroll
      for (int i = 16; i > 0; i /= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, i));
      float less = power(top[g] - next);
      share[g] = power(part[g].x - next);
      float all = part[g].y * share[g];
#pragma unroll
      for (int i = 16; i > 0; i /= 2) all += __shfl_xor_sync(~0u, all, i);
      top[g] = next;
      sum[g] = sum[g] * less + all;
#pragma unroll
      for (int j = 0; j < mine; j++) out[g][j] *= less;
    }
    auto add = [&](int i) {
      const float *at = given.parts + part_at(first + i, first + i == from, head) * HEAD + lane * mine;
#pragma unroll
      for (int g = 0; g < EACH; g++) {
        float by = __shfl_sync(~0u, share[g], i);
#pragma unroll
        for (int j = 0; j < mine; j += 2) {
          float2 two = __ldcg((const float2 *)(at + g * HEAD + j));
          out[g][j] += two.x * by, out[g][j + 1] += two.y * by;
        }
      }
    };
#pragma unroll 4
    for (int i = 0; i < count; i++) add(i);
  }
#pragma unroll
  for (int g = 0; g < EACH; g++) {
    float by = given.value_scale / sum[g];
    u16 *to_row = given.out + ((u64)row * KV_HEADS * EACH + head * EACH + g) * HEAD + lane * mine;
#pragma unroll
    for (int j = 0; j < mine; j += 2) *(u32 *)(to_row + j) = packed_out(out[g][j] * by, out[g][j + 1] * by);
  }
}

// The last row that begins at or before a page. All lanes ask at once.
__device__ __forceinline__ int row_of(const int *indptr, int rows, int page, int lane) {
  int low = 0;
  for (int length = rows; length > 1;) {
    int step = (length + 31) / 32, at = low + lane * step;
    bool before = lane * step < length && indptr[at] <= page;
    low += (__popc(__ballot_sync(~0u, before)) - 1) * step;
    length = min(step, rows - low);
  }
  return low;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) paged_decode(const Given given) {
  extern __shared__ __align__(128) char memory[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int worker = blockIdx.x * WARPS + warp;
  const int head = worker % KV_HEADS, range = worker / KV_HEADS;
  const int pages = given.indptr[given.rows];
  const int programs = given.programs ? *given.programs : gridDim.x;
  const int ranges = min(programs * WARPS / KV_HEADS, pages);  // none is empty
  if (range >= ranges) {
    if (given.dependent) behind();
    return;
  }
  const int begin = (int)((u64)range * pages / ranges);
  const int end = (int)((u64)(range + 1) * pages / ranges);

  Source source;
  source.k = given.k + head * HEAD * WIDTH;
  source.v = given.v + head * HEAD * WIDTH;
  source.indices = given.indices;
  source.shared = (u32)__cvta_generic_to_shared(memory) + warp * STAGES * 2 * TILE_BYTES;
  source.lane = lane;
  source.end = end * TILES;
  source.begin(begin * TILES);
  int row, early = 0;
  if (given.dependent) {
    // a row's last page has a token that the kernel in front writes; pages before that are as they are
    row = row_of(given.indptr, given.rows, begin, lane);
    early = min(STAGES, (min(end, given.indptr[row + 1] - 1) - begin) * TILES);
#pragma unroll
    for (int s = 0; s < STAGES; s++)
      if (s < early) source.ask(s);
    behind();
    next_may_begin();
  }
#pragma unroll
  for (int s = 0; s < STAGES; s++)
    if (s >= early) source.ask(s);
  if (!given.dependent) row = row_of(given.indptr, given.rows, begin, lane);

  int stage = 0;
  for (int at = begin; at < end; row++) {
    const int row_begin = given.indptr[row], row_end = given.indptr[row + 1];
    const int until = min(end, row_end), last = given.last_len[row];
    State state;
    state.begin();
    state.ask(given.q + ((u64)row * KV_HEADS + head) * EACH * HEAD, lane);
    for (int tile = at * TILES; tile < until * TILES; tile++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
      __syncwarp();
      const u32 keys = source.shared + stage * 2 * TILE_BYTES, values = keys + TILE_BYTES;
      const int valid = tile / TILES + 1 == row_end ? last - tile % TILES * TILE : TILE;
      if (valid > 0) {
        if (valid < TILE) {
          forget(values, valid, lane);
          __syncwarp();
        }
        state.add(keys, values, valid, given.scale, lane);
      }
      __syncwarp();
      source.ask(stage);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    at = until;

    const float sum = state.total();
    const int g = lane / 4;
    if (row_begin >= begin && row_end <= end) {
      u16 *out = given.out + (((u64)row * KV_HEADS + head) * EACH + g) * HEAD;
      if (g < EACH)
        state.each(given.value_scale / sum, lane, [&](int dim, float a, float b) {
          *(u32 *)(out + dim) = packed_out(a, b);
        });
      continue;
    }
    const u64 mine = part_at(range, row_begin >= begin, head) + g;
    if (g < EACH) {
      state.each(1.0f, lane, [&](int dim, float a, float b) {
        __stcg((float2 *)(given.parts + mine * HEAD + dim), make_float2(a, b));
      });
      if (lane % 4 == 0) __stcg(given.sums + mine, make_float2(state.most, sum));
    }
    __threadfence();
    __syncwarp();
    const int from = range_of(row_begin, pages, ranges), to = range_of(row_end - 1, pages, ranges);
    int *arrived = given.arrived + row * KV_HEADS + head;
    int before = 0;
    if (lane == 0) before = atomicAdd(arrived, 1);
    if (__shfl_sync(~0u, before, 0) == to - from) {
      __threadfence();
      join(given, row, head, from, to, lane);
      if (lane == 0) *arrived = 0;
    }
  }
}

#else  // TURNED

struct GivenTurned : Given {  // q is not looked at
  const u16 *qkv;              // [rows, (EACH + 2) * KV_HEADS, HEAD]
  const long long *positions;  // [rows]
  const float *cos_sin;        // [context, HEAD]: cosines, then sines
  const u16 *q_weight, *k_weight;  // [HEAD]
  float eps;
  float k_scale, v_scale;      // pages of e4m3 times these are keys and values
  int least;                   // pages of a row that is not divided
};

#define PAIRS (HEAD / 64)  // of a key's dimensions to a lane

__device__ __forceinline__ float2 rounded(float a, float b) { return unpacked(packed_out(a, b)); }

// As the models were trained: rounded before the weight and behind it.
__device__ __forceinline__ float2 normed(float2 x, float scale, const u16 *weight) {
  float2 by = unpacked(*(const u32 *)weight);
  x = rounded(x.x * scale, x.y * scale);
  return rounded(x.x * by.x, x.y * by.y);
}

__device__ __forceinline__ float wide(u16 v) { return unpacked(v).x; }

// Cosines and sines of the dimensions that a lane's queries have, of one position.
struct Angles {
  float2 cos[STEPS / 2][2], sin[STEPS / 2][2];

  __device__ __forceinline__ void ask(const float *row, int lane) {
#pragma unroll
    for (int s = 0; s < STEPS / 2; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        cos[s][j] = __ldg((const float2 *)(row + dimension(s, j, lane)));
        sin[s][j] = __ldg((const float2 *)(row + HEAD / 2 + dimension(s, j, lane)));
      }
  }

  // The queries of a head as they leave their linear -> as State has them. A dimension and the one it turns
  // with, HEAD / 2 further, are of one lane.
  __device__ __forceinline__ void turn(State &state, const u16 *q_row, const u16 *weight, float eps, int lane) const {
    float2 low[STEPS / 2][2], high[STEPS / 2][2];
    const u16 *at = q_row + min(lane / 4, EACH - 1) * HEAD;
#pragma unroll
    for (int s = 0; s < STEPS / 2; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        low[s][j] = unpacked(*(const u32 *)(at + dimension(s, j, lane)));
        high[s][j] = unpacked(*(const u32 *)(at + HEAD / 2 + dimension(s, j, lane)));
      }
#if HEAD_NORM
    float total = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS / 2; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float2 a = low[s][j], b = high[s][j];
        total += a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y;
      }
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    float scale = rsqrtf(total / HEAD + eps);
#pragma unroll
    for (int s = 0; s < STEPS / 2; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        low[s][j] = normed(low[s][j], scale, weight + dimension(s, j, lane));
        high[s][j] = normed(high[s][j], scale, weight + HEAD / 2 + dimension(s, j, lane));
      }
#endif
    if (lane / 4 >= EACH) return;
#pragma unroll
    for (int s = 0; s < STEPS / 2; s++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float2 a = low[s][j], b = high[s][j], c = cos[s][j], d = sin[s][j];
        state.q[s][j] = query(packed_out(a.x * c.x - b.x * d.x, a.y * c.y - b.y * d.y));
        state.q[s + STEPS / 2][j] = query(packed_out(b.x * c.x + a.x * d.x, b.y * c.y + a.y * d.y));
      }
  }
};

// One value of a page, given in float32.
__device__ __forceinline__ void keep(char *at, float value, float scale) {
#if NARROW
  u16 r;
  value = fminf(fmaxf(value / scale, -448.0f), 448.0f);
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.0f), "f"(value));
  *at = (char)r;
#else
  *(u16 *)at = (u16)packed_out(value, 0.0f);
#endif
}

// This step's key and value of a head, by one warp: to the page, and to where the tile lies that holds the token.
struct Token {
  float k[2][PAIRS], v[2][PAIRS];

  __device__ __forceinline__ void make(const u16 *key, const float *angles, const u16 *weight, float eps, int lane) {
    const u16 *value = key + KV_HEADS * HEAD;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
#pragma unroll
      for (int side = 0; side < 2; side++) {
        int dim = side * (HEAD / 2) + lane * PAIRS + i;
        k[side][i] = wide(key[dim]);
        v[side][i] = wide(value[dim]);
        total += k[side][i] * k[side][i];
      }
#if HEAD_NORM
#pragma unroll
    for (int i = 16; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
    float scale = rsqrtf(total / HEAD + eps);
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
#pragma unroll
      for (int side = 0; side < 2; side++) {
        float by = wide(weight[side * (HEAD / 2) + lane * PAIRS + i]);
        k[side][i] = rounded(rounded(k[side][i] * scale, 0.0f).x * by, 0.0f).x;
      }
#endif
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      float c = angles[lane * PAIRS + i], s = angles[HEAD / 2 + lane * PAIRS + i], low = k[0][i], high = k[1][i];
      k[0][i] = low * c - high * s;
      k[1][i] = high * c + low * s;
    }
  }

  // put(byte of the row, which of the lane's dimensions)
  template <class Put>
  __device__ __forceinline__ void each(int lane, Put put) const {
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
#pragma unroll
      for (int side = 0; side < 2; side++) put((side * (HEAD / 2) + lane * PAIRS + i) * WIDTH, side, i);
  }
};

// Which pages of which row a block has: rows are cut into pieces of about equal length, none shorter than `least`
// pages. So that all blocks are at work at once pieces grow while there are too many, but for one long row beside
// many short ones no further than to twice a block's share: then some blocks have two. All lanes make it alike.
struct Pieces {
  int count[2], own[2], up_to[2];  // of rows lane, lane + 32: pages, pieces, pieces up to and with these
  int all;

  __device__ __forceinline__ void make(const GivenTurned &given, int slots, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = lane + 32 * i;
      count[i] = row < given.rows ? given.indptr[row + 1] - given.indptr[row] : 0;
    }
    int length = max(given.least, (given.indptr[given.rows] + slots - 1) / slots);
    const int most = 2 * length;
    for (;;) {
      own[0] = (count[0] + length - 1) / length;
      own[1] = (count[1] + length - 1) / length;
      all = __reduce_add_sync(~0u, own[0] + own[1]);
      if (all <= slots || length >= most) break;
      length += (length + 3) / 4;
    }
    int before = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      up_to[i] = own[i];
#pragma unroll
      for (int away = 1; away < 32; away *= 2) {
        int more = __shfl_up_sync(~0u, up_to[i], away);
        if (lane >= away) up_to[i] += more;
      }
      up_to[i] += before;
      before = __shfl_sync(~0u, up_to[i], 31);
    }
  }
  __device__ __forceinline__ int row_of(int piece) const {
    return __popc(__ballot_sync(~0u, up_to[0] <= piece)) + __popc(__ballot_sync(~0u, up_to[1] <= piece));
  }
  __device__ __forceinline__ int of(const int *values, int row) const {
    int low = __shfl_sync(~0u, values[0], row & 31), high = __shfl_sync(~0u, values[1], row & 31);
    return row < 32 ? low : high;
  }
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, TURNED) turned_decode(const GivenTurned given) {
  extern __shared__ __align__(128) char memory[];
  __shared__ float2 sums[WARPS][8];
  __shared__ int arrived;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const int head = blockIdx.x % KV_HEADS;
  const int programs = given.programs ? *given.programs : gridDim.x / TURNED;
  const int slots = max(1, min((int)gridDim.x, programs * TURNED) / KV_HEADS);
  Pieces pieces;
  pieces.make(given, slots, lane);
  char *ring = memory + warp * STAGES * 2 * TILE_BYTES;
  bool first = true;
  next_may_begin();
  for (int piece = blockIdx.x / KV_HEADS; piece < pieces.all && blockIdx.x / KV_HEADS < slots; piece += slots) {
    const int row = pieces.row_of(piece), parts = pieces.of(pieces.own, row), pages = pieces.of(pieces.count, row);
    const int part = piece - (pieces.of(pieces.up_to, row) - parts), row_begin = given.indptr[row];
    const int begin = (row_begin + pages * part / parts) * TILES, last_len = given.last_len[row];
    // of the row's last page, tiles up to this step's token
    const int token_tile = (row_begin + pages - 1) * TILES + (last_len - 1) / TILE;
    const bool to_end = part + 1 == parts;
    const int end = to_end ? token_tile + 1 : (row_begin + pages * (part + 1) / parts) * TILES;

    if (!first) __syncthreads();  // the ring held what was put together
    Source source;
    source.k = given.k + head * HEAD * WIDTH;
    source.v = given.v + head * HEAD * WIDTH;
    source.indices = given.indices;
    source.shared = (u32)__cvta_generic_to_shared(ring);
    source.lane = lane;
    source.end = end;
    source.begin(begin + warp);
#pragma unroll
    for (int s = 0; s < STAGES; s++) source.ask(s);  // what others wrote to pages has been there since the step before
    const float *turns = given.cos_sin + given.positions[row] * HEAD;
    Angles angles;
    angles.ask(turns, lane);
    if (first) behind();
    first = false;

    const u16 *mine = given.qkv + (u64)row * (EACH + 2) * KV_HEADS * HEAD;
    State state;
    state.begin();
    angles.turn(state, mine + head * EACH * HEAD, given.q_weight, given.eps, lane);
    Token token;
    const bool own = to_end && (token_tile - begin) % WARPS == warp;
    if (own) {
      token.make(mine + (EACH * KV_HEADS + head) * HEAD, turns, given.k_weight, given.eps, lane);
      u64 place = ((u64)given.indices[token_tile / TILES] * PAGE + last_len - 1) * KV_HEADS + head;
      char *k = (char *)given.k + place * HEAD * WIDTH, *v = (char *)given.v + place * HEAD * WIDTH;
      token.each(lane, [&](int at, int side, int i) {
        keep(k + at, token.k[side][i], given.k_scale);
        keep(v + at, token.v[side][i], given.v_scale);
      });
    }

    int stage = 0;
    for (int tile = begin + warp; tile < end; tile += WARPS) {
      asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
      __syncwarp();
      char *at = ring + stage * 2 * TILE_BYTES;
      const u32 keys = source.shared + stage * 2 * TILE_BYTES, values = keys + TILE_BYTES;
      int valid = TILE;
      if (own && tile == token_tile) {
        valid = (last_len - 1) % TILE + 1;
        token.each(lane, [&](int byte, int side, int i) {
          u32 to = placed(valid - 1, byte / 16) + byte % 16;
          keep(at + to, token.k[side][i], given.k_scale);
          keep(at + TILE_BYTES + to, token.v[side][i], given.v_scale);
        });
        forget(values, valid, lane);
        __syncwarp();
      }
      state.add(keys, values, valid, given.scale, lane);
      __syncwarp();
      source.ask(stage);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    // a warp leaves what it has where its tiles were: [EACH, HEAD]
    const float sum = state.total();
    if (g < EACH) {
      float *left = (float *)ring + g * HEAD;
      state.each(1.0f, lane, [&](int dim, float a, float b) { *(float2 *)(left + dim) = make_float2(a, b); });
      if (lane % 4 == 0) sums[warp][g] = make_float2(state.most, sum);
    }
    __syncthreads();
    const u64 place = ((u64)piece * KV_HEADS + head) * EACH;
    for (int i = threadIdx.x; i < EACH * HEAD / 2; i += WARPS * 32) {
      const int query = i / (HEAD / 2);
      float top = NOTHING, total = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) top = fmaxf(top, sums[w][query].x);
      float2 out = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        float share = power(sums[w][query].x - top);
        float2 two = *(float2 *)(memory + w * STAGES * 2 * TILE_BYTES + i * 8);
        total += sums[w][query].y * share;
        out.x += two.x * share, out.y += two.y * share;
      }
      if (parts == 1) {
        float by = given.value_scale / total;
        *(u32 *)(given.out + (((u64)row * KV_HEADS + head) * EACH * HEAD) + i * 2) = packed_out(out.x * by, out.y * by);
      } else {
        __stcg((float2 *)(given.parts + place * HEAD) + i, out);
        if (i % (HEAD / 2) == 0) __stcg(given.sums + place + query, make_float2(top, total));
      }
    }
    if (parts == 1) continue;

    // the last of a row's blocks puts the pieces together, in their order
    int *counter = given.arrived + row * KV_HEADS + head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counter, 1);
    __syncthreads();
    if (arrived != parts - 1) continue;
    __threadfence();
    const u64 at = ((u64)(piece - part) * KV_HEADS + head) * EACH;
    for (int i = threadIdx.x; i < EACH * HEAD / 2; i += WARPS * 32) {
      float top = NOTHING, total = 0.0f;
      for (int p = 0; p < parts; p++)
        top = fmaxf(top, __ldcg(given.sums + at + (u64)p * KV_HEADS * EACH + i / (HEAD / 2)).x);
      float2 out = make_float2(0.0f, 0.0f);
#pragma unroll 4
      for (int p = 0; p < parts; p++) {
        u64 from = at + (u64)p * KV_HEADS * EACH;
        float2 has = __ldcg(given.sums + from + i / (HEAD / 2)), two = __ldcg((const float2 *)(given.parts + from * HEAD) + i);
        float share = power(has.x - top);
        total += has.y * share;
        out.x += two.x * share, out.y += two.y * share;
      }
      float by = given.value_scale / total;
      *(u32 *)(given.out + (((u64)row * KV_HEADS + head) * EACH * HEAD) + i * 2) = packed_out(out.x * by, out.y * by);
    }
    if (threadIdx.x == 0) *counter = 0;
  }
  if (first) behind();
}

#endif
