/* socket_method.c: what Trio's methods of sockets call.
 *
 * Stands for, in trio/_socket.py:
 *     _SocketType._nonblocking_helper: sendmsg, and sendto to a name, come down to it
 *     _SocketType.sendto, with _resolve_address_nocp    to a numeric address of the internet
 *     the methods that _make_simple_sock_method_wrapper makes: recv, recv_into, recvfrom, recvfrom_into, recvmsg,
 *     recvmsg_into, send and what accept() calls
 *     _SocketType.is_readable, of an open socket.socket
 */
#include "socket_call.h"

#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>

/* The usual arguments of recv(2) and send(2), or TC_OTHER. */
static void parse(tc_socket_call *self, enum tc_call call)
{
    PyObject *arguments = self->arguments;
    Py_ssize_t count = PyTuple_GET_SIZE(arguments), most = call == TC_RECV_INTO ? 3 : 2;
    if (call == TC_OTHER || count < 1 || count > most || (self->names && PyDict_GET_SIZE(self->names) > 0))
        return;
    PyObject *length = call == TC_RECV || call == TC_RECVFROM ? PyTuple_GET_ITEM(arguments, 0) : NULL;
    if (call == TC_RECV_INTO && count > 1)
        length = PyTuple_GET_ITEM(arguments, 1);
    PyObject *flags = count == most ? PyTuple_GET_ITEM(arguments, most - 1) : NULL;
    if ((length && !PyLong_CheckExact(length)) || (flags && !PyLong_CheckExact(flags)))
        return;
    Py_ssize_t number = length ? PyLong_AsSsize_t(length) : 0;
    int overflow = 0;
    long flag_bits = flags ? PyLong_AsLongAndOverflow(flags, &overflow) : 0;
    if (PyErr_Occurred() || overflow || flag_bits != (int)flag_bits || number < 0) {
        PyErr_Clear();
        return;
    }
    if (call == TC_RECV && number == 0)
        return; /* Python makes no system call for it, and so takes no datagram */
    int family = tc_family_of(self->sock);
    if (call == TC_RECVFROM && (number > TC_LONGEST_DATAGRAM || (family != AF_INET && family != AF_INET6)))
        return;
    self->length = number;
    self->flags = (int)flag_bits;
    if (call != TC_RECV && call != TC_RECVFROM)
        self->data = Py_NewRef(PyTuple_GET_ITEM(arguments, 0));
    self->call = (uint8_t)call;
}

static PyObject *make_call(PyObject *socket, enum tc_call call, PyObject *function, bool writes, PyObject *arguments,
                           PyObject *names)
{
    PyObject *task = tc_intact(TC_sockets) ? tc_may_call(socket) : NULL, *sock = task ? tc_socket_of(socket) : NULL;
    if (!sock)
        Py_RETURN_NONE;
    if (!Py_IS_TYPE(sock, tc_core.plain_socket_type) || !PyTuple_CheckExact(arguments)) {
        Py_DECREF(sock);
        Py_RETURN_NONE;
    }
    tc_socket_call *self = tc_socket_call_new(TC_OTHER, sock, writes);
    Py_DECREF(sock);
    if (!self)
        return NULL;
    self->function = Py_NewRef(function);
    self->arguments = Py_NewRef(arguments);
    self->names = names && PyDict_CheckExact(names) && PyDict_GET_SIZE(names) > 0 ? Py_NewRef(names) : NULL;
    parse(self, call);
    return tc_socket_call_begin(self, task);
}

/* socket_helper(socket, wait_fn, fn, args, kwargs): what to await, or None for Trio to do it. */
PyObject *tc_socket_helper(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5 || (arguments[1] != tc_core.wait_readable && arguments[1] != tc_core.wait_writable))
        Py_RETURN_NONE;
    return make_call(arguments[0], TC_OTHER, arguments[2], arguments[1] == tc_core.wait_writable, arguments[3],
                     arguments[4]);
}

/* The buffer, the flags and the address of a sendto(); false: Trio has to do it.  Sets no exception. */
static bool parse_sendto(tc_socket_call *self)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->arguments);
    PyObject *flags = count == 3 ? PyTuple_GET_ITEM(self->arguments, 1) : NULL;
    int overflow = 0;
    long flag_bits = flags && PyLong_CheckExact(flags) ? PyLong_AsLongAndOverflow(flags, &overflow) : flags ? -1 : 0;
    if (count < 2 || count > 3 || overflow || flag_bits < 0 || flag_bits != (int)flag_bits ||
        !tc_parse_address(PyTuple_GET_ITEM(self->arguments, count - 1), tc_family_of(self->sock), &self->address)) {
        PyErr_Clear();
        return false;
    }
    self->flags = (int)flag_bits;
    self->data = Py_NewRef(PyTuple_GET_ITEM(self->arguments, 0));
    self->call = TC_SENDTO;
    return true;
}

/* socket_sendto(socket, args): what to await, or None for Trio to do it. */
PyObject *tc_socket_sendto(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    bool own = count == 2 && PyTuple_CheckExact(arguments[1]) && tc_intact(TC_sockets) &&
               tc_is_own(arguments[0], tc_names._nonblocking_helper, tc_core.helper_method) &&
               tc_is_own(arguments[0], tc_names._resolve_address_nocp, tc_core.resolve_method);
    PyObject *task = own ? tc_may_call(arguments[0]) : NULL;
    PyObject *sock = task ? tc_socket_of(arguments[0]) : NULL;
    tc_socket_call *self = NULL;
    bool failed = false;
    if (sock && Py_IS_TYPE(sock, tc_core.plain_socket_type)) {
        self = tc_socket_call_new(TC_OTHER, sock, true);
        failed = !self;
    }
    Py_XDECREF(sock);
    if (self) {
        self->function = Py_NewRef(tc_core.sendto_function);
        self->arguments = Py_NewRef(arguments[1]);
        if (!parse_sendto(self))
            Py_CLEAR(self);
    }
    if (!self)
        return failed ? NULL : Py_NewRef(Py_None);
    return tc_socket_call_begin(self, task);
}

/* One method of sockets: what Trio's function for it calls, with the socket, the tuple and the dict of its arguments. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *function; /* of socket.socket */
    uint8_t call;
    bool writes;
} socket_method;

static PyObject *method_call(PyObject *object, PyObject *const *arguments, size_t count, PyObject *names)
{
    socket_method *self = (socket_method *)object;
    if (PyVectorcall_NARGS(count) != 3 || (names && PyTuple_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "SocketMethod takes three positional arguments");
        return NULL;
    }
    if (!tc_is_own(arguments[0], tc_names._nonblocking_helper, tc_core.helper_method))
        Py_RETURN_NONE;
    return make_call(arguments[0], self->call, self->function, self->writes, arguments[1], arguments[2]);
}

static PyObject *method_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"function", "writes", "name", NULL};
    PyObject *function;
    int writes;
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ops:SocketMethod", names, &function, &writes, &name))
        return NULL;
    socket_method *self = (socket_method *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->vectorcall = method_call;
    self->function = Py_NewRef(function);
    self->writes = writes;
    self->call = !strcmp(name, "recv")        ? TC_RECV
                 : !strcmp(name, "recv_into") ? TC_RECV_INTO
                 : !strcmp(name, "send")      ? TC_SEND
                 : !strcmp(name, "recvfrom")  ? TC_RECVFROM
                                              : TC_OTHER;
    return (PyObject *)self;
}

static int method_traverse(socket_method *self, visitproc visit, void *arg)
{
    Py_VISIT(self->function);
    return 0;
}

static int method_clear(socket_method *self)
{
    Py_CLEAR(self->function);
    return 0;
}

static void method_dealloc(socket_method *self)
{
    PyObject_GC_UnTrack(self);
    method_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject tc_socket_method_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.SocketMethod",
    .tp_basicsize = sizeof(socket_method),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(socket_method, vectorcall),
    .tp_doc = PyDoc_STR("What a method of Trio's sockets calls."),
    .tp_new = method_new,
    .tp_call = PyVectorcall_Call,
    .tp_dealloc = (destructor)method_dealloc,
    .tp_traverse = (traverseproc)method_traverse,
    .tp_clear = (inquiry)method_clear,
};

/* --- is_readable --- */

/* As select.poll() looks, but with the GIL, because it does not wait.  1 or 0; -1: Trio has to look */
static int look(int descriptor)
{
    struct pollfd one = {.fd = descriptor, .events = POLLIN};
    int ready = descriptor < 0 ? -1 : poll(&one, 1, 0);
    return ready > 0 ? 1 : ready;
}

/* socket_readable(socket): what is_readable() returns, or None for Trio to do it. */
PyObject *tc_socket_readable(PyObject *Py_UNUSED(module), PyObject *self)
{
    if (!Py_IS_TYPE(self, tc_core.socket_type) || !tc_intact(TC_readiness))
        Py_RETURN_NONE;
    PyObject *sock = tc_socket_of(self);
    int ready = sock && Py_IS_TYPE(sock, tc_core.plain_socket_type) ? look(tc_descriptor_of(sock)) : -1;
    Py_XDECREF(sock);
    return ready < 0 ? Py_NewRef(Py_None) : PyBool_FromLong(ready);
}
