/* load_ring.h: the parts of io_uring that the benchmark programs use beyond the library's own ring.h.
 *
 * ring.h serves a library that owns its descriptors one by one.  A load generator and a reference server can do more: they
 * know their descriptors beforehand, so they register them with the ring (which saves a lookup and a reference count per
 * operation), and they suppress the completions of successful sends.
 *
 * Neither program uses ring.h's slots: a connection here lives as long as the program, or counts its own operations.  A tag
 * and the index of a connection identify an operation.
 */
#ifndef BENCH_LOAD_RING_H
#define BENCH_LOAD_RING_H

#include "common.h"
#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 256 /* CQEs copied out of the ring at a time */

static inline uint64_t operation_key(uint32_t tag, uint32_t index) { return (uint64_t)tag << 32 | index; }
static inline uint32_t operation_tag(const struct io_uring_cqe *cqe) { return (uint32_t)(cqe->user_data >> 32); }
static inline uint32_t operation_index(const struct io_uring_cqe *cqe) { return (uint32_t)cqe->user_data; }

/* The next SQE, zeroed; the caller sets its user_data. */
static inline struct io_uring_sqe *next_sqe(struct gt_ring *ring)
{
    struct io_uring_sqe *sqe = gt_ring_sqe(ring);
    if (!sqe)
        fail("the kernel takes no more submissions");
    return sqe;
}

/* Submit and wait; a wait may end without a completion. */
static inline void enter_or_fail(struct gt_ring *ring, int64_t timeout_ns)
{
    int result = gt_ring_enter(ring, timeout_ns);
    if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY)
        fail("io_uring_enter: %s", strerror(-result));
}

/* sqe->fd is the index of a registered file */
static inline void use_registered_file(struct io_uring_sqe *sqe) { sqe->flags |= IOSQE_FIXED_FILE; }

/* Suppress the completion unless the operation fails (5.17). */
static inline void complete_only_failure(struct io_uring_sqe *sqe) { sqe->flags |= IOSQE_CQE_SKIP_SUCCESS; }

/* The kernel puts accepted connections into free places of the table of registered files, without descriptors (6.0). */
static inline void prep_accept_registered(struct io_uring_sqe *sqe, int listener)
{
    gt_prep_accept_multishot(sqe, listener, 0);
    sqe->file_index = IORING_FILE_INDEX_ALLOC;
}

static inline void prep_close_registered(struct io_uring_sqe *sqe, uint32_t index)
{
    sqe->opcode = IORING_OP_CLOSE;
    sqe->file_index = index + 1; /* 0 means that the file is not registered */
}

static inline void prep_recv(struct io_uring_sqe *sqe, int fd, void *buffer, uint32_t length, uint32_t msg_flags)
{
    sqe->opcode = IORING_OP_RECV;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)buffer;
    sqe->len = length;
    sqe->msg_flags = msg_flags;
}

static inline void prep_connect(struct io_uring_sqe *sqe, int fd, const struct sockaddr *address, socklen_t length)
{
    sqe->opcode = IORING_OP_CONNECT;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)address;
    sqe->off = length;
}

/* An operation that completes with -ETIME once `after` has passed. */
static inline void prep_timeout(struct io_uring_sqe *sqe, const struct __kernel_timespec *after)
{
    sqe->opcode = IORING_OP_TIMEOUT;
    sqe->fd = -1;
    sqe->addr = (uint64_t)(uintptr_t)after;
    sqe->len = 1;
}

static inline void register_files(struct gt_ring *ring, const int *descriptors, uint32_t count)
{
    int result = gt_ring_register(ring, IORING_REGISTER_FILES, (void *)(uintptr_t)descriptors, count);
    if (result < 0)
        fail("registering %u files: %s", count, strerror(-result));
}

/* Register a table of files with free places only (5.19). */
static inline void register_empty_files(struct gt_ring *ring, uint32_t count)
{
    struct io_uring_rsrc_register table = {.nr = count, .flags = IORING_RSRC_REGISTER_SPARSE};
    int result = gt_ring_register(ring, IORING_REGISTER_FILES2, &table, sizeof table);
    if (result < 0)
        fail("registering a table of %u files: %s", count, strerror(-result));
}

static inline void open_ring(struct gt_ring *ring, uint32_t entries, uint32_t completion_entries)
{
    struct gt_ring_options options = {
        .entries = entries,
        .completion_entries = completion_entries,
        .unwanted = GT_FEATURE_REGISTERED_FILES, /* a ring has one table of them, and these programs have their own */
    };
    int result = gt_ring_open(ring, &options);
    if (result < 0)
        fail("io_uring_setup: %s (Linux 6.1 is needed)", strerror(-result));
    if (!(ring->features & GT_FEATURE_DEFER_TASKRUN))
        fail("this kernel's io_uring is too old for the benchmarks (Linux 6.1 is needed)");
}

#endif
