// KAF and PReLU, forward and backward, for the CPU. Compiled once with -DREAL=float and once with -DREAL=double.
//
// A tensor is seen as (outer, C, inner), contiguous. Work is cut by channel: a task owns `group` channels, builds what
// it needs for them, and walks over outer; nothing is shared, and the sums have one order whatever the threads.
//
// The function of a channel is a table of pieces. A row is {centre, c0 … c6}: f(s) = Σ cⱼ uʲ, u = (s − centre)·inverse.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROW 8     // numbers of a row
#define FLUSH 4096 // numbers that are summed in REAL before the sum goes on in double
#define STRIP 1024 // numbers that are looked at together
#define SHORT 16  // fewer numbers than this of one channel in a row: take several channels at once

typedef double Half __attribute__((vector_size(4 * sizeof(double)), aligned(sizeof(double)), may_alias));
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
    for (int i = n; i < n + ROW; i++) strip->at[i] = 0, strip->inside[i] = 0;
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

// The tables (group, pieces, ROW) of some channels from their coefficients alpha (group, D), and their tails (group).
// For the slope, slot j holds the coefficient of uʲ⁻¹ in f′, in units of s.
static void build(const Grid *g, const REAL *alpha, int group, REAL *table, REAL *tail, int slope) {
    for (int c = 0; c < group; c++, alpha += g->D) {
        double wide[g->D], sum = 0;
        for (int j = 0; j < g->D; j++) wide[j] = alpha[j], sum += wide[j];
        tail[c] = g->tail * sum;
        for (int k = 0; k < g->pieces; k += 2) { // two at a time: half of the latency of a multiply-add is hidden
            const int l = k + 1 < g->pieces ? k + 1 : k;
            const double *b = g->basis + (long)k * g->width * ROW, *d = g->basis + (long)l * g->width * ROW;
            const double *a = wide + g->first[k], *e = wide + g->first[l];
            Half p = {g->centre[k]}, q = {0}, r = {g->centre[l]}, s = {0};
            for (int w = 0; w < g->width; w++, b += ROW, d += ROW) {
                p += a[w] * *(const Half *)b, q += a[w] * *(const Half *)(b + 4);
                r += e[w] * *(const Half *)d, s += e[w] * *(const Half *)(d + 4);
            }
            for (int j = 0; j < 4; j++) table[j] = p[j], table[4 + j] = q[j];
            if (l > k)
                for (int j = 0; j < 4; j++) table[ROW + j] = r[j], table[ROW + 4 + j] = s[j];
            for (int i = 0; slope && i <= l - k; i++)
                for (int j = 1; j < ROW; j++) table[i * ROW + j] = j < 7 ? j * table[i * ROW + j + 1] * g->inverse : 0;
            table += (l - k + 1) * ROW;
        }
    }
}

typedef struct {
    long outer, C, inner;
    int group;
} Shape;

static Shape shape_of(long outer, long C, long inner) {
    int group = inner >= SHORT ? 1 : (int)((SHORT + inner - 1) / inner);
    return (Shape){outer, C, inner, group < C ? group : (int)C};
}

static int *offsets(int group, long inner, int pieces) { // of each position of a segment, in rows
    int *offset = malloc((group * inner + ROW) * sizeof(int));
    for (long i = 0; i < group * inner + ROW; i++) offset[i] = i < group * inner ? (int)(i / inner) * pieces : 0;
    return offset;
}

int kaf_forward(const REAL *s, const REAL *alpha, REAL *f, long outer, long C, long inner, const Grid *g, int threads) {
    const Shape shape = shape_of(outer, C, inner);
    const REAL high = g->high, inverse = g->inverse;
    int odd = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : odd)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner;
        REAL *table = malloc((size_t)group * g->pieces * ROW * sizeof(REAL)), *tail = malloc(group * sizeof(REAL));
        int *offset = offsets(group, inner, g->pieces);
        Strip strip;
        build(g, alpha + from * g->D, group, table, tail, 0);
        for (long o = 0; o < outer; o++) {
            const long begin = (o * C + from) * inner;
            for (long i = 0; i < length; i += STRIP) {
                const int n = length - i < STRIP ? (int)(length - i) : STRIP;
                const REAL *x = s + begin + i;
                REAL *y = f + begin + i;
                locate(&strip, x, offset + i, n, g);
                for (int b = 0; b < n; b += ROW) {
                    Row row[ROW];
                    look_up(row, &strip, b, table, inverse);
                    Row v = row[7];
                    for (int j = 6; j > 0; j--) v = v * row[0] + row[j];
                    store(y + b, v, n - b);
                }
                for (int l = 0; l < n && strip.outside; l++)
                    if (x[l] > high) y[l] += (x[l] - high) * tail[(i + l) / inner];
                odd |= strip.odd;
            }
        }
        free(table), free(tail), free(offset);
    }
    return odd;
}

// The moments m (ROW) of piece k as a gradient of the coefficients of the atoms that act on it.
static inline void project(const double *m, const Grid *g, int k, double *restrict sums) {
    const int W = g->width;
    const double *b = g->turned + (long)k * ROW * W;
    for (int w = 0; w < W; w++)
        sums[w] += m[1] * b[W + w] + m[2] * b[2 * W + w] + m[3] * b[3 * W + w] + m[4] * b[4 * W + w] +
                   m[5] * b[5 * W + w] + m[6] * b[6 * W + w] + m[7] * b[7 * W + w];
}

static void flush(REAL *sums, double *total, long n) {
    for (long i = 0; i < n; i++) total[i] += sums[i], sums[i] = 0;
}

int kaf_backward(const REAL *grad, const REAL *s, const REAL *alpha, REAL *grad_s, REAL *grad_alpha, long outer, long C,
                 long inner, const Grid *g, int threads) {
    const Shape shape = shape_of(outer, C, inner);
    const REAL low = g->low, high = g->high, inverse = g->inverse;
    int odd = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : odd)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner, size = (long)group * g->pieces * ROW;
        REAL *table = malloc(size * sizeof(REAL)), *tail = malloc(group * sizeof(REAL));
        // Σ grad·uʲ⁻¹ of each piece, in slot j; slot 0 stays empty. Two of them in turn: a sum does not wait for the last.
        REAL *moments = calloc(2 * size, sizeof(REAL));
        double *total = calloc(size, sizeof(double)), *beyond = calloc(group, sizeof(double));
        int *offset = offsets(group, inner, g->pieces);
        Strip strip;
        long unflushed = 0;
        build(g, alpha + from * g->D, group, table, tail, 1);
        for (long o = 0; o < outer; o++) {
            const long begin = (o * C + from) * inner;
            for (long i = 0; i < length; i += STRIP) {
                const int n = length - i < STRIP ? (int)(length - i) : STRIP;
                const REAL *x = s + begin + i, *up = grad + begin + i;
                REAL *down = grad_s + begin + i;
                locate(&strip, x, offset + i, n, g);
                for (int b = 0; b < n; b += ROW) {
                    Row row[ROW], term[ROW];
                    const Row upstream = load(up + b, n - b);
                    look_up(row, &strip, b, table, inverse);
                    Row slope = row[6];
                    for (int j = 5; j > 0; j--) slope = slope * row[0] + row[j];
                    store(down + b, slope * upstream, n - b);
                    term[0] = (Row){0}, term[1] = upstream;
                    for (int j = 2; j < ROW; j++) term[j] = term[j - 1] * row[0];
                    transpose(term);
                    for (int l = 0; l < ROW; l++) *(Row *)(moments + (l & 1) * size + strip.at[b + l]) += term[l];
                }
                for (int l = 0; l < n && strip.outside; l++) {
                    const int c = (int)((i + l) / inner);
                    if (x[l] > high) down[l] = up[l] * tail[c], beyond[c] += (double)up[l] * (x[l] - high);
                    else if (x[l] < low) down[l] = 0;
                }
                odd |= strip.odd;
            }
            unflushed += inner;
            if (unflushed >= FLUSH) flush(moments, total, size), flush(moments + size, total, size), unflushed = 0;
        }
        flush(moments, total, size), flush(moments + size, total, size);
        for (int c = 0; c < group; c++) {
            double *sums = calloc(g->D, sizeof(double));
            for (int k = 0; k < g->pieces; k++)
                project(total + ((long)c * g->pieces + k) * ROW, g, k, sums + g->first[k]);
            for (int j = 0; j < g->D; j++) grad_alpha[(from + c) * g->D + j] = sums[j] + g->tail * beyond[c];
            free(sums);
        }
        free(table), free(tail), free(moments), free(total), free(beyond), free(offset);
    }
    return odd;
}

void prelu_forward(const REAL *s, const REAL *slope, REAL *f, long outer, long C, long inner, int threads) {
    const int rows = inner >= SHORT; // otherwise the channels are the row
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < (rows ? outer * C : outer); r++) {
        const long n = rows ? inner : C * inner;
        const REAL *x = s + r * n;
        REAL *y = f + r * n;
        if (rows) {
            const REAL a = slope[r % C];
            for (long i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : a * x[i];
        } else if (inner == 1) {
            for (long i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : slope[i] * x[i];
        } else {
            for (long i = 0; i < n; i++) y[i] = x[i] > 0 ? x[i] : slope[i / inner] * x[i];
        }
    }
}

void prelu_backward(const REAL *grad, const REAL *s, const REAL *slope, REAL *grad_s, REAL *grad_slope, long outer, long C,
                    long inner, int threads) {
    const Shape shape = shape_of(outer, C, inner);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner;
        REAL *a = malloc(length * sizeof(REAL)), *sums = calloc(length, sizeof(REAL)); // one sum for each position
        double *total = calloc(length, sizeof(double));
        for (long i = 0; i < length; i++) a[i] = slope[from + i / inner];
        for (long o = 0; o < outer; o++) {
            const REAL *x = s + (o * C + from) * inner, *up = grad + (o * C + from) * inner;
            REAL *down = grad_s + (o * C + from) * inner;
            for (long i = 0; i < length; i++) {
                down[i] = x[i] > 0 ? up[i] : a[i] * up[i];
                sums[i] += x[i] > 0 ? 0 : x[i] * up[i];
            }
            if (o % 256 == 255) flush(sums, total, length);
        }
        flush(sums, total, length);
        for (int c = 0; c < group; c++) {
            double sum = 0;
            for (long i = 0; i < inner; i++) sum += total[c * inner + i];
            grad_slope[from + c] = sum;
        }
        free(a), free(sums), free(total);
    }
}
