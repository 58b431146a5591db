/* inbound.c: bytes received and not yet taken.
 *
 * Nearly always a message arrives, one task waits for it and takes it whole.  So the first chunk is made a bytes object at
 * once, in `whole`, and handed out as it is: one copy, out of the kernel's buffer.  Only when more arrives before it is
 * taken, or when less than all of it is, does the queue fall back to one flat buffer, which bounds its memory by its size
 * however small the pieces are (a list of one-byte chunks would cost fifty times its content).
 */
#include "fastpath.h"

#define SMALLEST 4096U
#define KEEP 65536U /* an emptied buffer larger than this is given back */

/* Room for `extra` bytes.  The content is moved to the front, and if that frees less than half of the used part, the buffer
 * grows as well: else a queue that stays nearly full would be moved again for every few bytes that come and go. */
static int reserve(gt_inbound *queue, size_t extra)
{
    if (queue->start + queue->length + extra <= queue->capacity)
        return 0;
    bool moving_suffices = queue->start >= queue->length && queue->length + extra <= queue->capacity;
    if (queue->start > 0) {
        memmove(queue->data, queue->data + queue->start, queue->length);
        queue->start = 0;
    }
    if (moving_suffices)
        return 0;
    size_t capacity = queue->capacity ? queue->capacity * 2 : SMALLEST;
    while (capacity < queue->length + extra)
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

/* `whole` becomes the content of the flat buffer, less its first `skip` bytes. */
static int flatten(gt_inbound *queue, size_t skip, size_t extra)
{
    size_t length = (size_t)PyBytes_GET_SIZE(queue->whole) - skip;
    if (reserve(queue, length + extra) < 0)
        return -1;
    append_flat(queue, PyBytes_AS_STRING(queue->whole) + skip, length);
    Py_CLEAR(queue->whole);
    return 0;
}

static void remove_flat(gt_inbound *queue, size_t length)
{
    queue->start += length;
    queue->length -= length;
    if (queue->length == 0) {
        queue->start = 0;
        if (queue->capacity > KEEP) {
            PyMem_Free(queue->data);
            queue->data = NULL;
            queue->capacity = 0;
        }
    }
}

int gt_inbound_append(gt_inbound *queue, const char *data, size_t length)
{
    if (gt_inbound_size(queue) == 0) {
        queue->whole = PyBytes_FromStringAndSize(data, (Py_ssize_t)length);
        if (!queue->whole)
            PyErr_Clear(); /* a MemoryError: the caller says so in the connection's own terms */
        return queue->whole ? 0 : -1;
    }
    if ((queue->whole ? flatten(queue, 0, length) : reserve(queue, length)) < 0)
        return -1;
    append_flat(queue, data, length);
    return 0;
}

PyObject *gt_inbound_peek(const gt_inbound *queue, size_t max)
{
    size_t length = gt_inbound_size(queue);
    if (queue->whole && length <= max)
        return Py_NewRef(queue->whole);
    const char *data = queue->whole ? PyBytes_AS_STRING(queue->whole) : queue->data + queue->start;
    return PyBytes_FromStringAndSize(length ? data : NULL, (Py_ssize_t)(length < max ? length : max));
}

PyObject *gt_inbound_take(gt_inbound *queue, size_t max)
{
    if (queue->whole && (size_t)PyBytes_GET_SIZE(queue->whole) <= max) {
        PyObject *taken = queue->whole;
        queue->whole = NULL;
        return taken;
    }
    PyObject *taken = gt_inbound_peek(queue, max);
    if (!taken)
        return NULL;
    size_t length = (size_t)PyBytes_GET_SIZE(taken);
    if (queue->whole) {
        if (flatten(queue, length, 0) < 0) {
            Py_DECREF(taken);
            return PyErr_NoMemory();
        }
    } else {
        remove_flat(queue, length);
    }
    return taken;
}

size_t gt_inbound_take_into(gt_inbound *queue, char *target, size_t max)
{
    size_t length = gt_inbound_size(queue);
    if (length > max)
        length = max;
    if (queue->whole) {
        if (target)
            memcpy(target, PyBytes_AS_STRING(queue->whole), length);
        if (length == (size_t)PyBytes_GET_SIZE(queue->whole)) {
            Py_CLEAR(queue->whole);
        } else if (flatten(queue, length, 0) < 0) {
            PyErr_NoMemory();
            return SIZE_MAX;
        }
    } else if (length > 0) {
        if (target)
            memcpy(target, queue->data + queue->start, length);
        remove_flat(queue, length);
    }
    return length;
}

size_t gt_inbound_find(const gt_inbound *queue, const char *needle, size_t length, size_t start)
{
    size_t size = gt_inbound_size(queue);
    if (start >= size)
        return SIZE_MAX;
    const char *data = queue->whole ? PyBytes_AS_STRING(queue->whole) : queue->data + queue->start;
    const char *found = memmem(data + start, size - start, needle, length);
    return found ? (size_t)(found - data) : SIZE_MAX;
}

void gt_inbound_clear(gt_inbound *queue)
{
    Py_CLEAR(queue->whole);
    PyMem_Free(queue->data);
    memset(queue, 0, sizeof *queue);
}
