// Max pooling of images whose batch lies last in memory, (H, W, B).

#include <math.h>
#include <string.h>

#define NEAR 64 // numbers of the batch that are looked at together

typedef struct {
    long H, W, h, w, B, k, l, sy, sx, py, px; // sizes, kernel, strides, paddings
} Pooling;

// Also says which tap of the kernel each maximum came from: the first one of equals, as in torch; a NaN wins.
void pool(const REAL *x, REAL *out, unsigned char *tap, const Pooling *s, long planes) {
    for (long p = 0; p < planes; p++, x += s->H * s->W * s->B)
        for (long y = 0; y < s->h; y++)
            for (long z = 0; z < s->w; z++, out += s->B, tap += s->B)
                for (long b = 0; b < s->B; b += NEAR) {
                    const int n = s->B - b < NEAR ? (int)(s->B - b) : NEAR;
                    REAL best[NEAR];
                    int at[NEAR];
                    for (int i = 0; i < NEAR; i++) best[i] = -INFINITY, at[i] = -1;
                    for (int t = 0; t < s->k * s->l; t++) {
                        const long u = y * s->sy + t / s->l - s->py, v = z * s->sx + t % s->l - s->px;
                        if (u < 0 || u >= s->H || v < 0 || v >= s->W) continue;
                        const REAL *from = x + (u * s->W + v) * s->B + b;
                        for (int i = 0; i < n; i++) {
                            const int wins = (from[i] > best[i]) | (from[i] != from[i]) | (at[i] < 0);
                            best[i] = wins ? from[i] : best[i], at[i] = wins ? t : at[i];
                        }
                    }
                    for (int i = 0; i < n; i++) out[b + i] = best[i], tap[b + i] = (unsigned char)at[i];
                }
}

void pool_to_x(const REAL *grad, const unsigned char *tap, REAL *to_x, const Pooling *s, long planes) {
    memset(to_x, 0, planes * s->H * s->W * s->B * sizeof(REAL));
    for (long p = 0; p < planes; p++, to_x += s->H * s->W * s->B)
        for (long y = 0; y < s->h; y++)
            for (long z = 0; z < s->w; z++, grad += s->B, tap += s->B)
                for (int t = 0; t < s->k * s->l; t++) {
                    const long u = y * s->sy + t / s->l - s->py, v = z * s->sx + t % s->l - s->px;
                    if (u < 0 || u >= s->H || v < 0 || v >= s->W) continue;
                    REAL *to = to_x + (u * s->W + v) * s->B;
                    for (long b = 0; b < s->B; b++) to[b] += tap[b] == t ? grad[b] : 0;
                }
}
