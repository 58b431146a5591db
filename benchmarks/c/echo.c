/* echo.c: the protocol of an echo server: the answer is the message.
 *
 * A message has the number of its connection and its own in the first eight bytes (fewer if messages are shorter), then
 * noise that depends on its place in the connection's memory.  The generator compares all of every echo: a single byte that
 * is lost, duplicated, changed or sent to the wrong connection ends the run without a result.
 */
#define _GNU_SOURCE
#include "protocol.h"

static uint32_t size;

static uint32_t echo_open(const struct load *load, enum side side)
{
    (void)side;
    size = load->options->size;
    return size;
}

static void echo_fill(enum side side, char *messages, uint64_t count)
{
    (void)side;
    fill_with_noise(messages, count * size);
}

static void echo_write(enum side side, uint32_t index, uint64_t number, char *message)
{
    uint64_t header = (uint64_t)index << 48 | (number & 0xffffffffffffULL);
    (void)side;
    memcpy(message, &header, size < sizeof header ? size : sizeof header);
}

static uint32_t echo_read(enum side side, uint32_t index, const char *message, uint32_t received, const char *data,
                          uint32_t length, bool *complete)
{
    uint32_t missing = size - received;
    uint32_t count = length < missing ? length : missing;
    (void)side;
    if (memcmp(data, message + received, count) != 0)
        fail("connection %u: a message came back changed", index);
    *complete = count == missing;
    return count;
}

const struct protocol echo_protocol = {
    .open = echo_open,
    .fill = echo_fill,
    .write = echo_write,
    .read = echo_read,
};
