/* callback_conn.c: next() and write() of a conn for callbacks, in the plain case, also over TLS; and how a conn is made.
 *
 * Python's class (gain_trio/callbacks/_stream_conn.py) has both in full, around two methods of its connection's class, which it
 * keeps in two slots.  Where something is rare (the conn is closed, over its limit, or broken) it puts a function of its own in a
 * slot.  So as long as a slot has the method of connections on the ring, all that Python would do is known, and it is done here,
 * without a frame of Python.  Whatever is not plain (another thread, an error, too few bytes, a buffer that is no bytes object)
 * goes to Python's function, before anything has been changed.
 *
 * The class asks for it by hasten().  Its offsets are the process's, so it has to be the first to do so: the class of a package
 * that was imported anew stays as it is, in Python.
 *
 * A conn has two dozen slots, nearly all of which begin alike on all connections of a server.  So Python makes one conn, and
 * gt_copied() copies its slots for each connection.
 */
#include "tls.h"

static struct {
    PyTypeObject *type; /* owned, as are these two: Python's functions */
    PyObject *next, *write;
    gt_field connection, take, send, limit; /* the slots */
    bool laid_out;                          /* they lie at offsets */
} hastened;

/* Whether the slots of a conn are read where they lie. */
static bool has_slots(PyObject *conn) { return Py_IS_TYPE(conn, hastened.type) && hastened.laid_out; }

/* The connection of a conn, if the method in this slot of the conn is this function, and is the connection's; or NULL. */
static PyObject *owner_in(const gt_field *slot, PyObject *conn, PyCFunction function)
{
    PyObject *method = *gt_field_place(slot, conn), *connection = *gt_field_place(&hastened.connection, conn);
    if (!method || !connection || !Py_IS_TYPE(method, &PyMethodDescr_Type) ||
        ((PyMethodDescrObject *)method)->d_method->ml_meth != function)
        return NULL;
    return PyObject_TypeCheck(connection, PyDescr_TYPE(method)) ? connection : NULL;
}

/* The same of a connection on the ring. */
static gt_connection *connection_in(const gt_field *slot, PyObject *conn, PyCFunction function)
{
    return (gt_connection *)owner_in(slot, conn, function);
}

/* Its stream, or NULL where it is closed, or in another thread. */
static gt_stream *open_stream(const gt_connection *connection)
{
    if (!connection->proactor || !gt_proactor_is_in_thread(connection->proactor) || connection->closed)
        return NULL;
    gt_stream *stream = connection->stream;
    return stream && !stream->closing ? stream : NULL;
}

static PyObject *take_from_ring(gt_connection *connection, Py_ssize_t wanted)
{
    gt_stream *stream = open_stream(connection);
    const size_t queued = stream ? gt_inbound_size(&stream->inbound) : 0, size = wanted > 0 ? (size_t)wanted : queued;
    if (size == 0 || size > queued)
        return NULL;
    PyObject *taken = size == gt_inbound_head_size(&stream->inbound) ? gt_inbound_take_piece(&stream->inbound, size)
                                                                     : gt_inbound_take(&stream->inbound, size);
    if (taken)
        gt_stream_consumed(stream);
    return taken;
}

/* NULL, without an exception, where nothing was taken. */
static PyObject *next_plainly(PyObject *self, PyObject *count)
{
    if (!has_slots(self) || (count && !PyLong_CheckExact(count)))
        return NULL;
    const Py_ssize_t wanted = count ? gt_ssize_of(count) : -1;
    if (GT_UNLIKELY(wanted == -1) && PyErr_Occurred()) {
        PyErr_Clear();
        return NULL;
    }
    gt_connection *connection = connection_in(&hastened.take, self, (PyCFunction)gt_connection_take_exactly);
    PyObject *tls = connection ? NULL : owner_in(&hastened.take, self, gt_tls_take_exactly);
    PyObject *taken = NULL;
    if (connection)
        taken = take_from_ring(connection, wanted);
    else if (tls)
        taken = gt_tls_take_plainly(tls, wanted == 0 ? -1 : wanted);
    if (!taken)
        PyErr_Clear(); /* out of memory */
    return taken;
}

static PyObject *conn_next(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given > 1) {
        PyErr_Format(PyExc_TypeError, "next() takes at most one argument, the number of bytes, not %zd", given);
        return NULL;
    }
    PyObject *taken = next_plainly(self, given ? args[0] : NULL);
    if (taken)
        return taken;
    PyObject *arguments[] = {self, given ? args[0] : NULL};
    return PyObject_Vectorcall(hastened.next, arguments, (size_t)given + 1, NULL);
}

/* 1 when the data is queued, 2 when that is more than the limit, 0 when Python is to see to it. */
static int write_to_ring(gt_connection *connection, PyObject *data, Py_ssize_t limit)
{
    gt_stream *stream = open_stream(connection);
    if (!stream || gt_connection_cannot_send_now(connection) || gt_stream_queue_bytes(stream, data) < 0)
        return 0;
    return limit >= 0 && stream->outbound.size <= (size_t)limit ? 1 : 2;
}

/* The same, and -1 with an exception when it has failed. */
static int write_to_tls(PyObject *connection, PyObject *data, Py_ssize_t limit)
{
    Py_INCREF(connection); /* encrypting may run the program's code */
    PyObject *unsent = gt_tls_send_nowait(connection, data);
    Py_DECREF(connection);
    const Py_ssize_t size = unsent ? PyLong_AsSsize_t(unsent) : -1;
    Py_XDECREF(unsent);
    return size < 0 ? -1 : limit >= 0 && size <= limit ? 1 : 2;
}

static int write_plainly(PyObject *self, PyObject *data)
{
    PyObject *value = has_slots(self) ? *gt_field_place(&hastened.limit, self) : NULL;
    if (!value || !PyBytes_CheckExact(data) || PyBytes_GET_SIZE(data) == 0)
        return 0;
    const Py_ssize_t limit = gt_ssize_of(value);
    if (GT_UNLIKELY(limit == -1) && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    gt_connection *connection = connection_in(&hastened.send, self, (PyCFunction)gt_connection_send_nowait);
    PyObject *tls = connection ? NULL : owner_in(&hastened.send, self, gt_tls_send_nowait);
    return connection ? write_to_ring(connection, data, limit) : tls ? write_to_tls(tls, data, limit) : 0;
}

/* What write() returns or raises after the error that is set. */
static PyObject *not_sent(PyObject *self, PyObject *data)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyObject *error = gt_take_exception();
    PyObject *returned = PyObject_CallMethod(self, "_not_sent", "OO", data, error);
    Py_DECREF(error);
    return returned;
}

static PyObject *conn_write(PyObject *self, PyObject *data)
{
    PyObject *length = PyBytes_CheckExact(data) ? PyLong_FromSsize_t(PyBytes_GET_SIZE(data)) : NULL;
    if (!length)
        PyErr_Clear();
    const int written = length ? write_plainly(self, data) : 0;
    if (written == 1)
        return length;
    if (written == 2) {
        PyObject *looks = PyObject_CallMethod(self, "_look_first", NULL);
        if (!looks)
            Py_CLEAR(length);
        Py_XDECREF(looks);
        return length;
    }
    Py_XDECREF(length);
    if (written < 0)
        return not_sent(self, data);
    PyObject *arguments[] = {self, data};
    return PyObject_Vectorcall(hastened.write, arguments, 2, NULL);
}

static PyMethodDef conn_next_method = {"next", (PyCFunction)(void (*)(void))conn_next, METH_FASTCALL,
                                       PyDoc_STR("next($self, n=-1, /)\n--\n\nSee Conn.next().")};
static PyMethodDef conn_write_method = {"write", conn_write, METH_O,
                                        PyDoc_STR("write($self, data, /)\n--\n\nSee Conn.write().")};

static int replace(PyTypeObject *type, PyMethodDef *method, PyObject **python)
{
    *python = PyObject_GetAttrString((PyObject *)type, method->ml_name);
    PyObject *descriptor = *python ? PyDescr_NewMethod(type, method) : NULL;
    int result = descriptor ? PyObject_SetAttrString((PyObject *)type, method->ml_name, descriptor) : -1;
    Py_XDECREF(descriptor);
    return result;
}

PyObject *gt_hasten(PyObject *Py_UNUSED(module), PyObject *type)
{
    if (!PyType_Check(type)) {
        PyErr_SetString(PyExc_TypeError, "hasten() takes a class");
        return NULL;
    }
    if (hastened.type)
        Py_RETURN_NONE;
    hastened.type = (PyTypeObject *)Py_NewRef(type);
    if (gt_field_resolve(&hastened.connection, type, "_connection") < 0 ||
        gt_field_resolve(&hastened.take, type, "_take_exactly") < 0 ||
        gt_field_resolve(&hastened.send, type, "_send") < 0 ||
        gt_field_resolve(&hastened.limit, type, "_write_limit") < 0 ||
        replace(hastened.type, &conn_next_method, &hastened.next) < 0 ||
        replace(hastened.type, &conn_write_method, &hastened.write) < 0)
        return NULL;
    const gt_field *slots[] = {&hastened.connection, &hastened.take, &hastened.send, &hastened.limit};
    hastened.laid_out = true;
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        hastened.laid_out &= slots[i]->offset >= 0;
    Py_RETURN_NONE;
}

/* Whether all that an object of this class has is in slots, beside a list of weak references. */
static bool has_only_slots(PyTypeObject *type)
{
    size_t size = sizeof(PyObject) + (type->tp_weaklistoffset > 0 ? sizeof(PyObject *) : 0);
    for (const PyTypeObject *base = type; base; base = base->tp_base)
        for (const PyMemberDef *member = base->tp_members; member && member->name; member++)
            size += member->type == T_OBJECT_EX ? sizeof(PyObject *) : 0;
    return type->tp_dictoffset == 0 && type->tp_itemsize == 0 && size == (size_t)type->tp_basicsize;
}

PyObject *gt_copied(PyObject *Py_UNUSED(module), PyObject *original)
{
    PyTypeObject *type = Py_TYPE(original);
    if (!has_only_slots(type)) {
        PyErr_Format(PyExc_TypeError, "copied() takes an object of a class of slots, and %s is none", type->tp_name);
        return NULL;
    }
    PyObject *copy = type->tp_alloc(type, 0); /* all slots are empty */
    if (!copy)
        return NULL;
    for (; type; type = type->tp_base)
        for (const PyMemberDef *member = type->tp_members; member && member->name; member++)
            if (member->type == T_OBJECT_EX)
                *(PyObject **)((char *)copy + member->offset) =
                    Py_XNewRef(*(PyObject **)((char *)original + member->offset));
    return copy;
}
