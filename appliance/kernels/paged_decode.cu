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
// Given when it is compiled: HEAD PAGE KV_HEADS EACH (query heads to a key-value head), WARPS,
// STAGES, NARROW (pages of e4m3), HALF (queries and results are float16, else bfloat16).

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

// Two queries' values beside each other, in the kind that mma takes.
__device__ __forceinline__ u32 query_at(const u16 *at) {
  u32 two = *(const u32 *)at;
#if NARROW && !HALF
  return packed(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
#else
  return two;
#endif
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

// The tiles of a range on their way into this warp's part of shared memory.
struct Source {
  const char *k, *v;   // of this head
  const int *indices;
  u32 shared;
  int lane, end, next; // tiles
  int first;           // page whose number lane 0 holds in `pages`
  int pages, later;    // numbers of 32 pages, and of the 32 after them

  __device__ __forceinline__ void begin(int tile) {
    next = tile;
    first = tile / TILES;
    pages = number(first + lane);
    later = number(first + 32 + lane);
  }
  __device__ __forceinline__ int number(int page) {
    return page * TILES < end ? indices[page] : 0;
  }
  __device__ __forceinline__ void ask(int stage) {
    if (next < end) {
      if (next / TILES - first == 32) {
        first += 32;
        pages = later;
        later = number(first + 32 + lane);
      }
      u64 page = __shfl_sync(~0u, pages, next / TILES - first);
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
    next++;
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

// What one key-value head's queries of one row have seen so far. Lane (g, t) = (lane / 4, lane % 4)
// holds, of query head g, two dimensions of every block; its part of the sum, and the largest score.
struct State {
  u32 q[STEPS][2];
  float out[BLOCKS][4];
  float most, sum;

  __device__ __forceinline__ void begin(const u16 *q_row, int lane) {
    int g = lane / 4, t = lane % 4;
    most = NOTHING;
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) out[i][j] = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      q[s][0] = q[s][1] = 0;
      if (g < EACH) {
        const u16 *at = q_row + g * HEAD + s * 16;
        q[s][0] = query_at(at + (NARROW ? 4 * t : 2 * t));
        q[s][1] = query_at(at + (NARROW ? 4 * t + 2 : 2 * t + 8));
      }
    }
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

// Launched before the kernel in front has ended (Given.dependent): what that writes is read behind this.
__device__ __forceinline__ void behind() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
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
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
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
    state.begin(given.q + ((u64)row * KV_HEADS + head) * EACH * HEAD, lane);
    for (int tile = at * TILES; tile < until * TILES; tile++) {
      asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
      __syncwarp();
      const u32 keys = source.shared + stage * 2 * TILE_BYTES, values = keys + TILE_BYTES;
      const int valid = tile / TILES + 1 == row_end ? last - tile % TILES * TILE : TILE;
      if (valid > 0) {
        if (valid < TILE) {  // what was never written may be no number
          for (int i = valid * CHUNKS + lane; i < TILE * CHUNKS; i += 32)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                             values + placed(i / CHUNKS, i % CHUNKS)), "r"(0) : "memory");
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
