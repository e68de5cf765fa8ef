// PReLU, forward and backward.

#include "shape.h"

#define FEW 1024

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

// The gradient of one channel of its own: rows of `inner` numbers, `stride` apart. Its sum is in REAL over FEW numbers.
static double backward_row(const REAL *grad, const REAL *s, REAL a, REAL *grad_s, long outer, long stride, long inner) {
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

void prelu_backward(const REAL *grad, const REAL *s, const REAL *slope, REAL *grad_s, REAL *grad_slope, long outer, long C,
                    long inner, int threads) {
    const Shape shape = shape_of(outer, C, inner, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long from = 0; from < C; from += shape.group) {
        const int group = from + shape.group <= C ? shape.group : (int)(C - from);
        const long length = group * inner, at = from * inner;
        if (inner >= SHORT) {
            grad_slope[from] = backward_row(grad + at, s + at, slope[from], grad_s + at, outer, C * inner, inner);
            continue;
        }
        REAL a[length], sums[length]; // one sum for each position
        double total[length];
        for (long i = 0; i < length; i++) a[i] = slope[from + i / inner], sums[i] = 0, total[i] = 0;
        for (long o = 0; o < outer; o++) {
            const REAL *x = s + o * C * inner + at, *up = grad + o * C * inner + at;
            REAL *down = grad_s + o * C * inner + at;
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
    }
}
