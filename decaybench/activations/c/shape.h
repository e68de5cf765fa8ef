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

// Where channels lie side by side (inner is 1), all of them are one task if there is one thread and they are few: then
// nothing has to be copied. How many channels a task has changes no sum.
static Shape shape_of(long outer, long C, long inner, int threads) {
    int group = inner >= SHORT ? 1 : (int)((SHORT + inner - 1) / inner);
    if (inner == 1 && threads == 1 && C <= 2 * SHORT) group = (int)C;
    if (inner == 1 && threads > 1 && C <= SHORT && C > SHORT / 2) group = SHORT / 2;
    return (Shape){outer, C, inner, group < C ? group : (int)C};
}

// Goes on with a sum in double, so that many numbers lose nothing.
static void flush(REAL *sums, double *total, long n) {
    for (long i = 0; i < n; i++) total[i] += sums[i], sums[i] = 0;
}
