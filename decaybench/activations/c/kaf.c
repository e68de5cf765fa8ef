// KAF, forward and backward.
//
// The function of a channel is a table of pieces. A row is {centre, c0 … c6}: f(s) = Σ cⱼ uʲ, u = (s − centre)·inverse.

#include "shape.h"

#define ROW 8     // numbers of a row
#define FLUSH 4096 // numbers that are summed in REAL before the sum goes on in double
#define FEW 8192 // numbers of a channel
#define STRIP 1024 // numbers that are looked at together
#define AHEAD 12 // rows that are fetched before they are copied

typedef double Half __attribute__((vector_size(4 * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef REAL Quad __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
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
static inline void put(REAL *row, Half p, Half q, double inverse) {
    Quad a = __builtin_convertvector(p, Quad), b = __builtin_convertvector(q, Quad);
    if (inverse) {
        const Quad c = (Quad){a[0], a[2], a[3], b[0]} * (Quad){1, 1, 2, 3}, d = (Quad){b[1], b[2], b[3], 0} * (Quad){4, 5, 6, 0};
        a = __builtin_convertvector(__builtin_convertvector(c, Half) * (Half){1, inverse, inverse, inverse}, Quad);
        b = __builtin_convertvector(__builtin_convertvector(d, Half) * inverse, Quad);
    }
    *(Quad *)row = a, *(Quad *)(row + 4) = b;
}

// The tables (group, pieces, ROW) of some channels from their coefficients alpha (group, D), and their tails (group).
// For the slope, slot j holds the coefficient of uʲ⁻¹ in f′, in units of s.
static void build(const Grid *g, const REAL *alpha, int group, Range range, REAL *all, REAL *tail, int slope) {
    for (int c = 0; c < group; c++, alpha += g->D) {
        REAL *table = all + ((long)c * g->pieces + range.from) * ROW;
        double wide[g->D], sum = 0;
        for (int j = 0; j < g->D; j++) wide[j] = alpha[j], sum += wide[j];
        tail[c] = g->tail * sum;
        for (int k = range.from; k <= range.to; k += 2) { // two at a time hide half of the latency of a multiply-add
            const int l = k < range.to ? k + 1 : k;
            const double *b = g->basis + (long)k * g->width * ROW, *d = g->basis + (long)l * g->width * ROW;
            const double *a = wide + g->first[k], *e = wide + g->first[l];
            Half p = {g->centre[k]}, q = {0}, r = {g->centre[l]}, s = {0};
            for (int w = 0; w < g->width; w++, b += ROW, d += ROW) {
                p += a[w] * *(const Half *)b, q += a[w] * *(const Half *)(b + 4);
                r += e[w] * *(const Half *)d, s += e[w] * *(const Half *)(d + 4);
            }
            put(table, p, q, slope ? g->inverse : 0);
            if (l > k) put(table + ROW, r, s, slope ? g->inverse : 0);
            table += (l - k + 1) * ROW;
        }
    }
}

// Short segments are looked at together, several of them a strip: how many. Where channels lie side by side, a power of
// two, so that sums are flushed after as many numbers however many channels a task has.
static long together(long length, long inner, long outer) {
    long most = length <= STRIP / 2 ? STRIP / length : 1;
    while (inner == 1 && (most & (most - 1))) most &= most - 1;
    return most < outer ? most : outer;
}

static int *offsets(int group, long inner, long rows, int pieces) { // of each position of a strip, in rows of the table
    const long length = group * inner;
    int *offset = malloc(length * rows * sizeof(int));
    for (int c = 0; c < group; c++)
        for (long i = 0; i < inner; i++) offset[c * inner + i] = c * pieces;
    for (long r = 1; r < rows; r++) memcpy(offset + r * length, offset, length * sizeof(int));
    return offset;
}

static void copy(REAL *to, long to_stride, const REAL *from, long from_stride, long rows, long length) {
    for (long r = 0; r < rows; r++, to += to_stride, from += from_stride) {
        __builtin_prefetch(from + AHEAD * from_stride), __builtin_prefetch(to + AHEAD * to_stride, 1);
        for (long i = 0; i < length; i += ROW) store(to + i, load(from + i, (int)(length - i)), (int)(length - i));
    }
}

static int evaluate(const REAL *x, REAL *y, const int *offset, int n, const Grid *g, const REAL *table, const REAL *tail) {
    const REAL high = g->high, inverse = g->inverse;
    Strip strip;
    locate(&strip, x, offset, n, g);
    for (int b = 0; b < n; b += ROW) {
        Row row[ROW];
        look_up(row, &strip, b, table, inverse);
        Row v = row[7];
        for (int j = 6; j > 0; j--) v = v * row[0] + row[j];
        store(y + b, v, n - b);
    }
    for (int l = 0; l < n && strip.outside; l++)
        if (x[l] > high) y[l] += (x[l] - high) * tail[offset[l] / g->pieces];
    return strip.odd;
}

int kaf_forward(const REAL *s, const REAL *alpha, REAL *f, long outer, long C, long inner, const Grid *g, int threads) {
    const Shape shape = shape_of(outer, C, inner, threads);
    int odd = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : odd)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner;
        REAL *table = malloc((size_t)group * g->pieces * ROW * sizeof(REAL)), *tail = malloc(group * sizeof(REAL));
        const long rows = together(length, inner, outer), stride = C * inner;
        int *offset = offsets(group, inner, rows, g->pieces);
        const Range range = range_of(s, shape, from, length, g);
        build(g, alpha + from * g->D, group, range, table, tail, 0);
        for (long o = 0; o < outer; o += rows) {
            const REAL *x = s + o * stride + from * inner;
            REAL *y = f + o * stride + from * inner;
            const long r = o + rows <= outer ? rows : outer - o;
            if (rows > 1 && length == stride) {
                odd |= evaluate(x, y, offset, (int)(r * length), g, table, tail);
            } else if (rows > 1) {
                REAL in[STRIP], out[STRIP];
                copy(in, length, x, stride, r, length);
                odd |= evaluate(in, out, offset, (int)(r * length), g, table, tail);
                copy(y, stride, out, length, r, length);
            } else
                for (long i = 0; i < length; i += STRIP)
                    odd |= evaluate(x + i, y + i, offset + i, (int)(length - i < STRIP ? length - i : STRIP), g, table, tail);
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

// Σ grad·uʲ⁻¹ of each piece, in slot j of its row; slot 0 stays empty. Of one channel there are two, in turn and `other`
// apart, so that no sum waits for the one before. beyond: Σ grad·(s − high) of each channel, right of the pieces.
typedef struct {
    REAL *moments;
    long other;
    double *beyond;
} Sums;

static int differentiate(const REAL *x, const REAL *up, REAL *down, const int *offset, int n, const Grid *g,
                         const REAL *table, const REAL *tail, Sums sums) {
    const REAL low = g->low, high = g->high, inverse = g->inverse;
    Strip strip;
    locate(&strip, x, offset, n, g);
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
        for (int l = 0; l < ROW; l++) *(Row *)(sums.moments + (l & 1) * sums.other + strip.at[b + l]) += term[l];
    }
    for (int l = 0; l < n && strip.outside; l++) {
        const int c = offset[l] / g->pieces;
        if (x[l] > high) down[l] = up[l] * tail[c], sums.beyond[c] += (double)up[l] * (x[l] - high);
        else if (x[l] < low) down[l] = 0;
    }
    return strip.odd;
}

int kaf_backward(const REAL *grad, const REAL *s, const REAL *alpha, REAL *grad_s, REAL *grad_alpha, long outer, long C,
                 long inner, const Grid *g, int threads) {
    const Shape shape = shape_of(outer, C, inner, threads);
    int odd = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : odd)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner, size = (long)group * g->pieces * ROW;
        REAL *table = malloc(size * sizeof(REAL)), *tail = malloc(group * sizeof(REAL));
        const long other = group == 1 ? size : 0;
        REAL *moments = calloc(size + other, sizeof(REAL));
        double *total = calloc(size, sizeof(double)), *beyond = calloc(group, sizeof(double));
        const long rows = together(length, inner, outer), stride = C * inner;
        int *offset = offsets(group, inner, rows, g->pieces);
        Sums sums = {moments, other, beyond};
        long unflushed = 0;
        const Range range = range_of(s, shape, from, length, g);
        build(g, alpha + from * g->D, group, range, table, tail, 1);
        for (long o = 0; o < outer; o += rows) {
            const long begin = o * stride + from * inner;
            const REAL *x = s + begin, *up = grad + begin;
            REAL *down = grad_s + begin;
            const long r = o + rows <= outer ? rows : outer - o;
            if (rows > 1 && length == stride) {
                odd |= differentiate(x, up, down, offset, (int)(r * length), g, table, tail, sums);
            } else if (rows > 1) {
                REAL in[STRIP], upstream[STRIP], out[STRIP];
                copy(in, length, x, stride, r, length), copy(upstream, length, up, stride, r, length);
                odd |= differentiate(in, upstream, out, offset, (int)(r * length), g, table, tail, sums);
                copy(down, stride, out, length, r, length);
            } else
                for (long i = 0; i < length; i += STRIP) {
                    const int n = (int)(length - i < STRIP ? length - i : STRIP);
                    odd |= differentiate(x + i, up + i, down + i, offset + i, n, g, table, tail, sums);
                }
            unflushed += inner * rows;
            if (unflushed >= FLUSH) flush(moments, total, size), flush(moments + size, total, other), unflushed = 0;
        }
        flush(moments, total, size), flush(moments + size, total, other);
        for (int c = 0; c < group; c++) {
            double *to_alpha = calloc(g->D, sizeof(double));
            for (int k = range.from; k <= range.to; k++)
                project(total + ((long)c * g->pieces + k) * ROW, g, k, to_alpha + g->first[k]);
            for (int j = 0; j < g->D; j++) grad_alpha[(from + c) * g->D + j] = to_alpha[j] + g->tail * beyond[c];
            free(to_alpha);
        }
        free(table), free(tail), free(moments), free(total), free(beyond), free(offset);
    }
    return odd;
}
