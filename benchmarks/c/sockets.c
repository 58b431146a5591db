/* sockets.c: the sockets and the bytes of the generator's connections.
 *
 * Both addresses and both ports identify a connection, and the kernel of the side that closes first reserves that
 * combination for a minute (TIME_WAIT).  From 127.0.0.1 alone that allows 28,000 connections to a server's port per minute,
 * which churn uses up in a few seconds.  All of 127.0.0.0/8 is this machine, so the generator connects from 127.0.0.1 to
 * 127.0.0.250 in turn: seven million combinations.
 */
#define _GNU_SOURCE
#include "load.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#define SOURCE_ADDRESSES 250

static void set_option(int fd, int level, int option)
{
    const int on = 1;
    if (setsockopt(fd, level, option, &on, sizeof on) < 0)
        fail("setsockopt: %s", strerror(errno));
}

int open_socket(uint64_t number, int type)
{
    struct sockaddr_in source = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number % SOURCE_ADDRESSES)),
    };
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    if (type == SOCK_STREAM)
        set_option(fd, IPPROTO_TCP, TCP_NODELAY);
    /* Have connect() choose the port, which must differ only from those of connections to the same server. */
    set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT);
    if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
        fail("bind: %s", strerror(errno));
    return fd;
}

void fill_with_noise(char *memory, uint64_t length)
{
    static uint64_t state = 88172645463325252ULL; /* xorshift64 */
    for (uint64_t i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory[i] = (char)state;
    }
}
