// PReLU, forward and backward.

#include "shape.h"

#define FEW 1024    // numbers that are summed in REAL before the sum goes on in double
#define PERIOD 128  // numbers in a row for which slopes are laid out, at least
#define BLOCK 16384 // numbers of a task where channels lie side by side

// Channels that lie side by side, each with a few numbers: slopes are laid out for as many of their rows as make a long one.
typedef struct {
    long length, rows; // of one row over all channels; rows in a period
    REAL *slope;       // (rows · length)
} Period;

static Period period_of(const REAL *slope, long C, long inner) {
    const long length = C * inner, rows = length < PERIOD ? PERIOD / length : 1;
    Period p = {length, rows, malloc(rows * length * sizeof(REAL))};
    for (long i = 0; i < rows * length; i++) p.slope[i] = slope[i % length / inner];
    return p;
}

static void forward(const REAL *s, const REAL *a, REAL *f, long n) {
    for (long i = 0; i < n; i++) f[i] = s[i] > 0 ? s[i] : a[i] * s[i];
}

void prelu_forward(const REAL *s, const REAL *slope, REAL *f, long outer, long C, long inner, int threads) {
    if (inner >= SHORT) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long r = 0; r < outer * C; r++) {
            const REAL a = slope[r % C], *x = s + r * inner;
            REAL *y = f + r * inner;
            for (long i = 0; i < inner; i++) y[i] = x[i] > 0 ? x[i] : a * x[i];
        }
        return;
    }
    const Period p = period_of(slope, C, inner);
    const long step = p.rows * p.length, all = outer * p.length;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long from = 0; from < all; from += step) forward(s + from, p.slope, f + from, all - from < step ? all - from : step);
    free(p.slope);
}

// The gradient of one channel with rows of `inner` numbers, `stride` apart.
static double backward_rows(const REAL *grad, const REAL *s, REAL a, REAL *grad_s, long outer, long stride, long inner) {
    double total = 0;
    for (long o = 0; o < outer; o++, grad += stride, s += stride, grad_s += stride)
        for (long from = 0; from < inner; from += FEW) {
            const long to = from + FEW < inner ? from + FEW : inner;
            REAL sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = from; i < to; i++) {
                grad_s[i] = s[i] > 0 ? grad[i] : a * grad[i];
                sum += s[i] > 0 ? 0 : s[i] * grad[i];
            }
            total += sum;
        }
    return total;
}

// The gradients of channels side by side, of n numbers; total (C) of these.
static void backward_block(const REAL *grad, const REAL *s, Period p, REAL *grad_s, long n, long inner, double *total) {
    const long step = p.rows * p.length;
    REAL *sums = calloc(step, sizeof(REAL)); // one for each position
    for (long from = 0; from < n; from += step) {
        const long length = n - from < step ? n - from : step;
        const REAL *x = s + from, *up = grad + from;
        REAL *down = grad_s + from;
        for (long i = 0; i < length; i++) {
            down[i] = x[i] > 0 ? up[i] : p.slope[i] * up[i];
            sums[i] += x[i] > 0 ? 0 : x[i] * up[i];
        }
    }
    for (long i = 0; i < step; i++) total[i % p.length / inner] += sums[i];
    free(sums);
}

void prelu_backward(const REAL *grad, const REAL *s, const REAL *slope, REAL *grad_s, REAL *grad_slope, long outer, long C,
                    long inner, int threads) {
    if (inner >= SHORT) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long c = 0; c < C; c++) {
            const long at = c * inner;
            grad_slope[c] = backward_rows(grad + at, s + at, slope[c], grad_s + at, outer, C * inner, inner);
        }
        return;
    }
    const Period p = period_of(slope, C, inner);
    const long step = p.rows * p.length, all = outer * p.length;
    const long size = step < BLOCK ? BLOCK / step * step : step, blocks = (all + size - 1) / size;
    double *total = calloc(blocks * C, sizeof(double)); // blocks of the shape, whatever the threads: one order of the sums
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < blocks; b++) {
        const long at = b * size;
        backward_block(grad + at, s + at, p, grad_s + at, all - at < size ? all - at : size, inner, total + b * C);
    }
    for (long c = 0; c < C; c++) {
        double sum = 0;
        for (long b = 0; b < blocks; b++) sum += total[b * C + c];
        grad_slope[c] = sum;
    }
    free(total), free(p.slope);
}
