/* datagram_server PORT [SECONDS]: the reference for measurements of UDP servers.
 *
 * It does the least that a UDP echo server can do: one thread waits in recvmmsg(2), receives up to 64 queued datagrams,
 * and sends all of them back from the same memory by one sendmmsg(2).  That is two system calls a batch.  A ring would save
 * none with one socket.
 *
 * It listens on 127.0.0.1 only, and ends by itself after SECONDS (an hour).
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64
#define LARGEST 65536

static char data[BATCH][LARGEST + 64]; /* 64 more spread the beginnings over the cache */
static struct sockaddr_in sources[BATCH];
static struct iovec pieces[BATCH];
static struct mmsghdr messages[BATCH];

static int open_socket(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("a socket on port %u: %s", port, strerror(errno));
    return fd;
}

static void prepare_to_receive(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        pieces[i] = (struct iovec){.iov_base = data[i], .iov_len = LARGEST};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &sources[i],
            .msg_namelen = sizeof sources[i],
            .msg_iov = &pieces[i],
            .msg_iovlen = 1,
        };
    }
}

static void send_back(int fd, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        pieces[i].iov_len = messages[i].msg_len;
    for (uint32_t sent = 0; sent < count;) {
        int result = sendmmsg(fd, messages + sent, count - sent, 0);
        if (result < 0)
            fail("sendmmsg: %s", strerror(errno));
        sent += (uint32_t)result;
    }
}

int main(int count, char **arguments)
{
    if (count < 2 || count > 3)
        fail("usage: datagram_server PORT [SECONDS]");
    uint16_t port = (uint16_t)parse_integer("PORT", arguments[1], 1, 65535);
    alarm(count == 3 ? (unsigned int)parse_integer("SECONDS", arguments[2], 1, 86400) : 3600);
    int fd = open_socket(port);
    prepare_to_receive(BATCH);
    for (;;) {
        int received = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (received < 0)
            fail("recvmmsg: %s", strerror(errno));
        send_back(fd, (uint32_t)received);
        prepare_to_receive((uint32_t)received);
    }
}
