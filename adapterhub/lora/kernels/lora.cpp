// Shrink and expand of LoRA for tokens of many adapters: y += x A^T B, in one call for one layer.
//
// Inputs and outputs are float32 or bfloat16, factors of the same kind, or bfloat16 beside float32: half the memory to
// read, and the same sums as of the factors in float32. Sums are float32 and are rounded once, into y. Each sum has one
// order of its terms, whatever tokens are computed beside it: tokens are in blocks only to read a factor once.
//
// Plain C++ with the vector types of GCC and Clang, for any processor. No header of torch: it compiles in a second.

#include <cstdint>
#include <cstring>
#include <type_traits>
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

// 2 * LANES neighbouring elements, as two vectors. Those of bfloat16 are the two halves of each word, so that neither
// loading nor storing moves an element to another lane.
struct Pack {
    Floats one, other;
};
constexpr int64_t WIDTH = 2 * LANES;

inline Pack load(const float *from) {
    Floats one, other;
    std::memcpy(&one, from, sizeof one);
    std::memcpy(&other, from + LANES, sizeof other);
    return {one, other};
}

inline Pack load(const BFloat16 *from) {
    Words words;
    std::memcpy(&words, from, sizeof words);
    return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
}

inline Floats widened(const BFloat16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// Elements of a factor, in the lanes that those of an input have.
template <typename Value, typename Factor> inline Pack load_factor(const Factor *from) {
    if constexpr (std::is_same_v<Factor, Value>)
        return load(from);
    else
        return {widened(from), widened(from + LANES)};
}

inline void store(float *to, const Pack &pack) {
    std::memcpy(to, &pack.one, sizeof pack.one);
    std::memcpy(to + LANES, &pack.other, sizeof pack.other);
}

// The upper half of each word is the bfloat16 to the nearest, ties to even; NaN stays NaN.
inline Words rounded(Floats values) {
    const Words bits = (Words)values, is_nan = (Words)(values != values);
    return (~is_nan & (bits + 0x7fffu + ((bits >> 16) & 1u))) | (is_nan & 0x7fc00000u);
}

inline void store(BFloat16 *to, const Pack &pack) {
    const Words words = (rounded(pack.one) >> 16) | (rounded(pack.other) & 0xffff0000u);
    std::memcpy(to, &words, sizeof words);
}

// The last elements of a row, fewer than a pack.
template <typename T> inline Pack load_some(const T *from, int64_t count) {
    T padded[WIDTH] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

template <typename Value, typename Factor> inline Pack load_some_factor(const Factor *from, int64_t count) {
    Factor padded[WIDTH] = {};
    std::memcpy(padded, from, count * sizeof(Factor));
    return load_factor<Value>(padded);
}

template <typename T> inline void store_some(T *to, const Pack &pack, int64_t count) {
    T padded[WIDTH];
    store(padded, pack);
    std::memcpy(to, padded, count * sizeof(T));
}

inline float sum(Floats values) {
    float parts[LANES];
    std::memcpy(parts, &values, sizeof parts);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    return parts[0];
}

struct Layer {
    const void *a;  // rows of `lora_A`: (slots, any, in), of which the first `rank` are this layer's
    const void *b;  // (slots, rank, out)
    int64_t a_slot_stride, b_slot_stride, in, out, rank;
};

struct Run {
    int64_t slot, start, stop;
};

// shrunk[token][r] = x[token] . a[r], for T tokens and R rows of `a`
template <int64_t T, int64_t R, typename Factor, typename Value>
inline void shrink_block(const Factor *a, const Value *x, int64_t x_stride, int64_t in, float *shrunk, int64_t rank) {
    Floats sums[T][R] = {};
    int64_t at = 0;
    for (; at + WIDTH <= in; at += WIDTH) {
        Pack values[T];
        for (int64_t t = 0; t < T; ++t) values[t] = load(x + t * x_stride + at);
        for (int64_t r = 0; r < R; ++r) {
            __builtin_prefetch(a + (r + R) * in + at, 0, 2);  // rows are too short for the processor to foresee it
            const Pack row = load_factor<Value>(a + r * in + at);
            for (int64_t t = 0; t < T; ++t) {
                sums[t][r] += values[t].one * row.one;
                sums[t][r] += values[t].other * row.other;
            }
        }
    }
    if (at < in) {
        for (int64_t t = 0; t < T; ++t) {
            const Pack values = load_some(x + t * x_stride + at, in - at);
            for (int64_t r = 0; r < R; ++r) {
                const Pack row = load_some_factor<Value>(a + r * in + at, in - at);
                sums[t][r] += values.one * row.one;
                sums[t][r] += values.other * row.other;
            }
        }
    }
    for (int64_t t = 0; t < T; ++t)
        for (int64_t r = 0; r < R; ++r) shrunk[t * rank + r] = sum(sums[t][r]);
}

// y[token] += shrunk[token] . b, for T tokens and V packs of outputs; of a single pack, perhaps only `some` elements
template <int64_t T, int64_t V, bool WHOLE, typename Factor, typename Value>
inline void expand_block(const Factor *b, int64_t out, const float *shrunk, int64_t rank, Value *y, int64_t y_stride,
                         int64_t some) {
    Pack sums[T][V] = {};
    for (int64_t r = 0; r < rank; ++r) {
        for (int64_t v = 0; v < V; ++v) {
            const Factor *from = b + r * out + v * WIDTH;
            __builtin_prefetch(from + 2 * V * WIDTH);  // columns of the block after the next
            const Pack row = WHOLE ? load_factor<Value>(from) : load_some_factor<Value>(from, some);
            for (int64_t t = 0; t < T; ++t) {
                sums[t][v].one += shrunk[t * rank + r] * row.one;
                sums[t][v].other += shrunk[t * rank + r] * row.other;
            }
        }
    }
    for (int64_t t = 0; t < T; ++t) {
        for (int64_t v = 0; v < V; ++v) {
            Value *to = y + t * y_stride + v * WIDTH;
            const Pack before = WHOLE ? load(to) : load_some(to, some);
            const Pack after = {before.one + sums[t][v].one, before.other + sums[t][v].other};
            WHOLE ? store(to, after) : store_some(to, after, some);
        }
    }
}

// How many tokens share one reading of a factor; sixteen sums fit the registers.
constexpr int64_t TOKENS = 4;
template <int64_t T> constexpr int64_t RANKS = T == 1 ? 8 : 4;
template <int64_t T> constexpr int64_t PACKS = T == 1 ? 4 : 2;

// A whole number of `step` for each thread: from where to where this one's are.
struct Share {
    int64_t first, last;
    Share(int64_t total, int64_t step, int64_t thread, int64_t threads) {
        const int64_t size = (total + threads * step - 1) / (threads * step) * step;
        first = thread * size < total ? thread * size : total;
        last = first + size < total ? first + size : total;
    }
};

template <int64_t T, typename Factor, typename Value>
inline void shrink_tokens(const Layer &layer, const Factor *a, const Value *x, int64_t x_stride, float *shrunk,
                          const Share &ranks) {
    int64_t r = ranks.first;
    for (; r + RANKS<T> <= ranks.last; r += RANKS<T>)
        shrink_block<T, RANKS<T>>(a + r * layer.in, x, x_stride, layer.in, shrunk + r, layer.rank);
    for (; r < ranks.last; ++r)
        shrink_block<T, 1>(a + r * layer.in, x, x_stride, layer.in, shrunk + r, layer.rank);
}

template <int64_t T, typename Factor, typename Value>
inline void expand_tokens(const Layer &layer, const Factor *b, const float *shrunk, Value *y, int64_t y_stride,
                          const Share &outs) {
    int64_t o = outs.first;
    for (; o + PACKS<T> * WIDTH <= outs.last; o += PACKS<T> * WIDTH)
        expand_block<T, PACKS<T>, true>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride, WIDTH);
    for (; o + WIDTH <= outs.last; o += WIDTH)
        expand_block<T, 1, true>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride, WIDTH);
    if (o < outs.last)
        expand_block<T, 1, false>(b + o, layer.out, shrunk, layer.rank, y + o, y_stride, outs.last - o);
}

template <typename Factor, typename Value>
void shrink(const Layer &layer, const Run *runs, int64_t num_runs, const Value *x, int64_t x_stride, float *shrunk,
            int64_t thread, int64_t threads) {
    const Share ranks(layer.rank, TOKENS, thread, threads);
    for (const Run *run = runs; run < runs + num_runs; ++run) {
        const Factor *a = (const Factor *)layer.a + run->slot * layer.a_slot_stride;
        int64_t token = run->start;
        for (; token + TOKENS <= run->stop; token += TOKENS)
            shrink_tokens<TOKENS>(layer, a, x + token * x_stride, x_stride, shrunk + token * layer.rank, ranks);
        for (; token < run->stop; ++token)
            shrink_tokens<1>(layer, a, x + token * x_stride, x_stride, shrunk + token * layer.rank, ranks);
    }
}

template <typename Factor, typename Value>
void expand(const Layer &layer, const Run *runs, int64_t num_runs, const float *shrunk, Value *y, int64_t y_stride,
            int64_t thread, int64_t threads) {
    const Share outs(layer.out, WIDTH, thread, threads);
    for (const Run *run = runs; run < runs + num_runs; ++run) {
        const Factor *b = (const Factor *)layer.b + run->slot * layer.b_slot_stride;
        int64_t token = run->start;
        for (; token + TOKENS <= run->stop; token += TOKENS)
            expand_tokens<TOKENS>(layer, b, shrunk + token * layer.rank, y + token * y_stride, y_stride, outs);
        for (; token < run->stop; ++token)
            expand_tokens<1>(layer, b, shrunk + token * layer.rank, y + token * y_stride, y_stride, outs);
    }
}

template <typename Factor, typename Value>
void add(const Layer &layer, const Run *runs, int64_t num_runs, const Value *x, int64_t x_stride, Value *y,
         int64_t y_stride, [[maybe_unused]] int64_t threads) {
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

EXPORT(add_lora_float32, float, float)
EXPORT(add_lora_bfloat16, BFloat16, BFloat16)
EXPORT(add_lora_bfloat16_to_float32, BFloat16, float)
