/* http_server PORT [SECONDS [BYTES]]: the reference for measurements of HTTP servers.
 *
 * It does the least that an HTTP server on io_uring can do: see server.h.  A request is whatever ends with an empty line,
 * and every request gets the same answer, with the Date of the current second and BYTES (13) of plain text.  All requests
 * that have come together are answered by one send, from memory that has the answer many times over.
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
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BLOCKS 4
#define BLOCK_LENGTH 65536
#define MAX_HEAD 256
#define MAX_BODY (1 << 30)
#define GREETING "Hello, World!"

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
    struct peer peer;
};

static struct connection connections[MAX_CONNECTIONS];
static struct block blocks[BLOCKS];
static struct block *current;
static time_t current_second;
static uint32_t body_length = sizeof GREETING - 1;
static uint32_t answer_length;
static uint32_t answers_per_block;

static struct peer *peer_of(uint32_t index) { return &connections[index].peer; }
static bool is_sending(uint32_t index) { return connections[index].block; }
static void reset_connection(uint32_t index) { connections[index] = (struct connection){0}; }

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

/* Follow the clock.  Where a send is in flight from every other block, the Date stays old until one is free. */
static void begin_batch(void)
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

static void send_rest(uint32_t index) { send_bytes(index, connections[index].next, connections[index].left); }

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

static void take_data(uint32_t index, const struct io_uring_cqe *cqe)
{
    struct connection *connection = &connections[index];
    const char *data = gt_buffers_data(&ring.buffers, cqe);
    connection->unanswered += count_heads(&connection->matched, data, (uint32_t)cqe->res);
    take_buffer(cqe);
    if (connection->unanswered && !connection->block)
        answer(index);
}

static void take_buffer(const struct io_uring_cqe *cqe) { gt_buffers_recycle(&ring.buffers, cqe); }

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

int main(int count, char **arguments)
{
    if (count < 2 || count > 4)
        fail("usage: http_server PORT [SECONDS [BYTES]]");
    if (count > 3)
        body_length = (uint32_t)parse_integer("BYTES", arguments[3], 0, MAX_BODY);
    open_blocks();
    open_server(count, arguments);
    serve_forever();
}
