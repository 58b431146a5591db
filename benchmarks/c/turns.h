/* turns.h: who is measured when.
 *
 * A turn runs for 100 ms.  Then it is *drained*: nothing new is sent, and what is under way is awaited.  Then the server is
 * left to *settle*: to finish what it still does after its last answer (a closed connection's task, say), which is its
 * own cost and must be neither lost nor charged to the next turn.  Then the record of the slice is closed and the
 * other side's turn begins.  With one server only, it simply has every turn.
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

/* To be called after every batch of completions.  True when the measurement is complete. */
bool turns_advance(struct turns *turns);

/* How long the next wait for completions may last. */
int64_t turns_patience(const struct turns *turns);

#endif
