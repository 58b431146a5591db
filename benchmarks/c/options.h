/* options.h: the command line of echo_load. */
#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct options {
    struct in_addr host; /* in 127.0.0.0/8, always */
    uint16_t port;
    uint16_t reference_port; /* 0: no reference to take turns with */
    pid_t server_pid;        /* 0: do not account for CPU time */
    pid_t reference_pid;
    uint32_t connections; /* to each server */
    uint32_t size;        /* of a message, bytes; with a request, about those of an answer */
    uint32_t depth;       /* messages in flight on a connection */
    int64_t duration_ns;  /* of each server's turns together */
    int64_t warmup_ns;
    bool churn;
    bool udp;            /* datagrams instead of streams */
    const char *request; /* file with an HTTP request, which is sent instead of messages; NULL: none */
    bool websocket;      /* messages in frames; the reference gets them without */
    uint32_t idle;       /* connections to open and keep; 0 for another mode */
    bool print_slices;
};

void options_parse(struct options *options, int count, char **arguments);

#endif
