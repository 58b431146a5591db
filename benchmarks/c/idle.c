/* idle.c: many idle connections, for measuring the memory that a connection costs a server.
 *
 * The program opens each connection and exchanges one message on it (an echo, or an HTTP request and its answer) before it
 * opens the next, so the server has accepted it, started its handler and parked that in a receive.  Then the program prints a line of JSON on stdout, and keeps the
 * connections open until stdin ends or the time is over.  It measures nothing itself, so it uses plain blocking calls.
 */
#define _GNU_SOURCE
#include "answer.h"
#include "load.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define PATIENCE_SECONDS 5

static void transfer_all(const char *what, ssize_t (*transfer)(int, char *, size_t), int fd, char *data, size_t length)
{
    while (length > 0) {
        ssize_t count = transfer(fd, data, length);
        if (count == 0)
            fail("%s: closed by the server", what);
        if (count < 0 && errno != EINTR)
            fail("%s: %s", what, errno == EAGAIN ? "nothing came" : strerror(errno));
        if (count > 0) {
            data += count;
            length -= (size_t)count;
        }
    }
}

static ssize_t send_some(int fd, char *data, size_t length) { return send(fd, data, length, MSG_NOSIGNAL); }
static ssize_t recv_some(int fd, char *data, size_t length) { return recv(fd, data, length, 0); }

/* One message to exchange, the same on each connection. */
struct exchange {
    const char *message;
    uint32_t length;
    char *answer;              /* room for an echo */
    struct answer_model model; /* of an HTTP server's answers */
};

static void receive_echo(const struct exchange *exchange, uint32_t number, int fd)
{
    transfer_all("receive", recv_some, fd, exchange->answer, exchange->length);
    if (memcmp(exchange->message, exchange->answer, exchange->length) != 0)
        fail("connection %u: the message came back changed", number);
}

static void receive_answer(struct exchange *exchange, uint32_t number, int fd)
{
    static struct answer_reader reader; /* at its beginning again after each answer */
    bool complete = false;
    while (!complete) {
        char data[4096];
        ssize_t count = recv(fd, data, sizeof data, 0);
        if (count <= 0)
            fail("connection %u: no answer", number);
        if (answer_read(&reader, &exchange->model, data, (uint32_t)count, &complete) != (uint32_t)count)
            fail("connection %u: more came back than one answer", number);
    }
}

/* Returns the descriptor, which stays open until the program ends. */
static int open_one(const struct options *options, uint32_t number, struct exchange *exchange)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options->port), .sin_addr = options->host};
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int fd = open_socket(number, SOCK_STREAM);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0)
        fail("setsockopt: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect to port %u: %s", options->port, strerror(errno));
    transfer_all("send", send_some, fd, (char *)(uintptr_t)exchange->message, exchange->length);
    if (options->request)
        receive_answer(exchange, number, fd);
    else
        receive_echo(exchange, number, fd);
    return fd;
}

/* A server that has closed one meanwhile was not measured with all of them. */
static void check_open(const int *descriptors, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        char ignored;
        ssize_t result = recv(descriptors[i], &ignored, 1, MSG_DONTWAIT);
        if (result >= 0 || errno != EAGAIN)
            fail("connection %u: %s", i, result > 0 ? "more came than the answer" : "closed by the server");
    }
}

static void prepare(struct exchange *exchange, const struct options *options)
{
    if (options->request) {
        exchange->length = read_request(options->request, &exchange->message);
        return;
    }
    char *message = allocate(1, options->size);
    fill_with_noise(message, options->size);
    exchange->message = message;
    exchange->length = options->size;
    exchange->answer = allocate(1, options->size);
}

void hold_idle_connections(const struct options *options)
{
    uint64_t limit = raise_open_file_limit();
    if (options->idle + 16 > limit)
        fail("%u connections need more than the %llu files that may be open", options->idle, (unsigned long long)limit);
    static struct exchange exchange;
    int *descriptors = allocate(options->idle, sizeof *descriptors);
    prepare(&exchange, options);
    int64_t end = monotonic_ns() + options->duration_ns;
    for (uint32_t i = 0; i < options->idle; i++) {
        if (monotonic_ns() > end)
            fail("only %u of %u connections were open when the time was over", i, options->idle);
        descriptors[i] = open_one(options, i, &exchange);
    }
    printf("{\"connections\": %u}\n", options->idle);
    if (fflush(stdout) != 0)
        fail("stdout: %s", strerror(errno));
    for (;;) {
        char ignored[64];
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        int64_t left_ms = (end - monotonic_ns()) / NS_PER_MS;
        if (left_ms <= 0 || poll(&input, 1, (int)left_ms) == 0)
            fail("stdin did not end in time");
        if (input.revents && read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
            break;
    }
    check_open(descriptors, options->idle);
}
