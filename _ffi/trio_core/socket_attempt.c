/* socket_attempt.c: one attempt to do what a call of a socket is for.
 *
 * Stands for, in trio/_socket.py:
 *     fn(self._sock, *args, **kwargs) of _SocketType._nonblocking_helper
 *
 * The system call is made here for recv, recv_into, send, recvfrom and sendto with the usual arguments, without giving up the
 * GIL, because it does not wait.  Anything else is called as Trio calls it.
 */
#include "socket_call.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>

/* Where recv(2) puts what is then copied into a bytes object of the right size.  No Python code runs between. */
static char scratch[65536];

/* socket.socket begins as CPython's PySocketSockObject does, with the descriptor and the address family; tc_sockets_check() looks
 * whether it does. */
static int number_of(PyObject *sock, int place) { return ((int *)((char *)sock + sizeof(PyObject)))[place]; }

int tc_descriptor_of(PyObject *sock) { return number_of(sock, 0); }

int tc_family_of(PyObject *sock) { return number_of(sock, 1); }

int tc_sockets_check(PyObject *sock)
{
    PyObject *number = PyObject_CallMethodNoArgs(sock, tc_names.fileno);
    PyObject *family = number ? PyObject_GetAttr(sock, tc_names.family) : NULL;
    long descriptor = family ? PyLong_AsLong(number) : -1, kind = family ? PyLong_AsLong(family) : -1;
    Py_XDECREF(number);
    Py_XDECREF(family);
    if (PyErr_Occurred())
        return -1;
    if (descriptor == tc_descriptor_of(sock) && kind == tc_family_of(sock))
        return 0;
    PyErr_SetString(PyExc_TypeError, "Python's sockets are not laid out as they were");
    return -1;
}

/* socket.socket's own function.  1: it returned or raised, 0: it would block */
static int attempt_by_python(tc_socket_call *self)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->arguments);
    PyObject *arguments = PyTuple_New(count + 1);
    if (arguments) {
        PyTuple_SET_ITEM(arguments, 0, Py_NewRef(self->sock));
        for (Py_ssize_t i = 0; i < count; i++)
            PyTuple_SET_ITEM(arguments, i + 1, Py_NewRef(PyTuple_GET_ITEM(self->arguments, i)));
        Py_XSETREF(self->result, PyObject_Call(self->function, arguments, self->names));
        Py_DECREF(arguments);
        if (self->result)
            return 1;
        if (PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
            PyErr_Clear();
            return 0;
        }
    }
    Py_XSETREF(self->error, gt_take_exception());
    return 1;
}

/* recv(2) into a new bytes object: its length, or -1 with errno, or -2 with an exception set. */
static Py_ssize_t receive_bytes(tc_socket_call *self, int flags)
{
    Py_ssize_t length = self->length;
    if (length <= (Py_ssize_t)sizeof scratch) {
        Py_ssize_t count = recv(tc_descriptor_of(self->sock), scratch, (size_t)length, flags);
        if (count < 0)
            return -1;
        Py_XSETREF(self->result, PyBytes_FromStringAndSize(scratch, count < length ? count : length));
        return self->result ? count : -2; /* with MSG_TRUNC `count` is more than there is */
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, length);
    if (!bytes)
        return -2;
    Py_ssize_t count = recv(tc_descriptor_of(self->sock), PyBytes_AS_STRING(bytes), (size_t)length, flags);
    if (count < 0) {
        int error = errno;
        Py_DECREF(bytes);
        errno = error;
        return -1;
    }
    if (count < length && _PyBytes_Resize(&bytes, count) < 0)
        return -2;
    Py_XSETREF(self->result, bytes);
    return count;
}

/* --- datagrams --- */

bool tc_parse_address(PyObject *address, int family, tc_address *parsed)
{
    Py_ssize_t count = PyTuple_CheckExact(address) ? PyTuple_GET_SIZE(address) : 0, length;
    if (count < 2 || count > (family == AF_INET6 ? 4 : 2) || !PyUnicode_CheckExact(PyTuple_GET_ITEM(address, 0)))
        return false;
    unsigned long numbers[3] = {0, 0, 0}; /* port, flow, scope */
    static const unsigned long most[3] = {0xffff, 0xfffff, 0xffffffff};
    for (Py_ssize_t i = 1; i < count; i++) {
        PyObject *number = PyTuple_GET_ITEM(address, i);
        numbers[i - 1] = PyLong_CheckExact(number) ? PyLong_AsUnsignedLong(number) : most[i - 1] + 1;
        if (PyErr_Occurred() || numbers[i - 1] > most[i - 1]) {
            PyErr_Clear();
            return false;
        }
    }
    const char *host = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(address, 0), &length);
    if (!host || strlen(host) != (size_t)length) {
        PyErr_Clear();
        return false;
    }
    memset(parsed, 0, sizeof *parsed);
    if (family == AF_INET) {
        parsed->in.sin_family = AF_INET;
        parsed->in.sin_port = htons((uint16_t)numbers[0]);
        return inet_pton(AF_INET, host, &parsed->in.sin_addr) == 1;
    }
    parsed->in6.sin6_family = AF_INET6;
    parsed->in6.sin6_port = htons((uint16_t)numbers[0]);
    parsed->in6.sin6_flowinfo = htonl((uint32_t)numbers[1]);
    parsed->in6.sin6_scope_id = (uint32_t)numbers[2];
    return family == AF_INET6 && inet_pton(AF_INET6, host, &parsed->in6.sin6_addr) == 1;
}

/* What socket.socket makes of an address. */
static PyObject *build_address(const tc_address *from, socklen_t length)
{
    char host[INET6_ADDRSTRLEN];
    if (length == 0)
        Py_RETURN_NONE;
    if (from->any.sa_family == AF_INET && inet_ntop(AF_INET, &from->in.sin_addr, host, sizeof host))
        return Py_BuildValue("si", host, ntohs(from->in.sin_port));
    if (from->any.sa_family == AF_INET6 && inet_ntop(AF_INET6, &from->in6.sin6_addr, host, sizeof host))
        return Py_BuildValue("siII", host, ntohs(from->in6.sin6_port), ntohl(from->in6.sin6_flowinfo),
                             from->in6.sin6_scope_id);
    return Py_BuildValue("iy#", from->any.sa_family, from->any.sa_data, (Py_ssize_t)sizeof from->any.sa_data);
}

/* recvfrom(2) of at most as much as `scratch` has room for: like receive_bytes(). */
static Py_ssize_t receive_datagram(tc_socket_call *self, int flags)
{
    tc_address from;
    socklen_t address_length = sizeof from;
    Py_ssize_t length = self->length;
    Py_ssize_t count =
        recvfrom(tc_descriptor_of(self->sock), scratch, (size_t)length, flags, &from.any, &address_length);
    if (count < 0)
        return -1;
    PyObject *data = PyBytes_FromStringAndSize(scratch, count < length ? count : length);
    PyObject *address = data ? build_address(&from, address_length) : NULL;
    PyObject *result = address ? PyTuple_New(2) : NULL;
    if (!result) {
        Py_XDECREF(data);
        Py_XDECREF(address);
        return -2;
    }
    PyTuple_SET_ITEM(result, 0, data);
    PyTuple_SET_ITEM(result, 1, address);
    Py_XSETREF(self->result, result);
    return count;
}

/* sendto(2); Python raises an audit event for it, and a hook may close the socket. */
static Py_ssize_t send_datagram(tc_socket_call *self, const Py_buffer *view, int flags)
{
    PyObject *address = PyTuple_GET_ITEM(self->arguments, PyTuple_GET_SIZE(self->arguments) - 1);
    if (PySys_Audit("socket.sendto", "OO", self->sock, address) < 0)
        return -2;
    socklen_t length = self->address.any.sa_family == AF_INET ? sizeof self->address.in : sizeof self->address.in6;
    return sendto(tc_descriptor_of(self->sock), view->buf, (size_t)view->len, flags, &self->address.any, length);
}

/* --- any call --- */

/* send(2) or recv(2) with the caller's buffer; -2: exception set, -3: it is not a buffer for this.  The descriptor is read
 * last: an object of Python that gives its buffer may close the socket. */
static Py_ssize_t use_buffer(tc_socket_call *self, int flags)
{
    if (self->has_view) /* a stream's */
        return send(tc_descriptor_of(self->sock), (char *)self->view.buf + self->offset,
                    (size_t)(self->view.len - self->offset), flags);
    if (!self->data) { /* a stream's that was ended meanwhile */
        PyErr_SetString(PyExc_RuntimeError, "this call was ended while it was resumed");
        return -2;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(self->data, &view, self->writes ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        return -3;
    }
    int descriptor = tc_descriptor_of(self->sock);
    Py_ssize_t count = -3;
    if (self->call == TC_SENDTO)
        count = send_datagram(self, &view, flags);
    else if (self->writes)
        count = send(descriptor, view.buf, (size_t)view.len, flags);
    else if (view.len > 0 && self->length <= view.len) /* Python makes no system call for an empty one */
        count = recv(descriptor, view.buf, (size_t)(self->length ? self->length : view.len), flags);
    int error = errno;
    PyBuffer_Release(&view);
    if (count >= 0) {
        Py_XSETREF(self->result, PyLong_FromSsize_t(count));
        if (!self->result)
            return -2;
    }
    errno = error;
    return count;
}

/* 1: there is a result or an error, 0: it would block */
int tc_attempt(tc_socket_call *self)
{
    if (self->call == TC_OTHER)
        return attempt_by_python(self);
    for (;;) {
        int flags = self->flags | MSG_DONTWAIT;
        Py_ssize_t count = self->call == TC_RECV       ? receive_bytes(self, flags)
                           : self->call == TC_RECVFROM ? receive_datagram(self, flags)
                                                       : use_buffer(self, flags);
        if (count >= 0) {
            self->offset += count;
            return 1;
        }
        if (count == -3)
            return attempt_by_python(self);
        if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (count == -1 && errno == EINTR) {
            if (PyErr_CheckSignals() == 0)
                continue;
        } else if (count == -1) {
            PyErr_SetFromErrno(PyExc_OSError);
        }
        Py_XSETREF(self->error, gt_take_exception());
        return 1;
    }
}
