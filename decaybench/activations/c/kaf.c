// KAF, forward and backward.
//
// The function of a channel is a table of pieces. A row is {centre, c0 … c6}: f(s) = Σ cⱼ uʲ, u = (s − centre)·inverse.

#include "pieces.h"

// Short segments are looked at together, several of them a strip: how many. Where channels lie side by side, a power of
// two, so that sums are flushed after as many numbers however many channels a task has.
static long together(long length, long inner, long outer) {
    long most = length <= STRIP / 2 ? STRIP / length : 1;
    while (inner == 1 && (most & (most - 1))) most &= most - 1;
    return most < outer || outer < 1 ? most : outer;
}

static int *offsets(int group, long inner, long rows, int pieces) { // of each position of a strip, in rows of the table
    if (group == 1) return calloc(STRIP, sizeof(int)); // zero everywhere
    const long length = group * inner;
    int *offset = malloc(length * rows * sizeof(int));
    for (int c = 0; c < group; c++)
        for (long i = 0; i < inner; i++) offset[c * inner + i] = c * pieces;
    for (long r = 1; r < rows; r++) memcpy(offset + r * length, offset, length * sizeof(int));
    return offset;
}

static void copy(REAL *to, long to_stride, const REAL *from, long from_stride, long rows, long length) {
    for (long r = 0; r < rows; r++, to += to_stride, from += from_stride) {
        if (r + AHEAD < rows) __builtin_prefetch(from + AHEAD * from_stride), __builtin_prefetch(to + AHEAD * to_stride, 1);
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
                    {
                    const int n = (int)(length - i < STRIP ? length - i : STRIP);
                    odd |= evaluate(x + i, y + i, group == 1 ? offset : offset + i, n, g, table, tail);
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
        const long other = group == 1 && (inner > 1 || C == 1) ? size : 0; // whatever the threads
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
                    odd |= differentiate(x + i, up + i, down + i, group == 1 ? offset : offset + i, n, g, table, tail, sums);
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
