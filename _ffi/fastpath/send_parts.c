/* send_parts.c: the data of a send, in one part or several, on its way to the outbound queue.
 *
 * A call may be cancelled between two parts, or with a large buffer queued by half.  It is incomplete then, and so is the
 * stream: the peer would take what follows for the other half.
 */
#include "fastpath.h"

static gt_stream *stream_of(const gt_call *self) { return ((gt_connection *)self->owner)->stream; }

/* A part of a message: bytes as they are, of anything else a view, which keeps it from changing its size meanwhile. */
static PyObject *as_part(PyObject *object)
{
    if (PyBytes_CheckExact(object))
        return Py_NewRef(object);
    PyObject *view = PyMemoryView_FromObject(object);
    if (view && !PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(view), 'C')) {
        Py_CLEAR(view);
        PyErr_SetString(PyExc_BufferError, "send() needs buffers in one piece each");
    }
    return view;
}

static size_t part_length(PyObject *part)
{
    return PyBytes_CheckExact(part) ? (size_t)PyBytes_GET_SIZE(part) : (size_t)PyMemoryView_GET_BUFFER(part)->len;
}

int gt_call_set_parts(gt_call *self, PyObject *sequence)
{
    PyObject *parts = PySequence_Tuple(sequence);
    if (!parts)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(parts);
    PyObject *taken = PyTuple_New(count);
    for (Py_ssize_t i = 0; taken && i < count; i++) {
        PyObject *part = as_part(PyTuple_GET_ITEM(parts, i));
        if (!part) {
            Py_CLEAR(taken);
            break;
        }
        PyTuple_SET_ITEM(taken, i, part);
        self->length += part_length(part);
    }
    Py_DECREF(parts);
    self->parts = taken;
    return taken ? 0 : -1;
}

/* Make the next part the current one.  1, 0: there is none, -1: exception set. */
static int next_part(gt_call *self)
{
    if (!self->parts || self->next_part == PyTuple_GET_SIZE(self->parts))
        return 0;
    PyObject *part = PyTuple_GET_ITEM(self->parts, self->next_part);
    self->next_part++;
    self->before += self->offset;
    self->offset = 0;
    gt_call_release(self);
    if (PyBytes_CheckExact(part)) {
        self->data = Py_NewRef(part);
        return 1;
    }
    return gt_call_set_view(self, part, PyBUF_SIMPLE) ? 1 : -1;
}

static size_t current_length(const gt_call *self)
{
    return self->data ? (size_t)PyBytes_GET_SIZE(self->data) : self->view ? (size_t)self->view->len : 0;
}

/* Queue as much of the data as the marks allow: all of it, unless it is a large buffer that the caller may change later.  With
 * `all` the marks do not matter. */
static int queue_current(gt_call *self, bool all)
{
    gt_stream *stream = stream_of(self);
    if (self->data && PyBytes_GET_SIZE(self->data) >= GT_REFERENCE) {
        if (self->offset == 0 && gt_outbound_reference(&stream->outbound, self->data) < 0)
            return -1;
        self->offset = (size_t)PyBytes_GET_SIZE(self->data);
    } else {
        const char *data = self->data ? PyBytes_AS_STRING(self->data) : self->view->buf;
        size_t left = current_length(self) - self->offset;
        if (left > GT_REFERENCE && !all) {
            size_t mark = stream->send_high > GT_REFERENCE ? stream->send_high
                                                           : GT_REFERENCE; /* small marks, but no small sends */
            size_t room = stream->outbound.size < mark ? mark - stream->outbound.size : 0;
            if (left > room)
                left = room;
        }
        if (left > 0 && gt_outbound_copy(&stream->outbound, data + self->offset, left, stream->send_in_flight) < 0)
            return -1;
        self->offset += left;
    }
    return 0;
}

/* The same for all parts.  They are queued together, and leave together: see prepare_gathered() in stream_prepare.c. */
int gt_call_queue_parts(gt_call *self, bool all)
{
    int more = 1;
    while (more > 0) {
        if (self->offset < current_length(self) && queue_current(self, all) < 0) {
            PyErr_NoMemory();
            return -1;
        }
        if (self->offset < current_length(self))
            break;
        more = next_part(self);
    }
    gt_stream *stream = stream_of(self);
    if (stream->outbound.size > 0)
        gt_stream_want(stream);
    return more < 0 ? -1 : 0;
}

int gt_call_queue_small(gt_call *self, gt_stream *stream)
{
    if (GT_UNLIKELY(
            gt_outbound_copy(&stream->outbound, PyBytes_AS_STRING(self->data), self->length, stream->send_in_flight))) {
        PyErr_NoMemory();
        return -1;
    }
    self->offset = self->length;
    gt_stream_want(stream);
    return 0;
}

/* Has the call queued a part of its data, and not the rest? */
bool gt_call_is_incomplete(const gt_call *self)
{
    size_t queued = self->before + self->offset;
    return queued > 0 && queued < self->length;
}
