// Attention of sequences that decode: one token each, over the keys and values in its own slot.
//
// Each (token, key head) is computed by one thread and from its own sequence alone, so a token's output does not depend
// on what else is in the step. Products are summed in float32 and rounded once.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#define UNROLL 4
#elif defined(__AVX__)
#define LANES 8
#define UNROLL 2
#else
#define LANES 4
#define UNROLL 4
#endif

typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2)));
struct BFloat16 {
    uint16_t bits;
};

static inline float widen(float x) { return x; }
static inline float widen(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}
static inline void narrow(float x, float *to) { *to = x; }
static inline void narrow(float x, BFloat16 *to) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    // To the nearest, halves to even; NaN stays one.
    to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline Vec load(const float *from) {
    Vec wide;
    memcpy(&wide, from, sizeof(Vec));
    return wide;
}
static inline Vec load(const BFloat16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof(Halves));
    return (Vec)(__builtin_convertvector(halves, Bits) << 16);
}
static inline float sum(Vec x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof(Vec));
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

// e^x for x <= 0, to 2 units in the last place; 0 below the smallest normal number, NaN for NaN.
static inline Vec exp_of(Vec x) {
    const Vec lowest = Vec{} - 87.0f;
    IntVec tiny = x < lowest;
    Vec clamped = tiny ? lowest : x;
    Vec shifted = clamped * 1.44269504f - 0.5f;
    IntVec n = __builtin_convertvector(shifted, IntVec);  // towards zero, so this rounds to the nearest
    Vec k = __builtin_convertvector(n, Vec);
    Vec r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
    Vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Vec result = p * (Vec)((n + 127) << 23);
    return tiny ? Vec{} : result;
}

// The sums of neighbouring lanes of `a`, then those of `b`.
static inline Vec pair_sums(Vec a, Vec b) {
#ifdef __clang__
#if LANES == 16
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif LANES == 8
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
#else  // GCC has the other one from version 12 on only
#if LANES == 16
    const IntVec even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
#elif LANES == 8
    const IntVec even = {0, 2, 4, 6, 8, 10, 12, 14};
#else
    const IntVec even = {0, 2, 4, 6};
#endif
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
#endif
}

// scores[h][j] = query[h] . keys[j] for GROUP heads that share the keys. WIDTH is their width where the compiler may
// know it, and keep the queries in registers; otherwise 0.
template <int GROUP, int WIDTH, typename T>
static void scores_of(const float *query, const T *keys, int64_t length, int64_t any_width, float *scores,
                      int64_t stride) {
    const int64_t width = WIDTH ? WIDTH : any_width, whole = width - width % LANES;
    for (int64_t start = 0; start < length; start += LANES) {
        // As many keys as a vector has lanes: then all of their sums over lanes are taken together.
        Vec sums[GROUP][LANES];
        int64_t block = length - start < LANES ? length - start : LANES;
        for (int64_t j = 0; j < block; j++) {
            const T *key = keys + (start + j) * width;
            Vec own[GROUP] = {};
            for (int64_t d = 0; d < whole; d += LANES) {
                Vec part = load(key + d);
                for (int h = 0; h < GROUP; h++) own[h] += load(query + h * width + d) * part;
            }
            for (int64_t d = whole; d < width; d++)
                for (int h = 0; h < GROUP; h++) own[h][0] += query[h * width + d] * widen(key[d]);
            for (int h = 0; h < GROUP; h++) sums[h][j] = own[h];
        }
        for (int h = 0; h < GROUP; h++) {
            for (int64_t j = block; j < LANES; j++) sums[h][j] = Vec{};
            for (int left = LANES / 2; left; left /= 2)
                for (int j = 0; j < left; j++) sums[h][j] = pair_sums(sums[h][2 * j], sums[h][2 * j + 1]);
            memcpy(scores + h * stride + start, sums[h], sizeof(Vec));
        }
    }
}

// out[h][d] = sum over j of weights[h][j] values[j][d], for GROUP heads and VECTORS * LANES columns.
template <int GROUP, int VECTORS, typename T>
static void mix(const float *weights, int64_t stride, const T *values, int64_t length, int64_t width, float *out) {
    Vec sums[GROUP][VECTORS] = {};
    for (int64_t j = 0; j < length; j++) {
        Vec parts[VECTORS];
        for (int v = 0; v < VECTORS; v++) parts[v] = load(values + j * width + v * LANES);
        for (int h = 0; h < GROUP; h++)
            for (int v = 0; v < VECTORS; v++) sums[h][v] += weights[h * stride + j] * parts[v];
    }
    for (int h = 0; h < GROUP; h++)
        for (int v = 0; v < VECTORS; v++) memcpy(out + h * width + v * LANES, &sums[h][v], sizeof(Vec));
}

template <int GROUP, typename T>
static void mix_all(const float *weights, int64_t stride, const T *values, int64_t length, int64_t width, float *out) {
    int64_t d = 0;
    for (; d + UNROLL * LANES <= width; d += UNROLL * LANES)
        mix<GROUP, UNROLL>(weights, stride, values + d, length, width, out + d);
    for (; d + LANES <= width; d += LANES) mix<GROUP, 1>(weights, stride, values + d, length, width, out + d);
    for (; d < width; d++)
        for (int h = 0; h < GROUP; h++) {
            float total = 0;
            for (int64_t j = 0; j < length; j++) total += weights[h * stride + j] * widen(values[j * width + d]);
            out[h * width + d] = total;
        }
}

// From scores to weights that are not divided by their sum yet, which is returned.
static float weigh(float *scores, int64_t length, const float *mask, float softcap, const float *sink) {
    if (softcap > 0)
        for (int64_t j = 0; j < length; j++) scores[j] = softcap * std::tanh(scores[j] / softcap);
    if (mask)
        for (int64_t j = 0; j < length; j++) scores[j] += mask[j];
    float highest = sink ? *sink : -INFINITY;
    for (int64_t j = 0; j < length; j++) highest = scores[j] > highest ? scores[j] : highest;
    Vec sums = {};
    int64_t padded = (length + LANES - 1) / LANES * LANES;
    for (int64_t j = length; j < padded; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) {
        Vec weight = exp_of(load(scores + j) - highest);
        sums += weight;
        memcpy(scores + j, &weight, sizeof(Vec));
    }
    return sum(sums) + (sink ? std::exp(*sink - highest) : 0.0f);
}

struct Layer {
    int64_t heads, kv_heads, key_width, value_width;
    float scale, softcap;       // softcap: 0 for none
    int64_t q_token, q_head, k_token, k_head, v_token, v_head;  // strides, in elements
};

struct Step {
    int64_t count;              // sequences that decode
    const int64_t *tokens;      // index of each one's token
    const int64_t *lengths;     // tokens before it
    const int64_t *capacities;  // of its slot: the stride of heads in it
    int64_t longest;            // of `lengths`, with the new token
    int64_t keys;               // of all sequences, with the new ones
    int64_t threads;
};

template <int GROUP, typename T>
static void attend_group(const Layer &layer, const float *query, const T *keys, const T *values, int64_t length,
                         const float *mask, const float *sinks, float *scores, int64_t stride, float *mixed, T *out) {
    auto score = layer.key_width == 64 ? scores_of<GROUP, 64, T>
                 : layer.key_width == 128 ? scores_of<GROUP, 128, T>
                                          : scores_of<GROUP, 0, T>;
    score(query, keys, length, layer.key_width, scores, stride);
    float totals[GROUP];
    for (int h = 0; h < GROUP; h++)
        totals[h] = weigh(scores + h * stride, length, mask, layer.softcap, sinks ? sinks + h : nullptr);
    mix_all<GROUP>(scores, stride, values, length, layer.value_width, mixed);
    for (int h = 0; h < GROUP; h++)
        for (int64_t d = 0; d < layer.value_width; d++)
            narrow(mixed[h * layer.value_width + d] / totals[h], out + h * layer.value_width + d);
}

template <typename T>
static void attend_one(const Layer &layer, const Step &step, int64_t i, int64_t head, const T *q, const T *k, const T *v,
                       T *keys, T *values, const float *mask, const float *sinks, T *out, float *scratch) {
    int64_t token = step.tokens[i], past = step.lengths[i], capacity = step.capacities[i];
    int64_t kw = layer.key_width, vw = layer.value_width, group = layer.heads / layer.kv_heads;
    keys += head * capacity * kw;
    values += head * capacity * vw;
    if (k) {  // null where an earlier layer has stored them
        memcpy(keys + past * kw, k + token * layer.k_token + head * layer.k_head, kw * sizeof(T));
        memcpy(values + past * vw, v + token * layer.v_token + head * layer.v_head, vw * sizeof(T));
    }
    int64_t stride = (past + 1 + LANES - 1) / LANES * LANES;
    float *query = scratch, *mixed = query + 4 * kw, *scores = mixed + 4 * vw;
    for (int64_t first = 0; first < group;) {
        int64_t h = head * group + first, some = group - first < 4 ? group - first : 4;
        for (int64_t g = 0; g < some; g++)
            for (int64_t d = 0; d < kw; d++)
                query[g * kw + d] = widen(q[token * layer.q_token + (h + g) * layer.q_head + d]) * layer.scale;
        T *to = out + (token * layer.heads + h) * vw;
        const float *sink = sinks ? sinks + h : nullptr;
        switch (some) {
#define GROUP_OF(N) \
    case N: \
        attend_group<N>(layer, query, keys, values, past + 1, mask, sink, scores, stride, mixed, to); \
        break;
            GROUP_OF(1) GROUP_OF(2) GROUP_OF(3) GROUP_OF(4)
        }
        first += some;
    }
}

template <typename T>
static int attend(const Layer &layer, const Step &step, const void *q, const void *k, const void *v,
                  const int64_t *keys, const int64_t *values, const float *mask, int64_t mask_row, const float *sinks,
                  void *out) {
    int64_t items = step.count * layer.kv_heads;
    int64_t room = 4 * (layer.key_width + layer.value_width + step.longest + LANES);
    int failed = 0;
    // With less to do, the first thread is done before another has begun.
    bool alone = step.keys * layer.kv_heads * layer.key_width < 1 << 16;
    int threads = alone || step.threads < 2 ? 1 : (int)step.threads;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *scratch = (float *)malloc(room * sizeof(float));
        failed |= !scratch;
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++) {
            if (!scratch) continue;
            int64_t i = item / layer.kv_heads, head = item % layer.kv_heads;
            attend_one<T>(layer, step, i, head, (const T *)q, (const T *)k, (const T *)v, (T *)keys[i],
                          (T *)values[i], mask ? mask + i * mask_row : nullptr, sinks, (T *)out, scratch);
        }
        free(scratch);
    }
    return failed;
}

// Stores the keys and values of each token of a step and computes its attention; 0, or 1 without memory.
//   q, k, v: of all tokens, (tokens, heads, width) by the strides of `layer`; k and v null if they are stored already.
//   keys, values: addresses of each sequence's slot in the layer, (kv_heads, capacity, width) each.
//   mask: what is added to the scores, (count, mask_row), or null; sinks: (heads,), or null.
//   out: (tokens, heads, value_width), contiguous.
extern "C" int decode_attention(int is_bfloat16, const Layer *layer, const Step *step, const void *q, const void *k,
                                const void *v, const int64_t *keys, const int64_t *values, const float *mask,
                                int64_t mask_row, const float *sinks, void *out) {
    auto run = is_bfloat16 ? attend<BFloat16> : attend<float>;
    return run(*layer, *step, q, k, v, keys, values, mask, mask_row, sinks, out);
}
