/* connections.c: messages over lasting connections, in a closed loop.
 *
 * Every connection keeps `depth` messages in flight: when the answer to one is complete, it sends the next.  What a message
 * is, and its answer, is the protocol's matter (protocol.h).
 *
 * Receiving is one multishot receive per connection into a ring of provided buffers; sockets are registered files.
 * At depth 1 a send needs no completion of its own: the answer proves that it is done.
 *
 * With --udp a connection is a connected UDP socket and a message a datagram.  Loopback loses no datagram as long as every
 * socket's buffer has room for those in flight, which is why each connection has only one.  A lost datagram fails the run,
 * because its connection's turn does not end.
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <stdlib.h>

#define MIN_BUFFERS 256
#define MAX_BUFFERS 8192
#define MIN_BUFFER_SIZE 64
#define MAX_BUFFER_SIZE 65536
#define MAX_BUFFER_MEMORY (64U << 20)

struct connection {
    uint64_t sent;      /* messages submitted to the kernel */
    uint64_t answered;  /* messages whose answer is complete */
    uint32_t to_send;   /* messages that may be sent now */
    uint32_t in_flight; /* bytes of the send in flight (depth > 1) */
    uint32_t received;  /* bytes of the answer that is not complete */
    char *messages;     /* `depth` of them; number n lies at n % depth */
    int64_t *sent_at;
};

static struct connection *connections;

static const struct protocol *protocols[SIDES];
static uint32_t message_lengths[SIDES];

static void receive(struct load *load, uint32_t index)
{
    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    gt_prep_recv_multishot(sqe, (int)index, load->ring.buffers.group);
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; /* no data can have arrived yet */
    use_registered_file(sqe);
    sqe->user_data = operation_key(TAG_RECV, index);
}

/* Send the messages that are due, as far as they lie in one piece; the rest follows when the piece has been sent. */
static void send_messages(struct load *load, uint32_t index)
{
    const struct options *options = load->options;
    struct connection *connection = &connections[index];
    enum side side = side_of(load, index);
    uint32_t length = message_lengths[side];
    uint32_t place = (uint32_t)(connection->sent % options->depth);
    uint32_t count = connection->to_send;
    if (count > options->depth - place)
        count = options->depth - place;
    char *piece = connection->messages + (uint64_t)place * length;
    for (uint32_t i = 0; i < count; i++) {
        protocols[side]->write(side, index, connection->sent++, piece + (uint64_t)i * length);
        connection->sent_at[place + i] = load->now;
    }
    connection->to_send -= count;
    load->side[side].outstanding += count;

    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    gt_prep_send(sqe, (int)index, piece, count * length, MSG_NOSIGNAL | MSG_WAITALL);
    use_registered_file(sqe);
    if (options->depth == 1)
        complete_only_failure(sqe);
    else
        connection->in_flight = count * length;
    sqe->user_data = operation_key(TAG_SEND, index);
}

static void check_received(struct load *load, uint32_t index, const char *data, uint32_t length)
{
    struct connection *connection = &connections[index];
    enum side side = side_of(load, index);
    while (length > 0) {
        uint32_t place = (uint32_t)(connection->answered % load->options->depth);
        const char *message = connection->messages + (uint64_t)place * message_lengths[side];
        bool complete = false;
        if (connection->answered == connection->sent)
            fail("connection %u: more came back than was sent", index);
        uint32_t count = protocols[side]->read(side, index, message, connection->received, data, length, &complete);
        data += count;
        length -= count;
        connection->received += count;
        if (complete) {
            connection->received = 0;
            connection->answered++;
            connection->to_send++;
            count_answer(load, side, connection->sent_at[place]);
        }
    }
}

static void send_if_due(struct load *load, uint32_t index)
{
    const struct connection *connection = &connections[index];
    if (connection->to_send > 0 && connection->in_flight == 0 && may_start(load, side_of(load, index)))
        send_messages(load, index);
}

static void received(struct load *load, const struct io_uring_cqe *cqe)
{
    uint32_t index = operation_index(cqe);
    if (cqe->res == 0)
        fail("connection %u: closed by the server", index);
    if (cqe->res < 0 && cqe->res != -ENOBUFS)
        fail("connection %u: receive: %s", index, strerror(-cqe->res));
    if (load->options->udp && cqe->flags & IORING_CQE_F_BUFFER && (uint32_t)cqe->res != load->options->size)
        fail("connection %u: a datagram came back with %d bytes", index, cqe->res);
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        check_received(load, index, gt_buffers_data(&load->ring.buffers, cqe), (uint32_t)cqe->res);
        gt_buffers_recycle(&load->ring.buffers, cqe);
    }
    if (gt_completion_is_final(cqe))
        receive(load, index);
    send_if_due(load, index);
}

static void was_sent(struct load *load, const struct io_uring_cqe *cqe)
{
    uint32_t index = operation_index(cqe);
    struct connection *connection = &connections[index];
    if (cqe->res < 0)
        fail("connection %u: send: %s", index, strerror(-cqe->res));
    if ((uint32_t)cqe->res != connection->in_flight)
        fail("connection %u: only %d of %u bytes were sent", index, cqe->res, connection->in_flight);
    connection->in_flight = 0;
    send_if_due(load, index);
}

static void lasting_complete(struct load *load, const struct io_uring_cqe *cqe)
{
    if (operation_tag(cqe) == TAG_RECV)
        received(load, cqe);
    else
        was_sent(load, cqe);
}

static void lasting_start(struct load *load, enum side side)
{
    uint32_t first = side * load->options->connections;
    for (uint32_t i = 0; i < load->options->connections; i++)
        send_if_due(load, first + i);
}

static uint32_t power_of_two(uint64_t at_least, uint32_t low, uint32_t high)
{
    uint32_t value = low;
    while (value < at_least && value < high)
        value *= 2;
    return value;
}

/* A buffer has room for all that a connection can receive at once, and each connection has two, within bounds. */
static void open_buffers(struct load *load)
{
    const struct options *options = load->options;
    uint32_t size = power_of_two((uint64_t)options->size * options->depth, MIN_BUFFER_SIZE, MAX_BUFFER_SIZE);
    uint32_t count = power_of_two(2ULL * options->connections, MIN_BUFFERS, MAX_BUFFERS);
    while (count * size > MAX_BUFFER_MEMORY)
        count /= 2;
    int result = gt_buffers_open(&load->ring, count, size, false);
    if (result < 0)
        fail("provided buffers: %s", strerror(-result));
}

static int connect_to(const struct options *options, uint16_t port, uint32_t number)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = options->host};
    int fd = open_socket(number, options->udp ? SOCK_DGRAM : SOCK_STREAM);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect to port %u: %s", port, strerror(errno));
    return fd;
}

/* All places of a side's connections: the reference's come after the server's. */
static void open_side(struct load *load, enum side side, int *descriptors)
{
    const struct options *options = load->options;
    const struct protocol *protocol = protocols[side];
    uint32_t length = message_lengths[side] = protocol->open(load, side);
    uint32_t first = side * options->connections;
    uint64_t count = (uint64_t)options->connections * options->depth;
    char *messages = allocate(count, length);
    int64_t *sent_at = allocate(count, sizeof *sent_at);
    protocol->fill(side, messages, count);
    for (uint32_t i = 0; i < options->connections; i++) {
        descriptors[first + i] = connect_to(options, load->side[side].port, first + i);
        if (protocol->greet)
            protocol->greet(load, first + i, descriptors[first + i]);
        connections[first + i] = (struct connection){
            .to_send = options->depth,
            .messages = messages + (uint64_t)i * options->depth * length,
            .sent_at = sent_at + (uint64_t)i * options->depth,
        };
    }
}

static void lasting_open(struct load *load)
{
    const struct options *options = load->options;
    uint32_t count = options->connections * load->sides;
    int *descriptors = allocate(count, sizeof *descriptors);
    connections = allocate(count, sizeof *connections);
    protocols[SIDE_SERVER] = protocols[SIDE_REFERENCE] = options->request ? &http_protocol : &echo_protocol;
    if (options->websocket) /* and the reference echoes as many bytes without frames around them */
        protocols[SIDE_SERVER] = &websocket_protocol;
    for (uint32_t side = 0; side < load->sides; side++)
        open_side(load, side, descriptors);
    register_files(&load->ring, descriptors, count);
    free(descriptors);
    open_buffers(load);
    for (uint32_t i = 0; i < count; i++)
        receive(load, i);
}

const struct load_kind lasting_kind = {
    .open = lasting_open,
    .start = lasting_start,
    .complete = lasting_complete,
};
