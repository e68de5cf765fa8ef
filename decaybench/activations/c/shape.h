// How a tensor is cut into tasks. It is seen as (outer, C, inner), contiguous. A task owns `group` channels and walks over
// outer; nothing is shared between tasks, and the sums have one order whatever the threads.
// Compiled once with -DREAL=float and once with -DREAL=double.

#include <stdlib.h>
#include <string.h>

#define SHORT 16  // fewer numbers than this of one channel in a row: take several channels at once

typedef struct {
    long outer, C, inner;
    int group;
} Shape;

static Shape shape_of(long outer, long C, long inner) {
    int group = inner >= SHORT ? 1 : (int)((SHORT + inner - 1) / inner);
    if (group >= C && inner == 1 && C > 8) group = 8; // two tasks, for two threads
    return (Shape){outer, C, inner, group < C ? group : (int)C};
}

// Goes on with a sum in double, so that many numbers lose nothing.
static void flush(REAL *sums, double *total, long n) {
    for (long i = 0; i < n; i++) total[i] += sums[i], sums[i] = 0;
}
