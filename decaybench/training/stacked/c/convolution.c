// Convolutions of images whose batch lies last in memory, (C, H, W, B): a tap of the kernel reads B numbers in a row, so that
// nothing is unfolded, padded or copied. A tile of output channels × vectors of the batch stays in registers while all
// channels and taps are added to it. Each replica is computed by itself, in one order, by one thread.
// Compiled once with -DREAL=float and once with -DREAL=double.

#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define BYTES 64
#define VECTORS 4 // of the batch in a tile
#define COLUMNS 6 // of the weight's gradient in a tile
#else
#define BYTES 32
#define VECTORS 2
#define COLUMNS 3
#endif
#define LANES ((int)(BYTES / sizeof(REAL)))
#define CHANNELS 6 // output channels of a tile
#define ROWS 4     // of the weight's gradient in a tile
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

typedef REAL Vector __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

typedef __typeof__((Vector){0} == (Vector){0}) Mask;

typedef struct {
    long C, H, W, O, k, l, h, w, B, sy, sx, py, px; // sizes, strides, paddings
} Convolution;

typedef struct {
    long from; // where the source of this tap lies, in numbers
    long tap;  // which tap of the kernel it is
} Tap;

INLINE Vector read(const REAL *p, long n) {
    if (n >= LANES) return *(const Vector *)p;
    Vector v = {0};
    memcpy(&v, p, n * sizeof(REAL));
    return v;
}

INLINE void write(REAL *p, Vector v, long n) {
    if (n >= LANES) *(Vector *)p = v;
    else memcpy(p, &v, n * sizeof(REAL));
}

// out[m, b] = bias[m] + Σ over channels and taps of weight[channel, tap, m] · source[channel, tap, b]
INLINE void tile(const int M, const int V, const REAL *source, long plane, long channels, const Tap *taps, int count,
                 const REAL *weight, long all, const REAL *bias, REAL *out, long stride, long n) {
    Vector sum[CHANNELS][VECTORS];
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++) sum[m][v] = (Vector){0} + (bias ? bias[m] : 0);
    for (long c = 0; c < channels; c++, source += plane, weight += all * CHANNELS)
        for (int t = 0; t < count; t++) {
            const REAL *x = source + taps[t].from, *a = weight + taps[t].tap * CHANNELS;
            Vector value[VECTORS];
            UNROLL for (int v = 0; v < V; v++) value[v] = read(x + v * LANES, n - v * LANES);
            UNROLL for (int m = 0; m < M; m++)
                UNROLL for (int v = 0; v < V; v++) sum[m][v] += a[m] * value[v];
        }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int v = 0; v < V; v++) write(out + m * stride + v * LANES, sum[m][v], n - v * LANES);
}

#define KIND(NAME, M, V, N)                                                                                            \
    static void NAME##M(const REAL *s, long p, long c, const Tap *t, int k, const REAL *w, long a, const REAL *b,      \
                        REAL *o, long q, long n) {                                                                     \
        tile(M, V, s, p, c, t, k, w, a, b, o, q, N);                                                                   \
    }
#define KINDS(M) KIND(wide, M, VECTORS, VECTORS * LANES) KIND(narrow, M, 1, LANES) KIND(part, M, 1, n)
KINDS(1) KINDS(2) KINDS(3) KINDS(4) KINDS(5) KINDS(6)
typedef void Tile(const REAL *, long, long, const Tap *, int, const REAL *, long, const REAL *, REAL *, long, long);
static Tile *const wide[] = {wide1, wide2, wide3, wide4, wide5, wide6};
static Tile *const narrow[] = {narrow1, narrow2, narrow3, narrow4, narrow5, narrow6};
static Tile *const part[] = {part1, part2, part3, part4, part5, part6};

// All outputs of one place: M channels in tiles, and B numbers each. Where B is no multiple of a vector, the last vector
// begins earlier and computes some numbers again.
static void place(const REAL *source, long plane, long channels, const Tap *taps, int count, const REAL *packed, long all,
                  const REAL *bias, REAL *out, long stride, long M, long B) {
    for (long b = 0, n; b < B; b += n) {
        Tile *const *kind = B - b >= VECTORS * LANES ? wide : B >= LANES ? narrow : part;
        n = kind == wide ? VECTORS * LANES : kind == narrow ? LANES : B;
        if (b + n > B) b = B - n;
        for (long m = 0; m < M; m += CHANNELS) {
            const int size = M - m < CHANNELS ? (int)(M - m) : CHANNELS;
            kind[size - 1](source + b, plane, channels, taps, count, packed + m * channels * all, all,
                           bias ? bias + m : NULL, out + m * stride + b, stride, n);
        }
    }
}

// Weights as (⌈M / CHANNELS⌉, channels, taps, CHANNELS); those of x's gradient have inputs for outputs.
static REAL *packed(const REAL *weight, const Convolution *s, int turned) {
    const long M = turned ? s->C : s->O, channels = turned ? s->O : s->C, all = s->k * s->l;
    const long tiles = (M + CHANNELS - 1) / CHANNELS;
    REAL *to = calloc(tiles * CHANNELS * channels * all, sizeof(REAL));
    for (long m = 0; m < M; m++)
        for (long c = 0; c < channels; c++)
            for (long t = 0; t < all; t++)
                to[((m / CHANNELS * channels + c) * all + t) * CHANNELS + m % CHANNELS] =
                    weight[((turned ? c * s->C + m : m * s->C + c)) * all + t];
    return to;
}

void convolve(const REAL *x, const REAL *weight, const REAL *bias, REAL *out, const Convolution *s, long R) {
    const long in = s->C * s->H * s->W * s->B, plane = s->h * s->w * s->B, all = s->k * s->l;
    Tap *taps = malloc(all * sizeof(Tap));
    for (long r = 0; r < R; r++) {
        REAL *ready = packed(weight + r * s->O * s->C * all, s, 0);
        for (long y = 0; y < s->h; y++)
            for (long z = 0; z < s->w; z++) {
                int count = 0;
                for (long i = 0; i < s->k; i++)
                    for (long j = 0; j < s->l; j++) {
                        const long u = y * s->sy + i - s->py, v = z * s->sx + j - s->px;
                        if (u >= 0 && u < s->H && v >= 0 && v < s->W)
                            taps[count++] = (Tap){(u * s->W + v) * s->B, i * s->l + j};
                    }
                place(x + r * in, s->H * s->W * s->B, s->C, taps, count, ready, all, bias ? bias + r * s->O : NULL,
                      out + r * s->O * plane + (y * s->w + z) * s->B, plane, s->O, s->B);
            }
        free(ready);
    }
    free(taps);
}

void convolve_to_x(const REAL *grad, const REAL *weight, REAL *to_x, const Convolution *s, long R) {
    const long in = s->C * s->H * s->W * s->B, plane = s->h * s->w * s->B, all = s->k * s->l;
    Tap *taps = malloc(all * sizeof(Tap));
    for (long r = 0; r < R; r++) {
        REAL *ready = packed(weight + r * s->O * s->C * all, s, 1);
        for (long u = 0; u < s->H; u++)
            for (long v = 0; v < s->W; v++) {
                int count = 0;
                for (long i = 0; i < s->k; i++)
                    for (long j = 0; j < s->l; j++) {
                        const long y = u + s->py - i, z = v + s->px - j;
                        if (y >= 0 && z >= 0 && y % s->sy == 0 && z % s->sx == 0 && y / s->sy < s->h && z / s->sx < s->w)
                            taps[count++] = (Tap){(y / s->sy * s->w + z / s->sx) * s->B, i * s->l + j};
                    }
                place(grad + r * s->O * plane, plane, s->O, taps, count, ready, all, NULL,
                      to_x + r * in + (u * s->W + v) * s->B, s->H * s->W * s->B, s->C, s->B);
            }
        free(ready);
    }
    free(taps);
}

// Adds one vector of the batch to a tile of sums. `keep` blanks lanes that were added before.
INLINE void multiply(const int M, const int N, const REAL *const *up, const REAL *const *from, long b, long ahead, long n,
                     const Mask *keep, Vector sum[ROWS][COLUMNS]) {
    Vector g[ROWS], value;
    UNROLL for (int m = 0; m < M; m++) {
        g[m] = read(up[m] + b, n);
        if (keep) g[m] = (Vector)((Mask)g[m] & *keep);
        __builtin_prefetch(up[m] + b + ahead);
    }
    UNROLL for (int column = 0; column < N; column++) {
        value = read(from[column] + b, n);
        UNROLL for (int m = 0; m < M; m++) sum[m][column] += g[m] * value;
    }
}

// sums[o, column] += Σ over places and batch of grad[o, place, b] · x[column, place, b], lane by lane.
INLINE void outer(const int M, const int N, const REAL *grad, long plane, const REAL *const *x, long places, long step, long B,
                  Vector *sums, long stride) {
    Vector sum[ROWS][COLUMNS];
    const REAL *from[COLUMNS], *up[ROWS];
    Mask keep;
    for (int i = 0; i < LANES; i++) keep[i] = i < LANES - B % LANES ? 0 : -1;
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int n = 0; n < N; n++) sum[m][n] = sums[m * stride + n];
    UNROLL for (int n = 0; n < N; n++) from[n] = x[n];
    UNROLL for (int m = 0; m < M; m++) up[m] = grad + m * plane;
    for (long p = 0; p < places; p++) {
        for (long b = 0; b + LANES <= B; b += LANES) multiply(M, N, up, from, b, B, LANES, NULL, sum);
        if (B % LANES && B > LANES) multiply(M, N, up, from, B - LANES, B, LANES, &keep, sum);
        if (B < LANES) multiply(M, N, up, from, 0, B, B, NULL, sum);
        UNROLL for (int n = 0; n < N; n++) from[n] += step;
        UNROLL for (int m = 0; m < M; m++) up[m] += B;
    }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int n = 0; n < N; n++) sums[m * stride + n] = sum[m][n];
}

typedef void Outer(const REAL *, long, const REAL *const *, long, long, long, Vector *, long);
#define OUTER(M, N)                                                                                                    \
    static void outer_##M##_##N(const REAL *g, long p, const REAL *const *x, long q, long t, long b, Vector *s, long r) { \
        outer(M, N, g, p, x, q, t, b, s, r);                                                                           \
    }
#define OUTERS(N) OUTER(1, N) OUTER(2, N) OUTER(3, N) OUTER(4, N)
#define NAMES(N) {outer_1_##N, outer_2_##N, outer_3_##N, outer_4_##N}
OUTERS(1) OUTERS(2) OUTERS(3)
#if COLUMNS == 6
OUTERS(4) OUTERS(5) OUTERS(6)
static Outer *const outers[][ROWS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6)};
#else
static Outer *const outers[][ROWS] = {NAMES(1), NAMES(2), NAMES(3)};
#endif

// Numbers of a tile's columns that are looked at before the next ones: they stay in the first cache.
#define NEAR ((long)(49152 / sizeof(REAL)))

static REAL total(const REAL *v) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

// Adds what some places of row y of the outputs give to the sums (taps or 1, O, columns).
static void add(const REAL *grad, const REAL *x, const Convolution *s, long y, long z0, long z1, int apart, Vector *sums) {
    const long plane = s->h * s->w * s->B, all = s->k * s->l, width = apart ? s->C : s->C * all;
    for (long i = 0; i < (apart ? s->k : 1); i++) {
        const long u = y * s->sy + i - s->py;
        if (u < 0 || u >= s->H) continue;
        for (long n = 0; n < width; n += COLUMNS) {
            const int columns = width - n < COLUMNS ? (int)(width - n) : COLUMNS;
            for (long j = 0; j < (apart ? s->l : 1); j++) {
                long first = z0, last = z1;
                while (first < last && first * s->sx + j < s->px) first++;
                while (first < last && (last - 1) * s->sx + j - s->px >= s->W) last--;
                if (first == last) continue;
                const REAL *from[COLUMNS];
                for (int c = 0; c < columns; c++) {
                    const long channel = apart ? n + c : (n + c) / all, t = apart ? j : (n + c) % all;
                    const long up = apart ? u : u + t / s->l, left = first * s->sx - s->px + t % s->l;
                    from[c] = x + ((channel * s->H + up) * s->W + left) * s->B;
                }
                for (long o = 0; o < s->O; o += ROWS) {
                    const int rows = s->O - o < ROWS ? (int)(s->O - o) : ROWS;
                    outers[columns - 1][rows - 1](grad + o * plane + (y * s->w + first) * s->B, plane, from, last - first,
                                                  s->sx * s->B, s->B, sums + ((i * s->l + j) * s->O + o) * width + n, width);
                }
            }
        }
    }
}

void convolve_to_weight(const REAL *grad, const REAL *x, REAL *to_weight, REAL *to_bias, const Convolution *s, long R) {
    const long in = s->C * s->H * s->W * s->B, plane = s->h * s->w * s->B, all = s->k * s->l, K = s->C * all;
    const int apart = s->py || s->px; // then every tap has places of its own, and a tile holds channels of one tap only
    const long turns = apart ? all : 1, width = apart ? s->C : K;
    long near = s->B ? NEAR / (COLUMNS * s->B * s->sx) : 1; // an empty batch has no numbers
    if (near < 1) near = 1;
    for (long r = 0; r < R; r++) {
        const REAL *g = grad + r * s->O * plane;
        Vector *sums = aligned_alloc(BYTES, s->O * K * sizeof(Vector)); // (turns, O, width)
        memset(sums, 0, s->O * K * sizeof(Vector));
        for (long y = 0; y < s->h; y++)
            for (long z = 0; z < s->w; z += near) 
                add(g, x + r * in, s, y, z, z + near < s->w ? z + near : s->w, apart, sums);
        for (long turn = 0; turn < turns; turn++)
            for (long o = 0; o < s->O; o++)
                for (long n = 0; n < width; n++)
                    to_weight[r * s->O * K + o * K + (apart ? n * all + turn : n)] = total((REAL *)&sums[(turn * s->O + o) * width + n]);
        free(sums);
        for (long o = 0; to_bias && o < s->O; o++) {
            double sum = 0;
            for (long p = 0; p < s->h * s->w; p++) {
                Vector v = {0};
                for (long b = 0; b < s->B; b += LANES) v += read(g + o * plane + p * s->B + b, s->B - b);
                sum += total((REAL *)&v);
            }
            to_bias[r * s->O + o] = sum;
        }
    }
}
