/* echo_load: a load generator for echo, HTTP and WebSocket servers on this machine, which measures their CPU time.
 *
 * The loop is closed: a fixed number of connections, each with a fixed number of messages in flight, so a slow server gets
 * fewer requests instead of an overload.  The generator measures the CPU time that a request costs the server's process,
 * because the rate of answers depends on the generator and on the rest of the machine, too.  With --ref a second server
 * takes turns of 100 ms with the first, and the result is the ratio of their costs; see turns.h, slices.h and cpu.h.
 *
 * The parts: options.c has the command line; connections.c and churn.c the two kinds of load; echo.c, http.c (with answer.c)
 * and websocket.c the protocols; turns.c the order of the
 * measurements; slices.c and histogram.c the record; cpu.c the CPU times; idle.c the connections that only wait.
 *
 * The program prints one JSON object on stdout.  Any error of any connection ends the run with a reason on stderr, status
 * 1, and no result.  The program accepts addresses in 127.0.0.0/8 only.
 */
#define _GNU_SOURCE
#include "load.h"
#include "turns.h"

#include <math.h>
#include <stdio.h>

#define TICK_NS (10 * NS_PER_MS) /* the longest wait before the generator checks for the end of a turn and for stalls */
#define MIN_ENTRIES 256
#define MAX_ENTRIES 16384

static struct load load; /* large: not for the stack */
static struct turns turns;
static const struct __kernel_timespec tick = {.tv_nsec = TICK_NS};

static void arm_tick(void)
{
    struct io_uring_sqe *sqe = next_sqe(&load.ring);
    prep_timeout(sqe, &tick);
    sqe->user_data = operation_key(TAG_TICK, 0);
}

static void open_load(const struct options *options)
{
    uint32_t entries = MIN_ENTRIES;
    load.options = options;
    load.kind = options->churn ? &churn_kind : &lasting_kind;
    load.sides = options->reference_port ? 2 : 1;
    load.side[SIDE_SERVER].port = options->port;
    load.side[SIDE_REFERENCE].port = options->reference_port;
    uint64_t limit = raise_open_file_limit();
    /* in churn a place may have a socket that is closing beside the one that is opening */
    if ((uint64_t)options->connections * load.sides * (options->churn ? 2 : 1) + 64 > limit)
        fail("%u connections need more than the %llu files that may be open", options->connections,
             (unsigned long long)limit);
    while (entries < 2 * options->connections * load.sides && entries < MAX_ENTRIES)
        entries *= 2;
    open_ring(&load.ring, entries, 4 * entries);
    load.kind->open(&load);
    arm_tick();
}

static void handle_completions(void)
{
    struct io_uring_cqe batch[BATCH];
    uint32_t count;
    do {
        count = gt_ring_reap(&load.ring, batch, BATCH);
        for (uint32_t i = 0; i < count; i++) {
            if (operation_tag(&batch[i]) == TAG_TICK)
                arm_tick();
            else
                load.kind->complete(&load, &batch[i]);
        }
        gt_buffers_publish(&load.ring.buffers);
    } while (count == BATCH);
}

static void run(void)
{
    turns_begin(&turns, &load);
    do {
        enter_or_fail(&load.ring, turns_patience(&turns));
        load.now = monotonic_ns();
        handle_completions();
    } while (!turns_advance(&turns));
}

/* JSON knows no NaN */
static void print_number(const char *name, double value)
{
    if (isfinite(value))
        printf(", \"%s\": %.4f", name, value);
    else
        printf(", \"%s\": null", name);
}

static void print_side(enum side side, const char *prefix)
{
    char name[64];
    uint64_t requests = 0;
    int64_t used = 0, waited = 0;
    for (uint32_t i = 0; i < turns.slices.count; i++) {
        const struct slice *slice = &turns.slices.all[i];
        if (slice->side == side) {
            requests += slice->requests;
            used += slice->server_used_ns;
            waited += slice->server_waited_ns;
        }
    }
    double seconds = (double)turns.measured_ns[side] / (double)NS_PER_SECOND;
    double user = turns.split_after[side].user - turns.split_before[side].user;
    double system = turns.split_after[side].system - turns.split_before[side].system;
    struct estimate quiet = slices_cost(&turns.slices, side, true);
    printf(", \"%srequests\": %llu", prefix, (unsigned long long)requests);
    snprintf(name, sizeof name, "%srequests_per_second", prefix);
    print_number(name, (double)requests / seconds);
    if (!turns.server[side].pid)
        return;
    snprintf(name, sizeof name, "%scpu_us", prefix);
    print_number(name, (double)used / (double)requests / 1e3);
    snprintf(name, sizeof name, "%scpu_us_quiet", prefix);
    print_number(name, quiet.median / 1e3);
    printf(", \"%squiet_slices\": %u", prefix, quiet.samples);
    snprintf(name, sizeof name, "%suser_share", prefix);
    print_number(name, user / (user + system));
    snprintf(name, sizeof name, "%scpu_share", prefix);
    print_number(name, (double)used / 1e9 / seconds);
    snprintf(name, sizeof name, "%swaited_share", prefix);
    print_number(name, (double)waited / 1e9 / seconds);
}

static void print_slices(void)
{
    printf(", \"slice_columns\": [\"side\", \"requests\", \"length_ns\", \"busy_ns\", \"server_used_ns\", "
           "\"server_waited_ns\", \"load_used_ns\", \"load_waited_ns\"], \"slices\": [");
    for (uint32_t i = 0; i < turns.slices.count; i++) {
        const struct slice *slice = &turns.slices.all[i];
        printf("%s[%d, %llu, %lld, %lld, %lld, %lld, %lld, %lld]", i ? ", " : "", (int)slice->side,
               (unsigned long long)slice->requests, (long long)slice->length_ns, (long long)slice->busy_ns,
               (long long)slice->server_used_ns, (long long)slice->server_waited_ns, (long long)slice->load_used_ns,
               (long long)slice->load_waited_ns);
    }
    printf("]");
}

/* The latencies below which these shares of all lie, in microseconds. */
static void print_latencies(void)
{
    static const double shares[] = {0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999};
    printf(", \"latency_us\": [");
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++)
        printf("%s[%g, %.3f]", i ? ", " : "", shares[i], histogram_percentile(&load.latency, shares[i]) / 1e3);
    printf("]");
}

static void print_result(void)
{
    const struct options *options = load.options;
    int64_t load_used = 0, length = 0;
    for (uint32_t i = 0; i < turns.slices.count; i++) {
        load_used += turns.slices.all[i].load_used_ns;
        length += turns.slices.all[i].length_ns;
    }
    printf("{\"mode\": \"%s\", \"connections\": %u, \"size\": %u, \"depth\": %u, \"slice_count\": %u",
           options->churn       ? "churn"
           : options->udp       ? "udp"
           : options->request   ? "http"
           : options->websocket ? "websocket"
                                : "echo",
           options->connections, options->size, options->depth, turns.slices.count);
    print_number("p50_us", histogram_percentile(&load.latency, 0.5) / 1e3);
    print_number("p99_us", histogram_percentile(&load.latency, 0.99) / 1e3);
    print_number("p999_us", histogram_percentile(&load.latency, 0.999) / 1e3);
    print_latencies();
    print_number("load_cpu_share", (double)load_used / (double)length);
    print_side(SIDE_SERVER, "");
    if (load.sides == 2) {
        struct estimate quiet = slices_ratio(&turns.slices, true);
        struct estimate all = slices_ratio(&turns.slices, false);
        print_side(SIDE_REFERENCE, "reference_");
        print_number("ratio", quiet.median);
        printf(", \"ratio_slices\": %u", quiet.samples);
        print_number("ratio_all", all.median);
        printf(", \"ratio_all_slices\": %u", all.samples);
    }
    if (options->print_slices)
        print_slices();
    printf("}\n");
    if (fflush(stdout) != 0)
        fail("stdout: %s", strerror(errno));
}

int main(int count, char **arguments)
{
    static struct options options;
    options_parse(&options, count, arguments);
    if (options.idle) {
        hold_idle_connections(&options);
        return 0;
    }
    open_load(&options);
    run();
    print_result();
    return 0;
}
