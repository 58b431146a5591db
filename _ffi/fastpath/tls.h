/* tls.h: what the C files about TLS share, and what the classes in gain_trio/_transports/_tls/ are to them.
 *
 * A TLS connection is Python's (_tls_connection.py, _tls_traffic.py), with all that is rare: handshakes, renegotiations, changes
 * of keys, deadlines of calls that wait for each other, closing.  Its state lies in slots, which are read here where they lie.
 * tls_engine.c decrypts and encrypts, tls_calls.c is receive() and send() in the plain case, and tls_methods.c makes them methods
 * of Python's class.
 */
#ifndef GAIN_TRIO_TLS_H
#define GAIN_TRIO_TLS_H

#include "fastpath.h"

/* --- tls_engine.c: an SSLObject between two buffers, without Python's frames --- */

int gt_tls_engine_replace(PyTypeObject *type); /* its methods, by those of this file; -1: exception set */
/* Whether this is an engine, with the objects of Python's ssl below it, and nothing has been put in between. */
bool gt_tls_is_engine(PyObject *object);
int gt_tls_feed(PyObject *engine, PyObject *data); /* bytes that have arrived, at least one; -1: exception set */
/* Decrypt all data: bytes, maybe none.  NULL: exception set.  What ends or breaks the stream is in the engine's slots. */
PyObject *gt_tls_read(PyObject *engine);
/* Encrypt all of a buffer of this length: 1; 0 when only a part could be, *done bytes, or when that has broken the stream; -1:
 * exception set. */
int gt_tls_write(PyObject *engine, PyObject *data, Py_ssize_t length, Py_ssize_t *done);
int gt_tls_has_outgoing(PyObject *engine);        /* -1: exception set */
PyObject *gt_tls_take_outgoing(PyObject *engine); /* NULL: exception set */
bool gt_tls_has_ended(PyObject *engine);          /* by the peer, or by an error */

/* --- slots --- */

/* A slot of a class, or of one that it is made of.  -1: exception set, also where there is no such slot. */
static inline int gt_slot_resolve(gt_field *field, PyTypeObject *type, const char *name)
{
    if (gt_field_resolve(field, (PyObject *)type, name) < 0)
        return -1;
    if (field->offset >= 0)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s has no slot %s", type->tp_name, name);
    return -1;
}

static inline bool gt_slot_is(const gt_field *field, PyObject *object, PyObject *expected)
{
    return gt_field_peek(field, object) == expected;
}

/* A number, less than 0 where there is none. */
static inline long gt_slot_number(const gt_field *field, PyObject *object)
{
    PyObject *value = gt_field_peek(field, object);
    if (!value || !PyLong_CheckExact(value))
        return -1;
    int overflow;
    const long number = PyLong_AsLongAndOverflow(value, &overflow);
    return overflow ? -1 : number;
}

/* --- tls_calls.c: receive() and send() --- */

enum { TLS_NEW, TLS_WAITS, TLS_FOLLOWS, TLS_DONE };

typedef struct {
    PyObject_HEAD
    PyObject *connection; /* the TlsConnection */
    PyObject *awaited;    /* a gt_call of the connection below, or Python's coroutine */
    PyObject *argument;   /* the data of a send, the most bytes of a receive */
    uint8_t state;
    bool sends;
    bool runs; /* one step of it, which may run the program's code */
} gt_tls_call;

/* Python's classes and functions, and the bounds that they have. */
typedef struct {
    PyTypeObject *connection, *exclusive, *changes;
    PyObject *receive, *send;
    PyObject *out_of_memory; /* the error of a connection that has lost bytes */
    Py_ssize_t chunk;        /* the most that is received at once */
    long most_answered;      /* by TLS itself, before a receive looks whether the peer reads that */
} gt_tls_classes;

int gt_tls_calls_configure(const gt_tls_classes *classes); /* -1: exception set */
PySendResult gt_tls_drive(PyObject *call, PyObject *message, PyObject **result);
/* Whether the call can be driven or ended: a step of it is not in progress.  false: exception set. */
bool gt_tls_can_step(const gt_tls_call *call);
/* The call has no part in the connection any more.  An exception that is set stays set; one of its own is raised where there is
 * none.  -1: one is set. */
int gt_tls_leave(gt_tls_call *call);

/* --- tls_methods.c: the awaitable, and the methods that make one --- */

extern PyTypeObject gt_tls_call_type;
PyObject *gt_hasten_tls(PyObject *module, PyObject *args);

#endif
