/* turns.c: see turns.h. */
#define _GNU_SOURCE
#include "turns.h"

#include <unistd.h>

#define TURN_NS (100 * NS_PER_MS)
#define STALL_NS (5 * NS_PER_SECOND) /* a server without an answer for this long is broken */
#define SETTLE_CHECK_NS (200 * NS_PER_US)
#define SETTLE_REST_NS (10 * NS_PER_US) /* a server at rest uses less than this between two checks */
#define SETTLE_LIMIT_NS (20 * NS_PER_MS)

static bool watched(const struct turns *turns, enum side side) { return turns->server[side].pid != 0; }

static struct reading take_reading(const struct turns *turns)
{
    enum side side = turns->load->active;
    struct reading reading = {
        .time = monotonic_ns(),
        .load_used = cpu_used_ns(&turns->self),
        .load_waited = cpu_waited_ns(&turns->self),
        .requests = turns->load->side[side].requests,
    };
    if (watched(turns, side)) {
        reading.server_used = cpu_used_ns(&turns->server[side]);
        reading.server_waited = cpu_waited_ns(&turns->server[side]);
    }
    return reading;
}

static void begin_turn(struct turns *turns, enum side side)
{
    struct load *load = turns->load;
    load->active = side;
    load->draining = false;
    turns->drained_at = 0;
    turns->at_start = take_reading(turns);
    load->now = turns->at_start.time;
    turns->turn_ends = load->now + TURN_NS;
    load->kind->start(load, side);
}

void turns_begin(struct turns *turns, struct load *load)
{
    const struct options *options = load->options;
    turns->load = load;
    turns->slices.quiet_share = options->churn ? QUIET_SHARE_CHURN : QUIET_SHARE_ECHO;
    cpu_watch(&turns->self, getpid());
    if (options->server_pid)
        cpu_watch(&turns->server[SIDE_SERVER], options->server_pid);
    if (options->reference_pid)
        cpu_watch(&turns->server[SIDE_REFERENCE], options->reference_pid);
    int64_t now = monotonic_ns();
    turns->measure_from = now + options->warmup_ns;
    /* Twice the expected time: warm-up and a duration for each side, and draining in between. */
    turns->give_up = now + 2 * (options->warmup_ns + load->sides * options->duration_ns) + STALL_NS;
    turns->progress_at = now;
    begin_turn(turns, SIDE_SERVER);
}

int64_t turns_patience(const struct turns *turns) { return turns->drained_at ? SETTLE_CHECK_NS : GT_NO_TIMEOUT; }

/* Whether the server has come to rest; the generator checks every 200 us, for a bounded time. */
static bool settled(struct turns *turns)
{
    const struct load *load = turns->load;
    if (!watched(turns, load->active) || load->now - turns->drained_at >= SETTLE_LIMIT_NS)
        return true;
    if (load->now - turns->settle_checked < SETTLE_CHECK_NS)
        return false;
    int64_t used = cpu_used_ns(&turns->server[load->active]);
    bool resting = used - turns->settle_used < SETTLE_REST_NS;
    turns->settle_checked = load->now;
    turns->settle_used = used;
    return resting;
}

static void record_slice(struct turns *turns)
{
    const struct reading *start = &turns->at_start;
    struct reading end = take_reading(turns);
    enum side side = turns->load->active;
    turns->slices.all[turns->slices.count++] = (struct slice){
        .side = side,
        .requests = end.requests - start->requests,
        .length_ns = end.time - start->time,
        .busy_ns = turns->drained_at - start->time,
        .server_used_ns = end.server_used - start->server_used,
        .server_waited_ns = end.server_waited - start->server_waited,
        .load_used_ns = end.load_used - start->load_used,
        .load_waited_ns = end.load_waited - start->load_waited,
    };
    turns->measured_ns[side] += turns->drained_at - start->time;
}

static void read_splits(const struct turns *turns, struct cpu_split splits[SIDES])
{
    for (uint32_t side = 0; side < turns->load->sides; side++)
        if (watched(turns, side))
            splits[side] = cpu_split(&turns->server[side]);
}

static void begin_measuring(struct turns *turns)
{
    turns->measuring = true;
    memset(&turns->load->latency, 0, sizeof turns->load->latency);
    read_splits(turns, turns->split_before);
}

static bool complete(const struct turns *turns)
{
    for (uint32_t side = 0; side < turns->load->sides; side++)
        if (turns->measured_ns[side] < turns->load->options->duration_ns)
            return turns->slices.count == MAX_SLICES;
    return true;
}

static void check_progress(struct turns *turns)
{
    const struct load *load = turns->load;
    uint64_t requests = load->side[SIDE_SERVER].requests + load->side[SIDE_REFERENCE].requests;
    if (requests != turns->progress_requests) {
        turns->progress_requests = requests;
        turns->progress_at = load->now;
    } else if (load->now - turns->progress_at > STALL_NS) {
        fail("no answer from port %u for 5 seconds", load->side[load->active].port);
    }
    if (load->now > turns->give_up)
        fail("the measurement takes more than twice its time");
}

bool turns_advance(struct turns *turns)
{
    struct load *load = turns->load;
    check_progress(turns);
    if (!load->draining && load->now >= turns->turn_ends)
        load->draining = true;
    if (!load->draining || load->side[load->active].outstanding > 0)
        return false;
    if (turns->drained_at == 0) {
        turns->drained_at = turns->settle_checked = load->now;
        turns->settle_used = watched(turns, load->active) ? cpu_used_ns(&turns->server[load->active]) : 0;
    }
    if (!settled(turns))
        return false;
    if (turns->measuring)
        record_slice(turns);
    enum side next = load->active + 1 < load->sides ? load->active + 1 : SIDE_SERVER;
    if (turns->measuring && complete(turns)) {
        read_splits(turns, turns->split_after);
        return true;
    }
    if (!turns->measuring && next == SIDE_SERVER && load->now >= turns->measure_from)
        begin_measuring(turns);
    begin_turn(turns, next);
    return false;
}
