/* events.c: what a server of callbacks needs of a connection.
 *
 * Such a server has one task a connection, which waits for news and calls back.  So its calls must not wait: what arrives is
 * told and stays queued, what is written is queued whatever the marks say, and who asks learns how much that is.
 *
 * _wait_inbound() is the wait.  It tells of each byte once, in this order, and while there is more to tell it does not wait:
 *
 *     WRITTEN    the kernel has taken bytes; only for a program that wants to be told
 *     n > 0      so many bytes have arrived, MOST_TOLD at a time, so that others have a turn between two callbacks
 *     an error   of either direction: a program that only writes has no other call that could raise it
 *     END        the peer's, or the program's own: _end_inbound()
 *     STALLED    the queue is at its high mark, and nothing more will come until the program takes some; once a pause
 *     an error   of the socket, while it is like that, to a program that wants to be told: one that may never take anything
 *
 * A byte that the program takes before it was told counts as told.  The queue is first in, first out, so of `untold` bytes
 * those are left that are still queued: the lesser of the two numbers.
 *
 * That last error is told though the kernel may have bytes that came before it.  The program can still have them, if it takes
 * what is queued and asks again; a server of callbacks, which has asked for it by _tell_resets(), closes the connection, as
 * after any other reset.  The socket tells of its error once, so it is asked no sooner than then, and the receive that comes to
 * the end of the bytes is given the answer.
 *
 * Told of the end by _end_inbound() a program hears of no bytes any more, but the queue keeps what is in it, and after
 * _resume_inbound() it is told of them.
 */
#include "fastpath.h"

#define MOST_TOLD 65536U

static size_t count_untold(const gt_stream *stream)
{
    size_t queued = gt_inbound_size(&stream->inbound);
    return stream->untold < queued ? stream->untold : queued;
}

static bool has_stalled(const gt_stream *stream) { return stream->receive_paused && !stream->stall_told; }

static bool may_have_failed(const gt_stream *stream)
{
    return stream->tells_resets && stream->receive_paused && (stream->failed || stream->socket_error);
}

static bool has_failed(gt_stream *stream)
{
    if (stream->failed)
        gt_stream_ask_for_error(stream);
    return stream->socket_error != 0;
}

bool gt_inbound_has_news(const gt_stream *stream)
{
    return (stream->written > 0 && stream->tells_written) || stream->inbound_ended || count_untold(stream) > 0 ||
           stream->receive_error || stream->send_error || stream->end_of_stream || has_stalled(stream) ||
           may_have_failed(stream);
}

bool gt_inbound_is_over(const gt_stream *stream)
{
    return stream->end_told && (stream->inbound_ended || count_untold(stream) == 0) &&
           !(stream->written > 0 && stream->tells_written);
}

int gt_answer_inbound(gt_connection *connection, PyObject **result)
{
    gt_stream *stream = connection->stream;
    size_t untold = count_untold(stream);
    if (stream->written > 0 && stream->tells_written) {
        *result = PyLong_FromLong(GT_TOLD_WRITTEN);
    } else if (untold > 0 && !stream->inbound_ended) {
        size_t told = untold < MOST_TOLD ? untold : MOST_TOLD;
        stream->untold = untold - told;
        *result = PyLong_FromSize_t(told);
    } else if ((stream->receive_error || stream->send_error) && !stream->inbound_ended) {
        gt_raise_broken(connection->reactor, stream->receive_error ? stream->receive_error : stream->send_error);
        return -1;
    } else if (stream->end_of_stream || stream->inbound_ended) {
        stream->end_told = true;
        *result = PyLong_FromLong(GT_TOLD_END);
    } else if (has_stalled(stream)) {
        stream->stall_told = true;
        *result = PyLong_FromLong(GT_TOLD_STALLED);
    } else if (may_have_failed(stream) && has_failed(stream)) {
        gt_raise_broken(connection->reactor, stream->socket_error);
        return -1;
    } else {
        return 0;
    }
    return *result ? 1 : -1;
}

void gt_inbound_wake(gt_stream *stream)
{
    gt_connection *connection = stream->connection;
    if (connection && connection->receiving.task && connection->receiving.awaitable->call == GT_INBOUND &&
        gt_inbound_has_news(stream))
        gt_reactor_ready(stream->reactor, &connection->ready, (PyObject *)connection);
}

PyObject *gt_connection_end_inbound(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->reactor || !self->stream || self->closed)
        Py_RETURN_NONE; /* there is nothing left to end */
    if (!gt_reactor_check_thread(self->reactor))
        return NULL;
    self->stream->inbound_ended = true;
    if (self->receiving.awaitable && self->receiving.awaitable->call == GT_INBOUND &&
        gt_connection_wake_direction(self, &self->receiving, false) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *gt_connection_resume_inbound(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    stream->inbound_ended = stream->end_told = false; /* the peer's end is told once more */
    Py_RETURN_NONE;
}

PyObject *gt_connection_take_exactly(gt_connection *self, PyObject *count)
{
    Py_ssize_t wanted = PyNumber_AsSsize_t(count, PyExc_OverflowError);
    if (wanted == -1 && PyErr_Occurred())
        return NULL;
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    size_t queued = gt_inbound_size(&stream->inbound);
    if (wanted > 0 && (size_t)wanted > queued)
        Py_RETURN_NONE;
    if (queued == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    PyObject *taken = gt_inbound_take(&stream->inbound, wanted > 0 ? (size_t)wanted : queued);
    gt_stream_consumed(stream);
    return taken;
}

PyObject *gt_connection_send_nowait(gt_connection *self, PyObject *data)
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    if (self->send_eof) {
        PyErr_SetString(self->reactor->closed_error, "send_eof() was called on this connection");
        return NULL;
    }
    int refused = gt_stream_check_sending(stream);
    if (refused)
        return gt_raise_broken(self->reactor, refused);
    const gt_awaitable *call =
        self->sending.awaitable; /* of a send not all may be queued, and one for room is amidst a file */
    if (self->send_held || (call && (call->call == GT_SEND || call->call == GT_ROOM))) {
        PyErr_SetString(self->reactor->busy_error, "another task is already sending on this connection");
        return NULL;
    }
    if (gt_stream_queue_whole(stream, data) < 0)
        return NULL;
    return PyLong_FromSize_t(self->stream ? self->stream->outbound.size : 0);
}

PyObject *gt_connection_tell_resets(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    stream->tells_resets = true;
    Py_RETURN_NONE;
}

PyObject *gt_connection_tell_written(gt_connection *self, PyObject *wanted)
{
    int told = PyObject_IsTrue(wanted);
    gt_stream *stream;
    if (told < 0 || !gt_connection_open_stream(self, &stream))
        return NULL;
    stream->tells_written = told;
    stream->written = 0;
    Py_RETURN_NONE;
}

PyObject *gt_connection_take_written(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    size_t written = self->stream ? self->stream->written : 0;
    if (written > 0)
        self->stream->written = 0;
    return PyLong_FromSize_t(written);
}

PyObject *gt_connection_push(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    if (stream->timed && gt_reactor_look_at_clock(stream->reactor) < 0)
        return NULL;
    if (!stream->closing) /* the clock is Python's, and may have done anything */
        gt_stream_push(stream);
    return PyLong_FromSize_t(stream->outbound.size);
}
