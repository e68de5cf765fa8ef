// The pieces of a KAF: how they are given, the tables made of them, where numbers lie on them.

#include "shape.h"

#define ROW 8     // numbers of a row
#define FLUSH 4096 // numbers that are summed in REAL before the sum goes on in double
#define FEW 8192 // numbers of a channel
#define STRIP 1024 // numbers that are looked at together
#define TOGETHER 4 // pieces whose rows are computed at once
#define AHEAD 12 // rows that are fetched before they are copied

typedef double Whole __attribute__((vector_size(ROW * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef REAL Row __attribute__((vector_size(ROW * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

typedef struct {
    int pieces, width, D; // width: atoms that act on a piece
    double low, high, scale, inverse, tail; // scale: pieces per unit of s; tail: ∂f/∂s right of high, per unit of Σα
    const double *centre; // (pieces)
    const int *first;     // (pieces): the first atom that acts on a piece
    const double *basis;  // (pieces, width, ROW): slot 0 is empty
    const double *turned; // the same as (pieces, ROW, width)
} Grid;

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef __typeof__((Row){0} == (Row){0}) Mask;
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Mask){__VA_ARGS__})
#endif

static inline void transpose(Row r[ROW]) {
    Row t[ROW];
    for (int i = 0; i < 8; i += 2) {
        t[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = SHUFFLE(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int h = 0; h < 8; h += 4)
        for (int i = 0; i < 2; i++) {
            r[h + i] = SHUFFLE(t[h + i], t[h + i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[h + i + 2] = SHUFFLE(t[h + i], t[h + i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        Row a = r[i], b = r[i + 4];
        r[i] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// A strip of numbers: cut to low … high, where their rows begin in the table, and what is special about them.
typedef struct {
    REAL inside[STRIP + ROW];
    int at[STRIP + ROW];
    int odd, outside; // whether one of them is NaN or infinite; outside of low … high
} Strip;

static void locate(Strip *strip, const REAL *restrict s, const int *restrict offset, int n, const Grid *g) {
    const REAL low = g->low, high = g->high, scale = g->scale, most = sizeof(REAL) == 4 ? 3.4028234e38 : 1.797e308;
    const int last = g->pieces - 1;
    int odd = 0, outside = 0;
#pragma omp simd reduction(| : odd, outside)
    for (int i = 0; i < n; i++) {
        REAL x = s[i];
        odd |= !((x < 0 ? -x : x) <= most);
        x = x > low ? x : low; // NaN becomes low here: whoever called sees `odd`
        x = x < high ? x : high;
        outside |= x != s[i];
        int k = (int)((x - low) * scale);
        k = k < last ? k : last;
        strip->at[i] = (offset[i] + k) * ROW;
        strip->inside[i] = x;
    }
    for (int i = n; i < n + ROW; i++) strip->at[i] = strip->at[n - 1], strip->inside[i] = strip->inside[n - 1];
    strip->odd = odd, strip->outside = outside;
}

// The rows of eight numbers, transposed: row[j] is coefficient j of each, and row[0] becomes their u.
static inline void look_up(Row row[ROW], const Strip *strip, int i, const REAL *table, REAL inverse) {
    for (int l = 0; l < ROW; l++) row[l] = *(const Row *)(table + strip->at[i + l]);
    transpose(row);
    row[0] = (*(const Row *)(strip->inside + i) - row[0]) * inverse;
}

static inline Row load(const REAL *from, int n) {
    if (n >= ROW) return *(const Row *)from;
    Row v = {0};
    memcpy(&v, from, n * sizeof(REAL));
    return v;
}

static inline void store(REAL *to, Row v, int n) {
    if (n >= ROW) *(Row *)to = v;
    else memcpy(to, &v, n * sizeof(REAL));
}

// The pieces on which the numbers of a task lie. Where they are few, this pass costs less than building all pieces.
typedef struct {
    int from, to;
} Range;

static Range range_of(const REAL *s, const Shape shape, long first, long length, const Grid *g) {
    if (shape.outer * shape.inner > FEW) return (Range){0, g->pieces - 1};
    REAL *down = malloc(2 * length * sizeof(REAL)), *up = down + length; // of each position, so that it is done in vectors
    for (long i = 0; i < length; i++) down[i] = g->high, up[i] = g->low;
    for (long o = 0; o < shape.outer; o++) {
        const REAL *x = s + (o * shape.C + first) * shape.inner;
        for (long i = 0; i < length; i++) down[i] = x[i] < down[i] ? x[i] : down[i], up[i] = x[i] > up[i] ? x[i] : up[i];
    }
    REAL least = g->high, most = g->low;
    for (long i = 0; i < length; i++) least = down[i] < least ? down[i] : least, most = up[i] > most ? up[i] : most;
    free(down);
    const REAL low = g->low, high = g->high, scale = g->scale; // as in locate, so that it rounds as there
    least = least > low ? least : low, most = most < high ? most : high;
    const int from = (int)((least - low) * scale), to = (int)((most - low) * scale), last = g->pieces - 1;
    return (Range){from < last ? from : last, to < last ? to : last};
}

// A row from the sums of its coefficients; or, with the inverse of a piece's half width, the row of the slope.
static inline void put(REAL *row, Whole sum, double inverse) {
    Row a = __builtin_convertvector(sum, Row);
    if (inverse) {
        const Row c = (Row){a[0], a[2], a[3], a[4], a[5], a[6], a[7], 0} * (Row){1, 1, 2, 3, 4, 5, 6, 0};
        a = __builtin_convertvector(__builtin_convertvector(c, Whole) *
                                        (Whole){1, inverse, inverse, inverse, inverse, inverse, inverse, inverse}, Row);
    }
    *(Row *)row = a;
}

// The tables (group, pieces, ROW) of some channels from their coefficients alpha (group, D), and their tails (group).
// For the slope, slot j holds the coefficient of uʲ⁻¹ in f′, in units of s. Several pieces at a time hide the latency of a
// multiply-add; behind the last one it is computed again.
static void build(const Grid *g, const REAL *alpha, int group, Range range, REAL *all, REAL *tail, int slope) {
    for (int c = 0; c < group; c++, alpha += g->D) {
        REAL *table = all + (long)c * g->pieces * ROW;
        double wide[g->D], sum = 0;
        for (int j = 0; j < g->D; j++) wide[j] = alpha[j], sum += wide[j];
        tail[c] = g->tail * sum;
        for (int from = range.from; from <= range.to; from += TOGETHER) {
            const double *basis[TOGETHER], *a[TOGETHER];
            Whole row[TOGETHER];
            for (int p = 0; p < TOGETHER; p++) {
                const int k = from + p < range.to ? from + p : range.to;
                basis[p] = g->basis + (long)k * g->width * ROW, a[p] = wide + g->first[k];
                row[p] = (Whole){g->centre[k]};
            }
            for (int w = 0; w < g->width; w++)
                for (int p = 0; p < TOGETHER; p++) row[p] += a[p][w] * *(const Whole *)(basis[p] + w * ROW);
            for (int p = 0; p < TOGETHER; p++) {
                const int k = from + p < range.to ? from + p : range.to;
                put(table + (long)k * ROW, row[p], slope ? g->inverse : 0);
            }
        }
    }
}
