/* churn.c: short connections.
 *
 * Each of `connections` places repeats this: connect, send one message, receive its echo, shut the sending side down, wait
 * for the server to do the same, close.  One round counts as one request, and its latency is that of the whole round.
 *
 * The close is that of a well-behaved client: the server first reads the end of the stream and closes in its own time.  A
 * reset (SO_LINGER of 0) would be cheaper for the generator and would leave no TIME_WAIT behind, but the server would take
 * its error path, which this benchmark does not measure.  The generator has the sockets in TIME_WAIT, because it closes
 * first; sockets.c explains why it does not run out of ports.
 *
 * shutdown(2) is a plain call: as an io_uring operation it always goes through a worker thread.
 */
#define _GNU_SOURCE
#include "load.h"

#include <sys/socket.h>

struct place {
    int fd;
    bool echoed; /* the echo has arrived, and the end of the stream comes next */
    int64_t began;
    char *message;
    char *answer;
};

static struct place *places;
static struct sockaddr_in addresses[SIDES];
static uint64_t opened; /* the number of all connections so far, which chooses the source address */

static void begin(struct load *load, uint32_t index)
{
    struct place *place = &places[index];
    enum side side = side_of(load, index);
    place->fd = open_socket(opened++, SOCK_STREAM);
    place->echoed = false;
    place->began = load->now;
    load->side[side].outstanding++;
    memcpy(place->message, &opened, load->options->size < sizeof opened ? load->options->size : sizeof opened);
    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    prep_connect(sqe, place->fd, (const struct sockaddr *)&addresses[side], sizeof addresses[side]);
    sqe->user_data = operation_key(TAG_CONNECT, index);
}

static void receive(struct load *load, uint32_t index, uint32_t length, uint32_t flags)
{
    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    prep_recv(sqe, places[index].fd, places[index].answer, length, flags);
    sqe->user_data = operation_key(TAG_RECV, index);
}

static void connected(struct load *load, uint32_t index, int result)
{
    const struct place *place = &places[index];
    if (result < 0)
        fail("connect to port %u: %s", load->side[side_of(load, index)].port, strerror(-result));
    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    gt_prep_send(sqe, place->fd, place->message, load->options->size, MSG_NOSIGNAL | MSG_WAITALL);
    complete_only_failure(sqe);
    sqe->user_data = operation_key(TAG_SEND, index);
    receive(load, index, load->options->size, MSG_WAITALL);
}

static void echoed(struct load *load, uint32_t index, int result)
{
    struct place *place = &places[index];
    if (result < 0)
        fail("receive: %s", strerror(-result));
    if ((uint32_t)result != load->options->size)
        fail("the server closed after %d of %u bytes", result, load->options->size);
    if (memcmp(place->message, place->answer, load->options->size) != 0)
        fail("a message came back changed");
    if (shutdown(place->fd, SHUT_WR) < 0)
        fail("shutdown: %s", strerror(errno));
    place->echoed = true;
    receive(load, index, 1, 0);
}

static void ended(struct load *load, uint32_t index, int result)
{
    enum side side = side_of(load, index);
    if (result > 0)
        fail("more came back than was sent");
    if (result < 0)
        fail("waiting for the server to close: %s", strerror(-result));
    struct io_uring_sqe *sqe = next_sqe(&load->ring);
    gt_prep_close(sqe, places[index].fd);
    complete_only_failure(sqe);
    sqe->user_data = operation_key(TAG_CLOSE, index);
    places[index].fd = -1;
    count_answer(load, side, places[index].began);
    if (may_start(load, side))
        begin(load, index);
}

static void churn_complete(struct load *load, const struct io_uring_cqe *cqe)
{
    uint32_t index = operation_index(cqe);
    switch (operation_tag(cqe)) {
    case TAG_CONNECT:
        connected(load, index, cqe->res);
        break;
    case TAG_RECV:
        if (places[index].echoed)
            ended(load, index, cqe->res);
        else
            echoed(load, index, cqe->res);
        break;
    default:
        fail("send or close: %s", strerror(-cqe->res)); /* these operations complete only when they fail */
    }
}

static void churn_start(struct load *load, enum side side)
{
    uint32_t first = side * load->options->connections;
    for (uint32_t i = 0; i < load->options->connections; i++)
        if (places[first + i].fd < 0)
            begin(load, first + i);
}

static void churn_open(struct load *load)
{
    const struct options *options = load->options;
    uint32_t count = options->connections * load->sides;
    char *messages = allocate(count, options->size);
    char *answers = allocate(count, options->size);
    places = allocate(count, sizeof *places);
    fill_with_noise(messages, (uint64_t)count * options->size);
    for (uint32_t i = 0; i < count; i++)
        places[i] = (struct place){
            .fd = -1,
            .message = messages + (uint64_t)i * options->size,
            .answer = answers + (uint64_t)i * options->size,
        };
    for (uint32_t side = 0; side < load->sides; side++)
        addresses[side] = (struct sockaddr_in){
            .sin_family = AF_INET,
            .sin_port = htons(load->side[side].port),
            .sin_addr = options->host,
        };
}

const struct load_kind churn_kind = {.open = churn_open, .start = churn_start, .complete = churn_complete};
