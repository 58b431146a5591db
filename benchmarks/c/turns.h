/* turns.h: the order of the measurements.
 *
 * A turn runs for 100 ms.  Then the generator *drains* it: it sends nothing new, and waits for the requests in flight.  Then
 * it lets the server *settle*: finish its work after the last answer (the task of a closed connection, for example), which
 * belongs to this turn's cost and not to the next one's.  Then the generator closes the record of the slice, and the other
 * side's turn begins.  A single server has every turn.
 *
 * The first turns are warm-up and leave no record.
 */
#ifndef BENCH_TURNS_H
#define BENCH_TURNS_H

#include "cpu.h"
#include "load.h"

struct reading {
    int64_t time;
    int64_t server_used, server_waited, load_used, load_waited;
    uint64_t requests;
};

struct turns {
    struct load *load;
    struct watched_process server[SIDES]; /* pid 0: not watched */
    struct watched_process self;
    struct reading at_start; /* of the current turn */
    int64_t turn_ends;
    int64_t drained_at; /* 0: not drained yet */
    int64_t settle_checked;
    int64_t settle_used;
    int64_t measure_from; /* end of the warm-up */
    int64_t give_up;
    int64_t progress_at;
    uint64_t progress_requests;
    bool measuring;
    int64_t measured_ns[SIDES];
    struct cpu_split split_before[SIDES], split_after[SIDES];
    struct slices slices;
};

/* Begin the first turn. */
void turns_begin(struct turns *turns, struct load *load);

/* The caller calls this after every batch of completions.  True when the measurement is complete. */
bool turns_advance(struct turns *turns);

/* The longest time for the next wait for completions. */
int64_t turns_patience(const struct turns *turns);

#endif
