/* deadline.c: a connection's deadlines, and when it moved a byte last.
 *
 * A deadline belongs to a direction and is a time on Trio's clock.  Here it is only stored: a call that parks with one asks
 * Python's keeper, once, to look at the connection at that time, and the keeper comes back through _deadline_passed().  In
 * `looked_at` is the time the keeper is known to come.  While that is no later than the deadline there is nothing to ask of it,
 * so moving a deadline away, which is what programs do with every message, is a store; the keeper comes at the old time, finds
 * a later deadline, and stays with it.
 *
 *     deadline <  looked_at   ask the keeper (a parked call; other ones when they park)
 *     deadline >= looked_at   nothing
 *     the keeper comes        the call in progress, if it is past its deadline, is resumed as late; looked_at is
 *                             the deadline again if a call is parked that has one, and else never
 *
 * A call that is resumed as late looks for its answer first: bytes that came at the last moment are not lost.
 *
 * The time of the last byte is kept for connections that ask for it (_timed), as the time of the batch of completions that
 * moved it: one look at the clock a batch, and none when no connection asks.
 */
#include "fastpath.h"

#include <errno.h>
#include <linux/sockios.h>
#include <math.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

void gt_direction_init(gt_direction *direction) { direction->deadline = direction->looked_at = INFINITY; }

/* Have the keeper come at the deadline, or sooner.  Calls Python, in which the deadline may be set anew. */
int gt_connection_watch(gt_connection *connection, gt_direction *direction)
{
    while (GT_UNLIKELY(direction->deadline < direction->looked_at)) {
        const double deadline = direction->deadline;
        PyObject *result =
            PyObject_CallMethod((PyObject *)connection, "_watch", "id", direction == &connection->sending, deadline);
        if (!result)
            return -1;
        Py_DECREF(result);
        direction->looked_at = deadline;
    }
    return 0;
}

/* The connection is closed, and the keeper need not come any more.  Calls Python. */
int gt_connection_unwatch(gt_connection *self)
{
    gt_stream *stream = self->stream;
    bool timed = stream && stream->timed;
    if (timed) {
        stream->timed = false;
        stream->proactor->timed_streams--;
    }
    if (!timed && self->receiving.looked_at == INFINITY && self->sending.looked_at == INFINITY)
        return 0;
    self->receiving.looked_at = self->sending.looked_at = INFINITY;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_unwatch", NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

PyObject *gt_connection_deadline_passed(gt_connection *self, PyObject *args)
{
    int sending;
    double now;
    if (!PyArg_ParseTuple(args, "pd:_deadline_passed", &sending, &now))
        return NULL;
    gt_direction *direction = sending ? &self->sending : &self->receiving;
    direction->looked_at = INFINITY;
    if (self->closed || !gt_direction_waits(direction) || !direction->call->kind->keeps_deadline)
        return PyFloat_FromDouble(INFINITY);
    if (direction->deadline > now) {
        direction->looked_at = direction->deadline;
        return PyFloat_FromDouble(direction->deadline);
    }
    direction->call->late = true;
    if (gt_direction_wake(direction) < 0)
        return NULL;
    return PyFloat_FromDouble(INFINITY);
}

/* --- read_deadline and write_deadline --- */

static gt_direction *direction_named(gt_connection *self, void *closure)
{
    return closure ? &self->sending : &self->receiving;
}

PyObject *gt_connection_get_deadline(gt_connection *self, void *closure)
{
    return PyFloat_FromDouble(self->proactor ? direction_named(self, closure)->deadline : INFINITY);
}

int gt_connection_set_deadline(gt_connection *self, PyObject *value, void *closure)
{
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "a deadline cannot be deleted; set it to math.inf");
        return -1;
    }
    double deadline = PyFloat_AsDouble(value);
    if (deadline == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(deadline)) {
        PyErr_SetString(PyExc_ValueError, "a deadline is a time on Trio's clock, and not nan");
        return -1;
    }
    if (!self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "this connection was never initialised");
        return -1;
    }
    if (!gt_proactor_check_thread(self->proactor))
        return -1;
    gt_direction *direction = direction_named(self, closure);
    direction->deadline = deadline;
    bool waits = gt_direction_waits(direction) && !self->closed && direction->call->kind->keeps_deadline;
    return waits ? gt_connection_watch(self, direction) : 0;
}

/* --- idleness --- */

PyObject *gt_connection_timed(gt_connection *self, PyObject *wanted)
{
    int timed = PyObject_IsTrue(wanted);
    if (timed < 0)
        return NULL;
    gt_stream *stream = self->stream;
    if (stream && !stream->closing && stream->timed != timed) {
        stream->timed = timed;
        if (timed) {
            stream->proactor->timed_streams++;
            if (gt_proactor_look_at_clock(stream->proactor) < 0)
                return NULL;
            stream->active_at = stream->proactor->now;
        } else {
            stream->proactor->timed_streams--;
        }
    }
    Py_RETURN_NONE;
}

/* The kernel has sent this number of bytes past this object. */
PyObject *gt_connection_has_sent(gt_connection *self, PyObject *count)
{
    unsigned long long sent = PyLong_AsUnsignedLongLong(count);
    if (sent == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    self->bytes_sent += sent;
    gt_stream *stream = self->stream;
    if (stream && stream->timed) {
        if (gt_proactor_look_at_clock(stream->proactor) < 0)
            return NULL;
        stream->active_at = stream->proactor->now;
    }
    Py_RETURN_NONE;
}

PyObject *gt_connection_get_active_at(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble(self->stream ? self->stream->active_at : 0.0);
}

/* Also while a close flushes, when the descriptor is not the program's any more. */
PyObject *gt_connection_unacknowledged(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    int count;
    const gt_stream *stream = self->stream;
    if (!stream || stream->closing || stream->proactor->ring->dead || ioctl(stream->fd, SIOCOUTQ, &count) < 0)
        Py_RETURN_NONE;
    return PyLong_FromLong(count);
}

/* Break the connection: both ends see that, and calls raise the errno, until the program closes it. */
PyObject *gt_connection_break(gt_connection *self, PyObject *number)
{
    long error = PyLong_AsLong(number);
    if (error == -1 && PyErr_Occurred())
        return NULL;
    gt_stream *stream = self->stream;
    if (self->closed || !stream || stream->closing)
        Py_RETURN_NONE;
    if (stream->outbound.size > 0)
        stream->send_incomplete = true;
    stream->receive_error = stream->send_error = (int)error;
    gt_outbound_clear(&stream->outbound, stream->send_in_flight);
    shutdown(stream->fd, SHUT_RDWR); /* it fails where the peer has reset the connection, which is well */
    if (gt_direction_wake(&self->receiving) < 0 || gt_direction_wake(&self->sending) < 0)
        return NULL;
    Py_RETURN_NONE;
}
