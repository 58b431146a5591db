/* submission.c: SQEs, from their place in the queue to the kernel; the lowest file of a ring; see ring.h. */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int gt_sys_enter(int fd, unsigned int submit, unsigned int wait, unsigned int flags, void *argument, size_t size)
{
    int result = (int)syscall(__NR_io_uring_enter, fd, submit, wait, flags, argument, size);
    return result < 0 ? -errno : result;
}

int gt_sys_register(int fd, unsigned int opcode, void *argument, unsigned int count)
{
    int result = (int)syscall(__NR_io_uring_register, fd, opcode, argument, count);
    return result < 0 ? -errno : result;
}

int gt_ring_register(struct gt_ring *ring, unsigned int opcode, void *argument, unsigned int count)
{
    return ring->dead ? -EBADF : gt_sys_register(ring->fd, opcode, argument, count);
}

struct io_uring_sqe *gt_ring_sqe(struct gt_ring *ring)
{
    if (ring->dead)
        return NULL;
    if (gt_ring_unsubmitted(ring) >= ring->sq_entries) {
        gt_ring_submit(ring);
        if (gt_ring_unsubmitted(ring) >= ring->sq_entries)
            return NULL;
    }
    struct io_uring_sqe *sqe = &ring->sqes[ring->sq_prepared & ring->sq_mask];
    ring->sq_prepared++;
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

/* A kernel without SUBMIT_ALL stops behind the first SQE that it cannot even prepare (a poll of a descriptor that has been
 * closed, say): that one completes with its error, those behind it stay in the queue, and a wait that was asked for is left
 * out.  It is entered again for the rest.  Each call consumes one SQE at least, or returns an error. */
int gt_ring_submit(struct gt_ring *ring)
{
    if (ring->dead)
        return -EBADF;
    uint32_t count = gt_ring_unsubmitted(ring);
    if (count == 0)
        return 0;
    __atomic_store_n(ring->sq_tail, ring->sq_prepared, __ATOMIC_RELEASE);
    gt_buffers_publish(&ring->buffers);
    int taken = 0, result;
    do {
        ring->enters++;
        result = gt_sys_enter(ring->enter_fd, count, 0, ring->enter_flags, NULL, 0);
        if (result > 0)
            taken += result;
        count = gt_ring_unsubmitted(ring);
    } while (result > 0 && count > 0);
    ring->submissions += (uint32_t)taken;
    return taken > 0 ? taken : result;
}
