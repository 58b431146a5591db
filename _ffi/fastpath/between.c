/* between.c: the wait between two messages, where a connection can end without loss.
 *
 * What it means, and how a drain ends it, is in gain_trio/_transports/_connections/_messages.py: a drain gives the wait a read
 * deadline, and the wait takes its end for an answer.  There each such wait is a few lines of Python around a call.  Here the
 * calls that have `between` in their row are that wait themselves, and what the lines do is done
 *
 *     before the call begins   another wait of either sort is in progress: busy
 *     when its task parks      the server drains: Python sets the deadline (_set_drain_deadline)
 *     when it has no answer    the deadline has passed, and it is the drain's: there is no more message
 *     when it is over          the program's own deadline is put back
 *
 * so that a message costs a look at three attributes.  For a call that is answered at once there is nothing to put back.
 */
#include "fastpath.h"

#include <math.h>

static bool is_true(const gt_connection *connection, enum gt_attribute attribute)
{
    return connection->attributes[attribute] == Py_True;
}

PyObject *gt_connection_waits_between(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    const gt_call *call = self->receiving.call;
    return PyBool_FromLong(is_true(self, GT_BETWEEN) || (call && call->kind->between));
}

bool gt_between_is_taken(const gt_connection *connection) { return is_true(connection, GT_BETWEEN); }

/* A number of the DrainDeadline, which is a tuple of two floats; infinity where there is none. */
static double drain_deadline(const gt_connection *connection, Py_ssize_t index)
{
    PyObject *pair = connection->attributes[GT_DRAIN_DEADLINE];
    if (!pair || !PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyFloat_Check(PyTuple_GET_ITEM(pair, index)))
        return INFINITY;
    return PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(pair, index));
}

static bool has_drain_deadline(const gt_connection *connection)
{
    return connection->attributes[GT_DRAIN_DEADLINE] && connection->attributes[GT_DRAIN_DEADLINE] != Py_None;
}

int gt_between_park(gt_connection *connection)
{
    if (GT_LIKELY(!is_true(connection, GT_DRAINS)) || has_drain_deadline(connection))
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)connection, "_set_drain_deadline", NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

bool gt_between_is_over(const gt_call *call)
{
    const gt_connection *connection = (const gt_connection *)call->owner;
    return call->kind->between && call->state == GT_CALL_PARKED && call->late && has_drain_deadline(connection) &&
           connection->receiving.deadline == drain_deadline(connection, 0);
}

void gt_between_end(gt_connection *connection)
{
    if (GT_LIKELY(!has_drain_deadline(connection)))
        return;
    if (connection->receiving.deadline ==
        drain_deadline(connection, 0)) /* else the program has set another one meanwhile */
        connection->receiving.deadline = drain_deadline(connection, 1);
    Py_SETREF(connection->attributes[GT_DRAIN_DEADLINE], Py_NewRef(Py_None));
}
