/* closing.c: the steps that end a connection.
 *
 * Their order is Python's (gain_trio/_transports/_connections/_closing.py), which protects it from a KeyboardInterrupt.  A server
 * ends most connections with nothing unsent and no task waiting.  Such an end runs no Python code, so it is one call
 * (_close_plainly).
 */
#include "fastpath.h"

#include <errno.h>

size_t gt_connection_unsent(const gt_connection *self)
{
    const gt_stream *stream = self->stream;
    if (!stream)
        return 0;
    /* Another thread may ask, while this one waits, and does not know yet that the kernel has accepted all of it. */
    const bool taken = stream->outbound.size == stream->send_length && stream->send.armed && !stream->closing &&
                       !stream->proactor->ring->dead && gt_quiet_is_taken(stream->proactor->ring, stream->slot);
    return taken ? 0 : stream->outbound.size;
}

static bool begin_refusing(gt_connection *self)
{
    if (!self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "this connection was never initialised");
        return false;
    }
    if (!gt_proactor_check_thread(self->proactor))
        return false;
    self->closed = true;
    if (self->stream && self->sending.call && gt_call_is_incomplete(self->sending.call))
        self->stream->send_incomplete = true; /* now, and not when its task has run: closing asks for it before */
    return true;
}

/* The tasks of both directions are woken, and then the first exception is raised: Trio's code is called, and it can be
 * interrupted. */
static PyObject *end_calls(gt_connection *self)
{
    int woken = gt_direction_wake(&self->receiving);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    woken |= gt_direction_wake(&self->sending);
    if (type) {
        PyErr_Clear();
        PyErr_Restore(type, value, traceback);
    }
    if (woken < 0 || gt_connection_unwatch(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *gt_connection_refuse_calls(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    return begin_refusing(self) ? end_calls(self) : NULL;
}

PyObject *gt_connection_refuse_sends(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_stream *stream;
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    self->send_eof = true;
    Py_RETURN_NONE;
}

/* Cancel what is in flight and close the descriptor. */
static PyObject *end(gt_connection *self, bool with_reset)
{
    if (!begin_refusing(self))
        return NULL;
    int error = self->stream ? gt_stream_close(self->stream, with_reset) : 0; /* first, for it runs no Python */
    PyObject *ended = end_calls(self);
    if (!ended)
        return NULL;
    Py_DECREF(ended);
    if (error && error != EBADF && error != ENOTSOCK && error != EINVAL) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyObject *gt_connection_close(gt_connection *self, PyObject *reset)
{
    const int with_reset = PyObject_IsTrue(reset);
    return with_reset < 0 ? NULL : end(self, with_reset);
}

static bool is_set(const PyObject *value) { return value && value != Py_None; }

/* Ending it would run Python: for a task that waits in a call, for a file or a connection with TLS that goes with it, or for
 * the keeper of its deadlines. */
static bool concerns_others(const gt_connection *self)
{
    return self->receiving.call || self->sending.call || is_set(self->attributes[GT_SUCCESSOR]) ||
           is_set(self->attributes[GT_TRANSFER]) || is_set(self->attributes[GT_DEADLINES_KEPT]);
}

PyObject *gt_connection_close_plainly(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    if (concerns_others(self) || gt_connection_unsent(self) > 0)
        Py_RETURN_FALSE;
    PyObject *closed = end(self, false);
    Py_XDECREF(closed);
    return closed ? Py_NewRef(Py_True) : NULL;
}
