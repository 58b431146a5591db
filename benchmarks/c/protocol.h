/* protocol.h: what the messages of a protocol look like.
 *
 * connections.c keeps `depth` messages in flight on every connection, whatever they are.  A protocol writes a message before
 * it is sent, and reads its answer.  The server under test and the reference may speak different ones.
 *
 * A message has the same length on all connections of a side.  It lies in memory of its connection's until its answer is
 * complete, so a protocol may compare the two.
 */
#ifndef BENCH_PROTOCOL_H
#define BENCH_PROTOCOL_H

#include "load.h"

struct protocol {
    /* Once a side, before its connections are open.  Returns the bytes of a message. */
    uint32_t (*open)(const struct load *load, enum side side);
    /* Fill the memory of all messages of a side, once. */
    void (*fill)(enum side side, char *messages, uint64_t count);
    /* A connection is open, and in blocking mode: exchange what comes before the first message.  NULL for nothing. */
    void (*greet)(const struct load *load, uint32_t index, int fd);
    /* Message `number` of connection `index` is about to be sent. */
    void (*write)(enum side side, uint32_t index, uint64_t number, char *message);
    /* Bytes have come while `message` waits for its answer.  Returns how many of them, at least 1, belong to the answer, and
     * sets `complete` with the last of them.  `received` has the bytes of the answer that were read before. */
    uint32_t (*read)(enum side side, uint32_t index, const char *message, uint32_t received, const char *data,
                     uint32_t length, bool *complete);
};

extern const struct protocol echo_protocol;      /* echo.c */
extern const struct protocol http_protocol;      /* http.c */
extern const struct protocol websocket_protocol; /* websocket.c */

#endif
