/* nowait.c: the calls of a connection that never wait, whatever the marks say.
 *
 * TLS hands down what it has encrypted, and a server of callbacks writes, where no task can wait: send_nowait queues all of it
 * and returns how much is outbound, and push offers that to the kernel.  take_exactly
 * takes all of a number of bytes, or none.
 */
#include "fastpath.h"

PyObject *gt_connection_take_exactly(gt_connection *self, PyObject *count)
{
    Py_ssize_t wanted = PyNumber_AsSsize_t(count, PyExc_OverflowError);
    if (wanted == -1 && PyErr_Occurred())
        return NULL;
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    size_t queued = gt_inbound_size(&stream->inbound), size = wanted < 0 ? queued : (size_t)wanted;
    if (size > queued)
        Py_RETURN_NONE;
    if (size == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    PyObject *taken = gt_inbound_take(&stream->inbound, size);
    gt_stream_consumed(stream);
    return taken;
}

/* Queue a bytes object, whatever the marks say.  -1: out of memory, no exception set. */
int gt_stream_queue_bytes(gt_stream *stream, PyObject *bytes)
{
    const size_t length = (size_t)PyBytes_GET_SIZE(bytes);
    int queued = 0;
    if (length >= GT_REFERENCE)
        queued = gt_outbound_reference(&stream->outbound, bytes);
    else if (length > 0)
        queued = gt_outbound_copy(&stream->outbound, PyBytes_AS_STRING(bytes), length, stream->send_in_flight);
    if (stream->outbound.size > 0)
        gt_stream_want(stream);
    return queued;
}

/* The same of any buffer.  -1: exception set. */
static int queue_whole(gt_stream *stream, PyObject *data)
{
    int queued;
    if (PyBytes_CheckExact(data)) {
        queued = gt_stream_queue_bytes(stream, data);
    } else {
        Py_buffer view;
        if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
            return -1;
        if (stream->closing) { /* the code of the buffer's owner may have closed it */
            PyBuffer_Release(&view);
            PyErr_SetString(stream->proactor->closed_error, "this connection was closed");
            return -1;
        }
        queued = view.len ? gt_outbound_copy(&stream->outbound, view.buf, (size_t)view.len, stream->send_in_flight) : 0;
        if (stream->outbound.size > 0)
            gt_stream_want(stream);
        PyBuffer_Release(&view);
    }
    if (queued < 0)
        PyErr_NoMemory();
    return queued;
}

/* A send may have queued a part of its data; a wait for room is amidst a file. */
static bool is_amidst_send(const gt_connection *self)
{
    const gt_call *call = self->sending.call;
    return self->send_held || (call && call->kind->excludes_sends);
}

bool gt_connection_cannot_send_now(const gt_connection *self)
{
    return self->send_eof || gt_stream_check_sending(self->stream) || is_amidst_send(self);
}

PyObject *gt_connection_send_nowait(gt_connection *self, PyObject *data)
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    if (self->send_eof) {
        PyErr_SetString(self->proactor->closed_error, "send_eof() was called on this connection");
        return NULL;
    }
    int refused = gt_stream_check_sending(stream);
    if (refused)
        return gt_raise_broken(self->proactor, refused);
    if (is_amidst_send(self)) {
        PyErr_SetString(self->proactor->busy_error, "another task is already sending on this connection");
        return NULL;
    }
    if (queue_whole(stream, data) < 0)
        return NULL;
    return PyLong_FromSize_t(self->stream ? self->stream->outbound.size : 0);
}

PyObject *gt_connection_push(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    if (stream->timed && gt_proactor_look_at_clock(stream->proactor) < 0)
        return NULL;
    if (!stream->closing) /* the clock is Python's, and may have done anything */
        gt_stream_push(stream);
    return PyLong_FromSize_t(stream->outbound.size);
}
