// Products of a few tokens with 4-bit weights as bitsandbytes packs them for AVX512-BF16: the same instructions in the
// same order for each number, so the same bits as its kernel gives, in less time.
//
// That kernel waits for each sum: an instruction takes six cycles, and with one token only two sums are on their way.
// Here rows of several blocks are summed side by side, and up to eight tokens share one reading of the weights.
// Inputs are rounded to bfloat16 and outputs written as they are wanted, which saves a pass over each.

#include <cstdint>
#include <cstring>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

// Other processors have no such function, and the library no content.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>

namespace {

constexpr int64_t ROWS = 32;  // of a block; a byte has a number of one of the first 16 rows, and of the row 16 below
constexpr int64_t HALF = ROWS / 2;
constexpr int64_t CACHED_BLOCKS = 8;

struct BFloat16 {
    uint16_t bits;
};

// Nothing is checked here: out is a multiple of 32, in of group, and group of 32.
struct Layer {
    const uint8_t *weight;   // (out / 32, in / 2, 32): a pair of neighbours of a row is a pair of bytes
    const BFloat16 *scales;  // (in / group, out)
    const BFloat16 *values;  // of the 16 codes
    int64_t in, out, group;
};

inline __m512 widen(__m256i halves) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

inline void store(float *to, __m512 sums) { _mm512_storeu_ps(to, widen((__m256i)_mm512_cvtneps_pbh(sums))); }

inline void store(BFloat16 *to, __m512 sums) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(sums));
}

// The products of T tokens with B blocks of rows.
template <int64_t T, int64_t B, typename Value>
inline void multiply_blocks(const Layer &layer, int64_t block, const BFloat16 *x, Value *y,
                            __m512i values) {
    const int64_t pairs = layer.in / 2, group = layer.group / 2;
    const uint8_t *weight = layer.weight + block * pairs * ROWS;
    const BFloat16 *scales = layer.scales + block * ROWS;
    __m512 totals[T][B][2];
    for (int64_t t = 0; t < T; ++t)
        for (int64_t b = 0; b < B; ++b) totals[t][b][0] = totals[t][b][1] = _mm512_setzero_ps();
    for (int64_t first = 0; first < pairs; first += group, scales += layer.out) {
        __m512 sums[T][B][2];
        for (int64_t t = 0; t < T; ++t)
            for (int64_t b = 0; b < B; ++b) sums[t][b][0] = sums[t][b][1] = _mm512_setzero_ps();
        for (int64_t pair = first; pair < first + group; ++pair) {
            __m512bh rows[B][2];
            for (int64_t b = 0; b < B; ++b) {
                const uint8_t *from = weight + (b * pairs + pair) * ROWS;
                _mm_prefetch(from + 64 * ROWS, _MM_HINT_T0);
                const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
                // Only the lowest five bits of an index count, and the values stand there twice.
                rows[b][0] = (__m512bh)_mm512_permutexvar_epi16(codes, values);
                rows[b][1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), values);
            }
            for (int64_t t = 0; t < T; ++t) {
                int32_t neighbours;
                std::memcpy(&neighbours, x + t * layer.in + 2 * pair, sizeof neighbours);
                const __m512bh token = (__m512bh)_mm512_set1_epi32(neighbours);
                for (int64_t b = 0; b < B; ++b)
                    for (int half = 0; half < 2; ++half)
                        sums[t][b][half] = _mm512_dpbf16_ps(sums[t][b][half], token, rows[b][half]);
            }
        }
        for (int64_t b = 0; b < B; ++b) {
            for (int half = 0; half < 2; ++half) {
                const __m512 scale = widen(_mm256_loadu_si256((const __m256i *)(scales + b * ROWS + half * HALF)));
                for (int64_t t = 0; t < T; ++t)
                    totals[t][b][half] = _mm512_fmadd_ps(sums[t][b][half], scale, totals[t][b][half]);
            }
        }
    }
    for (int64_t t = 0; t < T; ++t)
        for (int64_t b = 0; b < B; ++b)
            for (int half = 0; half < 2; ++half)
                store(y + t * layer.out + (block + b) * ROWS + half * HALF, totals[t][b][half]);
}

// Some tokens with the blocks from `block` to `last`; B at a time, as long as there are so many.
template <int64_t T, int64_t B, typename Value>
inline void multiply_tokens(const Layer &layer, int64_t block, int64_t last, const BFloat16 *x, Value *y,
                            __m512i values) {
    for (; block + B <= last; block += B) multiply_blocks<T, B>(layer, block, x, y, values);
    for (; block < last; ++block) multiply_blocks<T, 1>(layer, block, x, y, values);
}

// All tokens with the blocks from `first` to `last`; a few blocks stay in the cache until all tokens have met them.
template <typename Value>
void multiply_share(const Layer &layer, int64_t first, int64_t last, int64_t tokens, const BFloat16 *x, Value *y) {
    const __m256i once = _mm256_loadu_si256((const __m256i *)layer.values);
    const __m512i values = _mm512_inserti64x4(_mm512_castsi256_si512(once), once, 1);
    for (int64_t block = first; block < last; block += CACHED_BLOCKS) {
        const int64_t end = block + CACHED_BLOCKS < last ? block + CACHED_BLOCKS : last;
        int64_t t = 0;
        for (; t + 8 <= tokens; t += 8)
            multiply_tokens<8, 1>(layer, block, end, x + t * layer.in, y + t * layer.out, values);
        for (; t + 4 <= tokens; t += 4)
            multiply_tokens<4, 2>(layer, block, end, x + t * layer.in, y + t * layer.out, values);
        for (; t + 2 <= tokens; t += 2)
            multiply_tokens<2, 2>(layer, block, end, x + t * layer.in, y + t * layer.out, values);
        if (t < tokens) multiply_tokens<1, 4>(layer, block, end, x + t * layer.in, y + t * layer.out, values);
    }
}

template <typename Value>
void multiply_rounded(const Layer &layer, int64_t tokens, const BFloat16 *x, Value *y,
                      [[maybe_unused]] int64_t threads) {
    const int64_t blocks = layer.out / ROWS;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t share = (blocks + omp_get_num_threads() - 1) / omp_get_num_threads();
            const int64_t first = omp_get_thread_num() * share;
            multiply_share(layer, first, first + share < blocks ? first + share : blocks, tokens, x, y);
        }
        return;
    }
#endif
    multiply_share(layer, 0, blocks, tokens, x, y);
}

void multiply(const Layer &layer, int64_t tokens, const BFloat16 *x, BFloat16 *y, int64_t threads) {
    multiply_rounded(layer, tokens, x, y, threads);
}

void multiply(const Layer &layer, int64_t tokens, const float *x, float *y, int64_t threads) {
    const std::unique_ptr<BFloat16[]> rounded(new BFloat16[tokens * layer.in]);
    for (int64_t at = 0; at < tokens * layer.in; at += 32)
        _mm512_storeu_si512(rounded.get() + at,
                            (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + at + 16), _mm512_loadu_ps(x + at)));
    multiply_rounded(layer, tokens, rounded.get(), y, threads);
}

}  // namespace

#define EXPORT(name, Value)                                                                                       \
    extern "C" void name(const void *layer, int64_t tokens, const void *x, void *y, int64_t threads) {            \
        multiply(*(const Layer *)layer, tokens, (const Value *)x, (Value *)y, threads);                           \
    }

EXPORT(multiply_packed_float32, float)
EXPORT(multiply_packed_bfloat16, BFloat16)

#endif
