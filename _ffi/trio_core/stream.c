/* stream.c: a stream over a socket.
 *
 * Stands for, in trio/_highlevel_socket.py:
 *     SocketStream.receive_some, SocketStream.send_all, with _translate_socket_errors_to_stream_errors
 * and in trio/_abc.py:
 *     ReceiveStream.__anext__    of a SocketStream
 *
 * over a socket that is exactly Trio's own, with the methods that Trio gave it.  What a call refuses (a stream after
 * send_eof(), two senders, a size that is none, no data) is Trio's to refuse.
 */
#include "socket_call.h"

/* The Trio socket of a stream, owned, and the task; NULL: Trio has to do it. */
static PyObject *socket_of_stream(PyObject *stream, PyObject **task)
{
    if (!Py_IS_TYPE(stream, tc_core.stream_type) || !tc_intact(TC_streams))
        return NULL;
    PyObject *socket = PyObject_GetAttr(stream, tc_names.socket);
    if (!socket) {
        PyErr_Clear();
        return NULL;
    }
    *task = tc_may_call(socket);
    if (!*task || !tc_is_own(socket, tc_names._nonblocking_helper, tc_core.helper_method))
        Py_CLEAR(socket);
    return socket;
}

static tc_socket_call *new_call(PyObject *socket, enum tc_call call, bool *failed)
{
    PyObject *sock = tc_socket_of(socket);
    if (!sock)
        return NULL;
    tc_socket_call *self = NULL;
    if (Py_IS_TYPE(sock, tc_core.plain_socket_type)) {
        self = tc_socket_call_new(call, sock, call == TC_SEND);
        *failed = !self;
    }
    Py_DECREF(sock);
    if (self)
        self->stream = true;
    return self;
}

static PyObject *receive(PyObject *stream, Py_ssize_t length, bool iterates)
{
    PyObject *task = NULL, *socket = socket_of_stream(stream, &task);
    if (!socket)
        Py_RETURN_NONE;
    bool failed = false;
    tc_socket_call *self = NULL;
    if (tc_is_own(socket, tc_names.recv, tc_core.receive_method))
        self = new_call(socket, TC_RECV, &failed);
    Py_DECREF(socket);
    if (!self)
        return failed ? NULL : Py_NewRef(Py_None);
    self->length = length;
    self->iterates = iterates;
    return tc_socket_call_begin(self, task);
}

/* receive_some(stream, max_bytes): what to await, or None for Trio to do it. */
PyObject *tc_receive_some(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *number = count == 2 ? arguments[1] : NULL;
    if (number == Py_None)
        number = tc_core.default_receive_size;
    Py_ssize_t length = number && PyLong_CheckExact(number) ? PyLong_AsSsize_t(number) : -1;
    if (length < 1) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return receive(arguments[0], length, false);
}

/* stream_next(stream): the same for __anext__. */
PyObject *tc_stream_next(PyObject *Py_UNUSED(module), PyObject *stream)
{
    if (!Py_IS_TYPE(stream, tc_core.stream_type) || !tc_is_own(stream, tc_names.receive_some, tc_core.receive_some))
        Py_RETURN_NONE;
    return receive(stream, PyLong_AsSsize_t(tc_core.default_receive_size), true);
}

/* Is the attribute False, so that nothing keeps the send from going on? */
static bool is_false(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    if (!value) {
        PyErr_Clear();
        return false;
    }
    Py_DECREF(value);
    return value == Py_False;
}

/* The buffer of a send_all, held until its end; false: Trio has to look at the data. */
static bool take_view(tc_socket_call *self, PyObject *data)
{
    if (PyObject_GetBuffer(data, &self->view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear();
        return false;
    }
    self->has_view = true;
    return self->view.itemsize == 1 && self->view.len > 0;
}

/* send_all(stream, data): what to await, or None for Trio to do it. */
PyObject *tc_send_all(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *task = NULL, *socket = count == 2 ? socket_of_stream(arguments[0], &task) : NULL;
    if (!socket)
        Py_RETURN_NONE;
    PyObject *detector = PyObject_GetAttr(arguments[0], tc_names._send_conflict_detector);
    bool failed = false;
    tc_socket_call *self = NULL;
    if (!detector)
        PyErr_Clear();
    else if (Py_IS_TYPE(detector, tc_core.detector_type) && is_false(socket, tc_names._did_shutdown_SHUT_WR) &&
             is_false(detector, tc_names._held) && tc_is_own(socket, tc_names.send, tc_core.send_method))
        self = new_call(socket, TC_SEND, &failed);
    Py_DECREF(socket);
    if (self && !take_view(self, arguments[1]))
        Py_CLEAR(self);
    if (self && PyObject_SetAttr(detector, tc_names._held, Py_True) < 0) {
        Py_CLEAR(self);
        failed = true;
    }
    if (self)
        self->detector = Py_NewRef(detector);
    Py_XDECREF(detector);
    if (!self)
        return failed ? NULL : Py_NewRef(Py_None);
    return tc_socket_call_begin(self, task);
}
