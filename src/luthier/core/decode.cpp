// A decoding step on a CPU: one token of each row through all blocks of a pre-norm transformer, in one parallel region.
//
// A step is some hundred small operators and products that only read their weights; with a call and a meeting of all threads for each, it takes
// up to twice the time that reading takes. Here threads share out the outputs of each product and the heads of attention and meet five times a
// block; sums are float, so the number of threads changes no bit. core/step.py describes a model by the structs below; core/decode.py's torch
// operators are the oracle.
//
// N rows, D width, H query heads, G key-value heads, K head width, S stored tokens, I inputs, O outputs, R ranks of all low-rank terms

#include <algorithm>

#include "native.h"

#ifdef _OPENMP
#include <omp.h>
#endif

typedef float wide __attribute__((vector_size(64)));  // 16 numbers: one register of AVX-512, several of a narrower processor

#ifdef __AVX512F__
#include <immintrin.h>
static inline wide load(const float *p) { return (wide)_mm512_loadu_ps(p); }
static inline wide load(const bfloat16 *p) { return (wide)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16); }
static inline wide load(const int8_t *p) { return (wide)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
#else
template <class W> static inline wide load(const W *p) {
  float each[16];
  EACH for (int i = 0; i < 16; i++) each[i] = get(p[i]);
  wide v; std::memcpy(&v, each, sizeof v);
  return v;
}
#endif

// The sum of N numbers, by halves
template <int N> struct Vector { typedef float type __attribute__((vector_size(4 * N))); };
template <int N> static inline float total(typename Vector<N>::type v) {
  if constexpr (N == 1) return v[0];
  else {
    typename Vector<N / 2>::type low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    return total<N / 2>(low + high);
  }
}

// R rows of x against B outputs, whose sums stay in registers; y gets or is added x W^T scale + bias
template <int R, int B, class W>
static inline void tile(const float *__restrict x, const W *__restrict w, const float *scale, const float *bias, float *y, Int I, Int row, bool add) {
  wide sum[B][R] = {};
  Int whole = I / 16 * 16;
  for (Int i = 0; i < whole; i += 16)
    for (int b = 0; b < B; b++) {
      __builtin_prefetch(w + (b + B) * I + i);  // of the tile that comes next
      wide weight = load(w + b * I + i);
      for (int r = 0; r < R; r++) sum[b][r] += load(x + r * I + i) * weight;
    }
  for (int b = 0; b < B; b++)
    for (int r = 0; r < R; r++) {
      float found = total<16>(sum[b][r]);
      for (Int i = whole; i < I; i++) found += x[r * I + i] * get(w[b * I + i]);
      found = found * (scale ? scale[b] : 1.0f) + (bias ? bias[b] : 0.0f);
      y[r * row + b] = add ? y[r * row + b] + found : found;
    }
}

template <int R, int B, class W>
static void outputs(const float *x, const W *w, const float *scale, const float *bias, float *y, Int I, Int row, Int first, Int end, bool add) {
  auto at = [](const float *p, Int o) { return p ? p + o : p; };
  Int o = first;
  for (; o + B <= end; o += B) tile<R, B>(x, w + o * I, at(scale, o), at(bias, o), y + o, I, row, add);
  for (; o < end; o++) tile<R, 1>(x, w + o * I, at(scale, o), at(bias, o), y + o, I, row, add);
}

// The outputs from `first` to `end`, for all N rows; a weight is read once for eight rows
template <class W>
static void product(const float *x, const W *w, const float *scale, const float *bias, float *y, Int N, Int I, Int row, Int first, Int end, bool add) {
  for (Int n = 0, rows; n < N; n += rows) {
    rows = N - n >= 8 ? 8 : N - n >= 4 ? 4 : N - n >= 2 ? 2 : 1;
    auto run = rows == 8 ? outputs<8, 3, W> : rows == 4 ? outputs<4, 4, W> : rows == 2 ? outputs<2, 4, W> : outputs<1, 4, W>;
    run(x + n * I, w, scale, bias, y + n * row, I, row, first, end, add);
  }
}

extern "C" {
struct Norm { const float *weight, *bias; float eps; int centred; };  // weight null: no norm
struct Product {  // x W^T scale + bias + (x A^T) B^T; scale: the weight is int8; a (R, I) and b (O, R) float
  const void *weight;
  const float *scale, *bias, *a, *b;
  Int inputs, outputs, rank;
};
struct Layer {
  Norm attn_norm, q_norm, k_norm, ffn_norm;
  Product qkv, out, up, down;  // up: gate, then up, where it is gated
  Int heads, groups, width, window;  // window 0: all
  float scale;
  int gated, act;
};
struct Step {
  const Layer *layers;
  Int count;
  Norm norm;
  Product head;
  float *x, *logits;          // (N, D), (N, V)
  void *const *stored;        // of each layer (2, N, G, capacity, K)
  const Int *capacity;
  const float *cosine, *sine, *bias;  // (1 or N, K / 2), or null; (1 or N, 1 or H, S), or null
  Int angles, bias_row, bias_head;    // elements from row to row and from head to head, 0 where all share
  Int rows, length;
};
}

static void norm(const Norm &by, const float *x, float *y, Int D) {
  float sum = 0, squares = 0;
  if (by.centred) { _Pragma("omp simd reduction(+ : sum)") for (Int d = 0; d < D; d++) sum += x[d]; }
  float mean = sum / D;
  _Pragma("omp simd reduction(+ : squares)") for (Int d = 0; d < D; d++) squares += (x[d] - mean) * (x[d] - mean);
  float scale = 1.0f / std::sqrt(squares / D + by.eps);
  EACH for (Int d = 0; d < D; d++) y[d] = (x[d] - mean) * scale * by.weight[d];
  if (by.bias) { EACH for (Int d = 0; d < D; d++) y[d] += by.bias[d]; }
}

// core/step.py's ACTS
static inline float activated(float x, int act) {
  switch (act) {
    case 0: return x * sigmoid(x);
    case 1: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));  // gelu by tanh: (1 + tanh z) / 2 = sigmoid 2z
    case 2: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    default: return x > 0 ? x : 0;
  }
}

class Floats {  // on a line of the cache: a vector that lies across two is read twice
  std::vector<float> held;
  Int many = 0;
public:
  explicit Floats(Int n = 0) { resize(n); }
  void resize(Int n) { if (Int(held.size()) < n + 16) held.resize(n + 16); many = n; }
  void clear() { many = 0; }
  bool empty() const { return !many; }
  float *data() { return (float *)((uintptr_t(held.data()) + 63) / 64 * 64); }
};

struct Share {  // one thread's part of n pieces of work, in whole lines of the cache
  Int first, end;
  Share(Int n, int thread, int threads, Int line = 16) {
    Int lines = (n + line - 1) / line;
    first = std::min(n, lines * thread / threads * line);
    end = std::min(n, lines * (thread + 1) / threads * line);
  }
};

template <class T> struct Run {
  const Step &step;
  Floats y, mixed, inner;
  explicit Run(const Step &of) : step(of) {
    Int most = 0, heads = 0, hidden = 0;
    for (Int i = 0; i < step.count; i++) {
      const Layer &layer = step.layers[i];
      most = std::max(most, layer.qkv.outputs), heads = std::max(heads, layer.out.inputs), hidden = std::max(hidden, layer.up.outputs);
    }
    y.resize(step.rows * most), mixed.resize(step.rows * heads), inner.resize(step.rows * hidden);
  }

  void some(const Product &by, const float *x, float *to, Floats &low, Share share, bool add) const {
    Int N = step.rows;
    if (by.scale) product(x, (const int8_t *)by.weight, by.scale, by.bias, to, N, by.inputs, by.outputs, share.first, share.end, add);
    else product(x, (const T *)by.weight, nullptr, by.bias, to, N, by.inputs, by.outputs, share.first, share.end, add);
    if (!by.rank) return;
    if (low.empty()) {  // every thread for itself: a meeting would cost more
      low.resize(N * by.rank);
      product(x, by.a, nullptr, nullptr, low.data(), N, by.inputs, by.rank, 0, by.rank, false);
    }
    product(low.data(), by.b, nullptr, nullptr, to, N, by.rank, by.outputs, share.first, share.end, true);
  }

  void turn(float *head, Int n, Int K) const {
    if (!step.cosine) return;
    const float *__restrict c = step.cosine + n * step.angles, *__restrict s = step.sine + n * step.angles;
    EACH for (Int k = 0; k < K / 2; k++) {
      float left = head[k], right = head[k + K / 2];
      head[k] = left * c[k] - right * s[k];
      head[k + K / 2] = right * c[k] + left * s[k];
    }
  }

  // One query head over what is stored and the token itself, whose key and value the first head of each group stores
  void attend(const Layer &layer, Int i, Int n, Int h, Floats &scratch) {
    Int K = layer.width, H = layer.heads, G = layer.groups, S = step.length, per = H / G, g = h / per, capacity = step.capacity[i];
    T *keys = (T *)step.stored[i] + (n * G + g) * capacity * K, *values = keys + step.rows * G * capacity * K;
    const float *own = y.data() + n * layer.qkv.outputs;
    scratch.resize(2 * K + S);
    float *__restrict q = scratch.data(), *__restrict k = q + K, *__restrict score = k + K;
    std::copy_n(own + h * K, K, q);
    std::copy_n(own + (H + g) * K, K, k);
    const float *__restrict v = own + (H + G + g) * K;
    if (layer.q_norm.weight) norm(layer.q_norm, q, q, K);
    if (layer.k_norm.weight) norm(layer.k_norm, k, k, K);
    turn(q, n, K), turn(k, n, K);
    if (h % per == 0) {
      EACH for (Int d = 0; d < K; d++) { put(keys[(S - 1) * K + d], k[d]); put(values[(S - 1) * K + d], v[d]); }
    }
    Int first = layer.window && layer.window < S ? S - layer.window : 0;
    const float *bias = step.bias ? step.bias + n * step.bias_row + h * step.bias_head : nullptr;
    float top = -INFINITY, sum = 0;
    for (Int t = first; t < S; t++) {
      float found = 0;
      if (t == S - 1) { _Pragma("omp simd reduction(+ : found)") for (Int d = 0; d < K; d++) found += q[d] * k[d]; }
      else {
        const T *__restrict key = keys + t * K;
        _Pragma("omp simd reduction(+ : found)") for (Int d = 0; d < K; d++) found += q[d] * get(key[d]);
      }
      score[t] = found * layer.scale + (bias ? bias[t] : 0.0f);
      top = std::max(top, score[t]);
    }
    _Pragma("omp simd reduction(+ : sum)") for (Int t = first; t < S; t++) { score[t] = exponential(score[t] - top); sum += score[t]; }
    float *__restrict to = mixed.data() + n * layer.out.inputs + h * K;
    EACH for (Int d = 0; d < K; d++) to[d] = score[S - 1] * v[d];
    for (Int t = first; t < S - 1; t++) {
      const T *__restrict value = values + t * K;
      float share = score[t];
      EACH for (Int d = 0; d < K; d++) to[d] += share * get(value[d]);
    }
    EACH for (Int d = 0; d < K; d++) to[d] /= sum;
  }

  void work(int thread, int threads) {
    Int N = step.rows, D = step.head.inputs;
    Floats normed(N * D), low, scratch;
    auto all = [&](const Norm &by) { for (Int n = 0; n < N; n++) norm(by, step.x + n * D, normed.data() + n * D, D); };
    for (Int i = 0; i < step.count; i++) {
      const Layer &layer = step.layers[i];
      all(layer.attn_norm);  // every thread for itself: a meeting would cost more
      low.clear(), some(layer.qkv, normed.data(), y.data(), low, {layer.qkv.outputs, thread, threads}, false);
      _Pragma("omp barrier");
      Share heads(N * layer.heads, thread, threads, 1);
      for (Int at = heads.first; at < heads.end; at++) attend(layer, i, at / layer.heads, at % layer.heads, scratch);
      _Pragma("omp barrier");
      low.clear(), some(layer.out, mixed.data(), step.x, low, {D, thread, threads}, true);
      _Pragma("omp barrier");
      all(layer.ffn_norm);
      Int F = layer.down.inputs;
      Share mine(F, thread, threads);
      low.clear(), some(layer.up, normed.data(), inner.data(), low, mine, false);
      if (layer.gated) {
        Share second = mine;
        second.first += F, second.end += F;
        some(layer.up, normed.data(), inner.data(), low, second, false);
      }
      // a gated row is 2F wide; what comes out stands where the gate stood, and is moved together for the product down
      for (Int n = 0; n < N; n++) {
        float *gate = inner.data() + n * layer.up.outputs;
        if (layer.gated) { EACH for (Int f = mine.first; f < mine.end; f++) gate[f] = activated(gate[f], layer.act) * gate[F + f]; }
        else { EACH for (Int f = mine.first; f < mine.end; f++) gate[f] = activated(gate[f], layer.act); }
      }
      _Pragma("omp barrier");
      const float *from = inner.data();
      if (layer.gated && N > 1) {
        scratch.resize(N * F);
        for (Int n = 0; n < N; n++) std::copy_n(from + n * 2 * F, F, scratch.data() + n * F);
        from = scratch.data();
      }
      low.clear(), some(layer.down, from, step.x, low, {D, thread, threads}, true);
      _Pragma("omp barrier");
    }
    all(step.norm);
    low.clear(), some(step.head, normed.data(), step.logits, low, {step.head.outputs, thread, threads}, false);
  }
};

template <class T> static void decode(const Step &step, int threads) {
  Run<T> run(step);
#ifdef _OPENMP
  _Pragma("omp parallel num_threads(threads) if (threads > 1)") run.work(omp_get_thread_num(), omp_get_num_threads());
#else
  run.work(0, 1);
#endif
}

extern "C" void decode_float32(const Step *step, int threads) { decode<float>(*step, threads); }
extern "C" void decode_bfloat16(const Step *step, int threads) { decode<bfloat16>(*step, threads); }
