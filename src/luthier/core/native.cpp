// The small operators between a training step's products, each in one pass over memory, for float and bfloat16 on a CPU; and a checksum.
//
// core/native.py compiles and calls this file where there is a compiler; what each function replaces, in torch's operators, stands beside
// its caller and is its oracle (tests/core/test_native.py). Sums are float. Rows are independent, so the number of threads changes no bit.
//
// N rows, D width, F hidden width, V vocabulary; strides count elements.

#include "native.h"

#define ROWS _Pragma("omp parallel for num_threads(threads) if (threads > 1)") for (Int n = 0; n < N; n++)

// y = x / sqrt(mean(x^2) + eps) * w
template <class T> static void rms_norm(const T *x, const T *w, T *y, Int N, Int D, float eps, int threads) {
  ROWS {
    const T *__restrict from = x + n * D;
    T *__restrict to = y + n * D;
    float squares = 0;
    _Pragma("omp simd reduction(+ : squares)") for (Int d = 0; d < D; d++) { float v = get(from[d]); squares += v * v; }
    float scale = 1.0f / std::sqrt(squares / D + eps);
    EACH for (Int d = 0; d < D; d++) put(to[d], get(from[d]) * scale * get(w[d]));
  }
}

// With s the scale above: dx = s (w g) - x s^3 mean(x w g)
template <class T> static void rms_norm_backward(const T *x, const T *w, const T *grad, T *grad_x, Int N, Int D, float eps, int threads) {
  ROWS {
    const T *__restrict from = x + n * D;
    const T *__restrict g = grad + n * D;
    T *__restrict to = grad_x + n * D;
    float squares = 0, share = 0;
    _Pragma("omp simd reduction(+ : squares, share)") for (Int d = 0; d < D; d++) {
      float v = get(from[d]);
      squares += v * v;
      share += v * get(g[d]) * get(w[d]);
    }
    float scale = 1.0f / std::sqrt(squares / D + eps);
    float back = share / D * scale * scale * scale;
    EACH for (Int d = 0; d < D; d++) put(to[d], get(g[d]) * get(w[d]) * scale - get(from[d]) * back);
  }
}

// dw = sum over rows of s x g; each thread has columns of its own
template <class T> static void rms_norm_weight(const T *x, const T *grad, T *grad_w, Int N, Int D, float eps, int threads) {
  std::vector<float> scales(N);
  float *__restrict scale = scales.data();
  ROWS {
    const T *__restrict from = x + n * D;
    float squares = 0;
    _Pragma("omp simd reduction(+ : squares)") for (Int d = 0; d < D; d++) { float v = get(from[d]); squares += v * v; }
    scale[n] = 1.0f / std::sqrt(squares / D + eps);
  }
  const Int columns = 128;
  _Pragma("omp parallel for num_threads(threads) if (threads > 1)") for (Int first = 0; first < D; first += columns) {
    float sum[columns] = {};
    Int width = D - first < columns ? D - first : columns;
    for (Int n = 0; n < N; n++) {
      const T *__restrict from = x + n * D + first;
      const T *__restrict g = grad + n * D + first;
      EACH for (Int d = 0; d < width; d++) sum[d] += get(from[d]) * scale[n] * get(g[d]);
    }
    EACH for (Int d = 0; d < width; d++) put(grad_w[first + d], sum[d]);
  }
}

// y = silu(gate) up
template <class T> static void swiglu(const T *gate, Int gate_row, const T *up, Int up_row, T *y, Int N, Int F, int threads) {
  ROWS {
    const T *__restrict a = gate + n * gate_row;
    const T *__restrict b = up + n * up_row;
    T *__restrict to = y + n * F;
    EACH for (Int f = 0; f < F; f++) { float v = get(a[f]); put(to[f], v * sigmoid(v) * get(b[f])); }
  }
}

// The gradients of gate and up side by side, (N, 2F)
template <class T>
static void swiglu_backward(const T *gate, Int gate_row, const T *up, Int up_row, const T *grad, T *both, Int N, Int F, int threads) {
  ROWS {
    const T *__restrict a = gate + n * gate_row;
    const T *__restrict b = up + n * up_row;
    const T *__restrict g = grad + n * F;
    T *__restrict to_gate = both + n * 2 * F;
    T *__restrict to_up = to_gate + F;
    EACH for (Int f = 0; f < F; f++) {
      float v = get(a[f]), of_y = get(g[f]), s = sigmoid(v);
      put(to_up[f], of_y * v * s);
      put(to_gate[f], of_y * get(b[f]) * s * (1.0f + v * (1.0f - s)));
    }
  }
}

// loss[n] = log sum exp z_n - z_n[label]; z becomes share (softmax z - onehot) where a gradient is wanted
template <class T>
static void cross_entropy(T *z, const int64_t *label, const float *share, float *loss, Int N, Int V, int wanted, int threads) {
  ROWS {
    T *__restrict row = z + n * V;
    float top = get(row[0]), sum = 0;
    _Pragma("omp simd reduction(max : top)") for (Int v = 0; v < V; v++) { float x = get(row[v]); top = x > top ? x : top; }
    _Pragma("omp simd reduction(+ : sum)") for (Int v = 0; v < V; v++) sum += exponential(get(row[v]) - top);
    float own = get(row[label[n]]);
    loss[n] = top - own + std::log(sum);
    if (!wanted) continue;
    float part = share ? share[n] : 1.0f, scale = part / sum;
    EACH for (Int v = 0; v < V; v++) put(row[v], exponential(get(row[v]) - top) * scale);
    put(row[label[n]], exponential(own - top) * scale - part);
  }
}

// z = softmax(scale z + bias) over the first `seen` of S columns, 0 in the others: first + n % period + 1 of them, all where period is 0.
// bias: null, or that of row n begins at bias + n / queries * head + n % queries * row and falls on the columns from `prefix` on.
template <class T>
static void softmax(T *z, Int N, Int S, Int period, Int first, float scale, const T *bias, Int head, Int step, Int queries, Int prefix,
                    int threads) {
  float inner = bias ? scale : 1.0f, outer = bias ? 1.0f : scale;
  Int vector = 16;  // whole vectors: what is left over would be computed one by one
  _Pragma("omp parallel num_threads(threads) if (threads > 1)") {
    std::vector<float> held((S + vector - 1) / vector * vector);
    float *__restrict wide = held.data();
    _Pragma("omp for") for (Int n = 0; n < N; n++) {
      T *__restrict row = z + n * S;
      Int seen = period ? first + n % period + 1 : S, filled = (seen + vector - 1) / vector * vector;
      EACH for (Int s = 0; s < seen; s++) wide[s] = get(row[s]) * inner;
      if (bias) {
        const T *__restrict more = bias + n / queries * head + n % queries * step - prefix;
        EACH for (Int s = prefix; s < seen; s++) wide[s] += get(more[s]);
      }
      for (Int s = seen; s < filled; s++) wide[s] = -INFINITY;
      float top = -INFINITY, sum = 0;
      _Pragma("omp simd reduction(max : top)") for (Int s = 0; s < filled; s++) top = wide[s] > top ? wide[s] : top;
      _Pragma("omp simd reduction(+ : sum)") for (Int s = 0; s < filled; s++) { wide[s] = exponential((wide[s] - top) * outer); sum += wide[s]; }
      float part = 1.0f / sum;
      EACH for (Int s = 0; s < seen; s++) put(row[s], wide[s] * part);
      std::memset(row + seen, 0, (S - seen) * sizeof(T));
    }
  }
}

// With p that softmax: g becomes scale p (g - sum(p g)), in place; what the bias gets is added to `more`, which lies as the bias does.
template <class T>
static void softmax_backward(T *g, const T *p, Int N, Int S, float scale, float *more, Int head, Int step, Int queries, Int prefix, int threads) {
  ROWS {
    T *__restrict row = g + n * S;
    const T *__restrict share = p + n * S;
    float sum = 0;
    _Pragma("omp simd reduction(+ : sum)") for (Int s = 0; s < S; s++) sum += get(row[s]) * get(share[s]);
    if (more) {
      float *__restrict to = more + n / queries * head + n % queries * step - prefix;
      EACH for (Int s = prefix; s < S; s++) to[s] += get(share[s]) * (get(row[s]) - sum);
    }
    EACH for (Int s = 0; s < S; s++) put(row[s], get(share[s]) * (get(row[s]) - sum) * scale);
  }
}

// Pairs (i, i + R/2) of the first R of K dimensions turned by the angles of position t, backwards where sign is -1; the rest stays.
// x (B, H, T, K) by its strides, y the same contiguous; cos and sin (B or 1, T, R/2)
template <class T>
static void rotate(const T *x, Int batch, Int head, Int time, const T *cosine, const T *sine, Int angles, T *y, Int B, Int H, Int L, Int K, Int R,
                   float sign, int threads) {
  Int N = B * H * L;
  ROWS {
    Int t = n % L, h = n / L % H, b = n / L / H;
    const T *__restrict from = x + b * batch + h * head + t * time;
    const T *__restrict c = cosine + b * angles + t * (R / 2);
    const T *__restrict s = sine + b * angles + t * (R / 2);
    T *__restrict to = y + n * K;
    EACH for (Int r = 0; r < R / 2; r++) {
      float left = get(from[r]), right = get(from[r + R / 2]), cos = get(c[r]), sin = sign * get(s[r]);
      put(to[r], left * cos - right * sin);
      put(to[r + R / 2], right * cos + left * sin);
    }
    for (Int k = R; k < K; k++) to[k] = from[k];
  }
}

#if defined(__PCLMUL__) && defined(__SSE4_1__)
#include <immintrin.h>

// The state of CRC-32 (IEEE, reflected, neither end inverted) after `bytes` more bytes, a multiple of 16 and at least 64. Gopal et al. 2009,
// "Fast CRC computation using PCLMULQDQ": 16 bytes are moved d bits ahead by two products with x^(d +- 32) mod P; Barrett's reduction at the end.
static inline __m128i ahead(__m128i x, __m128i power, __m128i next) {
  return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(x, power, 0x00), _mm_clmulepi64_si128(x, power, 0x11)));
}
extern "C" uint32_t crc32_blocks(const uint8_t *data, Int bytes, uint32_t state) {
  const __m128i by512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
  const __m128i by64 = _mm_set_epi64x(0, 0x163cd6124), barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641);
  const __m128i low = _mm_set_epi32(0, -1, 0, -1);
  auto at = [&](Int place) { return _mm_loadu_si128((const __m128i *)(data + place)); };
  __m128i x[4] = {_mm_xor_si128(at(0), _mm_cvtsi32_si128(int(state))), at(16), at(32), at(48)};
  Int place = 64;
  for (; place + 64 <= bytes; place += 64)
    for (int lane = 0; lane < 4; lane++) x[lane] = ahead(x[lane], by512, at(place + 16 * lane));
  __m128i y = x[0];
  for (int lane = 1; lane < 4; lane++) y = ahead(y, by128, x[lane]);
  for (; place + 16 <= bytes; place += 16) y = ahead(y, by128, at(place));
  y = _mm_xor_si128(_mm_srli_si128(y, 8), _mm_clmulepi64_si128(y, by128, 0x10));
  y = _mm_xor_si128(_mm_srli_si128(y, 4), _mm_clmulepi64_si128(_mm_and_si128(y, low), by64, 0x00));
  __m128i part = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(y, low), barrett, 0x10), low);
  return uint32_t(_mm_extract_epi32(_mm_xor_si128(y, _mm_clmulepi64_si128(part, barrett, 0x00)), 1));
}
#endif

#define EXPORT(NAME, T)                                                                                                                      \
  extern "C" {                                                                                                                               \
  void rms_norm_##NAME(const T *x, const T *w, T *y, Int N, Int D, float eps, int t) { rms_norm(x, w, y, N, D, eps, t); }                      \
  void rms_norm_backward_##NAME(const T *x, const T *w, const T *g, T *y, Int N, Int D, float eps, int t) {                                   \
    rms_norm_backward(x, w, g, y, N, D, eps, t);                                                                                             \
  }                                                                                                                                          \
  void rms_norm_weight_##NAME(const T *x, const T *g, T *y, Int N, Int D, float eps, int t) { rms_norm_weight(x, g, y, N, D, eps, t); }            \
  void swiglu_##NAME(const T *a, Int ra, const T *b, Int rb, T *y, Int N, Int F, int t) { swiglu(a, ra, b, rb, y, N, F, t); }                  \
  void swiglu_backward_##NAME(const T *a, Int ra, const T *b, Int rb, const T *g, T *y, Int N, Int F, int t) {                                \
    swiglu_backward(a, ra, b, rb, g, y, N, F, t);                                                                                            \
  }                                                                                                                                          \
  void cross_entropy_##NAME(T *z, const int64_t *y, const float *s, float *l, Int N, Int V, int wanted, int t) {                              \
    cross_entropy(z, y, s, l, N, V, wanted, t);                                                                                              \
  }                                                                                                                                          \
  void softmax_##NAME(T *z, Int N, Int S, Int period, Int first, float scale, const T *b, Int h, Int r, Int q, Int p, int t) {                  \
    softmax(z, N, S, period, first, scale, b, h, r, q, p, t);                                                                                \
  }                                                                                                                                          \
  void softmax_backward_##NAME(T *g, const T *y, Int N, Int S, float scale, float *b, Int h, Int r, Int q, Int p, int t) {                      \
    softmax_backward(g, y, N, S, scale, b, h, r, q, p, t);                                                                                   \
  }                                                                                                                                          \
  void rotate_##NAME(const T *x, Int sb, Int sh, Int st, const T *c, const T *s, Int sa, T *y, Int B, Int H, Int L, Int K, Int R, float sign, \
                     int t) {                                                                                                                \
    rotate(x, sb, sh, st, c, s, sa, y, B, H, L, K, R, sign, t);                                                                              \
  }                                                                                                                                          \
  }
EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
