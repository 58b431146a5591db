/* slices.c: see slices.h. */
#include "slices.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

static bool is_quiet(const struct slice *slice, double quiet_share)
{
    double waited = (double)(slice->server_waited_ns + slice->load_waited_ns);
    return waited < quiet_share * (double)slice->length_ns;
}

static bool usable(const struct slices *slices, const struct slice *slice, bool quiet_only)
{
    return slice->requests > 0 && slice->server_used_ns > 0 && (!quiet_only || is_quiet(slice, slices->quiet_share));
}

static double cost(const struct slice *slice) { return (double)slice->server_used_ns / (double)slice->requests; }

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static struct estimate median_of(double *values, uint32_t count)
{
    if (count == 0)
        return (struct estimate){.median = NAN};
    qsort(values, count, sizeof *values, compare);
    double median = count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
    return (struct estimate){.median = median, .samples = count};
}

struct estimate slices_cost(const struct slices *slices, enum side side, bool quiet_only)
{
    static double costs[MAX_SLICES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < slices->count; i++)
        if (slices->all[i].side == side && usable(slices, &slices->all[i], quiet_only))
            costs[count++] = cost(&slices->all[i]);
    return median_of(costs, count);
}

struct estimate slices_ratio(const struct slices *slices, bool quiet_only)
{
    static double ratios[MAX_SLICES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < slices->count; i++) {
        const struct slice *slice = &slices->all[i];
        if (slice->side != SIDE_SERVER || !usable(slices, slice, quiet_only))
            continue;
        double reference = 0;
        int neighbours = 0;
        const struct slice *beside[] = {i > 0 ? slice - 1 : NULL, i + 1 < slices->count ? slice + 1 : NULL};
        for (int j = 0; j < 2; j++) {
            if (beside[j] && beside[j]->side == SIDE_REFERENCE && usable(slices, beside[j], quiet_only)) {
                reference += cost(beside[j]);
                neighbours++;
            }
        }
        if (neighbours > 0)
            ratios[count++] = cost(slice) * neighbours / reference;
    }
    return median_of(ratios, count);
}
