/* tls_traffic.c: bytes between a TLS connection and the one below, in the plain case; for calls that wait and those that do not.
 *
 * Whatever is not plain when something was decrypted or encrypted goes to functions of Python's class, which put it where its own
 * calls would have put it.
 */
#include "tls.h"

/* Pass in what lies in the ring's buffers, as gt_tls_pass_in() does.  Between making an object of a piece and OpenSSL's copy only
 * a garbage collection may run, but its finalizers may have forked, and the child has no such memory. */
static int pass_in_lent(PyObject *engine, gt_stream *below, size_t size)
{
    struct gt_ring *ring = below->proactor->ring;
    gt_lent lent[GT_LENT];
    const uint32_t count = gt_inbound_take_lent(&below->inbound, size, lent);
    gt_stream_consumed(below);
    int alone = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (alone >= 0) {
            PyObject *view = PyMemoryView_FromMemory((char *)lent[i].data, (Py_ssize_t)lent[i].size, PyBUF_READ);
            const bool passes = view && gt_proactor_check_thread(below->proactor);
            alone = passes ? gt_tls_pass_in(engine, view, lent[i].data, lent[i].size) : -1;
            Py_XDECREF(view);
        }
        gt_buffers_return(ring, lent[i].buffer);
    }
    return alone > 0 && count > 1 ? 0 : alone;
}

static PyObject *take_bytes(gt_stream *below, size_t size)
{
    gt_inbound *queue = &below->inbound;
    PyObject *taken =
        size == gt_inbound_head_size(queue) ? gt_inbound_take_piece(queue, size) : gt_inbound_take(queue, size);
    gt_stream_consumed(below);
    return taken;
}

/* Decrypt what was passed in, `size` bytes; they are one record `alone`, or not. */
static int decrypt_passed(PyObject *self, PyObject *engine, size_t size, bool alone, PyObject **data)
{
    PyObject *read = alone ? gt_tls_decrypt_record(engine, size) : gt_tls_decrypt_all(engine);
    const int outgoing = read ? gt_tls_has_outgoing(engine) : -1;
    if (outgoing < 0) {
        Py_XDECREF(read);
        return -1;
    }
    if (outgoing > 0 || gt_tls_has_ended(engine) || !gt_tls_can_receive(self)) {
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

int gt_tls_decrypt(PyObject *self, gt_stream *below, size_t size, PyObject **data)
{
    const bool lent = gt_inbound_lent_size(&below->inbound, size) == size;
    PyObject *received = lent ? NULL : take_bytes(below, size);
    if (!lent && !received) /* they are in the queue still */
        return -1;
    PyObject *engine = gt_field_get(&gt_tls.engine, self);
    int result = -1;
    if (engine)
        result = lent ? pass_in_lent(engine, below, size)
                      : gt_tls_pass_in(engine, received, PyBytes_AS_STRING(received), size);
    Py_XDECREF(received);
    if (result >= 0)
        result = decrypt_passed(self, engine, size, result > 0, data);
    Py_XDECREF(engine);
    return result < 0 ? gt_tls_lose(self, &gt_tls.error) : result;
}

/* Queue below what OpenSSL has made, and offer it to the kernel if it is large.  Whether what is left there is too much to go
 * on: 1; -1: exception set. */
static int send_below(PyObject *self, gt_connection *below, PyObject *engine)
{
    PyObject *outgoing = gt_tls_take_outgoing(engine);
    if (!outgoing)
        return -1;
    int behind;
    if (gt_tls_can_send(self, below)) {
        behind = gt_stream_queue_bytes(below->stream, outgoing);
        if (behind < 0) {
            PyErr_NoMemory();
        } else {
            gt_stream_push_large(below->stream, (size_t)PyBytes_GET_SIZE(outgoing));
            behind = below->stream->outbound.size >= below->stream->send_high;
        }
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
