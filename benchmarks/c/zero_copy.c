/* zero_copy.c: the CPU time of IORING_OP_SEND_ZC beside IORING_OP_SEND, for the sender on a TCP connection of 127.0.0.1.
 *
 *     zero_copy SIZE BYTES TURNS
 *
 * A child reads and drops; the parent sends BYTES in messages of SIZE, one after the other, by the two operations in turn.
 * The messages lie side by side in 8 MiB that the parent never writes to, so it need not wait for a buffer that the kernel
 * still uses.  A send with zero copy completes twice: once when the kernel has accepted it, as a send does, and once when
 * its buffer is free again.  The parent reaps both completions, because a library must.
 *
 * The program prints one JSON object a turn on stdout, or a reason on stderr with status 1.  `copied` is the share of the
 * messages that the kernel reports to have copied after all.
 */
#define _GNU_SOURCE
#include "load_ring.h"

#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define MEMORY (8U << 20)
#define RECEIVED_AT_ONCE (1U << 20)
#define OPCODE_SEND_ZC 47       /* IORING_OP_SEND_ZC, 6.0; the headers may be older */
#define REPORT_USAGE (1U << 3)  /* IORING_SEND_ZC_REPORT_USAGE, 6.2 */
#define USAGE_COPIED (1U << 31) /* IORING_NOTIF_USAGE_ZC_COPIED */
#define CQE_F_NOTIF (1U << 3)   /* IORING_CQE_F_NOTIF */

enum { NORMAL, ZERO_COPY };

struct count {
    uint64_t notifications;
    uint64_t copied;
};

static struct gt_ring ring;

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        fail("cannot run on CPU %d alone: %s", cpu, strerror(errno));
}

static int64_t cpu_used(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) < 0)
        fail("clock_gettime: %s", strerror(errno));
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

/* Open the two ends of a TCP connection. */
static void open_pair(int *sender, int *receiver)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || *sender < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
        connect(*sender, (struct sockaddr *)&address, length) < 0 || (*receiver = accept(listener, NULL, NULL)) < 0)
        fail("no connection to itself: %s", strerror(errno));
    close(listener);
}

static void receive_for_ever(int fd)
{
    char *buffer = allocate(1, RECEIVED_AT_ONCE);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(1);
    while (recv(fd, buffer, RECEIVED_AT_ONCE, 0) > 0) {}
    _exit(0);
}

/* Reap all completions, and return the number of sends that have completed. */
static uint32_t reap(uint32_t size, struct count *count)
{
    struct io_uring_cqe cqes[BATCH];
    uint32_t done = 0;
    uint32_t reaped = gt_ring_reap(&ring, cqes, BATCH);
    for (uint32_t i = 0; i < reaped; i++) {
        if (cqes[i].flags & CQE_F_NOTIF) {
            count->notifications++;
            count->copied += ((uint32_t)cqes[i].res & USAGE_COPIED) != 0;
        } else if (cqes[i].res < 0) {
            fail("send: %s", strerror(-cqes[i].res));
        } else if ((uint32_t)cqes[i].res != size) {
            fail("a send of %u bytes has sent %d", size, cqes[i].res);
        } else {
            done++;
        }
    }
    return done;
}

static void take_turn(int fd, const char *memory, int kind, uint32_t size, uint64_t messages)
{
    struct count count = {0, 0};
    int64_t cpu = cpu_used(), begun = monotonic_ns();
    for (uint64_t i = 0; i < messages; i++) {
        struct io_uring_sqe *sqe = next_sqe(&ring);
        gt_prep_send(sqe, fd, memory + (i * size) % MEMORY, size, MSG_NOSIGNAL | MSG_WAITALL);
        if (kind == ZERO_COPY) {
            sqe->opcode = OPCODE_SEND_ZC;
            sqe->ioprio = REPORT_USAGE;
        }
        uint32_t done = 0;
        while (done == 0) {
            enter_or_fail(&ring, 10 * NS_PER_SECOND);
            done = reap(size, &count);
        }
    }
    while (kind == ZERO_COPY && count.notifications < messages) {
        enter_or_fail(&ring, 10 * NS_PER_SECOND);
        reap(size, &count);
    }
    int64_t seconds = monotonic_ns() - begun;
    printf("{\"kind\": \"%s\", \"cpu_ns\": %lld, \"ns\": %lld, \"copied\": %.3f}\n",
           kind == ZERO_COPY ? "zero copy" : "send", (long long)(cpu_used() - cpu), (long long)seconds,
           (double)count.copied / (double)messages);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        fail("usage: zero_copy SIZE BYTES TURNS");
    uint32_t size = (uint32_t)parse_integer("a size", argv[1], 1, MEMORY);
    uint64_t messages = (uint64_t)parse_integer("a number of bytes", argv[2], size, 1LL << 40) / size;
    int64_t turns = parse_integer("a number of turns", argv[3], 1, 1000);
    int sender, receiver;
    open_pair(&sender, &receiver);
    pid_t child = fork();
    if (child < 0)
        fail("fork: %s", strerror(errno));
    if (child == 0) {
        close(sender);
        receive_for_ever(receiver);
    }
    close(receiver);
    pin(0);
    open_ring(&ring, 256, 4096);
    char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    memset(memory, 'x', MEMORY);
    for (int64_t turn = 0; turn < 2 * turns; turn++)
        take_turn(sender, memory, turn % 2 ? ZERO_COPY : NORMAL, size, messages);
    return 0;
}
