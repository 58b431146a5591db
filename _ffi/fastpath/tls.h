/* tls.h: what the C files about TLS share, and what the classes in gain_trio/_transports/_tls/ are to them.
 *
 * A TLS connection is Python's (_tls_connection.py, _tls_traffic.py), with all that is rare: handshakes, renegotiations, changes
 * of keys, deadlines of calls that wait for each other, closing.  Its state lies in slots, which are read here where they lie.
 * tls_state.c has where.  tls_engine.c decrypts and encrypts; tls_traffic.c does so between a connection and the one below, for
 * receive() and send() (tls_calls.c), which wait, and for what callbacks call (tls_nowait.c), which does not.  The wait that calls
 * them back is in tls_calls.c, too, and tls_changes.c has what it finds.  All of that is the plain case.  tls_methods.c makes
 * methods of Python's class of them.
 */
#ifndef GAIN_TRIO_TLS_H
#define GAIN_TRIO_TLS_H

#include "fastpath.h"

/* --- tls_engine.c: an SSLObject between two buffers, without Python's frames --- */

int gt_tls_engine_replace(PyTypeObject *type); /* its methods, by those of this file; -1: exception set */
/* Whether this is an engine, with the objects of Python's ssl below it, and nothing has been put in between. */
bool gt_tls_is_engine(PyObject *object);
/* Pass in bytes that have arrived, at least one: an object of them, and where they lie.  1: they are one record, and there is
 * nothing else; -1: exception set. */
int gt_tls_pass_in(PyObject *engine, PyObject *received, const char *bytes, size_t size);
/* Decrypt all data: bytes, maybe none.  NULL: exception set.  What ends or breaks the stream is in the engine's slots.  The
 * second one is for one record of this size, behind which there is nothing. */
PyObject *gt_tls_decrypt_all(PyObject *engine);
PyObject *gt_tls_decrypt_record(PyObject *engine, size_t encrypted);
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

/* --- tls_state.c: what Python's object says of itself --- */

/* Its functions by name, and its slots. */
typedef struct {
    PyObject *out_of_memory, *interrupted; /* owned, as are all of these */
    PyObject *broken_error;                /* trio.BrokenResourceError */
    PyObject *finish_send, *send_failed, *decrypted, *decrypt_received, *encrypted, *send_below, *arrived, *taken,
        *check_open, *end;
    PyObject *outbound_after_send;
    gt_field is_closed, below, engine, error, send_error;
    gt_field receiving, inbound, ended, answered, feeding, has_received_nothing, room_inbound;
    gt_field sending, unencrypted, making_room, is_send_incomplete, piece, pieces, changes;
    gt_field is_taken, over;                                                     /* of an Exclusive */
    gt_field watched, unseen, unseen_below, is_full, is_noted, sent, waited_for; /* of the changes */
    size_t chunk;
    long most_answered;
} gt_tls_python;

extern gt_tls_python gt_tls;

/* Python's classes, and the bounds that they have. */
typedef struct {
    PyTypeObject *connection, *exclusive, *changes;
    PyObject *out_of_memory, *interrupted; /* the errors of a connection that has lost bytes */
    PyObject *broken_error;                /* trio.BrokenResourceError */
    Py_ssize_t chunk;                      /* the most that is received at once */
    long most_answered;                    /* by TLS itself, before a receive looks whether the peer reads that */
} gt_tls_classes;

int gt_tls_configure(const gt_tls_classes *classes); /* -1: exception set */
/* Put the method in the place of Python's of the same name, which is returned.  NULL: exception set. */
PyObject *gt_tls_replace(PyTypeObject *type, PyMethodDef *method);

bool gt_tls_is_taken(const gt_field *exclusive, PyObject *connection); /* or is none */
/* The connection below, if it is one on the ring of this thread's run, or NULL. */
gt_connection *gt_tls_below(PyObject *connection);
/* Whether TLS has answered so much that a task that receives makes room below before it decrypts more. */
bool gt_tls_answers_may_wait(PyObject *connection);
bool gt_tls_can_receive(PyObject *connection); /* plainly: nothing is queued, and nothing is to be looked at */
/* Plainly, but for room below; and with that. */
bool gt_tls_needs_only_room(PyObject *connection, const gt_connection *below);
bool gt_tls_can_send(PyObject *connection, const gt_connection *below);
/* Call a function of the connection's that returns nothing.  Takes the reference of `second`, which may be NULL.  -1: exception
 * set. */
int gt_tls_call_python(PyObject *connection, PyObject *name, PyObject *first, PyObject *second);
/* An exception is set, and bytes that a queue has given away are lost: for want of memory, or because the handler of a signal
 * has raised while OpenSSL had them.  What comes behind them would follow on what came before, so the connection is broken from
 * now on.  Returns -1. */
int gt_tls_lose(PyObject *connection, const gt_field *error);

/* --- tls_traffic.c: decrypted and encrypted bytes --- */

/* Take `size` bytes, which are there, from the queue below.  1: *data has what they are; 0: they were no data, or a part of it; 2:
 * Python has seen to them; -1: exception set, and when bytes are lost by that the connection is broken. */
int gt_tls_decrypt(PyObject *connection, gt_stream *below, size_t size, PyObject **data);
/* Encrypt and send.  0: done, 1: there is something to wait for, or to raise; -1: exception set. */
int gt_tls_encrypt(PyObject *connection, gt_connection *below, PyObject *data, Py_ssize_t length);
/* The length of what is to be sent, in one piece; -1: it is Python's to send, in pieces or not at all. */
Py_ssize_t gt_tls_length_of(PyObject *connection, PyObject *data);

/* --- tls_nowait.c: methods that wait for nothing --- */

int gt_tls_nowait_replace(PyTypeObject *type); /* Python's, by those; -1: exception set */
PyObject *gt_tls_decrypt_below(PyObject *connection, PyObject *argument);
PyObject *gt_tls_take_exactly(PyObject *connection, PyObject *argument);
PyObject *gt_tls_send_nowait(PyObject *connection, PyObject *data);
/* All that is queued, where that is `count` bytes or `count` is -1.  NULL: it is not, or not plain, and without memory for an
 * object an exception is set. */
PyObject *gt_tls_take_plainly(PyObject *connection, Py_ssize_t count);

/* --- tls_changes.c: what the wait of code that is called back finds --- */

/* Whether there is nothing to report, and nothing to wait for but a change of the connection below. */
bool gt_tls_is_quiet(PyObject *connection, long watched);
/* The wait for that is in progress, and over.  -1: exception set. */
int gt_tls_begin_watching(PyObject *connection, PyObject *watched, gt_connection *below);
int gt_tls_end_watching(PyObject *connection);
/* A change of the connection below.  How many bytes are to be reported; 0: what is to be reported, if anything, is for Python's
 * wait to find; -1: exception set. */
Py_ssize_t gt_tls_see(PyObject *connection, PyObject *change, long watched);

/* --- tls_calls.c: receive() and send(), and the wait that calls back --- */

enum { TLS_NEW, TLS_WAITS, TLS_FOLLOWS, TLS_DONE };
enum { TLS_RECEIVES, TLS_SENDS, TLS_DELIVERS };

typedef struct {
    PyObject_HEAD
    PyObject *connection; /* the TlsConnection */
    PyObject *awaited;    /* a gt_call of the connection below, or Python's coroutine */
    PyObject
        *argument; /* the data of a send, the most bytes of a receive; of one that delivers, the callback, its first
                           * argument, what learns from a slow one, and what the wait watches */
    size_t most;   /* bytes that a callback gets */
    size_t most_untimed; /* of them: a callback that gets more is timed */
    int64_t slice_ns;    /* and is slow when it takes longer than this */
    long watched;
    uint8_t state;
    uint8_t kind;
    bool makes_room; /* it has sent, and waits until less than the mark is queued below, as one task at a time */
    bool runs;       /* one step of it, which may run the program's code */
} gt_tls_call;

/* Python's functions, which do what is not plain; borrowed. */
typedef struct {
    PyObject *receive, *send, *wait_change;
} gt_tls_functions;

void gt_tls_calls_configure(const gt_tls_functions *functions);
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
