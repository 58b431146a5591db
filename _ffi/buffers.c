/* buffers.c: the provided buffer ring; see ring.h, and io_uring_register_buf_ring(3) for the protocol.
 *
 * The kernel picks a buffer when data arrives, not when a receive is started, so ten thousand idle connections share a few.
 * A buffer is given back as soon as its data has been copied out, or has been read where it lies (gt_buffers_lend).  Where the
 * kernel consumes buffers incrementally, a buffer is used by one receive after the other, from its beginning to its end, and
 * `consumed` follows it; this relies on completions being reaped in the order in which the buffer was consumed.
 *
 * Few buffers.  The ring is a queue: with 2 MiB of buffers in it, a fast sender's data goes through all 2 MiB, over and
 * over, and out of the processor's cache, which doubles what it costs to receive a large transfer.  With as many buffers
 * as are in use at a time, and no more, the same ones come back warm.  How many that is differs: one for a single sender,
 * at least one each where two hundred connections have something at once.  So buffers that come back are held back beyond a
 * `window`, which follows the demand: it is doubled whenever a receive found nothing although none of the buffers since it
 * was started went to it, and halved, down to HOT bytes, when that has not happened for `patience` buffers.  A load that
 * makes it swing pays for a few receives to be started again; each widening doubles the patience, so soon that is rare.  A
 * receive that has had its share and finds no more is just started again.
 *
 * The buffers of a group lie in one mapping, or where its owner says, each in a place of its own.  The owner of places may give
 * a buffer another one between the completion that used it and gt_buffers_recycle().
 */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HOT (256U * 1024) /* what a window is not narrowed below: a good part of a core's own cache */
#define SMALLEST_WINDOW 2U
#define FIRST_PATIENCE 64U
#define LONGEST_PATIENCE (1U << 20)

static char *place(const struct gt_buffers *buffers, uint32_t id)
{
    return buffers->places ? buffers->places[id] : buffers->memory + (size_t)id * buffers->size;
}

static void provide(struct gt_buffers *buffers, uint16_t id)
{
    struct gt_provided_buffer *entry = &buffers->entries[buffers->tail & (buffers->count - 1)];
    entry->addr = (uint64_t)(uintptr_t)place(buffers, id);
    entry->len = buffers->size;
    entry->bid = id;
    buffers->consumed[id] = 0;
    buffers->tail++;
}

/* Map what the kernel and the buffers need, and register it.  In a failure the caller unmaps what there is. */
static int set_up(struct gt_ring *ring, struct gt_buffers *buffers)
{
    buffers->entries_bytes = buffers->count * sizeof(struct gt_provided_buffer);
    void *entries = mmap(NULL, buffers->entries_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (entries == MAP_FAILED)
        return -errno;
    buffers->entries = entries;
    if (!buffers->places) {
        size_t bytes = (size_t)buffers->count * buffers->size;
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return -errno;
        buffers->memory = memory;
        buffers->memory_bytes = bytes;
    }
    buffers->consumed = calloc(buffers->count, sizeof *buffers->consumed);
    buffers->held = calloc(buffers->count, sizeof *buffers->held);
    buffers->lent = calloc(buffers->count, sizeof *buffers->lent);
    if (!buffers->consumed || !buffers->held || !buffers->lent)
        return -ENOMEM;
    if (madvise(entries, buffers->entries_bytes, MADV_DONTFORK) ||
        (buffers->memory && madvise(buffers->memory, buffers->memory_bytes, MADV_DONTFORK)))
        return -errno;
    struct gt_buffer_ring_registration registration = {
        .ring_addr = (uint64_t)(uintptr_t)entries,
        .ring_entries = buffers->count,
        .bgid = buffers->group,
        .flags = buffers->incremental ? GT_PBUF_RING_INC : 0,
    };
    return gt_ring_register(ring, GT_REGISTER_PBUF_RING, &registration, 1);
}

static void free_memory(struct gt_buffers *buffers)
{
    if (buffers->memory)
        munmap(buffers->memory, buffers->memory_bytes);
    if (buffers->entries)
        munmap(buffers->entries, buffers->entries_bytes);
    free(buffers->consumed);
    free(buffers->held);
    free(buffers->lent);
    memset(buffers, 0, sizeof *buffers);
}

static int open_as(struct gt_ring *ring, struct gt_buffers *buffers, struct gt_buffers opened)
{
    const uint32_t count = opened.count;
    if (ring->dead)
        return -EBADF;
    if (buffers->entries || count == 0 || count > 32768 || (count & (count - 1)) || opened.size == 0)
        return -EINVAL;
    opened.window = count;
    int result = set_up(ring, &opened);
    if (result < 0) {
        free_memory(&opened);
        return result;
    }
    *buffers = opened;
    for (uint32_t id = 0; id < count; id++)
        provide(buffers, (uint16_t)id);
    gt_buffers_publish(buffers);
    return 0;
}

int gt_buffers_open_group(struct gt_ring *ring, struct gt_buffers *buffers, uint16_t group, uint32_t count,
                          uint32_t size, bool incremental)
{
    return open_as(ring, buffers,
                   (struct gt_buffers){.group = group, .count = count, .size = size, .incremental = incremental});
}

int gt_buffers_open_places(struct gt_ring *ring, struct gt_buffers *buffers, uint16_t group, char **places,
                           uint32_t count, uint32_t size)
{
    return open_as(ring, buffers, (struct gt_buffers){.group = group, .places = places, .count = count, .size = size});
}

int gt_buffers_open(struct gt_ring *ring, uint32_t count, uint32_t size, bool incremental)
{
    int result = gt_buffers_open_group(ring, &ring->buffers, 0, count, size, incremental);
    if (result == 0)
        ring->features |= GT_FEATURE_BUFFER_RING | (incremental ? GT_FEATURE_BUFFER_INCREMENT : 0);
    return result;
}

int gt_buffers_close_group(struct gt_ring *ring, struct gt_buffers *buffers)
{
    if (!buffers->entries)
        return 0;
    if (ring->in_flight > 0)
        return -EBUSY;
    struct gt_buffer_ring_registration registration = {.bgid = buffers->group};
    int result = gt_ring_register(ring, GT_UNREGISTER_PBUF_RING, &registration, 1);
    if (result < 0)
        return result;
    free_memory(buffers);
    return 0;
}

int gt_buffers_close(struct gt_ring *ring) { return gt_buffers_close_group(ring, &ring->buffers); }

const char *gt_buffers_data(struct gt_buffers *buffers, const struct io_uring_cqe *cqe)
{
    const uint16_t id = gt_completion_buffer(cqe);
    return place(buffers, id) + buffers->consumed[id];
}

static bool can_narrow(const struct gt_buffers *buffers)
{
    return buffers->window / 2 >= SMALLEST_WINDOW && (size_t)buffers->window * buffers->size > HOT;
}

void gt_buffers_adapt(struct gt_buffers *buffers)
{
    buffers->adaptive = true;
    buffers->patience = FIRST_PATIENCE;
    if (!buffers->entries || buffers->tail != buffers->count) /* some have been used */
        return;
    while (can_narrow(buffers))
        buffers->window /= 2;
    for (uint32_t id = buffers->window; id < buffers->count; id++)
        buffers->held[buffers->held_count++] = (uint16_t)id;
    buffers->tail = (uint16_t)buffers->window; /* the kernel looks at it when it picks a buffer, and has picked none */
    gt_buffers_publish(buffers);
}

static void give_back(struct gt_buffers *buffers, uint16_t id)
{
    if (buffers->adaptive && ++buffers->calm >= buffers->patience) {
        buffers->calm = 0;
        if (can_narrow(buffers))
            buffers->window /= 2;
    }
    if (buffers->count - buffers->held_count > buffers->window)
        buffers->held[buffers->held_count++] = id;
    else
        provide(buffers, id);
}

bool gt_buffers_widen(struct gt_buffers *buffers)
{
    if (buffers->held_count == 0)
        return false;
    while (buffers->window <=
           buffers->count - buffers->held_count) /* it may be narrower than what has not come back yet */
        buffers->window *= 2;
    while (buffers->held_count > 0 && buffers->count - buffers->held_count < buffers->window)
        provide(buffers, buffers->held[--buffers->held_count]);
    buffers->calm = 0;
    if (buffers->patience < LONGEST_PATIENCE)
        buffers->patience *= 2;
    return true;
}

void gt_buffers_recycle(struct gt_buffers *buffers, const struct io_uring_cqe *cqe)
{
    const uint16_t id = gt_completion_buffer(cqe);
    if (cqe->flags & IORING_CQE_F_BUF_MORE) {
        if (cqe->res > 0)
            buffers->consumed[id] += (uint32_t)cqe->res;
    } else if (buffers->lent[id]) {
        buffers->lent[id] |= GT_USED_UP;
    } else {
        give_back(buffers, id);
    }
}

uint16_t gt_buffers_lend(struct gt_buffers *buffers, const struct io_uring_cqe *cqe)
{
    const uint16_t id = gt_completion_buffer(cqe);
    buffers->lent[id]++;
    return id;
}

void gt_buffers_return(struct gt_ring *ring, uint16_t id)
{
    struct gt_buffers *buffers = &ring->buffers;
    if (ring->dead || --buffers->lent[id] != GT_USED_UP) /* the memory of a dead ring is the parent's */
        return;
    buffers->lent[id] = 0;
    give_back(buffers, id);
}

uint32_t gt_buffers_free(struct gt_ring *ring)
{
    struct gt_buffers *buffers = &ring->buffers;
    if (!buffers->memory || ring->dead)
        return 0;
    struct gt_buffer_ring_status status = {.bgid = buffers->group};
    if (gt_ring_register(ring, GT_REGISTER_PBUF_STATUS, &status, 1) < 0)
        return buffers->count; /* a kernel before 6.8 does not report it; between batches all of them are back */
    return (uint16_t)(buffers->published - (uint16_t)status.head) + buffers->held_count;
}
