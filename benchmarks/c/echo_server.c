/* echo_server PORT [SECONDS]: the reference for measurements of all other servers.
 *
 * It does the least that an echo server on io_uring can do: see server.h.  It sends the echo from the memory that the
 * message was received in.
 *
 * A *piece* is the data of one completion of a receive.  A connection sends one piece at a time, in order; the others
 * queue.  A buffer goes back to the kernel when it is full and the last of its pieces has been sent.
 *
 * It is a reference, not an example: only its 8 MiB of buffers limit the memory that a peer occupies by sending without
 * reading.  It listens on 127.0.0.1 only, and ends by itself after SECONDS (an hour).  It needs Linux 6.12.
 */
#define _GNU_SOURCE
#include "server.h"

#include <stdlib.h>

#define MAX_PIECES (1U << 22)
#define NONE UINT32_MAX

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
    struct peer peer;
};

struct buffer {
    uint32_t unsent; /* pieces */
    bool full;
    struct io_uring_cqe last; /* its recycling gives the buffer back */
};

static struct connection connections[MAX_CONNECTIONS];
static struct buffer buffers[BUFFERS];
static struct piece *pieces;
static uint32_t piece_count, free_piece = NONE;

static struct peer *peer_of(uint32_t index) { return &connections[index].peer; }
static bool is_sending(uint32_t index) { return connections[index].first != NONE; }

static void reset_connection(uint32_t index) { connections[index] = (struct connection){.first = NONE, .last = NONE}; }

static void begin_batch(void) { /* nothing that is once a batch */ }

static void send_first(uint32_t index)
{
    const struct connection *connection = &connections[index];
    const struct piece *piece = &pieces[connection->first];
    send_bytes(index, piece->data + connection->sent, piece->length - connection->sent);
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
static void take_buffer(const struct io_uring_cqe *cqe)
{
    struct buffer *buffer = &buffers[gt_completion_buffer(cqe)];
    if (cqe->flags & IORING_CQE_F_BUF_MORE) {
        gt_buffers_recycle(&ring.buffers, cqe);
    } else {
        buffer->full = true;
        buffer->last = *cqe;
        give_back_if_done(buffer);
    }
}

static void take_data(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    uint32_t number = new_piece();
    pieces[number] = (struct piece){
        .data = gt_buffers_data(&ring.buffers, cqe),
        .length = (uint32_t)cqe->res,
        .buffer = gt_completion_buffer(cqe),
        .next = NONE,
    };
    buffers[pieces[number].buffer].unsent++;
    take_buffer(cqe);
    if (connection->first == NONE) {
        connection->first = connection->last = number;
        send_first(index);
    } else {
        pieces[connection->last].next = number;
        connection->last = number;
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

int main(int count, char **arguments)
{
    if (count < 2 || count > 3)
        fail("usage: echo_server PORT [SECONDS]");
    open_server(count, arguments);
    serve_forever();
}
