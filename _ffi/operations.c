/* operations.c: slots, the books of what is in flight on them, and single operations; see ring.h.
 *
 * A slot is freed only on the final CQE of the last operation on it, and its generation is counted up then: until that
 * moment its memory may be the kernel's, and after it no completion can be taken for its new owner's.
 */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- slots --- */

static int grow_slots(struct gt_ring *ring)
{
    uint32_t old = ring->slot_count;
    uint32_t count = old ? old * 2 : 64;
    if (count > GT_MAX_SLOTS)
        count = GT_MAX_SLOTS;
    if (count == old)
        return -ENOSPC;
    struct gt_slot *slots = realloc(ring->slots, count * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    ring->slots = slots;
    ring->slot_count = count;
    for (uint32_t i = count; i-- > old;) {
        slots[i] = (struct gt_slot){.generation = 1, .next_free = ring->slot_free};
        ring->slot_free = i;
    }
    return 0;
}

uint32_t gt_slot_open(struct gt_ring *ring, enum gt_slot_kind kind, void *owner)
{
    if (ring->dead || (ring->slot_free == GT_NO_SLOT && grow_slots(ring) < 0))
        return GT_NO_SLOT;
    uint32_t index = ring->slot_free;
    struct gt_slot *slot = &ring->slots[index];
    ring->slot_free = slot->next_free;
    slot->kind = kind;
    slot->owner = owner;
    slot->abandoned = slot->finished = slot->yields_descriptor = slot->quiet = false;
    return index;
}

bool gt_slot_retire(struct gt_ring *ring, uint32_t index)
{
    struct gt_slot *slot = &ring->slots[index];
    if (slot->in_flight > 0)
        return false;
    slot->kind = GT_SLOT_FREE;
    slot->owner = NULL;
    if (++slot->generation == 0) /* no key is 0, which is that of a cancel's completion */
        slot->generation = 1;
    slot->next_free = ring->slot_free;
    ring->slot_free = index;
    return true;
}

struct io_uring_sqe *gt_slot_sqe(struct gt_ring *ring, uint32_t index, enum gt_tag tag)
{
    struct io_uring_sqe *sqe = gt_ring_sqe(ring);
    if (sqe) {
        sqe->user_data = gt_key(ring, index, tag);
        ring->slots[index].in_flight++;
        ring->in_flight++;
    }
    return sqe;
}

bool gt_slot_cancel(struct gt_ring *ring, uint64_t key)
{
    bool quiet = ring->features & GT_FEATURE_CQE_SKIP;
    struct io_uring_sqe *sqe = quiet ? gt_ring_sqe(ring) : gt_slot_sqe(ring, gt_key_slot(key), GT_TAG_CANCEL);
    if (!sqe)
        return false;
    gt_prep_cancel(sqe, key);
    if (quiet)
        sqe->flags = IOSQE_CQE_SKIP_SUCCESS; /* its user_data stays 0, which is GT_TAG_NONE */
    return true;
}

bool gt_slot_complete(struct gt_ring *ring, const struct io_uring_cqe *cqe, struct gt_slot *copy)
{
    struct gt_slot *slot = gt_slot_find(ring, cqe->user_data);
    if (!slot || slot->in_flight == 0) {
        ring->stale++;
        return false;
    }
    *copy = *slot;
    if (gt_completion_is_final(cqe)) {
        slot->in_flight--;
        ring->in_flight--;
        if (slot->kind == GT_SLOT_OPERATION) {
            if (gt_key_tag(cqe->user_data) == GT_TAG_MAIN) {
                slot->finished = true;
                ring->abandoned -= slot->abandoned;
            }
            if (slot->finished)
                gt_slot_retire(ring, gt_key_slot(cqe->user_data));
        }
    }
    return true;
}

/* --- quiet sends --- */

static bool grow_quiet(struct gt_ring *ring)
{
    const uint32_t old = ring->quiet_capacity;
    if (old == ring->cq_entries)
        return false;
    const uint32_t wanted = old ? old * 2 : 64, capacity = wanted < ring->cq_entries ? wanted : ring->cq_entries;
    struct gt_quiet *quiet = malloc(capacity * sizeof *quiet);
    if (!quiet)
        return false;
    for (uint32_t i = 0; i < ring->quiet_count; i++)
        quiet[i] = ring->quiet[(ring->quiet_head + i) & (old - 1)];
    free(ring->quiet);
    ring->quiet = quiet;
    ring->quiet_head = 0;
    ring->quiet_capacity = capacity;
    return true;
}

void gt_send_quietly(struct gt_ring *ring, struct io_uring_sqe *sqe)
{
    const uint32_t needed = GT_FEATURE_CQE_SKIP | GT_FEATURE_DEFER_TASKRUN;
    if ((ring->features & needed) != needed || (ring->quiet_count == ring->quiet_capacity && !grow_quiet(ring)))
        return;
    struct gt_slot *slot = &ring->slots[gt_key_slot(sqe->user_data)];
    slot->quiet = true;
    slot->quiet_place = ring->sq_prepared - 1;
    const uint32_t end = (ring->quiet_head + ring->quiet_count++) & (ring->quiet_capacity - 1);
    ring->quiet[end] = (struct gt_quiet){.key = sqe->user_data, .length = sqe->len, .place = slot->quiet_place};
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    sqe->msg_flags |= MSG_WAITALL;
}

uint32_t gt_quiet_reap(struct gt_ring *ring, struct io_uring_cqe *out, uint32_t max)
{
    const uint32_t taken = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    uint32_t count = 0;
    while (ring->quiet_count > 0 && count < max) {
        const struct gt_quiet *quiet = &ring->quiet[ring->quiet_head];
        if ((int32_t)(taken - quiet->place) <= 0)
            break;
        struct gt_slot *slot = gt_slot_find(ring, quiet->key);
        if (slot && slot->quiet && slot->quiet_place == quiet->place) { /* else it has failed, and has had its CQE */
            slot->quiet = false;
            out[count++] = (struct io_uring_cqe){.user_data = quiet->key, .res = (int32_t)quiet->length};
        }
        ring->quiet_head = (ring->quiet_head + 1) & (ring->quiet_capacity - 1);
        ring->quiet_count--;
    }
    return count;
}

void gt_completion_discard(const struct gt_slot *slot, const struct io_uring_cqe *cqe)
{
    if (slot->yields_descriptor && gt_key_tag(cqe->user_data) == GT_TAG_MAIN && cqe->res >= 0)
        close(cqe->res);
}

/* --- single operations --- */

static struct io_uring_sqe *open_operation(struct gt_ring *ring, uint64_t *key, int *error)
{
    if (ring->dead) {
        *error = -EBADF;
        return NULL;
    }
    uint32_t index = gt_slot_open(ring, GT_SLOT_OPERATION, NULL);
    if (index == GT_NO_SLOT) {
        *error = -ENOSPC;
        return NULL;
    }
    struct io_uring_sqe *sqe = gt_slot_sqe(ring, index, GT_TAG_MAIN);
    if (!sqe) {
        gt_slot_retire(ring, index);
        *error = -EBUSY;
        return NULL;
    }
    *key = sqe->user_data;
    *error = 0;
    return sqe;
}

int gt_operation_nop(struct gt_ring *ring, uint64_t *key)
{
    int error;
    struct io_uring_sqe *sqe = open_operation(ring, key, &error);
    if (sqe)
        gt_prep_nop(sqe);
    return error;
}

/* A file that cannot be polled is always ready to POLL_ADD and refused by epoll_ctl(2).  Its type does not say which it is
 * (/dev/null cannot be polled, a terminal can; a plain file cannot, /proc/self/mounts and a pidfd can), so epoll is asked
 * about everything that is not certain. */
static int check_pollable(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (S_ISSOCK(status.st_mode) || S_ISFIFO(status.st_mode) ||
        (status.st_mode & S_IFMT) == 0) /* 0: an eventfd or so */
        return 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return -errno;
    struct epoll_event event = {.events = 0};
    int result = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
    close(epoll);
    return result;
}

int gt_operation_poll_socket(struct gt_ring *ring, int fd, uint32_t events, bool multishot, uint64_t *key)
{
    int error;
    struct io_uring_sqe *sqe = open_operation(ring, key, &error);
    if (sqe)
        gt_prep_poll(sqe, fd, events, multishot);
    return error;
}

int gt_operation_poll(struct gt_ring *ring, int fd, uint32_t events, bool multishot, uint64_t *key)
{
    int error = check_pollable(fd);
    return error < 0 ? error : gt_operation_poll_socket(ring, fd, events, multishot, key);
}

int gt_operation_accept(struct gt_ring *ring, int fd, uint32_t accept_flags, uint64_t *key)
{
    int error;
    if (!ring->dead && !(ring->features & GT_FEATURE_MULTISHOT_ACCEPT))
        return -EOPNOTSUPP;
    struct io_uring_sqe *sqe = open_operation(ring, key, &error);
    if (sqe) {
        gt_prep_accept_multishot(sqe, fd, accept_flags);
        ring->slots[gt_key_slot(*key)].yields_descriptor = true;
    }
    return error;
}

int gt_operation_recv(struct gt_ring *ring, int fd, uint64_t *key)
{
    int error;
    if (!ring->dead && !(ring->features & GT_FEATURE_MULTISHOT_RECEIVE && ring->features & GT_FEATURE_BUFFER_RING))
        return -EOPNOTSUPP;
    struct io_uring_sqe *sqe = open_operation(ring, key, &error);
    if (sqe)
        gt_prep_recv_multishot(sqe, fd, ring->buffers.group);
    return error;
}

int gt_operation_send(struct gt_ring *ring, int fd, const void *data, uint32_t length, uint32_t msg_flags,
                      uint64_t *key)
{
    int error;
    struct io_uring_sqe *sqe = open_operation(ring, key, &error);
    if (sqe)
        gt_prep_send(sqe, fd, data, length, msg_flags);
    return error;
}

static int delay_cancel(struct gt_ring *ring, uint64_t key)
{
    if (ring->delayed_count == ring->delayed_capacity) {
        uint32_t capacity = ring->delayed_capacity ? ring->delayed_capacity * 2 : 16;
        uint64_t *keys = realloc(ring->delayed_cancels, capacity * sizeof *keys);
        if (!keys)
            return -ENOMEM;
        ring->delayed_cancels = keys;
        ring->delayed_capacity = capacity;
    }
    ring->delayed_cancels[ring->delayed_count++] = key;
    return 0;
}

int gt_operation_cancel(struct gt_ring *ring, uint64_t key, bool abandon)
{
    if (ring->dead)
        return -EBADF;
    struct gt_slot *slot = gt_slot_find(ring, key);
    if (!slot || slot->finished)
        return -ENOENT;
    ring->abandoned += abandon && !slot->abandoned;
    slot->abandoned |= abandon;
    return gt_slot_cancel(ring, key) ? 0 : delay_cancel(ring, key);
}
