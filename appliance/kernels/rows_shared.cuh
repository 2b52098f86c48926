// What both kernels for few rows have: widths, a layer's addresses, values as they are handed on, products,
// a head normed and turned. What is given when they are compiled, they say.

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

struct Layer {
  const char *w[4];        // qkv, out, gate and up, down
  const float *scale[4];   // of their rows; FP8 alone
  const u16 *mlp_norm, *next_norm, *q_norm, *k_norm;
  u16 *k_pages, *v_pages;  // [pages, PAGE, KV_HEADS, D]
  const float *cos_sin;    // [positions, D]
  u64 nothing;
};

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

