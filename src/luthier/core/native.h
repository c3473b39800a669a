// What the compiled files share: numbers of both widths, and functions of one number that compilers make vectors of.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

using Int = std::ptrdiff_t;
struct bfloat16 { uint16_t bits; };

static inline float get(float x) { return x; }
static inline float get(bfloat16 x) { uint32_t wide = uint32_t(x.bits) << 16; float y; std::memcpy(&y, &wide, 4); return y; }
static inline void put(float &y, float x) { y = x; }
static inline void put(bfloat16 &y, float x) {  // to the nearest, ties to even; what is no number stays none
  uint32_t wide; std::memcpy(&wide, &x, 4);
  uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  y.bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// exp(x) for x <= 0 within 2e-7 of itself, 0 below -88, without a branch, so that compilers make vectors of it: 2^n e^r with
// |r| <= ln(2)/2, e^r by Cephes' polynomial.
static inline float exponential(float x) {
  x = -88.0f > x ? -88.0f : x;  // what is no number stays none
  float n = std::floor(x * 1.44269504f + 0.5f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float scale; std::memcpy(&scale, &bits, 4);
  return p * scale;
}

static inline float sigmoid(float x) {
  float e = exponential(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

#define EACH _Pragma("omp simd")
