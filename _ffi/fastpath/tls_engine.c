/* tls_engine.c: what the engine of a TLS connection (gain_trio/_transports/_tls/_tls_engine.py) does for each message.
 *
 * OpenSSL is reached as Python's ssl module reaches it, by the methods of _ssl's objects, of which the engine holds three: the
 * SSL object, and the two buffers on its other side.  They are C, and keep nothing of what they are passed.  They may run the
 * program's code, in callbacks of its context, and release the GIL, so other threads may run, and a garbage collection may,
 * with its finalizers: what a caller here knows of a connection it looks at again.
 *
 * Decrypting.  OpenSSL decrypts a record a call.  A small message is one record, and the bytes object that the call returns is
 * the answer.  More of them are decrypted into one bytes object, which is made as large as the encrypted bytes are, one behind
 * the other: pieces would have to be joined, which copies all of a large transfer once more.
 *
 * The engine follows where records end (tls_records.h), and asks OpenSSL for none of which a part is missing.  It knows that from
 * the first read on that has left nothing behind, unless Python's code has passed bytes in since.  So where one whole record has
 * arrived behind nothing, as a small message does, neither buffer is asked what it has.
 */
#include "tls.h"

#include "tls_records.h"

#define PARTIAL_BITS 16 /* the bits of `partial_record` that have the bytes which are there */

static struct {
    PyTypeObject *type; /* owned, as are all of these */
    PyTypeObject *records_type, *buffer_type;
    PyObject *ssl_error, *want_read;        /* ssl.SSLError, ssl.SSLWantReadError */
    PyObject *python_read;                  /* the engine's method */
    PyObject *read, *write, *pending, *eof; /* names */
    gt_field records, incoming, outgoing, withheld, ended, error, partial_record;
} engine;

static PyObject *records_of(PyObject *self) { return gt_field_peek(&engine.records, self); }

bool gt_tls_is_engine(PyObject *object)
{
    if (!object || !Py_IS_TYPE(object, engine.type))
        return false;
    PyObject *records = records_of(object), *incoming = gt_field_peek(&engine.incoming, object);
    PyObject *outgoing = gt_field_peek(&engine.outgoing, object);
    return records && incoming && outgoing && Py_IS_TYPE(records, engine.records_type) &&
           Py_IS_TYPE(incoming, engine.buffer_type) && Py_IS_TYPE(outgoing, engine.buffer_type);
}

bool gt_tls_has_ended(PyObject *self)
{
    return !gt_slot_is(&engine.ended, self, Py_False) || !gt_slot_is(&engine.error, self, Py_None);
}

/* The bytes in a buffer; -1: exception set. */
static Py_ssize_t pending_in(PyObject *buffer)
{
    PyObject *pending = PyObject_GetAttr(buffer, engine.pending);
    if (!pending)
        return -1;
    const Py_ssize_t count = PyLong_AsSsize_t(pending);
    Py_DECREF(pending);
    return count;
}

/* Where the engine knows it: how many bytes of a record of which a part is missing have arrived; -1: it does not. */
static Py_ssize_t partial_in(PyObject *self)
{
    const long partial = gt_slot_number(&engine.partial_record, self);
    return partial < 0 ? -1 : partial & ((1L << PARTIAL_BITS) - 1);
}

static int note_partial(PyObject *self, const gt_partial_record *record)
{
    PyObject *partial = PyLong_FromLong((long)record->length << PARTIAL_BITS | (long)record->given);
    const int result = partial ? gt_field_set(&engine.partial_record, self, partial) : -1;
    Py_XDECREF(partial);
    return result;
}

/* These bytes have been passed in.  1: they are one record, and there is nothing else; -1: exception set. */
static int follow_records(PyObject *self, const char *data, size_t size)
{
    const long partial = gt_slot_number(&engine.partial_record, self);
    if (partial < 0)
        return 0;
    gt_partial_record record = {.given = (uint32_t)(partial & ((1L << PARTIAL_BITS) - 1)),
                                .length = (uint32_t)(partial >> PARTIAL_BITS)};
    uint32_t ends;
    if (!gt_records_advance(&record, (const unsigned char *)data, size, &ends))
        return gt_field_set(&engine.partial_record, self, Py_None);
    if (partial == 0 && record.given == 0) /* as it was noted */
        return ends == 1;
    return note_partial(self, &record);
}

/* The exception that is set has ended a call of OpenSSL's.  0: it only wants more, or is the engine's error now.  -1: it is set
 * still, and is none of ssl's. */
static int note_error(PyObject *self)
{
    if (PyErr_ExceptionMatches(engine.want_read)) {
        PyErr_Clear();
        return 0;
    }
    if (!PyErr_ExceptionMatches(engine.ssl_error)) /* a signal's handler may raise any other OSError */
        return -1;
    PyObject *error = gt_take_exception();
    PyException_SetTraceback(error, Py_None);
    const int result = gt_field_set(&engine.error, self, error);
    Py_DECREF(error);
    return result;
}

/* Whether OpenSSL has decrypted bytes that were not read.  -1: exception set. */
static int has_decrypted(PyObject *records)
{
    PyObject *decrypted = PyObject_CallMethodNoArgs(records, engine.pending);
    const int waits = decrypted ? PyObject_IsTrue(decrypted) : -1;
    Py_XDECREF(decrypted);
    return waits;
}

/* Behind a read of data, whether there is something left to decrypt: where there is not, one more read would cost an exception.
 * -1: exception set. */
static int has_more(PyObject *self, PyObject *records, PyObject *incoming, bool drained)
{
    const Py_ssize_t encrypted = pending_in(incoming), partial = partial_in(self);
    if (encrypted < 0 || encrypted > (partial > 0 ? partial : 0))
        return encrypted < 0 ? -1 : 1;
    const int waits = drained ? 0 : has_decrypted(records);
    if (waits != 0 || partial >= 0)
        return waits;
    PyObject *eof = PyObject_GetAttr(incoming, engine.eof);
    const int ended = eof ? PyObject_IsTrue(eof) : -1;
    Py_XDECREF(eof);
    /* OpenSSL reads no further than it needs to, so it has no part of a record, either. */
    return ended == 0 ? note_partial(self, &(gt_partial_record){0, 0}) : ended;
}

/* Decrypt behind what is in `*whole`.  1: how much is in *count, 0: there is no more at the moment, or ever; -1: exception set. */
static int read_behind(PyObject *self, PyObject *records, PyObject *whole, Py_ssize_t used, Py_ssize_t *count)
{
    const Py_ssize_t room = PyBytes_GET_SIZE(whole) - used;
    PyObject *view = PyMemoryView_FromMemory(PyBytes_AS_STRING(whole) + used, room, PyBUF_WRITE);
    PyObject *length = view ? PyLong_FromSsize_t(room) : NULL;
    PyObject *read = length ? PyObject_CallMethodObjArgs(records, engine.read, length, view, NULL) : NULL;
    Py_XDECREF(length);
    Py_XDECREF(view);
    if (!read)
        return note_error(self);
    *count = PyLong_AsSsize_t(read);
    Py_DECREF(read);
    if (*count > 0)
        return 1;
    return *count < 0 ? -1 : gt_field_set(&engine.ended, self, Py_True);
}

/* Decrypt all there is into one bytes object, behind `first`, whose reference it takes, or which is NULL. */
static PyObject *read_all(PyObject *self, PyObject *records, PyObject *incoming, PyObject *first)
{
    Py_ssize_t used = first ? PyBytes_GET_SIZE(first) : 0, count = 0;
    const Py_ssize_t encrypted = pending_in(incoming);
    /* A part of the first record may be no encrypted bytes any more: they are OpenSSL's already, or decrypted. */
    PyObject *whole = encrypted < 0 ? NULL : PyBytes_FromStringAndSize(NULL, used + encrypted + (Py_ssize_t)GT_RECORD);
    if (whole && first)
        memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(first), (size_t)used);
    Py_XDECREF(first);
    int more = whole ? 1 : -1;
    while (more > 0) {
        more = read_behind(self, records, whole, used, &count);
        if (more <= 0)
            break;
        used += count;
        const bool drained = used < PyBytes_GET_SIZE(whole);
        more = has_more(self, records, incoming, drained);
        if (more > 0 && !drained && _PyBytes_Resize(&whole, used + 2 * (Py_ssize_t)GT_RECORD) < 0)
            more = -1;
    }
    if (more < 0)
        Py_CLEAR(whole);
    else
        _PyBytes_Resize(&whole, used); /* it clears `whole` where it fails */
    return whole;
}

/* Decrypt one record, and what is behind it, if there is something; `alone`: there is not. */
static PyObject *read_record(PyObject *self, PyObject *records, PyObject *incoming, Py_ssize_t encrypted, bool alone)
{
    /* A record is longer than its data, so a short one needs no object for a long one; and a byte that it does not fill shows
     * that no data is left of it. */
    const Py_ssize_t most = (Py_ssize_t)GT_RECORD + 1, size = encrypted > 0 && encrypted < most ? encrypted : most;
    PyObject *room = PyLong_FromSsize_t(size);
    if (!room)
        return NULL;
    PyObject *data = PyObject_CallMethodOneArg(records, engine.read, room);
    Py_DECREF(room);
    if (!data)
        return note_error(self) < 0 ? NULL : PyBytes_FromStringAndSize(NULL, 0);
    if (PyBytes_GET_SIZE(data) == 0) {
        if (gt_field_set(&engine.ended, self, Py_True) < 0)
            Py_CLEAR(data);
        return data;
    }
    const bool drained = PyBytes_GET_SIZE(data) < size; /* else the record may have been a compressed one */
    const int more = alone && drained ? 0 : has_more(self, records, incoming, drained);
    if (more > 0)
        return read_all(self, records, incoming, data);
    if (more < 0)
        Py_CLEAR(data);
    return data;
}

PyObject *gt_tls_decrypt_all(PyObject *self)
{
    PyObject *records = Py_NewRef(records_of(self)), *incoming = Py_NewRef(gt_field_peek(&engine.incoming, self));
    PyObject *data = NULL;
    const Py_ssize_t encrypted = pending_in(incoming);
    const int waits = encrypted < 0 ? -1 : encrypted > partial_in(self) ? 1 : has_decrypted(records);
    if (waits == 0)
        data = PyBytes_FromStringAndSize(NULL, 0);
    else if (waits > 0 && encrypted > (Py_ssize_t)(GT_RECORD + GT_RECORD_OVERHEAD))
        data = read_all(self, records, incoming, NULL);
    else if (waits > 0)
        data = read_record(self, records, incoming, encrypted, false);
    Py_DECREF(incoming);
    Py_DECREF(records);
    return data;
}

int gt_tls_pass_in(PyObject *self, PyObject *received, const char *bytes, size_t size)
{
    PyObject *incoming = Py_NewRef(gt_field_peek(&engine.incoming, self));
    PyObject *written = PyObject_CallMethodOneArg(incoming, engine.write, received);
    const int alone = written ? follow_records(self, bytes, size) : -1;
    Py_XDECREF(written);
    Py_DECREF(incoming);
    return alone;
}

PyObject *gt_tls_decrypt_record(PyObject *self, size_t encrypted)
{
    PyObject *records = Py_NewRef(records_of(self)), *incoming = Py_NewRef(gt_field_peek(&engine.incoming, self));
    PyObject *data = read_record(self, records, incoming, (Py_ssize_t)encrypted, true);
    Py_DECREF(incoming);
    Py_DECREF(records);
    return data;
}

int gt_tls_write(PyObject *self, PyObject *data, Py_ssize_t length, Py_ssize_t *done)
{
    PyObject *written = PyObject_CallMethodOneArg(records_of(self), engine.write, data);
    *done = 0;
    if (!written)
        return note_error(self);
    *done = PyLong_AsSsize_t(written);
    Py_DECREF(written);
    return *done < 0 ? -1 : *done == length;
}

int gt_tls_has_outgoing(PyObject *self)
{
    const Py_ssize_t pending = pending_in(gt_field_peek(&engine.outgoing, self));
    return pending < 0 ? -1 : pending > gt_slot_number(&engine.withheld, self);
}

PyObject *gt_tls_take_outgoing(PyObject *self)
{
    if (gt_slot_number(&engine.withheld, self) != 0) {
        PyObject *zero = PyLong_FromLong(0);
        const int result = zero ? gt_field_set(&engine.withheld, self, zero) : -1;
        Py_XDECREF(zero);
        if (result < 0)
            return NULL;
    }
    return PyObject_CallMethodNoArgs(gt_field_peek(&engine.outgoing, self), engine.read);
}

/* --- the engine's method --- */

static PyObject *engine_read(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return gt_tls_is_engine(self) ? gt_tls_decrypt_all(self) : PyObject_CallOneArg(engine.python_read, self);
}

static PyMethodDef engine_read_method = {"read", engine_read, METH_NOARGS,
                                         PyDoc_STR("read($self, /)\n--\n\nSee Engine.read().")};

/* An attribute of a module, as a type. */
static PyTypeObject *type_named(PyObject *module, const char *name)
{
    PyObject *found = PyObject_GetAttrString(module, name);
    if (found && !PyType_Check(found)) {
        PyErr_Format(PyExc_TypeError, "_ssl.%s is no type", name);
        Py_CLEAR(found);
    }
    return (PyTypeObject *)found;
}

int gt_tls_engine_replace(PyTypeObject *type)
{
    const struct {
        PyObject **place;
        const char *name;
    } names[] = {{&engine.read, "read"}, {&engine.write, "write"}, {&engine.pending, "pending"}, {&engine.eof, "eof"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!(*names[i].place = PyUnicode_InternFromString(names[i].name)))
            return -1;
    PyObject *module = PyImport_ImportModule("_ssl");
    if (!module)
        return -1;
    engine.records_type = type_named(module, "_SSLSocket");
    engine.buffer_type = engine.records_type ? type_named(module, "MemoryBIO") : NULL;
    engine.want_read = engine.buffer_type ? PyObject_GetAttrString(module, "SSLWantReadError") : NULL;
    engine.ssl_error = engine.want_read ? PyObject_GetAttrString(module, "SSLError") : NULL;
    Py_DECREF(module);
    if (!engine.ssl_error)
        return -1;
    const struct {
        gt_field *field;
        const char *name;
    } slots[] = {{&engine.records, "_records"},
                 {&engine.incoming, "_incoming"},
                 {&engine.outgoing, "_outgoing"},
                 {&engine.withheld, "_withheld"},
                 {&engine.ended, "ended"},
                 {&engine.error, "error"},
                 {&engine.partial_record, "_partial_record"}};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (gt_slot_resolve(slots[i].field, type, slots[i].name) < 0)
            return -1;
    engine.python_read = PyObject_GetAttrString((PyObject *)type, "read");
    PyObject *descriptor = engine.python_read ? PyDescr_NewMethod(type, &engine_read_method) : NULL;
    const int result = descriptor ? PyObject_SetAttrString((PyObject *)type, "read", descriptor) : -1;
    Py_XDECREF(descriptor);
    if (result == 0)
        engine.type = (PyTypeObject *)Py_NewRef(type);
    return result;
}
