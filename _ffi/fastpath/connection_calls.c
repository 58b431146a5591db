/* connection_calls.c: the methods of a connection that are awaited: each looks at its arguments, and makes a call.
 *
 * What the calls do is in stream_calls.c.
 */
#include "fastpath.h"

GT_INLINED gt_call *new_call(gt_connection *self, enum gt_stream_call kind)
{
    if (self->proactor)
        return gt_call_new(&gt_stream_kinds[kind], self->proactor, (PyObject *)self);
    PyErr_SetString(PyExc_RuntimeError, "this connection was never initialised");
    return NULL;
}

#define WITHOUT_ARGUMENT(NAME, KIND)                                                                                   \
    PyObject *gt_connection_##NAME(gt_connection *self, PyObject *Py_UNUSED(ignored))                                  \
    {                                                                                                                  \
        return (PyObject *)new_call(self, KIND);                                                                       \
    }
WITHOUT_ARGUMENT(wait_data, GT_WAIT_DATA)
WITHOUT_ARGUMENT(detach, GT_DETACH)
WITHOUT_ARGUMENT(flush, GT_FLUSH)
WITHOUT_ARGUMENT(wait_writable, GT_WRITABLE)
WITHOUT_ARGUMENT(wait_for_room, GT_ROOM)
WITHOUT_ARGUMENT(close_flush, GT_CLOSE_FLUSH)
#undef WITHOUT_ARGUMENT

PyObject *gt_connection_receive(gt_connection *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *max = count > 0 ? args[0] : Py_None;
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (count + named > 1) {
        PyErr_SetString(PyExc_TypeError, "receive() takes at most one argument, max_bytes");
        return NULL;
    }
    if (named) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "max_bytes") != 0) {
            PyErr_Format(PyExc_TypeError, "receive() got an unexpected keyword argument %R",
                         PyTuple_GET_ITEM(names, 0));
            return NULL;
        }
        max = args[0];
    }
    size_t max_bytes = SIZE_MAX;
    if (max != Py_None) {
        Py_ssize_t value = PyNumber_AsSsize_t(max, PyExc_OverflowError);
        if (value == -1 && PyErr_Occurred())
            return NULL;
        if (value < 1) {
            PyErr_SetString(PyExc_ValueError, "max_bytes must be >= 1, or None");
            return NULL;
        }
        max_bytes = (size_t)value;
    }
    gt_call *call = new_call(self, GT_RECEIVE);
    if (call)
        call->max = max_bytes;
    return (PyObject *)call;
}

static PyObject *new_call_for_piece(gt_connection *self, enum gt_stream_call kind)
{
    gt_call *call = new_call(self, kind);
    if (call)
        call->max = SIZE_MAX;
    return (PyObject *)call;
}

PyObject *gt_connection_next(gt_connection *self) { return new_call_for_piece(self, GT_NEXT); }

PyObject *gt_connection_message(gt_connection *self) { return new_call_for_piece(self, GT_MESSAGE); }

static gt_call *new_call_with_view(gt_connection *self, enum gt_stream_call kind, PyObject *buffer, int flags)
{
    gt_call *call = new_call(self, kind);
    return call && !gt_call_set_view(call, buffer, flags) ? gt_call_withdraw(call) : call;
}

PyObject *gt_connection_receive_into(gt_connection *self, PyObject *buffer)
{
    gt_call *call = new_call_with_view(self, GT_RECEIVE_INTO, buffer, PyBUF_WRITABLE);
    if (call && call->view->len == 0) {
        call = gt_call_withdraw(call);
        PyErr_SetString(PyExc_ValueError, "receive_into() needs a buffer of at least one byte");
    }
    return (PyObject *)call;
}

PyObject *gt_connection_fill(gt_connection *self, PyObject *count)
{
    Py_ssize_t value = PyNumber_AsSsize_t(count, PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    if (value < 0) {
        PyErr_SetString(PyExc_ValueError, "the number of bytes to wait for must be >= 0");
        return NULL;
    }
    gt_call *call = new_call(self, GT_FILL);
    if (call)
        call->max = (size_t)value;
    return (PyObject *)call;
}

PyObject *gt_connection_wait_change(gt_connection *self, PyObject *watched)
{
    long value = PyLong_AsLong(watched);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    gt_call *call = new_call(self, GT_CHANGE);
    if (call)
        call->max = (size_t)value;
    return (PyObject *)call;
}

bool gt_delivery_parse(gt_delivery *delivery, PyObject *const *args, Py_ssize_t given)
{
    if (given != 6) {
        PyErr_Format(PyExc_TypeError,
                     "_deliver() takes a callback, its first argument, what is watched, the most bytes untimed and in "
                     "all, and what learns from the time, not %zd arguments",
                     given);
        return false;
    }
    delivery->watched = PyLong_AsLong(args[2]);
    if (delivery->watched == -1 && PyErr_Occurred())
        return false;
    Py_ssize_t most[2]; /* untimed, and in all */
    for (int i = 0; i < 2; i++) {
        most[i] = PyNumber_AsSsize_t(args[3 + i], PyExc_OverflowError);
        if (most[i] >= 0)
            continue;
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "_deliver() takes numbers of bytes >= 0");
        return false;
    }
    delivery->most_untimed = (size_t)most[0];
    delivery->most = (size_t)(most[0] > most[1] ? most[0] : most[1]);
    return true;
}

PyObject *gt_connection_deliver(gt_connection *self, PyObject *const *args, Py_ssize_t given)
{
    gt_delivery delivery;
    gt_call *call = gt_delivery_parse(&delivery, args, given) ? new_call(self, GT_DELIVER) : NULL;
    if (!call)
        return NULL;
    call->max = (size_t)delivery.watched;
    call->alone = false;
    call->deliveries = 0;
    call->most_untimed = delivery.most_untimed;
    call->most = delivery.most;
    call->parts = PyTuple_Pack(3, args[0], args[1], args[5]);
    return (PyObject *)(call->parts ? call : gt_call_withdraw(call));
}

PyObject *gt_connection_send(gt_connection *self, PyObject *data)
{
    gt_call *call;
    if (PyBytes_CheckExact(data)) {
        call = new_call(self, GT_SEND);
        if (call) {
            call->data = Py_NewRef(data);
            call->length = (size_t)PyBytes_GET_SIZE(data);
        }
    } else if (PyList_Check(data) || PyTuple_Check(data)) {
        call = new_call(self, GT_SEND);
        if (call && gt_call_set_parts(call, data) < 0)
            call = gt_call_withdraw(call);
    } else {
        call = new_call_with_view(self, GT_SEND, data, PyBUF_SIMPLE);
        if (call)
            call->length = (size_t)call->view->len;
    }
    return (PyObject *)call;
}
