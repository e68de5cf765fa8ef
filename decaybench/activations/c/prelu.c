// PReLU, forward and backward.

#include "shape.h"

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
    const Shape shape = shape_of(outer, C, inner, threads);
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
