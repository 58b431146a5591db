/* http.c: the protocol of an HTTP server: one request, again and again, and answers that are all alike.
 *
 * --request names a file with the request.  Eight '#' in it, where there are any, become a number that is new in each
 * request: a server that remembers fields has to read that one.  answer.c reads the answers.
 */
#define _GNU_SOURCE
#include "protocol.h"

#include "answer.h"

#include <fcntl.h>
#include <unistd.h>

#define MAX_REQUEST 65536
#define PLACE "########"

static char request[MAX_REQUEST];
static uint32_t request_length;
static int64_t place = -1; /* of the number in the request; -1: none */
static struct answer_model models[SIDES];
static struct answer_reader *readers;

uint32_t read_request(const char *path, const char **text)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail("%s: %s", path, strerror(errno));
    ssize_t length = read(fd, request, sizeof request);
    close(fd);
    if (length <= 0 || (size_t)length == sizeof request)
        fail("%s must have 1 to %d bytes", path, MAX_REQUEST - 1);
    *text = request;
    return (uint32_t)length;
}

static uint32_t http_open(const struct load *load, enum side side)
{
    const char *text;
    (void)side;
    if (!readers) {
        request_length = read_request(load->options->request, &text);
        const char *found = memmem(request, request_length, PLACE, strlen(PLACE));
        place = found ? found - request : -1;
        readers = allocate((uint64_t)load->options->connections * load->sides, sizeof *readers);
    }
    return request_length;
}

static void http_fill(enum side side, char *messages, uint64_t count)
{
    (void)side;
    for (uint64_t i = 0; i < count; i++)
        memcpy(messages + i * request_length, request, request_length);
}

static void http_write(enum side side, uint32_t index, uint64_t number, char *message)
{
    static const char digits[] = "0123456789abcdef";
    static uint32_t serial;
    (void)side, (void)index, (void)number;
    if (place < 0)
        return;
    serial++;
    for (uint32_t i = 0; i < strlen(PLACE); i++)
        message[place + i] = digits[serial >> (28 - 4 * i) & 15];
}

static uint32_t http_read(enum side side, uint32_t index, const char *message, uint32_t received, const char *data,
                          uint32_t length, bool *complete)
{
    (void)message, (void)received;
    return answer_read(&readers[index], &models[side], data, length, complete);
}

const struct protocol http_protocol = {
    .open = http_open,
    .fill = http_fill,
    .write = http_write,
    .read = http_read,
};
