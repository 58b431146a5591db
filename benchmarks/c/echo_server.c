/* echo_server PORT [SECONDS]: the reference for measurements of all other servers.
 *
 * It does the least that an echo server on io_uring can do: one thread; multishot accept straight into the table of
 * registered files; one multishot receive per connection into a ring of 64 KiB buffers that the kernel fills incrementally
 * (so a message of any size mostly lies in one piece).  It sends the echo from the same memory, and submits all operations
 * that follow from a batch of completions by the one io_uring_enter that waits for the next batch.
 *
 * A *piece* is the data of one completion of a receive.  A connection sends one piece at a time, in order; the others
 * queue.  A buffer goes back to the kernel when it is full and the last of its pieces has been sent.
 *
 * It is a reference, not an example: only its 8 MiB of buffers limit the memory that a peer occupies by sending without
 * reading.  It listens on 127.0.0.1 only, and ends by itself after SECONDS (an hour).  It needs Linux 6.12.
 */
#define _GNU_SOURCE
#include "load_ring.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_CONNECTIONS 16384
#define MAX_PIECES (1U << 22)
#define BUFFERS 128
#define BUFFER_SIZE 65536
#define BACKLOG 4096
#define NONE UINT32_MAX

enum server_tag { TAG_ACCEPT = 1, TAG_RECV, TAG_SEND, TAG_CLOSE };

struct piece {
    const char *data;
    uint32_t length;
    uint32_t buffer;
    uint32_t next;
};

struct connection {
    uint32_t first; /* the piece being sent, and the queue behind it */
    uint32_t last;
    uint32_t sent; /* bytes of the first piece that have been sent */
    bool receiving;
    bool closing;
};

struct buffer {
    uint32_t unsent; /* pieces */
    bool full;
    struct io_uring_cqe last; /* its recycling gives the buffer back */
};

static struct gt_ring ring;
static struct connection connections[MAX_CONNECTIONS];
static struct buffer buffers[BUFFERS];
static struct piece *pieces;
static uint32_t piece_count, free_piece = NONE;
static uint32_t starved[MAX_CONNECTIONS]; /* connections whose receive ended because no buffer was free */
static uint32_t starved_count;
static int listener;
static bool table_full; /* accepting waits until a connection is closed */

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
    connections[index].receiving = true;
}

static void send_first(uint32_t index)
{
    const struct connection *connection = &connections[index];
    const struct piece *piece = &pieces[connection->first];
    struct io_uring_sqe *sqe = next_sqe(&ring);
    gt_prep_send(sqe, (int)index, piece->data + connection->sent, piece->length - connection->sent,
                 MSG_NOSIGNAL | MSG_WAITALL);
    use_registered_file(sqe);
    sqe->user_data = operation_key(TAG_SEND, index);
}

static void close_if_done(uint32_t index)
{
    const struct connection *connection = &connections[index];
    if (!connection->closing || connection->receiving || connection->first != NONE)
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

/* Pieces come from one array that doubles when it is used up; its places are found by number, so it may move. */
static uint32_t new_piece(void)
{
    if (free_piece == NONE) {
        uint32_t count = piece_count ? piece_count * 2 : 4096;
        if (count > MAX_PIECES)
            fail("more than %u pieces wait to be sent", MAX_PIECES);
        pieces = reallocarray(pieces, count, sizeof *pieces);
        if (!pieces)
            fail("out of memory");
        for (uint32_t i = count; i-- > piece_count;) {
            pieces[i].next = free_piece;
            free_piece = i;
        }
        piece_count = count;
    }
    uint32_t number = free_piece;
    free_piece = pieces[number].next;
    return number;
}

static void give_back_if_done(struct buffer *buffer)
{
    if (buffer->full && buffer->unsent == 0) {
        buffer->full = false;
        gt_buffers_recycle(&ring.buffers, &buffer->last);
    }
}

/* Remove the first piece from the connection's queue. */
static void drop_first(struct connection *connection)
{
    uint32_t number = connection->first;
    struct piece *piece = &pieces[number];
    struct buffer *buffer = &buffers[piece->buffer];
    connection->first = piece->next;
    connection->sent = 0;
    piece->next = free_piece;
    free_piece = number;
    buffer->unsent--;
    give_back_if_done(buffer);
}

/* Recycling a completion that leaves room in its buffer only advances the position of the next one.  The completion that
 * fills the buffer would return it to the kernel, and is kept until all pieces are sent. */
static void account_for_buffer(const struct io_uring_cqe *cqe)
{
    struct buffer *buffer = &buffers[cqe->flags >> IORING_CQE_BUFFER_SHIFT];
    if (cqe->flags & IORING_CQE_F_BUF_MORE) {
        gt_buffers_recycle(&ring.buffers, cqe);
    } else {
        buffer->full = true;
        buffer->last = *cqe;
        give_back_if_done(buffer);
    }
}

static void got_data(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    uint32_t number = new_piece();
    pieces[number] = (struct piece){
        .data = gt_buffers_data(&ring.buffers, cqe),
        .length = (uint32_t)cqe->res,
        .buffer = cqe->flags >> IORING_CQE_BUFFER_SHIFT,
        .next = NONE,
    };
    buffers[pieces[number].buffer].unsent++;
    account_for_buffer(cqe);
    if (connection->first == NONE) {
        connection->first = connection->last = number;
        send_first(index);
    } else {
        pieces[connection->last].next = number;
        connection->last = number;
    }
    if (gt_completion_is_final(cqe))
        receive(index);
}

static void receive_ended(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    if (cqe->flags & IORING_CQE_F_BUFFER)
        account_for_buffer(cqe);
    if (!gt_completion_is_final(cqe))
        return;
    connection->receiving = false;
    if (cqe->res == -ENOBUFS) {
        starved[starved_count++] = index;
    } else {
        connection->closing = true;
        close_if_done(index);
    }
}

static void was_sent(uint32_t index, int result)
{
    struct connection *connection = &connections[index];
    if (result >= 0 && connection->sent + (uint32_t)result < pieces[connection->first].length) {
        connection->sent += (uint32_t)result;
        send_first(index);
        return;
    }
    drop_first(connection);
    while (result < 0 && connection->first != NONE) /* the peer is gone, and the receive will report it */
        drop_first(connection);
    if (connection->first != NONE)
        send_first(index);
    else
        close_if_done(index);
}

static void accepted(const struct io_uring_cqe *cqe)
{
    bool final = gt_completion_is_final(cqe);
    if (cqe->res >= 0) {
        connections[cqe->res] = (struct connection){.first = NONE, .last = NONE};
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
        if (cqe->res > 0)
            got_data(index, cqe);
        else
            receive_ended(index, cqe);
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

int main(int count, char **arguments)
{
    if (count < 2 || count > 3)
        fail("usage: echo_server PORT [SECONDS]");
    uint16_t port = (uint16_t)parse_integer("PORT", arguments[1], 1, 65535);
    alarm(count == 3 ? (unsigned int)parse_integer("SECONDS", arguments[2], 1, 86400) : 3600);
    uint64_t limit = raise_open_file_limit(); /* the limit bounds the table of registered files, too */
    open_listener(port);
    open_ring(&ring, 4096, 16384);
    register_empty_files(&ring, limit < MAX_CONNECTIONS ? (uint32_t)limit : MAX_CONNECTIONS);
    int result = gt_buffers_open(&ring, BUFFERS, BUFFER_SIZE, true);
    if (result < 0)
        fail("incremental provided buffers: %s (Linux 6.12 is needed)", strerror(-result));
    accept_connections();
    for (;;) {
        struct io_uring_cqe batch[BATCH];
        uint32_t reaped;
        enter_or_fail(&ring, GT_NO_TIMEOUT);
        do {
            reaped = gt_ring_reap(&ring, batch, BATCH);
            for (uint32_t i = 0; i < reaped; i++)
                handle(&batch[i]);
        } while (reaped == BATCH);
        feed_starved();
    }
}
