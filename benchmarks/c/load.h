/* load.h: the definitions that the parts of the generator share.
 *
 * One thread and one ring drive everything.  A *kind* of load (messages over lasting connections, or churn) keeps its
 * connections busy; turns.c chooses the server that it keeps busy at the moment, and keeps the record.  The two share
 * struct load: the kind counts the requests of each side, and those in flight, and starts nothing new on a side that is not
 * active or that is being drained.
 */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "histogram.h"
#include "load_ring.h"
#include "options.h"
#include "slices.h"

enum load_tag { TAG_TICK = 1, TAG_RECV, TAG_SEND, TAG_CONNECT, TAG_CLOSE };

struct load_side {
    uint16_t port;
    uint64_t requests;    /* answered, ever */
    uint64_t outstanding; /* begun and not answered */
};

struct load {
    struct gt_ring ring;
    const struct options *options;
    const struct load_kind *kind;
    uint32_t sides; /* 1 or 2 */
    enum side active;
    bool draining; /* the active side's turn is over, and requests in flight are awaited */
    int64_t now;   /* when the current batch of completions was collected */
    struct load_side side[SIDES];
    struct histogram latency; /* of the server under test, ns */
};

struct load_kind {
    void (*open)(struct load *load);                  /* once, with the ring open */
    void (*start)(struct load *load, enum side side); /* a turn begins: get every connection of that side going */
    void (*complete)(struct load *load, const struct io_uring_cqe *cqe);
};

extern const struct load_kind lasting_kind; /* connections.c */
extern const struct load_kind churn_kind;   /* churn.c */

/* Connection indices count the server's connections first, then the reference's. */
static inline enum side side_of(const struct load *load, uint32_t index)
{
    return index >= load->options->connections ? SIDE_REFERENCE : SIDE_SERVER;
}

static inline bool may_start(const struct load *load, enum side side)
{
    return side == load->active && !load->draining;
}

static inline void count_answer(struct load *load, enum side side, int64_t asked)
{
    load->side[side].requests++;
    load->side[side].outstanding--;
    if (side == SIDE_SERVER)
        histogram_add(&load->latency, (uint64_t)(load->now - asked));
}

/* A socket (SOCK_STREAM: with TCP_NODELAY; SOCK_DGRAM), bound to the `number`-th of our source addresses. */
int open_socket(uint64_t number, int type);

/* Fill memory with bytes without any repetition. */
void fill_with_noise(char *memory, uint64_t length);

/* The request in a file, and its length: http.c.  The text is the same memory every time. */
uint32_t read_request(const char *path, const char **text);

/* --idle: see idle.c */
void hold_idle_connections(const struct options *options);

#endif
