/* connections.c: echo over lasting connections, in a closed loop.
 *
 * Every connection keeps `depth` messages in flight: when one has come back whole, it sends the next.  A message has the
 * number of its connection and its own in the first eight bytes (fewer if messages are shorter), then noise that depends on
 * its place in the connection's memory.  The generator compares all of every echo: a single byte that is lost, duplicated,
 * changed or sent to the wrong connection ends the run without a result.
 *
 * Receiving is one multishot receive per connection into a ring of provided buffers; sockets are registered files.
 * At depth 1 a send needs no completion of its own: the echo proves that it is done.
 *
 * With --udp a connection is a connected UDP socket and a message a datagram.  Loopback loses no datagram as long as every
 * socket's buffer has room for those in flight, which is why each connection has only one.  A lost datagram fails the run,
 * because its connection's turn does not end.
 */
#define _GNU_SOURCE
#include "load.h"

#include <stdlib.h>

#define MIN_BUFFERS 256
#define MAX_BUFFERS 8192
#define MIN_BUFFER_SIZE 64
#define MAX_BUFFER_SIZE 65536
#define MAX_BUFFER_MEMORY (64U << 20)

struct connection {
    uint64_t sent;      /* messages submitted to the kernel */
    uint64_t echoed;    /* messages that came back whole */
    uint32_t to_send;   /* messages that may be sent now */
    uint32_t in_flight; /* bytes of the send in flight (depth > 1) */
    uint32_t received;  /* bytes of the incoming message */
    char *messages;     /* `depth` of them; number n lies at n % depth */
    int64_t *sent_at;
};

static struct connection *connections;

static uint32_t header_length(const struct options *options)
{
    return options->size < sizeof(uint64_t) ? options->size : (uint32_t)sizeof(uint64_t);
}

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
    uint32_t place = (uint32_t)(connection->sent % options->depth);
    uint32_t count = connection->to_send;
    if (count > options->depth - place)
        count = options->depth - place;
    char *piece = connection->messages + (uint64_t)place * options->size;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t header = (uint64_t)index << 48 | (connection->sent++ & 0xffffffffffffULL);
        memcpy(piece + (uint64_t)i * options->size, &header, header_length(options));
        connection->sent_at[place + i] = load->now;
    }
    connection->to_send -= count;
    load->side[side_of(load, index)].outstanding += count;

    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    gt_prep_send(sqe, (int)index, piece, count * options->size, MSG_NOSIGNAL | MSG_WAITALL);
    use_registered_file(sqe);
    if (options->depth == 1)
        complete_only_failure(sqe);
    else
        connection->in_flight = count * options->size;
    sqe->user_data = operation_key(TAG_SEND, index);
}

static void check_received(struct load *load, uint32_t index, const char *data, uint32_t length)
{
    const struct options *options = load->options;
    struct connection *connection = &connections[index];
    while (length > 0) {
        uint32_t place = (uint32_t)(connection->echoed % options->depth);
        uint32_t missing = options->size - connection->received;
        uint32_t count = length < missing ? length : missing;
        const char *expected = connection->messages + (uint64_t)place * options->size + connection->received;
        if (connection->echoed == connection->sent)
            fail("connection %u: more came back than was sent", index);
        if (memcmp(data, expected, count) != 0)
            fail("connection %u: message %llu came back changed", index, (unsigned long long)connection->echoed);
        data += count;
        length -= count;
        connection->received += count;
        if (connection->received == options->size) {
            connection->received = 0;
            connection->echoed++;
            connection->to_send++;
            count_answer(load, side_of(load, index), connection->sent_at[place]);
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

static void echo_complete(struct load *load, const struct io_uring_cqe *cqe)
{
    if (operation_tag(cqe) == TAG_RECV)
        received(load, cqe);
    else
        was_sent(load, cqe);
}

static void echo_start(struct load *load, enum side side)
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

static void echo_open(struct load *load)
{
    const struct options *options = load->options;
    uint32_t count = options->connections * load->sides;
    uint64_t bytes = (uint64_t)options->size * options->depth;
    char *messages = allocate(count, bytes);
    int64_t *sent_at = allocate((uint64_t)count * options->depth, sizeof *sent_at);
    int *descriptors = allocate(count, sizeof *descriptors);
    connections = allocate(count, sizeof *connections);
    fill_with_noise(messages, count * bytes);
    for (uint32_t i = 0; i < count; i++) {
        descriptors[i] = connect_to(options, load->side[side_of(load, i)].port, i);
        connections[i] = (struct connection){
            .to_send = options->depth,
            .messages = messages + i * bytes,
            .sent_at = sent_at + (uint64_t)i * options->depth,
        };
    }
    register_files(&load->ring, descriptors, count);
    free(descriptors);
    open_buffers(load);
    for (uint32_t i = 0; i < count; i++)
        receive(load, i);
}

const struct load_kind echo_kind = {.open = echo_open, .start = echo_start, .complete = echo_complete};
