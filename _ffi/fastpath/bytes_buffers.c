/* bytes_buffers.c: provided buffers that are bytes objects, for connections that receive large pieces.
 *
 * A piece usually lands in the ring's buffers and is copied into a bytes object.  That is right for a small one.  A copy of
 * 16 KiB costs as much as the rest of what a message costs outside the kernel, and pushes twice as much out of the processor's
 * cache.  So there is a second group of buffers, each of which is the inside of a bytes object that only the proactor refers
 * to.  A piece that fills most of such a buffer is handed to the program as the object itself, cut to its length, and a fresh
 * object takes its place.  A smaller piece is copied, and the buffer goes back: the program would hold memory for nothing.
 *
 * A buffer holds what is commonly sent in one go, 16 KiB of a file or a record of TLS with all around it; a larger message comes
 * in several pieces.  An object that was cut keeps its block of memory, of which at least three quarters are in use then.
 *
 * Nothing of this can be seen by small messages, whose pieces share the ring's buffers.  Which group a connection's receive
 * takes its buffers from follows from its last pieces: learn_size() in stream_complete.c.  The group is opened by the first
 * connection that wants it.  What is in it is the kernel's until the ring has nothing in flight, like any provided buffer.
 */
#include "fastpath.h"

#define BUFFER_GROUP 2
#define BUFFER_SIZE 20480U
#define COMMON_SIZE 65536U /* of the ring's buffers; who asks for larger ones wants larger pieces */

_Static_assert(GT_LARGE_PIECE <= BUFFER_SIZE && GT_LARGE_PIECE >= BUFFER_SIZE / 4 * 3, "an object is mostly in use");

void gt_bytes_buffers_init(gt_bytes_buffers *set, const struct gt_ring *ring)
{
    set->refused = ring->buffers.size > COMMON_SIZE;
}

static void drop_objects(gt_bytes_buffers *set)
{
    for (uint32_t id = 0; id < GT_BYTES_BUFFERS; id++)
        Py_CLEAR(set->objects[id]);
}

static bool put_object(gt_bytes_buffers *set, uint32_t id)
{
    PyObject *object = PyBytes_FromStringAndSize(NULL, BUFFER_SIZE);
    if (!object) {
        PyErr_Clear(); /* then pieces are copied, into objects that are smaller */
        return false;
    }
    set->objects[id] = object;
    set->places[id] = PyBytes_AS_STRING(object);
    return true;
}

bool gt_bytes_buffers_open(gt_bytes_buffers *set, struct gt_ring *ring)
{
    if (set->buffers.entries)
        return true;
    if (set->refused)
        return false;
    uint32_t made = 0;
    while (made < GT_BYTES_BUFFERS && put_object(set, made))
        made++;
    if (made < GT_BYTES_BUFFERS ||
        gt_buffers_open_places(ring, &set->buffers, BUFFER_GROUP, set->places, GT_BYTES_BUFFERS, BUFFER_SIZE) < 0) {
        drop_objects(set);
        set->refused = true; /* no memory, or none that may be locked: the ring's own buffers do for everything */
        return false;
    }
    gt_buffers_adapt(&set->buffers);
    return true;
}

PyObject *gt_bytes_buffers_take(gt_bytes_buffers *set, const struct io_uring_cqe *cqe)
{
    const uint16_t id = gt_completion_buffer(cqe);
    if (cqe->res < (int32_t)GT_LARGE_PIECE)
        return NULL;
    PyObject *piece = set->objects[id];
    if (!put_object(set, id))
        return NULL;
    /* No other reference to the object exists, and it was never hashed: it may still change. */
    Py_SET_SIZE(piece, cqe->res);
    PyBytes_AS_STRING(piece)[cqe->res] = '\0';
    set->taken++;
    return piece;
}

void gt_bytes_buffers_free(gt_bytes_buffers *set, struct gt_ring *ring, bool leak)
{
    if (!leak && gt_buffers_close_group(ring, &set->buffers) == 0)
        drop_objects(set);
}
