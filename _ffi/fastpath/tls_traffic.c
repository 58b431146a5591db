/* tls_traffic.c: bytes between a TLS connection and the one below, in the plain case; for calls that wait and those that do not.
 *
 * Whatever is not plain when something was decrypted or encrypted goes to functions of Python's class, which put it where its own
 * calls would have put it.
 */
#include "tls.h"

int gt_tls_decrypt(PyObject *self, PyObject *received, PyObject **data)
{
    PyObject *engine = Py_XNewRef(gt_field_peek(&gt_tls.engine, self));
    if (!engine || PyBytes_GET_SIZE(received) == 0 || !gt_tls_can_receive(self)) {
        Py_XDECREF(engine);
        return gt_tls_call_python(self, gt_tls.decrypt_received, received, NULL) < 0 ? -1 : 2;
    }
    PyObject *read = gt_tls_decrypt_bytes(engine, received);
    const int outgoing = read ? gt_tls_has_outgoing(engine) : -1;
    const bool plain = outgoing == 0 && !gt_tls_has_ended(engine) && gt_tls_can_receive(self);
    Py_DECREF(engine);
    if (outgoing < 0) {
        Py_XDECREF(read);
        return -1;
    }
    if (!plain) {
        const int queued = gt_tls_call_python(self, gt_tls.decrypted, read, NULL);
        Py_DECREF(read);
        return queued < 0 ? -1 : 2;
    }
    if (PyBytes_GET_SIZE(read) == 0) {
        Py_DECREF(read);
        return 0;
    }
    *data = read;
    return 1;
}

/* Queue below what OpenSSL has made.  Whether that is too much to go on: 1; -1: exception set. */
static int send_below(PyObject *self, gt_connection *below, PyObject *engine)
{
    PyObject *outgoing = gt_tls_take_outgoing(engine);
    if (!outgoing)
        return -1;
    int behind;
    if (gt_tls_can_send(self, below)) {
        behind = gt_stream_queue_bytes(below->stream, outgoing);
        if (behind < 0)
            PyErr_NoMemory();
        else
            behind = below->stream->outbound.size >= below->stream->send_high;
    } else { /* a finalizer has closed it, say: Python's function finds out, and keeps the error */
        behind = gt_tls_call_python(self, gt_tls.send_below, outgoing, NULL) < 0 ? -1 : 1;
    }
    Py_DECREF(outgoing);
    return behind < 0 ? gt_tls_lose(self, &gt_tls.send_error) : behind;
}

int gt_tls_encrypt(PyObject *self, gt_connection *below, PyObject *data, Py_ssize_t length)
{
    PyObject *engine = gt_field_get(&gt_tls.engine, self);
    if (!engine)
        return -1;
    Py_INCREF(below); /* encrypting may run the program's code */
    Py_ssize_t done;
    int behind = gt_tls_write(engine, data, length, &done);
    if (behind == 0) {
        PyObject *count = PyLong_FromSsize_t(done);
        behind = !count || gt_tls_call_python(self, gt_tls.encrypted, data, count) < 0 ? -1 : 1;
    } else if (behind > 0) {
        behind = send_below(self, below, engine);
    }
    Py_DECREF(below);
    Py_DECREF(engine);
    return behind;
}

Py_ssize_t gt_tls_length_of(PyObject *self, PyObject *data)
{
    Py_ssize_t length;
    if (PyBytes_CheckExact(data)) {
        length = PyBytes_GET_SIZE(data);
    } else {
        Py_buffer view;
        if (!(PyByteArray_CheckExact(data) || PyMemoryView_Check(data)) ||
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
            PyErr_Clear();
            return -1;
        }
        length = view.len;
        PyBuffer_Release(&view);
    }
    return length > 0 && length <= gt_slot_number(&gt_tls.piece, self) ? length : -1;
}
