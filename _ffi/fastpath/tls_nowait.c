/* tls_nowait.c: what a TLS connection over one on the ring does for code that is called back: it waits for nothing.
 *
 *     _decrypt_below    have bytes that the connection below has reported decrypted and queued
 *     _take_exactly     take all that is queued
 *     _send_nowait      encrypt, and queue below, as send() does
 *
 * As in tls_calls.c, whatever is not plain is Python's, whose function is called before anything has been changed.
 */
#include "tls.h"

static struct {
    PyObject *decrypt_below, *take_exactly, *send_nowait; /* Python's functions; owned */
} python;

static PyObject *by_python(PyObject *function, PyObject *self, PyObject *argument)
{
    PyObject *arguments[] = {self, argument};
    return PyObject_Vectorcall(function, arguments, 2, NULL);
}

#define NO_COUNT PY_SSIZE_T_MIN

/* NO_COUNT where it is no number that fits. */
static Py_ssize_t as_count(PyObject *argument)
{
    const Py_ssize_t count = PyLong_CheckExact(argument) ? PyLong_AsSsize_t(argument) : NO_COUNT;
    if (count != -1 || !PyErr_Occurred())
        return count;
    PyErr_Clear(); /* Python's function says so, too */
    return NO_COUNT;
}

/* --- decrypting --- */

/* Bytes that no queue has any more until they are queued here.  0 or -1 */
static int queue(PyObject *self, PyObject *data)
{
    PyObject *changes = Py_XNewRef(gt_field_peek(&gt_tls.changes, self));
    const long unseen = changes ? gt_slot_number(&gt_tls.unseen, changes) : -1;
    PyObject *sum = unseen < 0 ? NULL : PyLong_FromSsize_t((Py_ssize_t)unseen + PyBytes_GET_SIZE(data));
    int result = sum ? gt_field_set(&gt_tls.has_received_nothing, self, Py_False) : -1;
    if (result == 0)
        result = gt_field_set(&gt_tls.inbound, self, data);
    if (result == 0)
        result = gt_field_set(&gt_tls.unseen, changes, sum);
    if (unseen < 0 && !PyErr_Occurred())
        result = gt_tls_call_python(self, gt_tls.arrived, data, NULL);
    Py_XDECREF(sum);
    Py_XDECREF(changes);
    return result;
}

PyObject *gt_tls_decrypt_below(PyObject *self, PyObject *argument)
{
    gt_connection *below = gt_tls_below(self);
    gt_stream *stream = below && !below->closed ? below->stream : NULL;
    const Py_ssize_t count = as_count(argument);
    if (!stream || stream->closing || count <= 0 || !gt_tls_can_receive(self))
        return by_python(python.decrypt_below, self, argument);
    const size_t queued = gt_inbound_size(&stream->inbound), size = (size_t)count < queued ? (size_t)count : queued;
    if (size == 0) /* a receive has had them */
        Py_RETURN_NONE;
    PyObject *data = NULL;
    int result = gt_tls_decrypt(self, stream, size, &data);
    if (result == 1) {
        result = queue(self, data) < 0 ? gt_tls_lose(self, &gt_tls.error) : 0;
        Py_DECREF(data);
    }
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* --- taking --- */

PyObject *gt_tls_take_plainly(PyObject *self, Py_ssize_t count)
{
    PyObject *inbound = gt_field_peek(&gt_tls.inbound, self), *changes = gt_field_peek(&gt_tls.changes, self);
    const bool plain = gt_slot_is(&gt_tls.is_closed, self, Py_False) && inbound && PyBytes_CheckExact(inbound) &&
                       changes && gt_slot_is(&gt_tls.is_full, changes, Py_False) &&
                       gt_slot_is(&gt_tls.room_inbound, self, Py_None);
    if (!plain || (count != -1 && count != PyBytes_GET_SIZE(inbound)))
        return NULL;
    PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0); /* there is but one, so that none is made */
    Py_INCREF(inbound);
    if (!nothing || gt_field_set(&gt_tls.inbound, self, nothing) < 0)
        Py_CLEAR(inbound);
    Py_XDECREF(nothing);
    return inbound;
}

PyObject *gt_tls_take_exactly(PyObject *self, PyObject *argument)
{
    const Py_ssize_t count = as_count(argument); /* -1: all of them */
    PyObject *taken = count == NO_COUNT ? NULL : gt_tls_take_plainly(self, count);
    return taken || PyErr_Occurred() ? taken : by_python(python.take_exactly, self, argument);
}

/* --- sending --- */

PyObject *gt_tls_send_nowait(PyObject *self, PyObject *data)
{
    gt_connection *below = gt_tls_below(self);
    const Py_ssize_t length = below ? gt_tls_length_of(self, data) : -1;
    if (length < 0 || !gt_slot_is(&gt_tls.sending, self, Py_False) || !gt_tls_can_send(self, below))
        return by_python(python.send_nowait, self, data);
    const int behind = gt_tls_encrypt(self, below, data, length);
    if (behind < 0)
        return NULL;
    below = behind == 0 ? gt_tls_below(self) : NULL; /* encrypting may have run the program's code */
    return below && below->stream ? PyLong_FromSize_t(below->stream->outbound.size)
                                  : PyObject_CallMethodNoArgs(self, gt_tls.outbound_after_send);
}

/* --- the methods --- */

static PyMethodDef methods[] = {
    {"_decrypt_below", gt_tls_decrypt_below, METH_O,
     PyDoc_STR("_decrypt_below($self, count, /)\n--\n\nHave count of the bytes that are queued below decrypted.")},
    {"_take_exactly", gt_tls_take_exactly, METH_O,
     PyDoc_STR("_take_exactly($self, count, /)\n--\n\nSee Connection._take_exactly().")},
    {"_send_nowait", gt_tls_send_nowait, METH_O,
     PyDoc_STR("_send_nowait($self, data, /)\n--\n\nSee Connection._send_nowait().")},
};

int gt_tls_nowait_replace(PyTypeObject *type)
{
    PyObject **const functions[] = {&python.decrypt_below, &python.take_exactly, &python.send_nowait};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        if (!(*functions[i] = gt_tls_replace(type, &methods[i])))
            return -1;
    return 0;
}
