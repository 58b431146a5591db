/* transfer_load.c: one large transfer with a server on this machine, and the CPU time that it costs the server.
 *
 *     transfer_load ADDRESS PID DIRECTION BYTES
 *
 * ADDRESS is the number of a TCP port of 127.0.0.1, or the path of a Unix socket.  The request is the first letter of the
 * direction and the number of bytes in eight bytes, highest first:
 *
 *     up      the client sends the bytes, and the server answers with one byte when it has them all
 *     down    the server sends the bytes from its memory
 *     file    the server sends the bytes from its file
 *
 * The generator must be faster than any server, so it uses one connection, blocking calls, and 1 MiB a call.  For the same
 * reason it counts the bytes from a server and compares only the first of every 64 KiB; the tests compare all bytes.
 *
 * The program prints one JSON object on stdout, or a reason on stderr with status 1.
 */
#define _GNU_SOURCE
#include "common.h"
#include "cpu.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PIECE (1U << 20)
#define STRIDE 65536U              /* servers send 'x' at every multiple of this */
#define SETTLE_NS (20 * NS_PER_MS) /* the measurement includes the server's work after its last byte */
#define PATIENCE_SECONDS 60

static int connect_to(const char *address)
{
    const struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bool is_path = strchr(address, '/') != NULL;
    if (is_path) {
        if (strlen(address) >= sizeof local.sun_path)
            fail("%s: the path is too long", address);
        strcpy(local.sun_path, address);
    } else {
        inet.sin_port = htons((uint16_t)parse_integer("a port", address, 1, 65535));
    }
    int fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0)
        fail("socket: %s", strerror(errno));
    const struct sockaddr *to = is_path ? (const struct sockaddr *)&local : (const struct sockaddr *)&inet;
    if (connect(fd, to, is_path ? sizeof local : sizeof inet) < 0)
        fail("connect to %s: %s", address, strerror(errno));
    return fd;
}

static void send_all(int fd, const char *data, uint64_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            fail("send: %s", strerror(errno));
        data += sent;
        length -= (uint64_t)sent;
    }
}

static void request(int fd, char direction, uint64_t bytes)
{
    char header[9] = {direction};
    for (int i = 0; i < 8; i++)
        header[1 + i] = (char)(bytes >> (56 - 8 * i));
    send_all(fd, header, sizeof header);
}

static void upload(int fd, char *memory, uint64_t bytes)
{
    char answer;
    for (uint64_t left = bytes; left > 0;) {
        uint64_t piece = left < PIECE ? left : PIECE;
        send_all(fd, memory, piece);
        left -= piece;
    }
    if (recv(fd, &answer, 1, 0) != 1)
        fail("the server did not answer: %s", strerror(errno));
}

static void download(int fd, char *memory, uint64_t bytes)
{
    uint64_t received = 0;
    while (received < bytes) {
        ssize_t length = recv(fd, memory, PIECE, 0);
        if (length <= 0)
            fail("the stream ended after %llu of %llu bytes: %s", (unsigned long long)received,
                 (unsigned long long)bytes, length ? strerror(errno) : "no error");
        uint64_t skip = (STRIDE - received % STRIDE) % STRIDE;
        for (uint64_t i = skip; i < (uint64_t)length; i += STRIDE)
            if (memory[i] != 'x')
                fail("a byte is not what was to be sent");
        received += (uint64_t)length;
    }
    if (received > bytes)
        fail("the server sent more than it was asked for");
}

int main(int count, char **arguments)
{
    if (count != 5)
        fail("usage: transfer_load PORT|PATH PID up|down|file BYTES");
    const char *direction = arguments[3];
    if (strcmp(direction, "up") != 0 && strcmp(direction, "down") != 0 && strcmp(direction, "file") != 0)
        fail("a direction is up, down or file, not '%s'", direction);
    uint64_t bytes = (uint64_t)parse_integer("BYTES", arguments[4], 1, INT64_MAX);
    char *memory = allocate(PIECE, 1);
    memset(memory, 'x', PIECE);
    struct watched_process server;
    cpu_watch(&server, (pid_t)parse_integer("a process", arguments[2], 1, INT32_MAX));
    int fd = connect_to(arguments[1]);
    const struct cpu_split split_before = cpu_split(&server);
    int64_t used = -cpu_used_ns(&server), began = monotonic_ns();
    request(fd, direction[0], bytes);
    if (direction[0] == 'u')
        upload(fd, memory, bytes);
    else
        download(fd, memory, bytes);
    double seconds = (double)(monotonic_ns() - began) / (double)NS_PER_SECOND;
    close(fd);
    nanosleep(&(struct timespec){.tv_nsec = SETTLE_NS}, NULL);
    used += cpu_used_ns(&server);
    const struct cpu_split split = cpu_split(&server);
    double user = split.user - split_before.user, system = split.system - split_before.system;
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"user_seconds\": %.2f, \"system_seconds\": "
           "%.2f}\n",
           (unsigned long long)bytes, seconds, (double)used / 1e9, user, system);
    if (fflush(stdout) != 0)
        fail("stdout: %s", strerror(errno));
    return 0;
}
