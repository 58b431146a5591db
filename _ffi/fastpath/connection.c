/* connection.c: the Python type behind gain_trio's connections on the ring.
 *
 * It is a base class: what is called once a message is here, what is called once a connection (addresses, options, the
 * order of closing) is Python's, in gain_trio/_transports/.
 */
#include "fastpath.h"

#include <limits.h>
#include <unistd.h>

/* --- life --- */

/* A number among the arguments; -1 with an exception set. */
static Py_ssize_t number_at(PyObject *args, Py_ssize_t place)
{
    return PyNumber_AsSsize_t(PyTuple_GET_ITEM(args, place), PyExc_OverflowError);
}

static bool is_bool(int attribute) { return attribute == GT_BETWEEN || attribute == GT_DRAINS; }

static void make_attributes(gt_connection *self, PyObject *marks, PyObject *close_timeout)
{
    for (int i = 0; i < GT_ATTRIBUTES; i++)
        self->attributes[i] = Py_NewRef(i == GT_MARKS           ? marks
                                        : i == GT_CLOSE_TIMEOUT ? close_timeout
                                        : is_bool(i)            ? Py_False
                                                                : Py_None);
    Py_SETREF(self->attributes[GT_PROXY_HEADER_SIZE], PyLong_FromLong(0)); /* a small number is there already */
}

static int connection_init(gt_connection *self, PyObject *args, PyObject *kwargs)
{
    if (kwargs || PyTuple_GET_SIZE(args) != 7 || !PyObject_TypeCheck(PyTuple_GET_ITEM(args, 0), &gt_proactor_type)) {
        PyErr_SetString(PyExc_TypeError, "Connection() takes a proactor, a descriptor, receive_high, receive_low, "
                                         "send_high, the marks that these are of, and a close_timeout");
        return -1;
    }
    PyObject *proactor = PyTuple_GET_ITEM(args, 0);
    const Py_ssize_t descriptor = number_at(args, 1), receive_high = number_at(args, 2),
                     receive_low = number_at(args, 3), send_high = number_at(args, 4);
    if (PyErr_Occurred())
        return -1;
    if (self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "a connection is initialised once");
        return -1;
    }
    if (descriptor < 0 || descriptor > INT_MAX || receive_low < 0 || receive_high <= receive_low || send_high <= 0) {
        PyErr_SetString(PyExc_ValueError, "need descriptor >= 0, 0 <= receive_low < receive_high, send_high > 0");
        return -1;
    }
    if (((gt_proactor *)proactor)->closed) {
        PyErr_SetString(PyExc_RuntimeError, "the run that this connection was to belong to is over");
        return -1;
    }
    if (!gt_proactor_check_thread((gt_proactor *)proactor))
        return -1;
    self->stream = gt_stream_open((gt_proactor *)proactor, self, (int)descriptor);
    if (!self->stream)
        return -1;
    self->stream->receive_high = (size_t)receive_high;
    self->stream->receive_low = (size_t)receive_low;
    self->stream->send_high = (size_t)send_high;
    self->proactor = (gt_proactor *)Py_NewRef(proactor);
    make_attributes(self, PyTuple_GET_ITEM(args, 5), PyTuple_GET_ITEM(args, 6));
    gt_direction_init(&self->receiving);
    gt_direction_init(&self->sending);
    return 0;
}

static int connection_traverse(gt_connection *self, visitproc visit, void *arg)
{
    Py_VISIT(self->proactor);
    Py_VISIT(self->context);
    for (int i = 0; i < GT_ATTRIBUTES; i++)
        Py_VISIT(self->attributes[i]);
    return 0;
}

static int connection_clear(gt_connection *self)
{
    Py_CLEAR(self->context);
    for (int i = 0; i < GT_ATTRIBUTES; i++)
        Py_CLEAR(self->attributes[i]);
    return 0;
}

/* The program has dropped it without closing it: warn, as a socket does, and close. */
static void connection_finalize(gt_connection *self)
{
    if (!self->stream || self->stream->closing || self->proactor->ring->dead)
        return;
    gt_warn_unclosed((PyObject *)self);
    self->closed = true;
    if (self->stream) {
        gt_stream_close(self->stream, self->stream->outbound.size > 0); /* an error leaves FIN */
        gt_proactor_wake_thread(self->proactor);
    }
}

static void connection_dealloc(gt_connection *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* resurrected */
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    if (self->stream) {
        if (!self->stream->closing &&
            !self->proactor->ring->dead) { /* a __del__ of a class made of this one hid the finalizer */
            gt_stream_close(self->stream, self->stream->outbound.size > 0);
            gt_proactor_wake_thread(self->proactor);
        }
        self->stream->connection = NULL;
    }
    connection_clear(self);
    Py_CLEAR(self->proactor);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* --- what is queued, without waiting --- */

/* `count` bytes, or everything that is queued for None and nothing. */
static bool parse_count(const char *name, PyObject *const *args, Py_ssize_t given, size_t *count)
{
    if (given > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most one argument, the number of bytes", name);
        return false;
    }
    *count = SIZE_MAX;
    if (given == 0 || args[0] == Py_None)
        return true;
    Py_ssize_t value = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred())
        return false;
    if (value < 0) {
        PyErr_Format(PyExc_ValueError, "%s() takes a number of bytes >= 0, or None", name);
        return false;
    }
    *count = (size_t)value;
    return true;
}

static PyObject *connection_peek(gt_connection *self, PyObject *const *args, Py_ssize_t given)
{
    gt_stream *stream;
    size_t count;
    if (!parse_count("peek", args, given, &count) || !gt_connection_open_stream(self, &stream))
        return NULL;
    gt_stream_look_ahead(stream);
    return gt_inbound_peek(&stream->inbound, count);
}

static PyObject *connection_next(gt_connection *self, PyObject *const *args, Py_ssize_t given)
{
    gt_stream *stream;
    size_t count;
    if (!parse_count("next", args, given, &count) || !gt_connection_open_stream(self, &stream))
        return NULL;
    PyObject *taken = count == 0 ? PyBytes_FromStringAndSize(NULL, 0) : gt_inbound_take(&stream->inbound, count);
    gt_stream_look_ahead(stream);
    gt_stream_consumed(stream);
    return taken;
}

static PyObject *connection_discard(gt_connection *self, PyObject *const *args, Py_ssize_t given)
{
    gt_stream *stream;
    size_t count;
    if (!parse_count("discard", args, given, &count) || !gt_connection_open_stream(self, &stream))
        return NULL;
    size_t length = gt_inbound_take_into(&stream->inbound, NULL, count);
    gt_stream_look_ahead(stream);
    gt_stream_consumed(stream);
    return PyLong_FromSize_t(length);
}

static PyObject *connection_find(gt_connection *self, PyObject *const *args, Py_ssize_t given)
{
    gt_stream *stream;
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "_find() takes a separator and where to start, not %zd arguments", given);
        return NULL;
    }
    if (!PyBytes_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "a separator is bytes, not %s", Py_TYPE(args[0])->tp_name);
        return NULL;
    }
    Py_ssize_t start = PyNumber_AsSsize_t(args[1], PyExc_OverflowError);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    if (start < 0 || PyBytes_GET_SIZE(args[0]) == 0) {
        PyErr_SetString(PyExc_ValueError, "a search starts at 0 or later, and for a separator of at least one byte");
        return NULL;
    }
    if (!gt_connection_open_stream(self, &stream))
        return NULL;
    size_t found;
    if (gt_inbound_find(&stream->inbound, PyBytes_AS_STRING(args[0]), (size_t)PyBytes_GET_SIZE(args[0]), (size_t)start,
                        &found) < 0)
        return NULL;
    return found == SIZE_MAX ? PyLong_FromLong(-1) : PyLong_FromSize_t(found);
}

/* --- changes --- */

static PyObject *connection_note_change(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->proactor || !self->stream || self->closed)
        Py_RETURN_NONE; /* the wait has raised that */
    if (!gt_proactor_check_thread(self->proactor))
        return NULL;
    self->stream->change_noted = true;
    const gt_call *call = self->receiving.call;
    const bool waits =
        call && (call->kind == &gt_stream_kinds[GT_CHANGE] || call->kind == &gt_stream_kinds[GT_DELIVER]);
    if (waits && gt_direction_wake(&self->receiving) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* --- for a task that sends past this object --- */

static PyObject *connection_hold_sends(gt_connection *self, PyObject *held)
{
    int is_held = PyObject_IsTrue(held);
    if (is_held < 0)
        return NULL;
    self->send_held = is_held;
    Py_RETURN_NONE;
}

static PyObject *connection_mark_send_incomplete(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    if (self->stream)
        self->stream->send_incomplete = true;
    Py_RETURN_NONE;
}

static PyObject *connection_fail_sends(gt_connection *self, PyObject *error)
{
    long number = PyLong_AsLong(error);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    if (self->stream && !self->stream->send_error)
        self->stream->send_error = (int)number;
    return PyLong_FromLong(self->stream ? self->stream->send_error : number);
}

/* --- attributes --- */

static PyObject *get_inbound_buffered(gt_connection *self, void *Py_UNUSED(closure))
{
    if (self->stream && PyThread_get_thread_ident() == self->proactor->thread)
        gt_stream_look_ahead(self->stream);
    return PyLong_FromSize_t(self->stream ? gt_inbound_size(&self->stream->inbound) : 0);
}

static PyObject *get_outbound_buffered(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(gt_connection_unsent(self));
}

static PyObject *get_descriptor(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->stream && !self->closed ? self->stream->fd : -1);
}

static PyObject *get_send_error(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->stream ? self->stream->send_error : 0);
}

/* Would receive() park its task?  Not if it can answer, and not if it is refused. */
static PyObject *get_receive_would_wait(gt_connection *self, void *Py_UNUSED(closure))
{
    const gt_stream *stream = self->stream;
    return PyBool_FromLong(stream && !self->closed && !stream->closing && !self->receiving.call &&
                           gt_inbound_size(&stream->inbound) == 0 && !stream->end_of_stream && !stream->receive_error);
}

static PyObject *get_is_send_torn(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->stream && self->stream->send_incomplete);
}

static PyObject *get_is_closed(gt_connection *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->closed); }

static PyObject *get_is_send_eof(gt_connection *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->send_eof);
}

static PyGetSetDef connection_getset[] = {
    {"inbound_buffered", (getter)get_inbound_buffered, NULL,
     PyDoc_STR("Bytes received and not yet taken: what next() returns without waiting."), NULL},
    {"outbound_buffered", (getter)get_outbound_buffered, NULL, PyDoc_STR("Bytes sent and not yet taken by the kernel."),
     NULL},
    {"read_deadline", (getter)gt_connection_get_deadline, (setter)gt_connection_set_deadline,
     PyDoc_STR("When a call that waits to receive is too slow, on Trio's clock."), NULL},
    {"write_deadline", (getter)gt_connection_get_deadline, (setter)gt_connection_set_deadline,
     PyDoc_STR("When a call that waits to send is too slow, on Trio's clock."), (void *)1},
    {"_active_at", (getter)gt_connection_get_active_at, NULL,
     PyDoc_STR("When a byte was moved last, on Trio's clock; kept while _timed(True)."), NULL},
    {"_descriptor", (getter)get_descriptor, NULL, PyDoc_STR("The descriptor, -1 when closed."), NULL},
    {"_send_error", (getter)get_send_error, NULL, PyDoc_STR("errno of the send that failed, or 0."), NULL},
    {"_receive_would_wait", (getter)get_receive_would_wait, NULL,
     PyDoc_STR("Whether receive() would neither answer nor fail at once."), NULL},
    {"_is_send_incomplete", (getter)get_is_send_torn, NULL,
     PyDoc_STR("Whether a send ended with only a part of its data queued."), NULL},
    {"_is_closed", (getter)get_is_closed, NULL, PyDoc_STR("Whether calls are refused."), NULL},
    {"_is_send_eof", (getter)get_is_send_eof, NULL, PyDoc_STR("Whether sends are refused."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef connection_members[] = {
    {"context", T_OBJECT, offsetof(gt_connection, context), 0,
     PyDoc_STR("Anything: it is the program's, None at first.")},
    {"bytes_received", T_ULONGLONG, offsetof(gt_connection, bytes_received), READONLY,
     PyDoc_STR("Bytes that have arrived, taken or not.")},
    {"bytes_sent", T_ULONGLONG, offsetof(gt_connection, bytes_sent), READONLY,
     PyDoc_STR("Bytes that the kernel has taken.")},
    {"_was_detached", T_BOOL, offsetof(gt_connection, detached), READONLY, NULL},
/* As slots of a class in Python are, so that the interpreter finds them as quickly. */
#define ATTRIBUTE(NAME, INDEX) {NAME, T_OBJECT_EX, (Py_ssize_t)offsetof(gt_connection, attributes[INDEX]), 0, NULL}
    ATTRIBUTE("_drain_deadline", GT_DRAIN_DEADLINE),
    ATTRIBUTE("_between", GT_BETWEEN),
    ATTRIBUTE("_drains", GT_DRAINS),
    ATTRIBUTE("_marks", GT_MARKS),
    ATTRIBUTE("_close_timeout", GT_CLOSE_TIMEOUT),
    ATTRIBUTE("_local_address", GT_LOCAL_ADDRESS),
    ATTRIBUTE("_remote_address", GT_REMOTE_ADDRESS),
    ATTRIBUTE("_proxy_header", GT_PROXY_HEADER),
    ATTRIBUTE("_successor", GT_SUCCESSOR),
    ATTRIBUTE("_transfer", GT_TRANSFER),
    ATTRIBUTE("_draining", GT_DRAINING),
    ATTRIBUTE("_deadlines_kept", GT_DEADLINES_KEPT),
    ATTRIBUTE("_proxy_header_size", GT_PROXY_HEADER_SIZE),
#undef ATTRIBUTE
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef connection_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))gt_connection_receive, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("receive($self, /, max_bytes=None)\n--\n\nThe next bytes; b\"\" at the end of the stream.")},
    {"wait_data", (PyCFunction)gt_connection_wait_data, METH_NOARGS,
     PyDoc_STR("wait_data($self, /)\n--\n\nWait between two messages: whether the next has begun to arrive.")},
    {"_chunks", (PyCFunction)gt_connection_chunks, METH_NOARGS,
     PyDoc_STR("_chunks($self, /)\n--\n\nAn iterator over pieces as they arrive, each awaited between two messages.")},
    {"_waits_between", (PyCFunction)gt_connection_waits_between, METH_NOARGS,
     PyDoc_STR("_waits_between($self, /)\n--\n\nWhether a task waits between two messages.")},
    {"receive_into", (PyCFunction)gt_connection_receive_into, METH_O,
     PyDoc_STR(
         "receive_into($self, buffer, /)\n--\n\nThe next bytes, into a writable buffer: how many, 0 at the end.")},
    {"_fill", (PyCFunction)gt_connection_fill, METH_O,
     PyDoc_STR(
         "_fill($self, count, /)\n--\n\nWait until count bytes are queued or the stream has ended: how many are.")},
    {"send", (PyCFunction)gt_connection_send, METH_O,
     PyDoc_STR("send($self, data, /)\n--\n\nSend bytes, or a list or tuple of them, in order.")},
    {"flush", (PyCFunction)gt_connection_flush, METH_NOARGS,
     PyDoc_STR("flush($self, /)\n--\n\nWait until the kernel has taken everything.")},
    {"_wait_writable", (PyCFunction)gt_connection_wait_writable, METH_NOARGS,
     PyDoc_STR("_wait_writable($self, /)\n--\n\nWait until less than the high mark is outbound.")},
    {"_detach", (PyCFunction)gt_connection_detach, METH_NOARGS,
     PyDoc_STR("_detach($self, /)\n--\n\nLet go of the descriptor, with nothing in flight: it, and what is queued.")},
    {"_close_flush", (PyCFunction)gt_connection_close_flush, METH_NOARGS,
     PyDoc_STR("_close_flush($self, /)\n--\n\nflush() after _refuse_calls().")},
    {"peek", (PyCFunction)(void (*)(void))connection_peek, METH_FASTCALL,
     PyDoc_STR("peek($self, count=None, /)\n--\n\nUp to count queued bytes, which stay queued.")},
    {"next", (PyCFunction)(void (*)(void))connection_next, METH_FASTCALL,
     PyDoc_STR("next($self, count=None, /)\n--\n\nUp to count queued bytes, removed from the queue.")},
    {"discard", (PyCFunction)(void (*)(void))connection_discard, METH_FASTCALL,
     PyDoc_STR("discard($self, count=None, /)\n--\n\nRemove up to count queued bytes: how many.")},
    {"_deliver", (PyCFunction)(void (*)(void))gt_connection_deliver, METH_FASTCALL,
     PyDoc_STR("_deliver($self, callback, first, watched, most_untimed, most, learn, /)\n--\n\nWait for changes, and "
               "call back for bytes: the first answer that is for no callback.")},
    {"_wait_change", (PyCFunction)gt_connection_wait_change, METH_O,
     PyDoc_STR(
         "_wait_change($self, watched, /)\n--\n\nWait until something has changed: how many bytes have arrived, or "
         "a code.")},
    {"_note_change", (PyCFunction)connection_note_change, METH_NOARGS,
     PyDoc_STR("_note_change($self, /)\n--\n\nHave _wait_change() answer, now or when it is called next.")},
    {"_take_exactly", (PyCFunction)gt_connection_take_exactly, METH_O,
     PyDoc_STR(
         "_take_exactly($self, count, /)\n--\n\nExactly count queued bytes (all for -1), or None if there are fewer.")},
    {"_send_nowait", (PyCFunction)gt_connection_send_nowait, METH_O,
     PyDoc_STR("_send_nowait($self, data, /)\n--\n\nQueue all of data without waiting: how much is outbound.")},
    {"_push", (PyCFunction)gt_connection_push, METH_NOARGS,
     PyDoc_STR("_push($self, /)\n--\n\nOffer the kernel what is outbound: how much it has not taken.")},
    {"_find", (PyCFunction)(void (*)(void))connection_find, METH_FASTCALL,
     PyDoc_STR("_find($self, separator, start, /)\n--\n\nWhere in the queue a separator begins, -1 for nowhere.")},
    {"_refuse_calls", (PyCFunction)gt_connection_refuse_calls, METH_NOARGS,
     PyDoc_STR("_refuse_calls($self, /)\n--\n\nClosed for the program: calls in progress and new ones fail.")},
    {"_refuse_sends", (PyCFunction)gt_connection_refuse_sends, METH_NOARGS,
     PyDoc_STR("_refuse_sends($self, /)\n--\n\nNo more sends: send_eof() was called.")},
    {"_deadline_passed", (PyCFunction)gt_connection_deadline_passed, METH_VARARGS,
     PyDoc_STR("_deadline_passed($self, sending, now, /)\n--\n\nThe keeper's visit: when to come again.")},
    {"_unacknowledged", (PyCFunction)gt_connection_unacknowledged, METH_NOARGS,
     PyDoc_STR(
         "_unacknowledged($self, /)\n--\n\nBytes that the kernel has taken and the peer has not, or None (SIOCOUTQ).")},
    {"_timed", (PyCFunction)gt_connection_timed, METH_O,
     PyDoc_STR("_timed($self, wanted, /)\n--\n\nKeep _active_at up to date, or not.")},
    {"_handled", (PyCFunction)(void (*)(void))gt_connection_handled, METH_FASTCALL,
     PyDoc_STR(
         "_handled($self, serving, code, /)\n--\n\nWhat a coroutine with this code is to await for what a handler "
         "has returned.")},
    {"_break", (PyCFunction)gt_connection_break, METH_O,
     PyDoc_STR("_break($self, errno, /)\n--\n\nEnd it for both ends; calls raise the errno.")},
    {"_hold_sends", (PyCFunction)connection_hold_sends, METH_O,
     PyDoc_STR("_hold_sends($self, held, /)\n--\n\nWhether another task sends past this object, and its own sends are "
               "busy.")},
    {"_mark_send_incomplete", (PyCFunction)connection_mark_send_incomplete, METH_NOARGS,
     PyDoc_STR("_mark_send_incomplete($self, /)\n--\n\nWhat was sent is no whole: refuse sends, and close with RST.")},
    {"_fail_sends", (PyCFunction)connection_fail_sends, METH_O,
     PyDoc_STR(
         "_fail_sends($self, errno, /)\n--\n\nWhat was sent past this object has failed: why the first thing did.")},
    {"_wait_for_room", (PyCFunction)gt_connection_wait_for_room, METH_NOARGS,
     PyDoc_STR("_wait_for_room($self, /)\n--\n\nWait until the kernel would take something.")},
    {"_has_sent", (PyCFunction)gt_connection_has_sent, METH_O,
     PyDoc_STR("_has_sent($self, count, /)\n--\n\nThe kernel has sent count bytes past this object.")},
    {"_close", (PyCFunction)gt_connection_close, METH_O,
     PyDoc_STR("_close($self, reset, /)\n--\n\nCancel what is in flight and close the descriptor.")},
    {"_close_plainly", (PyCFunction)gt_connection_close_plainly, METH_NOARGS,
     PyDoc_STR(
         "_close_plainly($self, /)\n--\n\nClose now, if that loses nothing and no other object is concerned: whether "
         "it does.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods connection_async = {
    .am_aiter = gt_self,
    .am_anext = (unaryfunc)gt_connection_next,
};

PyTypeObject gt_connection_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Connection",
    .tp_basicsize = sizeof(gt_connection),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A connected stream socket on the ring."),
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)connection_init,
    .tp_dealloc = (destructor)connection_dealloc,
    .tp_finalize = (destructor)connection_finalize,
    .tp_traverse = (traverseproc)connection_traverse,
    .tp_clear = (inquiry)connection_clear,
    .tp_weaklistoffset = offsetof(gt_connection, weakrefs),
    .tp_as_async = &connection_async,
    .tp_methods = connection_methods,
    .tp_getset = connection_getset,
    .tp_members = connection_members,
};
