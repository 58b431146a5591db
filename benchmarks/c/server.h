/* server.h: what the reference servers of streams share, down to their main loop.
 *
 * One thread; multishot accept straight into the table of registered files; one multishot receive per connection into a
 * ring of 64 KiB buffers that the kernel fills incrementally (so a message of any size mostly lies in one piece).  One
 * io_uring_enter submits all operations that follow from a batch of completions, and waits for the next batch.
 *
 * A program is this file and what it declares without a body: what a connection has received, and what is sent to it.  All
 * of it is one translation unit, so that the compiler inlines as it would in one file: these servers are the measure of the
 * others.  They listen on 127.0.0.1 only, and end by themselves.
 */
#ifndef BENCH_SERVER_H
#define BENCH_SERVER_H

#include "load_ring.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#define MAX_CONNECTIONS 16384
#define BUFFERS 128
#define BUFFER_SIZE 65536
#define BACKLOG 4096
#define DEFAULT_SECONDS 3600
#define MAX_SECONDS 86400

enum server_tag { TAG_ACCEPT = 1, TAG_RECV, TAG_SEND, TAG_CLOSE };

/* The part of a connection that is known here; it stands in the program's own, beside what is used with it. */
struct peer {
    bool receiving;
    bool closing;
};

static struct gt_ring ring;
static uint32_t starved[MAX_CONNECTIONS]; /* connections whose receive ended because no buffer was free */
static uint32_t starved_count;
static int listener;
static bool table_full; /* accepting waits until a connection is closed */

/* --- what each program has of its own --- */

static struct peer *peer_of(uint32_t index);

/* A connection was accepted: forget the last one of this index. */
static void reset_connection(uint32_t index);

/* Whether something is queued for the connection, or in flight to it. */
static bool is_sending(uint32_t index);

/* Use the data of a completion, and see to its buffer, as take_buffer does where there is none. */
static void take_data(uint32_t index, const struct io_uring_cqe *cqe);
static void take_buffer(const struct io_uring_cqe *cqe);

static void was_sent(uint32_t index, int result);

/* A batch of completions is about to be handled. */
static void begin_batch(void);

/* --- connections --- */

static void accept_connections(void)
{
    struct io_uring_sqe *sqe = next_sqe(&ring);
    prep_accept_registered(sqe, listener);
    sqe->user_data = operation_key(TAG_ACCEPT, 0);
}

static void receive(uint32_t index)
{
    struct io_uring_sqe *sqe = next_sqe(&ring);
    gt_prep_recv_multishot(sqe, (int)index, ring.buffers.group);
    use_registered_file(sqe);
    sqe->user_data = operation_key(TAG_RECV, index);
    peer_of(index)->receiving = true;
}

/* MSG_WAITALL has the kernel go on after a short write; only an error or a signal ends it early. */
static void send_bytes(uint32_t index, const char *data, uint32_t length)
{
    struct io_uring_sqe *sqe = next_sqe(&ring);
    gt_prep_send(sqe, (int)index, data, length, MSG_NOSIGNAL | MSG_WAITALL);
    use_registered_file(sqe);
    sqe->user_data = operation_key(TAG_SEND, index);
}

static void close_if_done(uint32_t index)
{
    const struct peer *peer = peer_of(index);
    if (!peer->closing || peer->receiving || is_sending(index))
        return;
    struct io_uring_sqe *sqe = next_sqe(&ring);
    prep_close_registered(sqe, index);
    complete_only_failure(sqe);
    sqe->user_data = operation_key(TAG_CLOSE, index);
    if (table_full) {
        table_full = false;
        accept_connections();
    }
}

static void receive_ended(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct peer *peer = peer_of(index);
    if (cqe->flags & IORING_CQE_F_BUFFER)
        take_buffer(cqe);
    if (!gt_completion_is_final(cqe))
        return;
    peer->receiving = false;
    if (cqe->res == -ENOBUFS) {
        starved[starved_count++] = index;
    } else {
        peer->closing = true;
        close_if_done(index);
    }
}

static void received(uint32_t index, const struct io_uring_cqe *cqe)
{
    if (cqe->res <= 0) {
        receive_ended(index, cqe);
        return;
    }
    take_data(index, cqe);
    if (gt_completion_is_final(cqe))
        receive(index);
}

static void accepted(const struct io_uring_cqe *cqe)
{
    bool final = gt_completion_is_final(cqe);
    if (cqe->res >= 0) {
        reset_connection((uint32_t)cqe->res);
        receive((uint32_t)cqe->res);
    } else if (cqe->res == -ENFILE) {
        table_full = final;
        return;
    }
    if (final)
        accept_connections();
}

static void handle(const struct io_uring_cqe *cqe)
{
    uint32_t index = operation_index(cqe);
    switch (operation_tag(cqe)) {
    case TAG_RECV:
        received(index, cqe);
        break;
    case TAG_SEND:
        was_sent(index, cqe->res);
        break;
    case TAG_ACCEPT:
        accepted(cqe);
        break;
    default:
        fail("close: %s", strerror(-cqe->res)); /* completes only when it fails */
    }
}

/* Re-arm the receives that ended for lack of buffers, when buffers are back, and before the kernel sees these. */
static void feed_starved(void)
{
    if (starved_count == 0 || ring.buffers.tail == ring.buffers.published)
        return;
    for (uint32_t i = 0; i < starved_count; i++)
        receive(starved[i]);
    starved_count = 0;
}

/* --- the program --- */

static void open_listener(uint16_t port)
{
    const int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        fail("socket: %s", strerror(errno));
    /* Accepted connections inherit TCP_NODELAY. */
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        fail("setsockopt: %s", strerror(errno));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0)
        fail("listening on port %u: %s", port, strerror(errno));
}

/* PORT [SECONDS ...]: open everything that the loop needs. */
static void open_server(int count, char **arguments)
{
    uint16_t port = (uint16_t)parse_integer("PORT", arguments[1], 1, 65535);
    alarm(count > 2 ? (unsigned int)parse_integer("SECONDS", arguments[2], 1, MAX_SECONDS) : DEFAULT_SECONDS);
    uint64_t limit = raise_open_file_limit(); /* the limit bounds the table of registered files, too */
    open_listener(port);
    open_ring(&ring, 4096, 16384);
    register_empty_files(&ring, limit < MAX_CONNECTIONS ? (uint32_t)limit : MAX_CONNECTIONS);
    int result = gt_buffers_open(&ring, BUFFERS, BUFFER_SIZE, true);
    if (result < 0)
        fail("incremental provided buffers: %s (Linux 6.12 is needed)", strerror(-result));
    accept_connections();
}

__attribute__((noreturn)) static void serve_forever(void)
{
    for (;;) {
        struct io_uring_cqe batch[BATCH];
        uint32_t reaped;
        enter_or_fail(&ring, GT_NO_TIMEOUT);
        begin_batch();
        do {
            reaped = gt_ring_reap(&ring, batch, BATCH);
            for (uint32_t i = 0; i < reaped; i++)
                handle(&batch[i]);
        } while (reaped == BATCH);
        feed_starved();
    }
}

#endif
