// Shrink and expand of LoRA for tokens of many adapters: y += x A^T B, in one call for one layer.
//
// Factors, inputs and outputs are float32 or bfloat16; sums are float32 and are rounded once, into y. Each sum has one
// order of its terms, whatever tokens are computed beside it: tokens are in blocks only to read a factor once.
//
// Plain C++ with the vector types of GCC and Clang, for any processor. No header of torch: it compiles in a second.

#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct BFloat16 {
    uint16_t bits;
};

inline Floats load(const float *from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline Floats load(const BFloat16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }

// To the nearest, ties to even; NaN stays NaN.
inline void store(BFloat16 *to, Floats values) {
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words is_nan = (Words)(values != values);
    const Halves halves = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// The last elements of a row, fewer than a vector.
template <typename T> inline Floats load_some(const T *from, int64_t count) {
    T padded[LANES] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

template <typename T> inline void store_some(T *to, Floats values, int64_t count) {
    T padded[LANES];
    store(padded, values);
    std::memcpy(to, padded, count * sizeof(T));
}

inline float sum(Floats values) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

constexpr int64_t TOKENS = 4;  // in a block
constexpr int64_t RANKS = 4;
constexpr int64_t VECTORS = 4;

// shrunk[token][rank] = x[token] . a[rank]
template <int64_t T, int64_t R, typename Factor, typename Value>
inline void shrink_block(const Factor *a, const Value *x, int64_t x_stride, int64_t in, float *shrunk, int64_t rank) {
    Floats sums[T][R] = {};
    int64_t at = 0;
    for (; at + LANES <= in; at += LANES) {
        Floats row[R];
        for (int64_t r = 0; r < R; ++r) row[r] = load(a + r * in + at);
        for (int64_t t = 0; t < T; ++t) {
            const Floats value = load(x + t * x_stride + at);
            for (int64_t r = 0; r < R; ++r) sums[t][r] += value * row[r];
        }
    }
    if (at < in) {
        for (int64_t t = 0; t < T; ++t) {
            const Floats value = load_some(x + t * x_stride + at, in - at);
            for (int64_t r = 0; r < R; ++r) sums[t][r] += value * load_some(a + r * in + at, in - at);
        }
    }
    for (int64_t t = 0; t < T; ++t)
        for (int64_t r = 0; r < R; ++r) shrunk[t * rank + r] = sum(sums[t][r]);
}

// y[token] += shrunk[token] . b, for some vectors of outputs; `some` is the size of the only one if it is not whole.
template <int64_t T, int64_t V, typename Factor, typename Value>
inline void expand_block(const Factor *b, int64_t out, const float *shrunk, int64_t rank, Value *y, int64_t y_stride,
                         int64_t some = 0) {
    Floats sums[T][V] = {};
    for (int64_t r = 0; r < rank; ++r) {
        for (int64_t v = 0; v < V; ++v) {
            const Factor *from = b + r * out + v * LANES;
            const Floats row = some ? load_some(from, some) : load(from);
            for (int64_t t = 0; t < T; ++t) sums[t][v] += shrunk[t * rank + r] * row;
        }
    }
    for (int64_t t = 0; t < T; ++t) {
        for (int64_t v = 0; v < V; ++v) {
            Value *to = y + t * y_stride + v * LANES;
            if (some)
                store_some(to, load_some(to, some) + sums[t][v], some);
            else
                store(to, load(to) + sums[t][v]);
        }
    }
}

struct Layer {
    const void *a;  // (slots, a_rows, in)
    const void *b;  // (slots, rank, out)
    int64_t a_slot_stride, b_slot_stride, in, out, rank;
};

struct Run {
    int64_t slot, start, stop;
};

template <int64_t T, typename Factor, typename Value>
inline void shrink_tokens(const Factor *a, const Value *x, int64_t x_stride, const Layer &layer, float *shrunk,
                          int64_t first, int64_t last) {
    int64_t r = first;
    for (; r + RANKS <= last; r += RANKS)
        shrink_block<T, RANKS>(a + r * layer.in, x, x_stride, layer.in, shrunk + r, layer.rank);
    for (; r < last; ++r) shrink_block<T, 1>(a + r * layer.in, x, x_stride, layer.in, shrunk + r, layer.rank);
}

template <int64_t T, typename Factor, typename Value>
inline void expand_tokens(const Factor *b, const float *shrunk, const Layer &layer, Value *y, int64_t y_stride,
                          int64_t first, int64_t last) {
    int64_t o = first;
    for (; o + VECTORS * LANES <= last; o += VECTORS * LANES)
        expand_block<T, VECTORS>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride);
    for (; o + LANES <= last; o += LANES)
        expand_block<T, 1>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride);
    if (o < last) expand_block<T, 1>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride, last - o);
}

// This thread's part of both phases.
template <typename Factor, typename Value>
void shrink(const Layer &layer, const Run *runs, int64_t num_runs, const Value *x, int64_t x_stride, float *shrunk,
            int64_t thread, int64_t threads) {
    const int64_t share = (layer.rank + threads - 1) / threads;
    const int64_t ranks = (share + RANKS - 1) / RANKS * RANKS;
    const int64_t first = thread * ranks, last = first + ranks < layer.rank ? first + ranks : layer.rank;
    for (int64_t index = 0; index < num_runs; ++index) {
        const Run &run = runs[index];
        const Factor *a = (const Factor *)layer.a + run.slot * layer.a_slot_stride;
        int64_t token = run.start;
        for (; token + TOKENS <= run.stop; token += TOKENS)
            shrink_tokens<TOKENS>(a, x + token * x_stride, x_stride, layer, shrunk + token * layer.rank, first, last);
        for (; token < run.stop; ++token)
            shrink_tokens<1>(a, x + token * x_stride, x_stride, layer, shrunk + token * layer.rank, first, last);
    }
}

template <typename Factor, typename Value>
void expand(const Layer &layer, const Run *runs, int64_t num_runs, const float *shrunk, Value *y, int64_t y_stride,
            int64_t thread, int64_t threads) {
    const int64_t width = VECTORS * LANES, share = (layer.out + threads - 1) / threads;
    const int64_t outs = (share + width - 1) / width * width;
    const int64_t first = thread * outs, last = first + outs < layer.out ? first + outs : layer.out;
    for (int64_t index = 0; index < num_runs; ++index) {
        const Run &run = runs[index];
        const Factor *b = (const Factor *)layer.b + run.slot * layer.b_slot_stride;
        int64_t token = run.start;
        for (; token + TOKENS <= run.stop; token += TOKENS)
            expand_tokens<TOKENS>(b, shrunk + token * layer.rank, layer, y + token * y_stride, y_stride, first, last);
        for (; token < run.stop; ++token)
            expand_tokens<1>(b, shrunk + token * layer.rank, layer, y + token * y_stride, y_stride, first, last);
    }
}

template <typename Factor, typename Value>
void add(const Layer &layer, const Run *runs, int64_t num_runs, const Value *x, int64_t x_stride, Value *y,
         int64_t y_stride, int64_t threads) {
    static thread_local std::vector<float> buffer;
    const size_t size = (size_t)(runs[num_runs - 1].stop * layer.rank);
    if (buffer.size() < size) buffer.resize(size);
    float *shrunk = buffer.data();
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
            shrink<Factor>(layer, runs, num_runs, x, x_stride, shrunk, thread, all);
#pragma omp barrier
            expand<Factor>(layer, runs, num_runs, shrunk, y, y_stride, thread, all);
        }
        return;
    }
#endif
    shrink<Factor>(layer, runs, num_runs, x, x_stride, shrunk, 0, 1);
    expand<Factor>(layer, runs, num_runs, shrunk, y, y_stride, 0, 1);
}

}  // namespace

#define EXPORT(name, Factor, Value)                                                                                \
    extern "C" void name(const void *layer, const void *runs, int64_t num_runs, const void *x, int64_t x_stride,   \
                         void *y, int64_t y_stride, int64_t threads) {                                             \
        add<Factor>(*(const Layer *)layer, (const Run *)runs, num_runs, (const Value *)x, x_stride, (Value *)y,    \
                    y_stride, threads);                                                                            \
    }

EXPORT(add_lora_float32_float32, float, float)
EXPORT(add_lora_float32_bfloat16, float, BFloat16)
EXPORT(add_lora_bfloat16_float32, BFloat16, float)
EXPORT(add_lora_bfloat16_bfloat16, BFloat16, BFloat16)
