/* histogram.c: see histogram.h. */
#include "histogram.h"

#include <stddef.h>

static double middle_of(uint32_t bucket)
{
    if (bucket < HISTOGRAM_STEPS)
        return bucket;
    uint32_t exponent = bucket / HISTOGRAM_STEPS + HISTOGRAM_BITS - 1;
    uint32_t step = bucket % HISTOGRAM_STEPS;
    return (HISTOGRAM_STEPS + step + 0.5) * (double)(1ULL << (exponent - HISTOGRAM_BITS));
}

double histogram_percentile(const struct histogram *histogram, double share)
{
    uint64_t rank = (uint64_t)(share * (double)histogram->total);
    uint64_t seen = 0;
    if (histogram->total == 0)
        return 0;
    if (rank >= histogram->total)
        rank = histogram->total - 1;
    for (uint32_t bucket = 0; bucket < sizeof histogram->counts / sizeof histogram->counts[0]; bucket++) {
        seen += histogram->counts[bucket];
        if (seen > rank)
            return middle_of(bucket);
    }
    return 0;
}
