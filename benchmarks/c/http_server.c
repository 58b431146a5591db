/* http_server PORT [SECONDS [BYTES]]: the reference for measurements of HTTP servers.
 *
 * It does the least that an HTTP server on io_uring can do: one thread; multishot accept straight into the table of
 * registered files; one multishot receive per connection into buffers that the kernel fills incrementally.  A request is
 * whatever ends with an empty line, and every request gets the same answer, with the Date of the current second and BYTES
 * (13) of plain text.  All requests that have come together are answered by one send, from memory that has the answer many
 * times over.
 *
 * That memory changes once a second, when the Date does, and never while the kernel may read it: it is a *block*, and the
 * next Date is written into a block that no send is in flight from.  Answers of more than a block's usual length are sent
 * one by one, and keep the Date of the program's start, so that copying them again is not part of what is measured.
 *
 * It is a reference, not an example: it reads no request line, field or body, and a peer that sends without reading is
 * answered later, and never refused.  It listens on 127.0.0.1 only, and ends by itself after SECONDS (an hour).  It needs
 * Linux 6.12.
 */
#define _GNU_SOURCE
#include "load_ring.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 16384
#define BUFFERS 128
#define BUFFER_SIZE 65536
#define BACKLOG 4096
#define BLOCKS 4
#define BLOCK_LENGTH 65536
#define MAX_HEAD 256
#define MAX_BODY (1 << 30)
#define GREETING "Hello, World!"

enum server_tag { TAG_ACCEPT = 1, TAG_RECV, TAG_SEND, TAG_CLOSE };

struct block {
    char *answers; /* `answers_per_block` of them, one after the other */
    uint32_t sends;
};

struct connection {
    uint64_t unanswered; /* requests */
    struct block *block; /* that the send in flight is from; NULL: none is */
    const char *next;    /* bytes of that send */
    uint32_t left;
    uint8_t matched; /* how much of the end of a head the bytes so far end with */
    bool receiving;
    bool closing;
};

static struct gt_ring ring;
static struct connection connections[MAX_CONNECTIONS];
static uint32_t starved[MAX_CONNECTIONS]; /* connections whose receive ended because no buffer was free */
static uint32_t starved_count;
static int listener;
static bool table_full; /* accepting waits until a connection is closed */

static struct block blocks[BLOCKS];
static struct block *current;
static time_t current_second;
static uint32_t body_length = sizeof GREETING - 1;
static uint32_t answer_length;
static uint32_t answers_per_block;

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

static uint32_t format_head(char head[MAX_HEAD], time_t second)
{
    struct tm utc;
    char date[40];
    if (!gmtime_r(&second, &utc) || !strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc))
        fail("no date for %lld", (long long)second);
    return (uint32_t)snprintf(head, MAX_HEAD,
                              "HTTP/1.1 200 OK\r\nServer: c\r\nDate: %s\r\nContent-Type: text/plain\r\n"
                              "Content-Length: %u\r\n\r\n",
                              date, body_length);
}

/* Every Date has the same length, so all heads have. */
static void write_block(struct block *block, time_t second)
{
    char head[MAX_HEAD];
    uint32_t head_length = format_head(head, second);
    for (uint32_t i = 0; i < answers_per_block; i++)
        memcpy(block->answers + (size_t)i * answer_length, head, head_length);
}

static void open_blocks(void)
{
    char head[MAX_HEAD];
    current_second = time(NULL);
    uint32_t head_length = format_head(head, current_second);
    answer_length = head_length + body_length;
    answers_per_block = answer_length < BLOCK_LENGTH ? BLOCK_LENGTH / answer_length : 1;
    for (uint32_t i = 0; i < (answer_length < BLOCK_LENGTH ? BLOCKS : 1); i++) {
        blocks[i].answers = allocate(answers_per_block, answer_length);
        for (uint32_t j = 0; j < answers_per_block; j++)
            for (uint32_t k = 0; k < body_length; k++)
                blocks[i].answers[(size_t)j * answer_length + head_length + k] = GREETING[k % (sizeof GREETING - 1)];
    }
    current = &blocks[0];
    write_block(current, current_second);
}

/* Called once a batch.  Where a send is in flight from every other block, the Date stays old until one is free. */
static void follow_clock(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME_COARSE, &now) < 0)
        fail("clock_gettime: %s", strerror(errno));
    if (now.tv_sec == current_second || answer_length >= BLOCK_LENGTH)
        return;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (blocks[i].sends == 0) {
            current = &blocks[i];
            current_second = now.tv_sec;
            write_block(current, current_second);
            return;
        }
    }
}

static void send_rest(uint32_t index)
{
    struct io_uring_sqe *sqe = next_sqe(&ring);
    gt_prep_send(sqe, (int)index, connections[index].next, connections[index].left, MSG_NOSIGNAL | MSG_WAITALL);
    use_registered_file(sqe);
    sqe->user_data = operation_key(TAG_SEND, index);
}

static void answer(uint32_t index)
{
    struct connection *connection = &connections[index];
    uint64_t unanswered = connection->unanswered;
    uint32_t count = unanswered < answers_per_block ? (uint32_t)unanswered : answers_per_block;
    connection->unanswered -= count;
    connection->block = current;
    connection->next = current->answers;
    connection->left = count * answer_length;
    current->sends++;
    send_rest(index);
}

static void close_if_done(uint32_t index)
{
    const struct connection *connection = &connections[index];
    if (!connection->closing || connection->receiving || connection->block)
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

/* The number of heads that end in these bytes.  `matched` keeps the state from one piece of the stream to the next. */
static uint32_t count_heads(uint8_t *matched, const char *data, uint32_t length)
{
    static const char ending[] = "\r\n\r\n";
    uint32_t heads = 0, i = 0;
    while (i < length) {
        if (*matched == 0) {
            const char *found = memchr(data + i, '\r', length - i);
            if (!found)
                break;
            i = (uint32_t)(found - data) + 1;
            *matched = 1;
        } else if (data[i] == ending[*matched]) {
            i++;
            if (++*matched == 4) {
                heads++;
                *matched = 0;
            }
        } else {
            *matched = data[i++] == '\r';
        }
    }
    return heads;
}

static void got_data(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    const char *data = gt_buffers_data(&ring.buffers, cqe);
    connection->unanswered += count_heads(&connection->matched, data, (uint32_t)cqe->res);
    gt_buffers_recycle(&ring.buffers, cqe);
    if (connection->unanswered && !connection->block)
        answer(index);
    if (gt_completion_is_final(cqe))
        receive(index);
}

static void receive_ended(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    if (cqe->flags & IORING_CQE_F_BUFFER)
        gt_buffers_recycle(&ring.buffers, cqe);
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
    if (result >= 0 && (uint32_t)result < connection->left) {
        connection->next += result;
        connection->left -= (uint32_t)result;
        send_rest(index);
        return;
    }
    connection->block->sends--;
    connection->block = NULL;
    if (result < 0) /* the peer is gone, and the receive will report it */
        connection->unanswered = 0;
    if (connection->unanswered)
        answer(index);
    else
        close_if_done(index);
}

static void accepted(const struct io_uring_cqe *cqe)
{
    bool final = gt_completion_is_final(cqe);
    if (cqe->res >= 0) {
        connections[cqe->res] = (struct connection){0};
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

/* Buffers are given back while a batch is handled, so by now there are some. */
static void feed_starved(void)
{
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
    if (count < 2 || count > 4)
        fail("usage: http_server PORT [SECONDS [BYTES]]");
    uint16_t port = (uint16_t)parse_integer("PORT", arguments[1], 1, 65535);
    alarm(count > 2 ? (unsigned int)parse_integer("SECONDS", arguments[2], 1, 86400) : 3600);
    if (count > 3)
        body_length = (uint32_t)parse_integer("BYTES", arguments[3], 0, MAX_BODY);
    open_blocks();
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
        follow_clock();
        do {
            reaped = gt_ring_reap(&ring, batch, BATCH);
            for (uint32_t i = 0; i < reaped; i++)
                handle(&batch[i]);
        } while (reaped == BATCH);
        feed_starved();
    }
}
