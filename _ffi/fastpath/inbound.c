/* inbound.c: bytes received and unread.
 *
 * Nearly always a message arrives, one task waits for it and takes it whole.  So the first chunk is made a bytes object at
 * once, in `whole`, and handed out as it is: one copy, out of the kernel's buffer.  (None, where the kernel has received into a
 * bytes object: bytes_buffers.c.)
 *
 * A chunk that arrives before the task has read the first is treated by its size.  A large one becomes a bytes object of its
 * own, in `later`, and moves up to `whole` in its order: a fast sender has the kernel complete several receives before the
 * task runs, and copying them together first, and out again, would cost more than receiving them.  So does the small one that a
 * large message ends with: it may stand behind a large one.  Any other small one is appended to one flat buffer, with everything
 * before it, which bounds the memory of the queue by its size however small the pieces are (a list of one-byte chunks would cost
 * fifty times its content).  So every byte is copied at most once on its way from
 * `whole` or `later` to the flat buffer:
 *
 *     [ whole | data ]  later[0]  later[1] ...        `whole` and `data` are never both in use
 *
 * TLS needs no bytes object: it passes what has arrived to OpenSSL, which makes a copy of its own.  For a task of TLS that waits
 * with an empty queue a large chunk is lent: it stays in the ring's buffer until the task, which runs next, has read it.  What
 * the task has left there when streams are prepared (gt_stream_prepare()), because it was cancelled, say, is copied then.  So no
 * buffer is kept from the kernel for longer than the tasks of a batch run.
 *
 *     lent[0]  lent[1]                                in place of all of the above
 */
#include "fastpath.h"

#define SMALLEST 4096U
#define LARGE 4096U         /* a chunk of no less is not copied together with its neighbours */
#define MOST_AT_ONCE 65536U /* bytes that a new buffer has because the last one had to */
#define KEEP_LATER 8U

/* --- the flat buffer --- */

/* Room for `extra` bytes.  The content is moved to the front, and if that frees less than half of the used part, the buffer
 * grows as well: else a queue that stays nearly full would be moved again for every few bytes that come and go.  A new buffer is as
 * large as the last one had to be: a stream of small pieces, which fills one after the other, would have each of them grow. */
static int reserve(gt_inbound *queue, size_t extra)
{
    const size_t needed = queue->length + extra;
    size_t least = SMALLEST;
    if (queue->capacity == 0) {
        if (queue->most > SMALLEST)
            least = queue->most;
        else
            queue->data = gt_spares_take(queue->spares, &queue->capacity);
        queue->most = 0;
    }
    if (needed > queue->most)
        queue->most = needed < MOST_AT_ONCE ? (uint32_t)needed : MOST_AT_ONCE;
    if (queue->start + needed <= queue->capacity)
        return 0;
    bool moving_suffices = queue->start >= queue->length && needed <= queue->capacity;
    if (queue->start > 0) {
        memmove(queue->data, queue->data + queue->start, queue->length);
        queue->start = 0;
    }
    if (moving_suffices)
        return 0;
    size_t capacity = queue->capacity * 2 > least ? queue->capacity * 2 : least;
    while (capacity < needed)
        capacity *= 2;
    char *data = PyMem_Realloc(queue->data, capacity);
    if (!data)
        return -1;
    queue->data = data;
    queue->capacity = capacity;
    return 0;
}

static void append_flat(gt_inbound *queue, const char *data, size_t length)
{
    memcpy(queue->data + queue->start + queue->length, data, length);
    queue->length += length;
}

/* --- the chunks behind it --- */

static PyObject **later_at(const gt_inbound *queue, uint32_t index)
{
    return &queue->later[(queue->later_head + index) & (queue->later_capacity - 1)];
}

static int push_later(gt_inbound *queue, PyObject *chunk)
{
    if (queue->later_count == queue->later_capacity) {
        uint32_t capacity = queue->later_capacity ? queue->later_capacity * 2 : KEEP_LATER;
        PyObject **later = PyMem_Malloc(capacity * sizeof *later);
        if (!later)
            return -1;
        for (uint32_t i = 0; i < queue->later_count; i++)
            later[i] = *later_at(queue, i);
        PyMem_Free(queue->later);
        queue->later = later;
        queue->later_capacity = capacity;
        queue->later_head = 0;
    }
    queue->later_count++;
    *later_at(queue, queue->later_count - 1) = chunk;
    queue->later_size += (size_t)PyBytes_GET_SIZE(chunk);
    return 0;
}

/* The first of them, the caller's now.  There is one. */
static PyObject *pop_later(gt_inbound *queue)
{
    PyObject *chunk = *later_at(queue, 0);
    queue->later_head++;
    queue->later_size -= (size_t)PyBytes_GET_SIZE(chunk);
    if (--queue->later_count == 0 && queue->later_capacity > KEEP_LATER) {
        PyMem_Free(queue->later);
        queue->later = NULL;
        queue->later_head = queue->later_capacity = 0;
    }
    return chunk;
}

/* --- pieces of the ring's buffers --- */

void gt_inbound_lend(gt_inbound *queue, struct gt_ring *ring, const struct io_uring_cqe *cqe)
{
    const uint32_t size = (uint32_t)cqe->res;
    queue->lender = ring;
    if (queue->lent_count > 0)
        queue->later_size += size;
    queue->lent[queue->lent_count++] = (gt_lent){
        .data = gt_buffers_data(&ring->buffers, cqe), .size = size, .buffer = gt_buffers_lend(&ring->buffers, cqe)};
}

/* The first of them, the caller's now, with what is left of it.  There is one. */
static gt_lent pop_lent(gt_inbound *queue)
{
    gt_lent first = queue->lent[0];
    first.data += queue->start;
    first.size -= (uint32_t)queue->start;
    queue->start = 0;
    queue->lent_count--;
    for (uint32_t i = 0; i < queue->lent_count; i++)
        queue->lent[i] = queue->lent[i + 1];
    if (queue->lent_count > 0)
        queue->later_size -= queue->lent[0].size;
    return first;
}

size_t gt_inbound_lent_size(const gt_inbound *queue, size_t max)
{
    size_t size = 0;
    for (uint32_t i = 0; i < queue->lent_count; i++) {
        const size_t piece = queue->lent[i].size - (i == 0 ? queue->start : 0);
        if (piece > max - size)
            break;
        size += piece;
    }
    return size;
}

uint32_t gt_inbound_take_lent(gt_inbound *queue, size_t size, gt_lent *lent)
{
    uint32_t count = 0;
    for (; size > 0; count++) {
        lent[count] = pop_lent(queue);
        size -= lent[count].size;
    }
    return count;
}

int gt_inbound_settle(gt_inbound *queue)
{
    gt_lent lent[GT_LENT];
    const uint32_t count = gt_inbound_take_lent(queue, gt_inbound_lent_size(queue, SIZE_MAX), lent);
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (result == 0)
            result = gt_inbound_append(queue, lent[i].data, lent[i].size);
        gt_buffers_return(queue->lender, lent[i].buffer);
    }
    return result;
}

/* All of them into the flat buffer, which is empty, with room for `extra` bytes. */
static int flatten_lent(gt_inbound *queue, size_t extra)
{
    const size_t skip = queue->start, size = gt_inbound_size(queue);
    queue->start = 0;
    if (reserve(queue, size + extra) < 0) {
        queue->start = skip;
        return -1;
    }
    queue->lent[0].data += skip;
    queue->lent[0].size -= (uint32_t)skip;
    while (queue->lent_count > 0) {
        const gt_lent lent = pop_lent(queue);
        append_flat(queue, lent.data, lent.size);
        gt_buffers_return(queue->lender, lent.buffer);
    }
    return 0;
}

/* Everything into the flat buffer, with room for `extra` bytes. */
static int flatten(gt_inbound *queue, size_t extra)
{
    if (queue->lent_count > 0)
        return flatten_lent(queue, extra);
    PyObject *whole = queue->whole;
    if (whole) { /* the flat buffer is empty, and `start` is the bytes object's */
        size_t skip = queue->start, length = (size_t)PyBytes_GET_SIZE(whole) - skip;
        queue->start = 0;
        if (reserve(queue, length + queue->later_size + extra) < 0) {
            queue->start = skip;
            return -1;
        }
        append_flat(queue, PyBytes_AS_STRING(whole) + skip, length);
        Py_CLEAR(queue->whole);
    } else if (reserve(queue, queue->later_size + extra) < 0) {
        return -1;
    }
    while (queue->later_count > 0) {
        PyObject *chunk = pop_later(queue);
        append_flat(queue, PyBytes_AS_STRING(chunk), (size_t)PyBytes_GET_SIZE(chunk));
        Py_DECREF(chunk);
    }
    return 0;
}

/* --- taking from the front --- */

/* It is empty. */
static void give_buffer_back(gt_inbound *queue)
{
    if (!gt_spares_give(queue->spares, queue->data, queue->capacity))
        PyMem_Free(queue->data);
    queue->data = NULL;
    queue->capacity = 0;
}

/* Remove `length` bytes, no more than the front has; what follows it moves up when it is used up. */
static void remove_front(gt_inbound *queue, size_t length)
{
    queue->start += length;
    if (queue->lent_count > 0) {
        if (queue->start == queue->lent[0].size)
            gt_buffers_return(queue->lender, pop_lent(queue).buffer);
        return;
    }
    if (queue->whole) {
        if (queue->start < (size_t)PyBytes_GET_SIZE(queue->whole))
            return;
        Py_CLEAR(queue->whole);
    } else {
        queue->length -= length;
        if (queue->length > 0)
            return;
        give_buffer_back(queue);
    }
    queue->start = 0;
    if (queue->later_count > 0)
        queue->whole = pop_later(queue);
}

static const char *front(const gt_inbound *queue)
{
    if (queue->lent_count > 0)
        return queue->lent[0].data + queue->start;
    return (queue->whole ? PyBytes_AS_STRING(queue->whole) : queue->data) + queue->start;
}

int gt_inbound_append_object(gt_inbound *queue, PyObject *chunk)
{
    int result = queue->lent_count > 0 ? gt_inbound_settle(queue) : 0;
    if (result == 0 && gt_inbound_is_empty(queue)) {
        queue->whole = chunk;
        return 0;
    }
    if (result == 0)
        result = push_later(queue, chunk);
    if (result < 0)
        Py_DECREF(chunk);
    return result;
}

/* The last chunk is a bytes object, and a large one. */
static bool ends_large(const gt_inbound *queue)
{
    const PyObject *last = queue->later_count > 0 ? *later_at(queue, queue->later_count - 1) : queue->whole;
    return last && PyBytes_GET_SIZE(last) >= (Py_ssize_t)LARGE;
}

int gt_inbound_append(gt_inbound *queue, const char *data, size_t length)
{
    if (queue->lent_count > 0 && gt_inbound_settle(queue) < 0)
        return -1;
    const bool was_empty = gt_inbound_is_empty(queue);
    if (!was_empty && length < LARGE && !ends_large(queue)) {
        if (flatten(queue, length) < 0)
            return -1;
        append_flat(queue, data, length);
        return 0;
    }
    PyObject *chunk = PyBytes_FromStringAndSize(data, (Py_ssize_t)length);
    if (!chunk) {
        PyErr_Clear(); /* a MemoryError: the caller says so in the connection's own terms */
        return -1;
    }
    if (!was_empty)
        return gt_inbound_append_object(queue, chunk);
    queue->whole = chunk;
    return 0;
}

/* Copy the first `length` bytes, which are there. */
static void copy_out(const gt_inbound *queue, char *target, size_t length)
{
    size_t part = gt_inbound_head_size(queue);
    if (part > length)
        part = length;
    if (part > 0)
        memcpy(target, front(queue), part);
    for (uint32_t i = 0; part < length; i++) {
        const char *from;
        size_t size;
        if (queue->lent_count > 0) {
            from = queue->lent[i + 1].data;
            size = queue->lent[i + 1].size;
        } else {
            const PyObject *chunk = *later_at(queue, i);
            from = PyBytes_AS_STRING(chunk);
            size = (size_t)PyBytes_GET_SIZE(chunk);
        }
        if (size > length - part)
            size = length - part;
        memcpy(target + part, from, size);
        part += size;
    }
}

static bool is_whole(const gt_inbound *queue, size_t length)
{
    return queue->whole && queue->start == 0 && (size_t)PyBytes_GET_SIZE(queue->whole) == length;
}

PyObject *gt_inbound_peek(const gt_inbound *queue, size_t max)
{
    size_t length = gt_inbound_size(queue);
    if (length > max)
        length = max;
    if (is_whole(queue, length))
        return Py_NewRef(queue->whole);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (bytes)
        copy_out(queue, PyBytes_AS_STRING(bytes), length);
    return bytes;
}

PyObject *gt_inbound_take(gt_inbound *queue, size_t max)
{
    PyObject *taken = gt_inbound_peek(queue, max);
    if (taken)
        gt_inbound_take_into(queue, NULL, (size_t)PyBytes_GET_SIZE(taken));
    return taken;
}

PyObject *gt_inbound_take_piece(gt_inbound *queue, size_t max)
{
    size_t length = gt_inbound_head_size(queue);
    if (length <= max && is_whole(queue, length)) { /* the usual case, without a detour */
        PyObject *taken = queue->whole;
        queue->whole = queue->later_count > 0 ? pop_later(queue) : NULL;
        return taken;
    }
    return gt_inbound_take(queue, length < max ? length : max);
}

size_t gt_inbound_take_into(gt_inbound *queue, char *target, size_t max)
{
    size_t length = gt_inbound_size(queue);
    if (length > max)
        length = max;
    if (target)
        copy_out(queue, target, length);
    for (size_t left = length; left > 0;) {
        size_t part = gt_inbound_head_size(queue);
        if (part > left)
            part = left;
        remove_front(queue, part);
        left -= part;
    }
    return length;
}

int gt_inbound_find(gt_inbound *queue, const char *needle, size_t length, size_t start, size_t *found)
{
    size_t size = gt_inbound_size(queue);
    *found = SIZE_MAX;
    if (start >= size)
        return 0;
    if (queue->later_size > 0 && flatten(queue, 0) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    const char *data = front(queue);
    const char *place = memmem(data + start, size - start, needle, length);
    if (place)
        *found = (size_t)(place - data);
    return 0;
}

void gt_inbound_clear(gt_inbound *queue)
{
    while (queue->lent_count > 0)
        gt_buffers_return(queue->lender, pop_lent(queue).buffer);
    Py_CLEAR(queue->whole);
    while (queue->later_count > 0) {
        PyObject *chunk = pop_later(queue);
        Py_DECREF(chunk);
    }
    PyMem_Free(queue->later);
    PyMem_Free(queue->data);
    *queue = (gt_inbound){.spares = queue->spares};
}
