/* ring.c: a ring's life, and wait and reap; see ring.h.  It stands on submission.c, operations.c (slots and operations),
 * buffers.c (provided buffers) and files.c (registered files).
 *
 * Two rules hold everywhere below.
 *
 * 1. Memory the kernel may still touch is never given back.  Provided buffers are unmapped only when nothing is in flight;
 *    a slot is freed only on the final CQE of the last operation on it.
 * 2. Indices shared with the kernel are read with acquire and written with release order (io_uring(7), "memory ordering").
 *    Our own tail, sq_prepared, runs ahead of the shared one until submission.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_ROUND_NS 100000000     /* how long gt_ring_drain() waits before it cancels once more */
#define DEFERRED_A_ROUND 20U         /* IO_LOCAL_TW_DEFAULT_MAX in the kernel's io_uring.c, since 6.14 */
#define MEMORY_NS 10000000           /* how long a wait is at most while the kernel has no memory for a submission */
#define PROBE_PATIENCE_NS 1000000000 /* how long a kernel may take to answer what it answers at once */

static int sys_setup(unsigned int entries, struct io_uring_params *params)
{
    int result = (int)syscall(__NR_io_uring_setup, entries, params);
    return result < 0 ? -errno : result;
}

static int thread_id(void) { return (int)syscall(__NR_gettid); } /* glibc has gettid() since 2.30 */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- entering the kernel --- */

/* One io_uring_enter(2), which takes `count` SQEs, and waits for a CQE unless `timeout_ns` is 0. */
static int enter_once(struct gt_ring *ring, uint32_t count, int64_t timeout_ns)
{
    struct __kernel_timespec timeout = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_getevents_arg argument = {.ts = 0};
    if (timeout_ns != 0 && timeout_ns != GT_NO_TIMEOUT)
        argument.ts = (uint64_t)(uintptr_t)&timeout;
    ring->enters++;
    return gt_sys_enter(ring->enter_fd, count, timeout_ns != 0,
                        ring->enter_flags | IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
}

/* The kernel has no memory for what was to be submitted, and then neither waits nor does deferred work nor gives out what the
 * queue had no room for.  So it is entered once more, with nothing to submit.  It gets memory back as operations complete: the
 * wait is for that, and no longer than MEMORY_NS. */
static void enter_without_memory(struct gt_ring *ring, int64_t timeout_ns)
{
    (void)enter_once(ring, 0, timeout_ns < MEMORY_NS ? timeout_ns : MEMORY_NS); /* an error repeats itself next time */
}

/* --- life --- */

/* Flags of io_uring_setup(2), newest first. */
static const struct {
    uint32_t feature;
    uint32_t flags;
} setup_flags[] = {
    {GT_FEATURE_NO_SQARRAY, IORING_SETUP_NO_SQARRAY},       {GT_FEATURE_DEFER_TASKRUN, IORING_SETUP_DEFER_TASKRUN},
    {GT_FEATURE_SINGLE_ISSUER, IORING_SETUP_SINGLE_ISSUER}, {GT_FEATURE_TASKRUN_FLAG, IORING_SETUP_TASKRUN_FLAG},
    {GT_FEATURE_SUBMIT_ALL, IORING_SETUP_SUBMIT_ALL},
};
#define SETUP_FLAGS (sizeof setup_flags / sizeof setup_flags[0])

/* Setup refuses flags that it does not know with EINVAL and does not say which, so they are taken away one by one, the
 * newest first.
 *
 * What a poll or a receive has to do when its file is ready is *task work* of the thread that submitted it.  With
 * DEFER_TASKRUN the thread does it when it waits for completions.  Without, the kernel does it whenever the thread is in the
 * kernel, and interrupts the thread for it where that is in user space; COOP_TASKRUN spares the interruption, and is safe to
 * have when TASKRUN_FLAG shows gt_ring_enter() that there is work, so without DEFER_TASKRUN the two go together.  Then
 * completions appear in the queue while the thread runs; nothing here relies on their not doing so. */
static int setup_best(struct gt_ring *ring, const struct gt_ring_options *options, struct io_uring_params *params)
{
    uint32_t wanted = 0;
    for (size_t i = 0; i < SETUP_FLAGS; i++)
        if (!(options->unwanted & setup_flags[i].feature))
            wanted |= setup_flags[i].feature;
    for (size_t next = 0;;) {
        if (!(wanted & GT_FEATURE_SINGLE_ISSUER))
            wanted &= ~(uint32_t)GT_FEATURE_DEFER_TASKRUN; /* which needs it */
        memset(params, 0, sizeof *params);
        params->flags = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
        for (size_t i = 0; i < SETUP_FLAGS; i++)
            if (wanted & setup_flags[i].feature)
                params->flags |= setup_flags[i].flags;
        if ((wanted & GT_FEATURE_TASKRUN_FLAG) && !(wanted & GT_FEATURE_DEFER_TASKRUN))
            params->flags |= IORING_SETUP_COOP_TASKRUN;
        params->cq_entries = options->completion_entries;
        int fd = sys_setup(options->entries, params);
        if (fd >= 0)
            ring->features |= wanted;
        while (next < SETUP_FLAGS && !(wanted & setup_flags[next].feature))
            next++;
        if (fd != -EINVAL || next == SETUP_FLAGS)
            return fd;
        wanted &= ~setup_flags[next].feature;
    }
}

static int map_queues(struct gt_ring *ring, const struct io_uring_params *params)
{
    const uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
    if ((params->features & needed) != needed)
        return -EINVAL;
    size_t bytes = params->cq_off.cqes + (size_t)params->cq_entries * sizeof(struct io_uring_cqe);
    bool index_array = !(params->flags & IORING_SETUP_NO_SQARRAY);
    if (index_array) {
        size_t submission = params->sq_off.array + (size_t)params->sq_entries * sizeof(uint32_t);
        bytes = submission > bytes ? submission : bytes;
    }
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    if (map == MAP_FAILED)
        return -errno;
    ring->queues_map = map;
    ring->queues_bytes = bytes;
    size_t sqes_bytes = (size_t)params->sq_entries * sizeof(struct io_uring_sqe);
    void *sqes = mmap(NULL, sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    ring->sqes = sqes;
    ring->sqes_bytes = sqes_bytes;
    /* A forked child must not be able to post into this ring: the pages are simply not there for it. */
    if (madvise(map, bytes, MADV_DONTFORK) || madvise(sqes, sqes_bytes, MADV_DONTFORK))
        return -errno;
    ring->sq_head = (uint32_t *)(map + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(map + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(map + params->sq_off.flags);
    ring->sq_mask = *(uint32_t *)(map + params->sq_off.ring_mask);
    ring->sq_entries = params->sq_entries;
    ring->sq_prepared = *ring->sq_tail;
    ring->cq_head = (uint32_t *)(map + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(map + params->cq_off.tail);
    ring->cq_mask = *(uint32_t *)(map + params->cq_off.ring_mask);
    ring->cq_entries = params->cq_entries;
    ring->cqes = (struct io_uring_cqe *)(map + params->cq_off.cqes);
    if (index_array) { /* the array maps places to SQEs; ours is the identity, for good */
        uint32_t *array = (uint32_t *)(map + params->sq_off.array);
        for (uint32_t i = 0; i < params->sq_entries; i++)
            array[i] = i;
    }
    return 0;
}

static void register_fd(struct gt_ring *ring)
{
    struct gt_ring_fd_registration registration = {.offset = UINT32_MAX, .data = (uint64_t)ring->fd};
    if (gt_sys_register(ring->fd, GT_REGISTER_RING_FDS, &registration, 1) == 1) {
        ring->enter_fd = (int)registration.offset;
        ring->enter_flags |= IORING_ENTER_REGISTERED_RING;
        ring->features |= GT_FEATURE_REGISTERED_FD;
    }
}

/* --- what the ring can do: found out by doing it --- */

/* A kernel that does not know a flag of an operation answers -EINVAL (-EOPNOTSUPP or -EACCES where the operation as such is
 * missing or forbidden).  A kernel that knows it goes on to the file, the ring's own descriptor, and answers -ENOTSOCK.
 * (-1 would not do: a kernel before 5.18 looks at the file first, and answers -EBADF in both cases.)  Nothing is in flight
 * yet, so a cancel of everything has nothing to do.
 *
 * Before 5.19 a receive does not look at its ioprio, and the multishot flag in it passes unnoticed.  It has to be refused
 * where it makes no sense to be known: without a buffer group. */
enum probe { PROBE_CANCEL_ANY, PROBE_ACCEPT, PROBE_RECEIVE, PROBE_SENSELESS_RECEIVE, PROBES };

static const uint32_t probed_feature[PROBES] = {
    [PROBE_CANCEL_ANY] = GT_FEATURE_CANCEL_ANY,
    [PROBE_ACCEPT] = GT_FEATURE_MULTISHOT_ACCEPT,
    [PROBE_RECEIVE] = GT_FEATURE_MULTISHOT_RECEIVE,
    [PROBE_SENSELESS_RECEIVE] = GT_FEATURE_MULTISHOT_RECEIVE, /* last: where it is refused, that stops a submission */
};

static bool is_refusal(int result) { return result == -EINVAL || result == -EOPNOTSUPP || result == -EACCES; }

static void prep_probe(struct gt_ring *ring, struct io_uring_sqe *sqe, enum probe probe)
{
    switch (probe) {
    case PROBE_CANCEL_ANY:
        gt_prep_cancel_all(sqe);
        break;
    case PROBE_ACCEPT:
        gt_prep_accept_multishot(sqe, ring->fd, 0);
        break;
    case PROBE_RECEIVE:
        gt_prep_recv_multishot(sqe, ring->fd, ring->buffers.group);
        break;
    case PROBE_SENSELESS_RECEIVE:
        gt_prep_recv_multishot(sqe, ring->fd, 0);
        sqe->flags = 0;
        break;
    case PROBES:
        break;
    }
    sqe->user_data = probe;
}

/* One io_uring_enter, if the queues have room for all probes and no kernel stops at one of them. */
static int probe(struct gt_ring *ring, uint32_t unwanted)
{
    uint32_t supported =
        (GT_FEATURE_CANCEL_ANY | GT_FEATURE_MULTISHOT_ACCEPT | GT_FEATURE_MULTISHOT_RECEIVE) & ~unwanted;
    uint32_t asked = 0, answered = 0;
    unsigned int next = 0;
    for (;;) {
        for (; next < PROBES && gt_ring_unsubmitted(ring) < ring->sq_entries; next++) {
            if (unwanted & probed_feature[next])
                continue;
            struct io_uring_sqe *sqe = gt_ring_sqe(ring);
            if (!sqe)
                break;
            prep_probe(ring, sqe, next);
            asked++;
        }
        if (asked == answered && next == PROBES)
            break;
        int result = gt_ring_enter(ring, PROBE_PATIENCE_NS);
        struct io_uring_cqe cqe;
        uint32_t reaped = 0;
        for (; gt_ring_reap(ring, &cqe, 1); reaped++)
            if (is_refusal(cqe.res) != (cqe.user_data == PROBE_SENSELESS_RECEIVE))
                supported &= ~probed_feature[cqe.user_data];
        answered += reaped;
        if (result < 0 && result != -EINTR && reaped == 0) /* a seccomp profile may allow io_uring_setup alone */
            return result;
    }
    ring->features |= supported;
    ring->submissions = ring->completions = ring->enters = ring->overflows = 0;
    return 0;
}

int gt_ring_open(struct gt_ring *ring, const struct gt_ring_options *options)
{
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    ring->thread = thread_id();
    ring->slot_free = GT_NO_SLOT;
    ring->max_slots = options->max_slots && options->max_slots < GT_MAX_SLOTS ? options->max_slots : GT_MAX_SLOTS;
    struct io_uring_params params;
    int result = setup_best(ring, options, &params);
    if (result < 0)
        return result;
    ring->fd = ring->enter_fd = result;
    ring->setup_flags = params.flags;
    ring->kernel_features = params.features;
    result = map_queues(ring, &params);
    if (result == 0) {
        if (!(options->unwanted & GT_FEATURE_REGISTERED_FD))
            register_fd(ring);
        if (params.features & IORING_FEAT_CQE_SKIP)
            ring->features |= GT_FEATURE_CQE_SKIP & ~options->unwanted;
        if ((params.features & IORING_FEAT_NO_IOWAIT) && !(options->unwanted & GT_FEATURE_NO_IOWAIT)) {
            ring->features |= GT_FEATURE_NO_IOWAIT;
            ring->enter_flags |= IORING_ENTER_NO_IOWAIT;
        }
        result = probe(ring, options->unwanted);
        if (result == 0 && !(options->unwanted & GT_FEATURE_REGISTERED_FILES))
            gt_files_open(ring);
    }
    if (result < 0) {
        gt_ring_close(ring);
        return result;
    }
    ring->magic = GT_RING_MAGIC;
    return 0;
}

static void keep_books_only(const struct io_uring_cqe *cqe, void *context)
{
    struct gt_ring *ring = context;
    struct gt_slot slot;
    if (gt_slot_complete(ring, cqe, &slot))
        gt_completion_discard(&slot, cqe);
}

/* Prepare cancels for everything in flight on the slots from `*slot` on.  False: there is no free SQE, go on from there.
 *
 * Where one cancel cannot stand for all, each operation is named.  This file does not know what a stream has in flight, so
 * it names whatever can last there; a cancel that finds nothing is harmless. */
static bool cancel_all(struct gt_ring *ring, uint32_t *slot)
{
    if (ring->features & GT_FEATURE_CANCEL_ANY) {
        struct io_uring_sqe *sqe = gt_ring_sqe(ring);
        if (sqe)
            gt_prep_cancel_all(sqe); /* its user_data is 0: its own completion is ignored */
        return sqe;
    }
    for (; *slot < ring->slot_count; ++*slot) {
        if (ring->slots[*slot].in_flight == 0)
            continue;
        if (ring->slots[*slot].kind == GT_SLOT_OPERATION) {
            if (!ring->slots[*slot].finished && !gt_slot_cancel(ring, gt_key(ring, *slot, GT_TAG_MAIN)))
                return false;
        } else if (!gt_slot_cancel(ring, gt_key(ring, *slot, GT_TAG_RECV)) ||
                   !gt_slot_cancel(ring, gt_key(ring, *slot, GT_TAG_DATAGRAM)) ||
                   !gt_slot_cancel(ring, gt_key(ring, *slot, GT_TAG_SEND)) ||
                   !gt_slot_cancel(ring, gt_key(ring, *slot, GT_TAG_WATCH))) {
            return false;
        }
    }
    return true;
}

uint64_t gt_ring_drain(struct gt_ring *ring, int64_t patience_ns, void (*complete)(const struct io_uring_cqe *, void *),
                       void *context)
{
    const int64_t end = monotonic_ns() + patience_ns;
    bool cancelled = false;
    uint32_t slot = 0;
    if (!complete) {
        complete = keep_books_only;
        context = ring;
    }
    while (ring->in_flight > 0) {
        if (!cancelled)
            cancelled = cancel_all(ring, &slot);
        int64_t left = end - monotonic_ns();
        bool waits = left > 0 && ring->quiet_count == 0; /* else there may be no CQE to wait for */
        int result = gt_ring_enter(ring, !waits ? 0 : left < DRAIN_ROUND_NS ? left : DRAIN_ROUND_NS);
        if (result == -EAGAIN && !waits && left > 0)
            enter_without_memory(ring, left);
        struct io_uring_cqe cqe;
        uint32_t reaped = 0;
        for (; gt_ring_reap(ring, &cqe, 1); reaped++)
            if (!gt_completion_is_nobodys(&cqe))
                complete(&cqe, context);
        bool hopeless = result < 0 && result != -EINTR && result != -ETIME && result != -EAGAIN && result != -EBUSY;
        if (reaped == 0 && (left <= 0 || hopeless))
            break;
        if (reaped == 0 && cancelled) { /* something was started after the cancel */
            cancelled = false;
            slot = 0;
        }
    }
    return ring->in_flight;
}

void gt_ring_unregister_fd(struct gt_ring *ring)
{
    /* Elsewhere the same number may stand for another ring, of that thread. */
    if (!(ring->features & GT_FEATURE_REGISTERED_FD) || ring->thread != thread_id())
        return;
    struct gt_ring_fd_registration registration = {.offset = (uint32_t)ring->enter_fd};
    gt_sys_register(ring->fd, GT_UNREGISTER_RING_FDS, &registration, 1);
    ring->features &= ~(uint32_t)GT_FEATURE_REGISTERED_FD;
    ring->enter_fd = ring->fd;
    ring->enter_flags &= ~(uint32_t)IORING_ENTER_REGISTERED_RING;
}

void gt_ring_close(struct gt_ring *ring)
{
    if (ring->fd < 0)
        return;
    gt_files_close(ring);
    if (ring->in_flight == 0)
        gt_buffers_close(ring);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->queues_map)
        munmap(ring->queues_map, ring->queues_bytes);
    gt_ring_unregister_fd(ring);
    close(ring->fd);
    free(ring->slots);
    free(ring->delayed_cancels);
    free(ring->quiet);
    ring->quiet = NULL;
    ring->quiet_head = ring->quiet_count = ring->quiet_capacity = 0;
    ring->delayed_cancels = NULL;
    ring->delayed_count = ring->delayed_capacity = 0;
    ring->sqes = NULL;
    ring->queues_map = NULL;
    ring->slots = NULL;
    ring->slot_count = 0;
    ring->slot_free = GT_NO_SLOT;
    ring->fd = ring->enter_fd = -1;
    ring->dead = true;
}

void gt_ring_forget(struct gt_ring *ring)
{
    if (ring->dead)
        return;
    static uint32_t nothing;
    ring->dead = true;
    /* The mappings are not there (MADV_DONTFORK), so there is nothing to unmap.  A caller that was looking at the ring while the
     * program's code forked goes on looking, at an empty one. */
    ring->sq_head = ring->sq_tail = ring->sq_flags = ring->cq_head = ring->cq_tail = &nothing;
    ring->sq_prepared = 0;
    /* The descriptor is a copy, and as long as it is open the parent's ring cannot end. */
    close(ring->fd);
}

/* --- wait, reap --- */

static void retry_cancels(struct gt_ring *ring)
{
    uint32_t count = ring->delayed_count;
    ring->delayed_count = 0; /* one that finds no SQE again is put back, at or before the place it is read from */
    for (uint32_t i = 0; i < count; i++)
        gt_operation_cancel(ring, ring->delayed_cancels[i], false);
}

int gt_ring_enter(struct gt_ring *ring, int64_t timeout_ns)
{
    if (ring->dead)
        return -EBADF;
    if (ring->delayed_count > 0)
        retry_cancels(ring);
    uint32_t count = gt_ring_unsubmitted(ring);
    bool overflown = gt_ring_overflown(ring);
    if (overflown)
        ring->overflows++;
    const bool wait = timeout_ns > 0 && !overflown && gt_ring_ready(ring) == 0 && !gt_quiet_is_ready(ring);
    if (count == 0 && !wait && !overflown && (ring->features & GT_FEATURE_TASKRUN_FLAG) &&
        !(__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN))
        return 0;
    __atomic_store_n(ring->sq_tail, ring->sq_prepared, __ATOMIC_RELEASE);
    gt_buffers_publish(&ring->buffers);
    for (;;) {
        int result = enter_once(ring, count, wait ? timeout_ns : 0);
        /* A wait that fails after a successful submission returns the submission's count, so the head is more exact. */
        uint32_t left = gt_ring_unsubmitted(ring);
        ring->submissions += count - left;
        if (result == -EAGAIN)
            enter_without_memory(ring, wait ? timeout_ns : 0);
        if (left == 0 ||
            result <= 0) /* else see gt_ring_submit(); the error is there as a completion, so no wait is long */
            return result < 0 ? result : 0;
        count = left;
    }
}

/* io_uring_cancel(2) takes an operation off its file's queue.  The rest, and with it the reference to the file, is deferred
 * work, of which one io_uring_enter does DEFERRED_A_ROUND pieces and then says by IORING_SQ_TASKRUN that there are more. */
void gt_ring_settle(struct gt_ring *ring)
{
    uint64_t rounds = 2 + ring->in_flight / DEFERRED_A_ROUND;
    bool reports = ring->features & GT_FEATURE_TASKRUN_FLAG;
    for (uint64_t round = 0; round < rounds; round++) {
        gt_ring_enter(ring, 0);
        if (ring->dead)
            return;
        bool unsubmitted = gt_ring_unsubmitted(ring) > 0 || ring->delayed_count > 0;
        bool deferred = !reports || (__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN);
        if (!unsubmitted && !deferred)
            return;
    }
}

uint32_t gt_ring_reap(struct gt_ring *ring, struct io_uring_cqe *out, uint32_t max)
{
    if (ring->dead)
        return 0;
    uint32_t head = *ring->cq_head;
    uint32_t count = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - head;
    if (count > max)
        count = max;
    for (uint32_t i = 0; i < count; i++)
        out[i] = ring->cqes[(head + i) & ring->cq_mask];
    __atomic_store_n(ring->cq_head, head + count, __ATOMIC_RELEASE);
    if (ring->quiet_count > 0) {
        for (uint32_t i = 0; i < count; i++)
            if (gt_key_tag(out[i].user_data) == GT_TAG_SEND)
                gt_quiet_failed(ring, out[i].user_data);
        if (gt_ring_ready(ring) == 0 && !gt_ring_overflown(ring))
            count += gt_quiet_reap(ring, out + count, max - count);
    }
    ring->completions += count;
    return count;
}
