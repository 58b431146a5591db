/* histogram.h: latencies counted in buckets that grow with the value: 64 to every power of two.
 *
 * A bucket is at most 1/64 of its value wide, so a percentile is accurate to 1.6 %.  The histogram needs 32 KiB, and
 * neither stores nor sorts the latencies themselves.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_STEPS 64 /* buckets to a power of two */
#define HISTOGRAM_BITS 6   /* log2 of that */

struct histogram {
    uint64_t total;
    uint64_t counts[(64 - HISTOGRAM_BITS + 1) * HISTOGRAM_STEPS];
};

static inline void histogram_add(struct histogram *histogram, uint64_t value)
{
    uint32_t bucket = (uint32_t)value; /* the first 64 values have a bucket each */
    if (value >= HISTOGRAM_STEPS) {
        uint32_t exponent = 63 - (uint32_t)__builtin_clzll(value);
        uint32_t step = (uint32_t)(value >> (exponent - HISTOGRAM_BITS)) & (HISTOGRAM_STEPS - 1);
        bucket = (exponent - HISTOGRAM_BITS + 1) * HISTOGRAM_STEPS + step;
    }
    histogram->counts[bucket]++;
    histogram->total++;
}

/* The value below which `share` (0 to 1) of all values lie; 0 for an empty histogram. */
double histogram_percentile(const struct histogram *histogram, double share);

#endif
