/* ring.h: one io_uring, in plain C.
 *
 * Mechanism only: this layer sets a ring up, hands out SQEs, enters the kernel, reaps CQEs, and keeps the books that make
 * it safe to do so.  It knows nothing of Python.  Both compiled modules and the C benchmark programs are built on it.
 *
 * Words: an *operation* lives from prep to its final CQE (one without IORING_CQE_F_MORE).  A *slot* is what operations are
 * in flight on: a connection, or a single poll or accept.  A *key* is the 64-bit user_data that names an operation:
 *
 *      63            32 31    28 27                     0
 *     +----------------+--------+------------------------+
 *     |   generation   |  tag   |       slot index       |
 *     +----------------+--------+------------------------+
 *
 * The tag distinguishes the operations of one slot (its receive, its send, the cancel of either).  The generation is counted
 * up whenever a slot is freed (and is never 0), so a completion for the slot's former owner is recognised and dropped, and never
 * reaches the new one.  A slot is freed only when nothing is in flight on it: its owner calls gt_slot_retire() after every completion
 * once it is done with the slot, and gives back its memory when that returns true.
 *
 * Threads: a ring belongs to the thread that opened it, whether the kernel enforces that (SINGLE_ISSUER) or not.  Only
 * gt_ring_forget() may be called from elsewhere, namely from the child of a fork.
 *
 * Kernels: everything newer than Linux 5.11 is optional.  What a ring has is in its `features`; with all of it the fast
 * path's connections can run on it, and with none of it there are still POLL_ADD, cancel and a wait with a timeout.
 *
 * Errors are returned as negative errno, as the kernel does.
 */
#ifndef GAIN_TRIO_RING_H
#define GAIN_TRIO_RING_H

#include "abi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct msghdr; /* <sys/socket.h> */

#define GT_RING_MAGIC 0x67742d72696e6737ULL /* "gt-ring7": changes with the layout of struct gt_ring */
#define GT_NO_SLOT UINT32_MAX
#define GT_NO_TIMEOUT INT64_MAX
#define GT_MAX_SLOTS (1U << 20)

/* Features that a kernel may have.  Each is found out by trying it; an unwanted one is not tried. */
enum gt_feature {
    GT_FEATURE_NO_SQARRAY = 1 << 0,         /* 6.6: SQEs are taken in ring order, no index array */
    GT_FEATURE_REGISTERED_FD = 1 << 1,      /* 5.18: io_uring_enter without looking the ring's fd up */
    GT_FEATURE_BUFFER_RING = 1 << 2,        /* 5.19: provided buffer ring */
    GT_FEATURE_BUFFER_INCREMENT = 1 << 3,   /* 6.12: buffers of that ring consumed bit by bit */
    GT_FEATURE_TASKRUN_FLAG = 1 << 4,       /* 5.19: the kernel says when there is deferred work to collect */
    GT_FEATURE_SUBMIT_ALL = 1 << 5,         /* 5.18: a bad SQE does not keep the ones behind it from being submitted */
    GT_FEATURE_CQE_SKIP = 1 << 6,           /* 5.17: a cancel completes only if it has failed */
    GT_FEATURE_CANCEL_ANY = 1 << 7,         /* 5.19: one cancel for everything in flight */
    GT_FEATURE_SINGLE_ISSUER = 1 << 8,      /* 6.0: the kernel relies on one thread to submit */
    GT_FEATURE_DEFER_TASKRUN = 1 << 9,      /* 6.1: completions are made when we wait for them, and at no other time */
    GT_FEATURE_MULTISHOT_ACCEPT = 1 << 10,  /* 5.19: one accept for all connections of a listener */
    GT_FEATURE_MULTISHOT_RECEIVE = 1 << 11, /* 6.0: one receive for all data of a connection */
    GT_FEATURE_NO_IOWAIT = 1 << 12, /* 6.15: a thread that waits for completions does not count as waiting for a disk */
    GT_FEATURE_REGISTERED_FILES = 1 << 13, /* 6.14: sends need not look the descriptor of a busy connection up */
};

/* Tags of a key: which of a slot's operations it names. */
enum gt_tag {
    GT_TAG_NONE = 0,   /* no operation: see gt_slot_cancel() */
    GT_TAG_MAIN = 1,   /* the one operation of a GT_SLOT_OPERATION */
    GT_TAG_CANCEL = 2, /* the cancel of another operation of the slot, where it always completes */
    GT_TAG_RECV = 3,
    GT_TAG_SEND = 4,
    GT_TAG_CLOSE = 5,
    GT_TAG_WATCH = 6, /* a poll for the peer's hangup */
    GT_TAG_DATAGRAM =
        7, /* a receive into buffers of a group of its own: a completion names its buffer, and not the group */
};

enum gt_slot_kind {
    GT_SLOT_FREE = 0,
    GT_SLOT_OPERATION = 1, /* a single operation */
    GT_SLOT_STREAM = 2,    /* a connection of the fast path; owner points to it */
    GT_SLOT_SOCKET = 3,    /* a datagram socket of the fast path; owner points to it */
};

struct gt_slot {
    void *owner; /* of a GT_SLOT_OPERATION: the call that waits for it, or NULL */
    uint32_t generation;
    uint32_t in_flight; /* operations whose final CQE has not been seen */
    union {
        uint32_t next_free;   /* of a free slot */
        uint32_t quiet_place; /* of any other: of its quiet send in the queue of SQEs */
    };
    uint8_t kind;
    bool abandoned;         /* no task waits for this operation any more: its completion is housekeeping */
    bool finished : 1;      /* a GT_SLOT_OPERATION whose main operation has completed for good */
    bool quiet : 1;         /* its send is a quiet one, which has not failed */
    bool yields_descriptor; /* a result >= 0 is a descriptor of ours, to be closed if no caller takes it */
};
_Static_assert(sizeof(void *) != 8 || sizeof(struct gt_slot) == 24, "a connection more has a slot more");

/* A quiet send: see gt_send_quietly(). */
struct gt_quiet {
    uint64_t key;
    uint32_t length;
    uint32_t place;
};

#define GT_USED_UP 0x8000U

/* A provided buffer ring and the memory behind it. */
struct gt_buffers {
    struct gt_provided_buffer *entries; /* shared with the kernel */
    char *memory;                       /* all buffers, one behind the other, or NULL: */
    char **places;                      /* where each of them lies; its owner's */
    uint32_t *consumed; /* how much of each buffer has been used up, where they are used incrementally */
    uint16_t *lent; /* pieces of each buffer that are still to be read, with GT_USED_UP where nothing else keeps it */
    size_t entries_bytes;
    size_t memory_bytes;
    uint32_t count; /* a power of two */
    uint32_t size;
    uint16_t group;
    uint16_t tail; /* ours; the kernel's copy follows in gt_buffers_publish() */
    uint16_t published;
    bool incremental;
    /* Those that are not provided at the moment; see "few buffers" in buffers.c. */
    bool adaptive;
    uint16_t *held;
    uint32_t held_count;
    uint32_t window; /* the most that are provided */
    uint32_t calm;   /* buffers given back since the window changed last */
    uint32_t patience;
};

/* The table of registered files: see files.c. */
struct gt_files {
    uint16_t *free; /* a stack of its free places, or NULL: there is no table */
    uint32_t free_count;
    uint32_t count;
};

struct gt_ring_options {
    uint32_t entries;            /* SQEs */
    uint32_t completion_entries; /* CQEs */
    uint32_t unwanted;           /* enum gt_feature bits not to use */
    uint32_t max_slots;          /* streams; single operations are bounded by GT_MAX_SLOTS alone */
};

struct gt_ring {
    uint64_t magic;
    int fd;
    int enter_fd; /* fd, or its index where it is registered */
    uint32_t enter_flags;
    uint32_t features; /* enum gt_feature */
    uint32_t setup_flags;
    uint32_t kernel_features; /* IORING_FEAT_* */
    bool dead;                /* belongs to another process */
    int thread;               /* the one that has opened it */

    /* submission queue */
    uint32_t *sq_head;
    uint32_t *sq_tail;
    uint32_t *sq_flags;
    uint32_t sq_mask;
    uint32_t sq_entries;
    uint32_t sq_prepared; /* tail as far as SQEs have been handed out */
    struct io_uring_sqe *sqes;

    /* completion queue */
    uint32_t *cq_head;
    uint32_t *cq_tail;
    uint32_t cq_mask;
    uint32_t cq_entries;
    struct io_uring_cqe *cqes;

    void *queues_map;
    size_t queues_bytes;
    size_t sqes_bytes;

    /* slots */
    struct gt_slot *slots;
    uint32_t slot_count;
    uint32_t slot_free;
    uint32_t max_slots;
    uint64_t in_flight; /* over all slots */
    uint64_t abandoned; /* of them, single operations for which no caller waits any more */

    struct gt_quiet
        *quiet; /* a circle of `quiet_capacity` places (a power of two): quiet sends that were not reaped yet */
    uint32_t quiet_head;
    uint32_t quiet_count;
    uint32_t quiet_capacity; /* at most `cq_entries` */

    uint64_t *delayed_cancels; /* keys whose cancel found no SQE */
    uint32_t delayed_count;
    uint32_t delayed_capacity;

    struct gt_buffers buffers;
    struct gt_files files;

    /* counters, never reset */
    uint64_t submissions; /* SQEs consumed by the kernel */
    uint64_t completions; /* CQEs reaped */
    uint64_t enters;      /* io_uring_enter calls */
    uint64_t overflows;   /* times the completion queue was found overflown */
    uint64_t stale;       /* completions whose slot had been freed: always 0 unless there is a bug */
};

/* --- life --- */

/* Set up a ring with all that the kernel has and that is not unwanted, and find out what it can do.  0 or -errno; -EINVAL for
 * a kernel that has not even what is necessary (5.11). */
int gt_ring_open(struct gt_ring *ring, const struct gt_ring_options *options);

/* Cancel everything in flight and reap until nothing is, for at most `patience_ns`.  Returns how many operations are still
 * in flight.  Every CQE goes to `complete`, which must keep the books by gt_slot_complete(); NULL stands for just that. */
uint64_t gt_ring_drain(struct gt_ring *ring, int64_t patience_ns, void (*complete)(const struct io_uring_cqe *, void *),
                       void *context);

/* Unmap and close.  With operations still in flight the provided buffers are leaked on purpose: the kernel may still write
 * to them until the ring's last reference is gone. */
void gt_ring_close(struct gt_ring *ring);

/* Enter the ring by its descriptor from now on.  A registered descriptor is the thread's, and holds the ring until the thread has
 * ended, whichever thread closes it. */
void gt_ring_unregister_fd(struct gt_ring *ring);

/* In the child of a fork: let go of the parent's ring without touching it. */
void gt_ring_forget(struct gt_ring *ring);

/* --- submit, wait, reap --- */

/* The next SQE, zeroed; when the queue is full it is submitted first.  NULL when the kernel consumes none (out of memory). */
struct io_uring_sqe *gt_ring_sqe(struct gt_ring *ring);

/* Submit everything prepared without waiting.  SQEs taken, or -errno. */
int gt_ring_submit(struct gt_ring *ring);

/* Submit everything prepared; wait until a CQE is there or `timeout_ns` is over (0: do not wait, GT_NO_TIMEOUT: as long as
 * it takes); run deferred work.  One io_uring_enter, or none where nothing is to be done.  0, -ETIME, -EINTR, or -errno: -EAGAIN
 * where the kernel has no memory for a submission; then a second one has done the rest, and has waited for 10 ms at most. */
int gt_ring_enter(struct gt_ring *ring, int64_t timeout_ns);

/* Submit everything prepared, and have the kernel do all that it has deferred, without reaping.  When this returns, operations
 * whose cancel was prepared hold no file any more: a socket that the caller closes then is closed for its peer and for bind(2),
 * too.  Where the kernel consumes nothing (out of memory) the next gt_ring_enter() does it. */
void gt_ring_settle(struct gt_ring *ring);

/* Copy out up to `max` CQEs and give their places back to the kernel.  CQEs of quiet sends are made here, behind all others. */
uint32_t gt_ring_reap(struct gt_ring *ring, struct io_uring_cqe *out, uint32_t max);

static inline uint32_t gt_ring_unsubmitted(const struct gt_ring *ring)
{
    return ring->sq_prepared - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
}

static inline uint32_t gt_ring_ready(const struct gt_ring *ring)
{
    return __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - *ring->cq_head;
}

static inline bool gt_ring_overflown(const struct gt_ring *ring)
{
    return (__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_CQ_OVERFLOW) != 0;
}

/* io_uring_register(2) on this ring */
int gt_ring_register(struct gt_ring *ring, unsigned int opcode, void *argument, unsigned int count);
/* io_uring_enter(2) and io_uring_register(2): what they return, or a negative errno. */
int gt_sys_enter(int fd, unsigned int submit, unsigned int wait, unsigned int flags, void *argument, size_t size);
int gt_sys_register(int fd, unsigned int opcode, void *argument, unsigned int count);

/* --- slots and keys --- */

uint32_t gt_slot_open(struct gt_ring *ring, enum gt_slot_kind kind, void *owner);

/* Free the slot if nothing is in flight on it.  True when it was freed. */
bool gt_slot_retire(struct gt_ring *ring, uint32_t index);

/* An SQE for an operation on a slot, with its key set and counted as in flight.  NULL: try again later. */
struct io_uring_sqe *gt_slot_sqe(struct gt_ring *ring, uint32_t index, enum gt_tag tag);

/* Prepare a cancel of the operation that a key names; its own final CQE still comes.  False: no SQE, try again later.
 *
 * The CQE of a successful cancel is of no use, so where the kernel can leave it out (GT_FEATURE_CQE_SKIP) it does, and the
 * cancel is not an operation in the sense of this file: it has no key, is not counted as in flight, and does not keep its
 * slot.  It touches no memory, so nothing has to outlive it.  When it comes too late, its slot may have another owner
 * already, but then with another generation, and the cancel finds nothing.  A cancel that has found nothing (-ENOENT) or
 * could not stop its operation (-EALREADY) has a CQE with GT_TAG_NONE, which the caller of gt_ring_reap() has to pass over
 * before gt_slot_complete(): it belongs to no slot.  Either way the operation's own final CQE has come or is on its way,
 * and that one ends the wait for it.
 *
 * Elsewhere a cancel is an operation of the slot with GT_TAG_CANCEL, and the slot lives until its CQE too. */
bool gt_slot_cancel(struct gt_ring *ring, uint64_t key);

/* Keep the books for one CQE of an operation.  True, with a copy of the slot as it was, or false when that slot has been freed
 * since.  The slot of a single operation is freed here; any other is its owner's to retire. */
bool gt_slot_complete(struct gt_ring *ring, const struct io_uring_cqe *cqe, struct gt_slot *slot);

/* Make the send that was just prepared, from gt_slot_sqe() by gt_prep_send() with MSG_DONTWAIT, a quiet one: it does not end the
 * wait of the gt_ring_enter() that submits it, unless it fails.
 *
 * Such a send is over when the kernel has taken its SQE, and its CQE would end that wait at once, for nothing where no task waits
 * for it: the next gt_ring_enter() would have to wait once more.  So the kernel is asked to leave the CQE out (CQE_SKIP).  It
 * does so for a success.  With MSG_WAITALL a short send counts as a failure, and MSG_DONTWAIT still keeps it from waiting: its
 * CQE reports how much was sent, as ever.  When all CQEs have been reaped, a quiet send that has none and whose SQE is taken
 * has succeeded, and gt_ring_reap() makes the CQE that it would have had.
 *
 * There are as many quiet sends between two reaps as the completion queue has places.  Needs CQE_SKIP and Linux 6.1 (of which
 * DEFER_TASKRUN is a sign): before, a short send that fails loses its count.  Elsewhere, without memory, and behind that many,
 * the send stays what it is: its CQE is the kernel's, and ends the wait. */
void gt_send_quietly(struct gt_ring *ring, struct io_uring_sqe *sqe);

/* For gt_ring_reap(), when it has reaped all CQEs. */
uint32_t gt_quiet_reap(struct gt_ring *ring, struct io_uring_cqe *out, uint32_t max);

/* A CQE of a send was reaped: is it a quiet one, then it has failed. */
static inline void gt_quiet_failed(struct gt_ring *ring, uint64_t key)
{
    const uint32_t index = (uint32_t)key & 0x0fffffffU;
    if (index < ring->slot_count && ring->slots[index].generation == (uint32_t)(key >> 32))
        ring->slots[index].quiet = false;
}

/* Is there one that gt_ring_reap() had no room for, or that a full queue of SQEs has submitted? */
static inline bool gt_quiet_is_ready(const struct gt_ring *ring)
{
    return ring->quiet_count > 0 &&
           (int32_t)(__atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) - ring->quiet[ring->quiet_head].place) > 0;
}

/* Has the kernel taken this slot's quiet send, which was not reaped yet?  For another thread, while this one waits. */
static inline bool gt_quiet_is_taken(const struct gt_ring *ring, uint32_t index)
{
    const struct gt_slot *slot = &ring->slots[index];
    return slot->quiet && (int32_t)(__atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) - slot->quiet_place) > 0;
}

/* Drop the result of this completion: close the descriptor it may have brought. */
void gt_completion_discard(const struct gt_slot *slot, const struct io_uring_cqe *cqe);

static inline uint32_t gt_key_slot(uint64_t key) { return (uint32_t)key & 0x0fffffffU; }
static inline enum gt_tag gt_key_tag(uint64_t key) { return (enum gt_tag)((key >> 28) & 0xf); }
static inline uint32_t gt_key_generation(uint64_t key) { return (uint32_t)(key >> 32); }

/* The slot that a key names, or NULL when that has been freed since. */
static inline struct gt_slot *gt_slot_find(const struct gt_ring *ring, uint64_t key)
{
    const uint32_t index = gt_key_slot(key);
    if (index >= ring->slot_count)
        return NULL;
    struct gt_slot *slot = &ring->slots[index];
    return slot->kind != GT_SLOT_FREE && slot->generation == gt_key_generation(key) ? slot : NULL;
}

static inline uint64_t gt_key(const struct gt_ring *ring, uint32_t index, enum gt_tag tag)
{
    return (uint64_t)ring->slots[index].generation << 32 | (uint64_t)tag << 28 | index;
}

/* A cancel that has failed (GT_FEATURE_CQE_SKIP), or was one of everything. */
static inline bool gt_completion_is_nobodys(const struct io_uring_cqe *cqe)
{
    return gt_key_tag(cqe->user_data) == GT_TAG_NONE;
}

static inline bool gt_completion_is_final(const struct io_uring_cqe *cqe)
{
    return (cqe->flags & IORING_CQE_F_MORE) == 0;
}

/* Keep the books as gt_slot_complete() does, if the slot is one that its owner retires.  The slot, or NULL: it is that of a single
 * operation, or has been freed since. */
static inline const struct gt_slot *gt_slot_complete_owned(struct gt_ring *ring, const struct io_uring_cqe *cqe)
{
    struct gt_slot *slot = gt_slot_find(ring, cqe->user_data);
    if (!slot || slot->kind == GT_SLOT_OPERATION || slot->in_flight == 0)
        return NULL;
    if (gt_completion_is_final(cqe)) {
        slot->in_flight--;
        ring->in_flight--;
    }
    return slot;
}

/* --- preparing operations: fill an SQE from gt_slot_sqe() or gt_ring_sqe() --- */

static inline void gt_prep_poll(struct io_uring_sqe *sqe, int fd, uint32_t events, bool multishot)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = events << 16 | events >> 16; /* poll32_events is word-reversed there */
#endif
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->poll32_events = events;
    sqe->len = multishot ? IORING_POLL_ADD_MULTI : 0;
}

static inline void gt_prep_accept_multishot(struct io_uring_sqe *sqe, int fd, uint32_t accept_flags)
{
    sqe->opcode = IORING_OP_ACCEPT;
    sqe->fd = fd;
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->accept_flags = accept_flags;
}

static inline void gt_prep_recv_multishot(struct io_uring_sqe *sqe, int fd, uint16_t buffer_group)
{
    sqe->opcode = IORING_OP_RECV;
    sqe->fd = fd;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = buffer_group;
}

/* No more than `length` bytes, and one completion. */
static inline void gt_prep_recv(struct io_uring_sqe *sqe, int fd, uint32_t length, uint16_t buffer_group)
{
    sqe->opcode = IORING_OP_RECV;
    sqe->fd = fd;
    sqe->len = length;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = buffer_group;
}

/* One datagram a completion: struct gt_received_message, room for `header->msg_namelen` bytes of its source, its data.  The
 * kernel may read `header` until the final CQE. */
static inline void gt_prep_recvmsg_multishot(struct io_uring_sqe *sqe, int fd, const struct msghdr *header,
                                             uint16_t buffer_group)
{
    sqe->opcode = IORING_OP_RECVMSG;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)header;
    sqe->len = 1;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = buffer_group;
}

static inline void gt_prep_send(struct io_uring_sqe *sqe, int fd, const void *data, uint32_t length, uint32_t msg_flags)
{
    sqe->opcode = IORING_OP_SEND;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = length;
    sqe->msg_flags = msg_flags;
}

static inline void gt_prep_sendmsg(struct io_uring_sqe *sqe, int fd, const void *header, uint32_t msg_flags)
{
    sqe->opcode = IORING_OP_SENDMSG;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)header;
    sqe->len = 1;
    sqe->msg_flags = msg_flags;
}

static inline void gt_prep_cancel(struct io_uring_sqe *sqe, uint64_t key)
{
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = key;
}

/* GT_FEATURE_CANCEL_ANY */
static inline void gt_prep_cancel_all(struct io_uring_sqe *sqe)
{
    gt_prep_cancel(sqe, 0);
    sqe->rw_flags = (int)(IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
}

static inline void gt_prep_close(struct io_uring_sqe *sqe, int fd)
{
    sqe->opcode = IORING_OP_CLOSE;
    sqe->fd = fd;
}

static inline void gt_prep_nop(struct io_uring_sqe *sqe)
{
    sqe->opcode = IORING_OP_NOP;
    sqe->fd = -1;
}

/* --- registered files: files.c --- */

/* Open the table, if the kernel's is of use. */
void gt_files_open(struct gt_ring *ring);
/* In the ring's thread: the kernel lets go of all files that it still has there. */
void gt_files_close(struct gt_ring *ring);

/* In the ring's thread: have the ring hold the file of a descriptor.  Its number there, or 0: there is no table, no place in
 * it, or no memory. */
uint16_t gt_file_register(struct gt_ring *ring, int fd);

/* In the ring's thread, and before the descriptor is closed or given away: let go of that file.  The kernel must have taken all
 * operations on it (gt_ring_unsubmitted()): they hold it until they end, and one taken later would be on another file. */
void gt_file_unregister(struct gt_ring *ring, uint16_t number);

/* A prepared operation is on the registered file with this number, if it is not 0, and not on its descriptor. */
static inline void gt_prep_registered(struct io_uring_sqe *sqe, uint16_t number)
{
    if (number) {
        sqe->fd = number - 1;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

/* --- single operations: a slot of their own; *key names them --- */

/* A poll refuses what cannot be polled, as epoll_ctl(2) does: -EPERM for most files that are neither socket nor pipe, -EBADF.
 * That of a socket takes the caller's word for it that it is one.
 * An accept and a receive are multishot: -EOPNOTSUPP on a ring without that, or without buffers to receive into. */
int gt_operation_nop(struct gt_ring *ring, uint64_t *key);
int gt_operation_poll(struct gt_ring *ring, int fd, uint32_t events, bool multishot, uint64_t *key);
int gt_operation_poll_socket(struct gt_ring *ring, int fd, uint32_t events, bool multishot, uint64_t *key);
int gt_operation_accept(struct gt_ring *ring, int fd, uint32_t accept_flags, uint64_t *key);
int gt_operation_recv(struct gt_ring *ring, int fd, uint64_t *key);
int gt_operation_send(struct gt_ring *ring, int fd, const void *data, uint32_t length, uint32_t msg_flags,
                      uint64_t *key);

/* Ask for an operation's end; its final CQE still comes.  With `abandon` no task is woken by it.  Never dropped: without a
 * free SQE, the next gt_ring_enter() asks again.  0, -ENOENT when it has ended already, or -ENOMEM. */
int gt_operation_cancel(struct gt_ring *ring, uint64_t key, bool abandon);

/* --- provided buffers: group 0 of the ring --- */

/* 0, or -errno; `count` must be a power of two up to 32768. */
int gt_buffers_open(struct gt_ring *ring, uint32_t count, uint32_t size, bool incremental);
int gt_buffers_close(struct gt_ring *ring);

/* The same for another group, whose books the caller keeps and publishes; `buffers` is zeroed before it is opened. */
int gt_buffers_open_group(struct gt_ring *ring, struct gt_buffers *buffers, uint16_t group, uint32_t count,
                          uint32_t size, bool incremental);
/* The same with a buffer at each of the places.  They are the caller's, and what lies there is leaked if the group cannot be
 * closed. */
int gt_buffers_open_places(struct gt_ring *ring, struct gt_buffers *buffers, uint16_t group, char **places,
                           uint32_t count, uint32_t size);
int gt_buffers_close_group(struct gt_ring *ring, struct gt_buffers *buffers);

/* The number of the buffer of a CQE with IORING_CQE_F_BUFFER. */
static inline uint16_t gt_completion_buffer(const struct io_uring_cqe *cqe)
{
    return (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
}

/* Where the data of a CQE with IORING_CQE_F_BUFFER lies.  Valid until gt_buffers_recycle() of the same CQE. */
const char *gt_buffers_data(struct gt_buffers *buffers, const struct io_uring_cqe *cqe);

/* Done with the data of a CQE: count it as consumed, and give the buffer back once all of it is. */
void gt_buffers_recycle(struct gt_buffers *buffers, const struct io_uring_cqe *cqe);

/* The data of a CQE is read later than it is recycled.  The buffer, whose number is returned, is given back no sooner than
 * that: one gt_buffers_return() for each CQE. */
uint16_t gt_buffers_lend(struct gt_buffers *buffers, const struct io_uring_cqe *cqe);
void gt_buffers_return(struct gt_ring *ring, uint16_t id);

/* From now on provide no more buffers than are needed.  Called before the first receive. */
void gt_buffers_adapt(struct gt_buffers *buffers);

/* A receive found no buffer, and had none before it: provide more.  False when all of them are provided already. */
bool gt_buffers_widen(struct gt_buffers *buffers);

/* Let the kernel see the buffers given back. */
static inline void gt_buffers_publish(struct gt_buffers *buffers)
{
    if (buffers->tail != buffers->published) {
        buffers->published = buffers->tail;
        __atomic_store_n(&buffers->entries[0].tail, buffers->tail, __ATOMIC_RELEASE);
    }
}

/* How many buffers the kernel can still pick from, or could at once. */
uint32_t gt_buffers_free(struct gt_ring *ring);

#endif
