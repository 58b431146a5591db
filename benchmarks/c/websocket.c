/* websocket.c: the protocol of a WebSocket server that echoes binary messages (RFC 6455).
 *
 * A message is one frame, masked as a client's frames have to be, and its echo one frame without a mask.  As in echo.c the
 * payload has the numbers of its connection and its own, then noise, and all of an echo is compared.  The generator offers
 * no extension, so no server compresses.
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <stdio.h>
#include <sys/time.h>

#define FRAME_BINARY 0x82 /* FIN, opcode 2 */
#define MASK_BIT 0x80
#define MASK_LENGTH 4
#define MAX_HEADER 10 /* without the mask */
#define MAX_ANSWER 4096
#define PATIENCE_SECONDS 5
/* The key of RFC 6455's example, and the answer to it.  It need not be random here, as no browser and no proxy takes part. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

static uint32_t payload;
static uint8_t header[MAX_HEADER]; /* of an echo; that of a message has the mask bit, too */
static uint32_t header_length;

static uint32_t websocket_open(const struct load *load, enum side side)
{
    (void)side;
    payload = load->options->size;
    header[0] = FRAME_BINARY;
    uint32_t length_bytes = payload < 126 ? 0 : payload < 65536 ? 2 : 8;
    header[1] = (uint8_t)(length_bytes == 0 ? payload : length_bytes == 2 ? 126 : 127);
    header_length = 2 + length_bytes;
    for (uint32_t i = 0; i < length_bytes; i++)
        header[2 + i] = (uint8_t)((uint64_t)payload >> 8 * (length_bytes - 1 - i));
    return header_length + MASK_LENGTH + payload;
}

/* The noise is the mask and the payload as it is sent; unmasked it is noise, too. */
static void websocket_fill(enum side side, char *messages, uint64_t count)
{
    uint32_t length = header_length + MASK_LENGTH + payload;
    (void)side;
    fill_with_noise(messages, count * length);
    for (uint64_t i = 0; i < count; i++) {
        memcpy(messages + i * length, header, header_length);
        messages[i * length + 1] = (char)(header[1] | MASK_BIT);
    }
}

static void websocket_write(enum side side, uint32_t index, uint64_t number, char *message)
{
    uint64_t head = (uint64_t)index << 48 | (number & 0xffffffffffffULL);
    const char *mask = message + header_length;
    char *place = message + header_length + MASK_LENGTH;
    (void)side;
    for (uint32_t i = 0; i < sizeof head && i < payload; i++)
        place[i] = (char)((uint8_t)(head >> 8 * i) ^ (uint8_t)mask[i % MASK_LENGTH]);
}

static uint32_t websocket_read(enum side side, uint32_t index, const char *message, uint32_t received, const char *data,
                               uint32_t length, bool *complete)
{
    const char *mask = message + header_length;
    const char *sent = message + header_length + MASK_LENGTH;
    uint32_t used = 0;
    (void)side;
    for (; used < length && received + used < header_length; used++)
        if ((uint8_t)data[used] != header[received + used])
            fail("connection %u: byte %u of a frame is 0x%02x instead of 0x%02x", index, received + used,
                 (uint8_t)data[used], header[received + used]);
    if (received + used < header_length)
        return used;
    uint32_t position = received + used - header_length;
    uint32_t count = length - used < payload - position ? length - used : payload - position;
    uint8_t difference = 0;
    for (uint32_t i = 0; i < count; i++)
        difference |= (uint8_t)(data[used + i] ^ sent[position + i] ^ mask[(position + i) % MASK_LENGTH]);
    if (difference)
        fail("connection %u: a message came back changed", index);
    *complete = position + count == payload;
    return used + count;
}

static void set_patience(int fd, time_t seconds)
{
    struct timeval patience = {.tv_sec = seconds};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0)
        fail("setsockopt: %s", strerror(errno));
}

static void websocket_greet(const struct load *load, uint32_t index, int fd)
{
    char text[MAX_ANSWER + 1];
    size_t length =
        (size_t)snprintf(text, sizeof text,
                         "GET /websocket HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUpgrade: websocket\r\n"
                         "Connection: Upgrade\r\nSec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n\r\n",
                         load->options->port);
    if (send(fd, text, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("connection %u: the handshake was not sent", index);
    set_patience(fd, PATIENCE_SECONDS);
    length = 0;
    /* The server is silent after its answer, so nothing but the answer can come. */
    while (length < 4 || memcmp(text + length - 4, "\r\n\r\n", 4) != 0) {
        ssize_t count = length < MAX_ANSWER ? recv(fd, text + length, MAX_ANSWER - length, 0) : 0;
        if (count <= 0)
            fail("connection %u: no answer to the handshake", index);
        length += (size_t)count;
    }
    text[length] = '\0';
    if (strncmp(text, "HTTP/1.1 101 ", 13) != 0 || !strstr(text, ACCEPT "\r\n"))
        fail("connection %u: the handshake failed: %s", index, text);
    set_patience(fd, 0);
}

const struct protocol websocket_protocol = {
    .open = websocket_open,
    .fill = websocket_fill,
    .greet = websocket_greet,
    .write = websocket_write,
    .read = websocket_read,
};
