/* slices.h: the record of a measurement, one entry per turn, and the figures drawn from it.
 *
 * Two servers take turns of about 100 ms.  The generator compares the cost of a request in a slice only with the other
 * server's cost in the slices right before and after: slow changes (clock frequency, a neighbour on the same host,
 * temperature) are then the same on both sides and cancel out.  Fast changes show as time that a process has waited for a
 * CPU, and the generator leaves such slices out.
 */
#ifndef BENCH_SLICES_H
#define BENCH_SLICES_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_SLICES 8192

/* The largest part of a slice that server and generator together may wait for a CPU in a quiet slice.  The kernel's own
 * threads close connections on the same CPUs, so under churn some waiting is normal: the load itself causes it, and not
 * other processes. */
#define QUIET_SHARE_ECHO 0.03
#define QUIET_SHARE_CHURN 0.08

enum side { SIDE_SERVER = 0, SIDE_REFERENCE = 1, SIDES = 2 };

struct slice {
    enum side side;
    uint64_t requests;
    int64_t length_ns;      /* from the turn's first request until the server had come to rest */
    int64_t busy_ns;        /* from the turn's first request until its last answer */
    int64_t server_used_ns; /* CPU time */
    int64_t server_waited_ns;
    int64_t load_used_ns;
    int64_t load_waited_ns;
};

struct slices {
    double quiet_share;
    uint32_t count;
    struct slice all[MAX_SLICES];
};

struct estimate {
    double median; /* NaN for no samples */
    uint32_t samples;
};

/* CPU time per request in ns */
struct estimate slices_cost(const struct slices *slices, enum side side, bool quiet_only);

/* The server's cost per request over the reference's, each slice against its neighbours */
struct estimate slices_ratio(const struct slices *slices, bool quiet_only);

#endif
