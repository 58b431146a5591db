/* endpoint.c: the Python type behind gain_trio's datagram endpoints on the ring.
 *
 * A base class, as that of connections: what is called once a datagram is here, what is called once an endpoint is
 * Python's, in gain_trio/_transports/.
 */
#include "endpoint.h"

#include <errno.h>

#define MOST_QUEUED (1 << 24) /* datagrams; a queue is bounded, whatever its owner asks for */

/* --- life --- */

static int check_numbers(int descriptor, bool known, Py_ssize_t queue_size, Py_ssize_t queue_bytes, Py_ssize_t max_size)
{
    if (descriptor >= 0 && known && queue_size > 0 && queue_size <= MOST_QUEUED && queue_bytes > 0 && max_size >= 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "need descriptor >= 0, AF_INET or AF_INET6 or a connected socket, "
                                      "0 < queue_size <= 2**24, queue_bytes > 0, max_size >= 0");
    return -1;
}

static int endpoint_init(gt_endpoint *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"proactor",    "descriptor", "family",  "remote", "queue_size",
                            "queue_bytes", "max_size",   "buffers", NULL};
    PyObject *proactor, *remote;
    int descriptor, family;
    unsigned int buffers;
    Py_ssize_t queue_size, queue_bytes, max_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!iiOnnnI:Endpoint", names, &gt_proactor_type, &proactor,
                                     &descriptor, &family, &remote, &queue_size, &queue_bytes, &max_size, &buffers))
        return -1;
    if (self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "an endpoint is initialised once");
        return -1;
    }
    bool known =
        family == AF_INET || family == AF_INET6 || remote != Py_None; /* connected: no addresses to deal with */
    if (check_numbers(descriptor, known, queue_size, queue_bytes, max_size) < 0)
        return -1;
    if (((gt_proactor *)proactor)->closed) {
        PyErr_SetString(PyExc_RuntimeError, "the run that this endpoint was to belong to is over");
        return -1;
    }
    if (!gt_proactor_check_thread((gt_proactor *)proactor))
        return -1;
    self->socket = gt_socket_open((gt_proactor *)proactor, self, descriptor, family, remote != Py_None, buffers);
    if (!self->socket)
        return -1;
    self->family = family;
    self->queue_size = (uint32_t)queue_size;
    self->queue_bytes = (size_t)queue_bytes;
    self->max_size = (size_t)max_size;
    self->remote = remote == Py_None ? NULL : Py_NewRef(remote);
    self->proactor = (gt_proactor *)Py_NewRef(proactor);
    return 0;
}

static int endpoint_traverse(gt_endpoint *self, visitproc visit, void *arg)
{
    Py_VISIT(self->proactor);
    Py_VISIT(self->remote);
    Py_VISIT(self->context);
    return 0;
}

static int endpoint_clear(gt_endpoint *self)
{
    Py_CLEAR(self->context);
    return 0;
}

/* Closed for the program: what was sent leaves now as far as the kernel takes it, what was received is dropped. */
static void close_endpoint(gt_endpoint *self)
{
    gt_socket *socket = self->socket;
    self->closed = true;
    if (!socket || socket->closing)
        return;
    if (!self->proactor->ring->dead) { /* in a forked child all of it is the parent's */
        gt_endpoint_flush(self);
        self->failed += self->outbound.count;
    }
    gt_datagrams_clear(&self->inbound);
    gt_datagrams_clear(&self->outbound);
    gt_peers_clear(&self->peers);
    gt_socket_close(socket);
}

/* The program has dropped it without closing it: warn, as a socket does, and close. */
static void endpoint_finalize(gt_endpoint *self)
{
    if (!self->socket || self->socket->closing)
        return;
    gt_warn_unclosed((PyObject *)self);
    if (self->socket) {
        close_endpoint(self);
        gt_proactor_wake_thread(self->proactor);
    }
}

static void endpoint_dealloc(gt_endpoint *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* resurrected */
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    if (self->socket) {
        if (!self->socket->closing) { /* a class made of this one has a __del__ of its own, which hides the finalizer */
            close_endpoint(self);
            gt_proactor_wake_thread(self->proactor);
        }
        self->socket->endpoint = NULL;
    }
    gt_datagrams_clear(&self->inbound);
    gt_datagrams_clear(&self->outbound);
    gt_peers_clear(&self->peers);
    endpoint_clear(self);
    Py_CLEAR(self->remote);
    Py_CLEAR(self->proactor);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* --- calls that wait --- */

static gt_call *new_call(gt_endpoint *self, int kind)
{
    if (self->proactor)
        return gt_call_new(&gt_datagram_kinds[kind], self->proactor, (PyObject *)self);
    PyErr_SetString(PyExc_RuntimeError, "this endpoint was never initialised");
    return NULL;
}

static PyObject *endpoint_receive(gt_endpoint *self, PyObject *Py_UNUSED(ignored))
{
    return (PyObject *)new_call(self, GT_DATAGRAM_RECEIVE);
}

static PyObject *endpoint_anext(PyObject *self) { return (PyObject *)new_call((gt_endpoint *)self, GT_DATAGRAM_NEXT); }

static bool set_destination(gt_endpoint *endpoint, gt_call *call, PyObject *address)
{
    if (endpoint->remote) {
        int same = address == Py_None || address == endpoint->remote
                       ? 1
                       : PyObject_RichCompareBool(address, endpoint->remote, Py_EQ);
        if (same == 0)
            PyErr_Format(PyExc_ValueError, "this endpoint is connected to %R, and sends nowhere else",
                         endpoint->remote);
        return same > 0;
    }
    if (address == Py_None) {
        PyErr_SetString(PyExc_TypeError, "send() needs an address: this endpoint is not connected to one");
        return false;
    }
    gt_peer *peer = gt_peers_find_tuple(&endpoint->peers, address);
    if (!peer) {
        if (!gt_sockaddr_parse(address, endpoint->family, &call->datagram.to))
            return false;
        peer = gt_peers_find(&endpoint->peers, &call->datagram.to);
    }
    if (peer) {
        call->datagram.to = peer->raw;
        call->datagram.to_reached = peer->reached;
    }
    return true;
}

static bool set_data(gt_call *call, PyObject *data)
{
    if (PyBytes_CheckExact(data)) {
        call->data = Py_NewRef(data);
        return true;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return false;
    call->data = PyBytes_FromStringAndSize(view.buf, view.len);
    PyBuffer_Release(&view);
    return call->data != NULL;
}

/* send(data, address=None) */
static PyObject *endpoint_send(gt_endpoint *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *address = count > 1 ? args[1] : Py_None;
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (count < 1 || count + named > 2) {
        PyErr_SetString(PyExc_TypeError, "send() takes the data and an address");
        return NULL;
    }
    if (named) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "address") != 0) {
            PyErr_Format(PyExc_TypeError, "send() got an unexpected keyword argument %R", PyTuple_GET_ITEM(names, 0));
            return NULL;
        }
        address = args[1];
    }
    gt_call *call = new_call(self, GT_DATAGRAM_SEND);
    if (call && (!set_destination(self, call, address) || !set_data(call, args[0])))
        call = gt_call_withdraw(call);
    return (PyObject *)call;
}

/* --- closing --- */

static PyObject *endpoint_close(gt_endpoint *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "this endpoint was never initialised");
        return NULL;
    }
    if (!gt_proactor_check_thread(self->proactor))
        return NULL;
    close_endpoint(self);
    if (self->socket)
        gt_socket_settle(self->socket);
    int receivers = gt_wait_queue_wake_all(&self->receiving);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int senders = gt_wait_queue_wake_all(&self->sending);
    if (receivers < 0)
        PyErr_Restore(type, value, traceback); /* in the place of the senders' error, if there is one */
    if (receivers < 0 || senders < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* --- attributes --- */

static PyObject *get_descriptor(gt_endpoint *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->socket && !self->closed ? self->socket->fd : -1);
}

static PyObject *get_is_closed(gt_endpoint *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->closed); }

static PyObject *get_dropped(gt_endpoint *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->dropped);
}

static PyObject *get_counters(gt_endpoint *self, void *Py_UNUSED(closure))
{
    return Py_BuildValue("(KKKKKKKII)", (unsigned long long)self->received, (unsigned long long)self->received_bytes,
                         (unsigned long long)self->sent, (unsigned long long)self->sent_bytes,
                         (unsigned long long)self->failed, (unsigned long long)self->dropped,
                         (unsigned long long)self->oversized, (unsigned int)self->inbound.count,
                         (unsigned int)self->outbound.count);
}

static PyGetSetDef endpoint_getset[] = {
    {"dropped", (getter)get_dropped, NULL, PyDoc_STR("Datagrams dropped because the queue was full."), NULL},
    {"_descriptor", (getter)get_descriptor, NULL, PyDoc_STR("The descriptor, -1 when closed."), NULL},
    {"_is_closed", (getter)get_is_closed, NULL, PyDoc_STR("Whether calls are refused."), NULL},
    {"_counters", (getter)get_counters, NULL,
     PyDoc_STR("received, received_bytes, sent, sent_bytes, failed, dropped, oversized, queued, unsent."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef endpoint_members[] = {
    {"context", T_OBJECT, offsetof(gt_endpoint, context), 0,
     PyDoc_STR("Anything: it is the program's, None at first.")},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef endpoint_methods[] = {
    {"receive", (PyCFunction)endpoint_receive, METH_NOARGS,
     PyDoc_STR("receive($self, /)\n--\n\nThe next datagram, and where it came from.")},
    {"send", (PyCFunction)(void (*)(void))endpoint_send, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("send($self, data, /, address=None)\n--\n\nSend a datagram.")},
    {"_close", (PyCFunction)endpoint_close, METH_NOARGS, PyDoc_STR("_close($self, /)\n--\n\nClose the descriptor.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods endpoint_async = {
    .am_aiter = PyObject_SelfIter,
    .am_anext = endpoint_anext,
};

PyTypeObject gt_endpoint_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Endpoint",
    .tp_basicsize = sizeof(gt_endpoint),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A datagram socket on the ring."),
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)endpoint_init,
    .tp_dealloc = (destructor)endpoint_dealloc,
    .tp_finalize = (destructor)endpoint_finalize,
    .tp_traverse = (traverseproc)endpoint_traverse,
    .tp_clear = (inquiry)endpoint_clear,
    .tp_weaklistoffset = offsetof(gt_endpoint, weakrefs),
    .tp_as_async = &endpoint_async,
    .tp_methods = endpoint_methods,
    .tp_getset = endpoint_getset,
    .tp_members = endpoint_members,
};
