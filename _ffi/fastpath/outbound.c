/* outbound.c: bytes sent and not yet accepted by the kernel.
 *
 * A circle of segments, sent in order; those at the head may be in flight, several in one operation.  Small sends are copied,
 * one behind the other into the last segment, so that a hundred of them in one tick leave in one operation.  A large bytes
 * object is immutable and is referenced instead.  The connection's high mark bounds the number of segments: a referenced
 * segment is large, and two copied ones are never neighbours unless the first is full or in flight.
 *
 * There is a place for one segment in the queue itself, and buffers come from spares.c, so for the usual send there is nothing to
 * allocate, and an idle connection keeps nothing of it; nor of others, but for an array of KEPT_SEGMENTS.
 */
#include "fastpath.h"

#define SMALLEST GT_LEAST_SPARE
#define FULL 65536U /* a copied segment is not grown beyond this, unless one send is larger */
#define KEPT_SEGMENTS 4U

void gt_outbound_init(gt_outbound *queue, gt_spares *spares)
{
    queue->spares = spares;
    queue->segments = &queue->first;
    queue->head = 0;
    queue->capacity = 1;
}

static void free_segments(gt_outbound *queue)
{
    if (queue->segments != &queue->first)
        PyMem_Free(queue->segments);
}

static gt_segment *last_segment(const gt_outbound *queue)
{
    return &queue->segments[(queue->head + queue->count - 1) & (queue->capacity - 1)];
}

static gt_segment *push_segment(gt_outbound *queue)
{
    if (GT_UNLIKELY(queue->count == queue->capacity)) {
        const uint32_t capacity = queue->capacity * 4;
        gt_segment *segments = PyMem_Malloc(capacity * sizeof *segments);
        if (!segments)
            return NULL;
        for (uint32_t i = 0; i < queue->count; i++)
            segments[i] = queue->segments[(queue->head + i) & (queue->capacity - 1)];
        free_segments(queue);
        queue->segments = segments;
        queue->capacity = capacity;
        queue->head = 0;
    }
    queue->count++;
    gt_segment *segment = last_segment(queue);
    *segment = (gt_segment){NULL, NULL, 0, 0};
    return segment;
}

static int grow_segment(gt_segment *segment, size_t needed)
{
    size_t capacity = segment->capacity ? segment->capacity : SMALLEST;
    while (capacity < needed)
        capacity *= 2;
    char *data = PyMem_Realloc(segment->data, capacity);
    if (!data)
        return -1;
    segment->data = data;
    segment->capacity = capacity;
    return 0;
}

static void release_segment(gt_outbound *queue, gt_segment *segment)
{
    if (segment->owner)
        Py_CLEAR(segment->owner);
    else if (!gt_spares_give(queue->spares, segment->data, segment->capacity))
        PyMem_Free(segment->data);
    segment->data = NULL;
}

int gt_outbound_copy(gt_outbound *queue, const char *data, size_t length, uint32_t in_flight)
{
    gt_segment *segment = NULL;
    if (queue->count > in_flight) {
        segment = last_segment(queue);
        if (segment->owner || (segment->length + length > FULL && segment->length + length > segment->capacity))
            segment = NULL;
    }
    bool pushed = !segment;
    if (pushed) {
        segment = push_segment(queue);
        if (!segment)
            return -1;
        segment->data = gt_spares_take(queue->spares, &segment->capacity);
    }
    if (GT_UNLIKELY(segment->length + length > segment->capacity) &&
        grow_segment(segment, segment->length + length) < 0) {
        if (pushed) {
            release_segment(queue, segment);
            queue->count--;
        }
        return -1;
    }
    memcpy(segment->data + segment->length, data, length);
    segment->length += length;
    queue->size += length;
    return 0;
}

int gt_outbound_reference(gt_outbound *queue, PyObject *bytes)
{
    gt_segment *segment = push_segment(queue);
    if (!segment)
        return -1;
    segment->owner = Py_NewRef(bytes);
    segment->data = PyBytes_AS_STRING(bytes);
    segment->length = (size_t)PyBytes_GET_SIZE(bytes);
    queue->size += segment->length;
    return 0;
}

static void was_emptied(gt_outbound *queue)
{
    queue->sent = 0;
    if (GT_UNLIKELY(queue->capacity > KEPT_SEGMENTS)) {
        free_segments(queue);
        gt_outbound_init(queue, queue->spares);
    }
}

void gt_outbound_sent(gt_outbound *queue, size_t length)
{
    queue->size -= length;
    queue->sent += length;
    while (queue->count > 0) {
        gt_segment *segment = &queue->segments[queue->head & (queue->capacity - 1)];
        if (queue->sent < segment->length)
            return;
        queue->sent -= segment->length;
        release_segment(queue, segment);
        queue->head = (queue->head + 1) & (queue->capacity - 1);
        queue->count--;
    }
    was_emptied(queue);
}

void gt_outbound_clear(gt_outbound *queue, uint32_t in_flight)
{
    while (queue->count > in_flight) {
        gt_segment *segment = last_segment(queue);
        queue->size -= segment->length - (queue->count == 1 ? queue->sent : 0);
        release_segment(queue, segment);
        queue->count--;
    }
    if (queue->count == 0)
        was_emptied(queue);
}

void gt_outbound_free(gt_outbound *queue)
{
    gt_outbound_clear(queue, 0);
    free_segments(queue);
}

/* The first segments, up to GT_GATHERED of them: how many, and their bytes. */
uint32_t gt_outbound_gather(const gt_outbound *queue, struct iovec *pieces, size_t *length)
{
    uint32_t count = 0;
    *length = 0;
    while (count < queue->count && count < GT_GATHERED && *length < GT_LARGEST_SEND) {
        const gt_segment *segment = gt_outbound_at(queue, count);
        size_t sent = count == 0 ? queue->sent : 0, piece = segment->length - sent;
        if (piece > GT_LARGEST_SEND - *length)
            piece = GT_LARGEST_SEND - *length;
        pieces[count++] = (struct iovec){.iov_base = segment->data + sent, .iov_len = piece};
        *length += piece;
    }
    return count;
}
