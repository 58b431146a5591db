/* tls_calls.c: receive() and send() of a TLS connection over one on the ring, in the plain case.
 *
 * Python's class (gain_trio/_transports/_tls/_tls_connection.py) has both in full.  In nearly every call all that they find is
 * what they hope for: the connection is open and whole, nothing is queued, no other task is in the way, no renegotiation is in
 * progress, and the peer's bytes are data.  Then each of them is one call of the connection below and two of ssl's, and is made
 * here without a frame of Python.
 *
 *     receive    wait in the receive() of the connection below; decrypt what came; again until that was some data
 *     send       a cancellation point; encrypt; queue below what came of it
 *
 * A call is an awaitable like those of call.c, and awaits another one: a call of the connection below, or Python's coroutine.
 *
 *     NEW ──drive──> DONE                           a send that has to wait for nothing
 *      ├────drive──> WAITS ──drive──> DONE          in a call of the connection below
 *      │              └──drive──> FOLLOWS
 *      └────drive──> FOLLOWS ──drive──> DONE        Python's coroutine, to which everything is passed on
 *
 * Whatever is not plain is Python's: before anything has been changed its coroutine takes the whole call over.  After that,
 * plain functions of the connection's queue what has been decrypted (_decrypted), or send what has been encrypted (_encrypted),
 * and a coroutine goes on with what is left to wait for.  So a call here never has bytes that no queue has: it waits with none,
 * and Python sees the state that its own call would have left.
 *
 * The connection's own time slice is for what Python answers from memory.  A call here that does not wait counts in that of the
 * run (worklists.c), like every call of the connection below.
 */
#include "tls.h"

static struct {
    PyObject *receive, *send; /* Python's functions; owned, as are all of these */
    PyObject *out_of_memory;
    PyObject *finish_send, *decrypted, *decrypt_received, *encrypted, *send_below, *arrived, *taken, *check_open, *end;
    gt_field is_closed, below, engine, error, send_error;
    gt_field receiving, inbound, ended, answered, feeding, has_received_nothing;
    gt_field sending, unencrypted, making_room, is_send_incomplete, piece, pieces, changes;
    gt_field is_taken, over; /* of an Exclusive */
    gt_field watched;        /* of the changes */
    size_t chunk;
    long most_answered;
} tls;

static bool is(const gt_field *field, const gt_tls_call *self, PyObject *expected)
{
    return gt_slot_is(field, self->connection, expected);
}

static bool is_taken(const gt_field *field, const gt_tls_call *self)
{
    PyObject *exclusive = gt_field_peek(field, self->connection);
    return !exclusive || !gt_slot_is(&tls.is_taken, exclusive, Py_False);
}

/* The connection below, if it is one on the ring of this thread's run, or NULL. */
static gt_connection *connection_below(const gt_tls_call *self)
{
    PyObject *below = gt_field_peek(&tls.below, self->connection);
    if (!below || !PyObject_TypeCheck(below, &gt_connection_type))
        return NULL;
    gt_connection *connection = (gt_connection *)below;
    const gt_proactor *proactor = connection->proactor;
    return proactor && !proactor->closed && gt_proactor_is_in_thread(proactor) ? connection : NULL;
}

/* What neither direction can do without. */
static bool is_whole(const gt_tls_call *self)
{
    PyObject *unencrypted = gt_field_peek(&tls.unencrypted, self->connection);
    return is(&tls.is_closed, self, Py_False) && is(&tls.error, self, Py_None) && unencrypted &&
           PyObject_Size(unencrypted) == 0 && gt_tls_is_engine(gt_field_peek(&tls.engine, self->connection));
}

/* --- what is awaited --- */

static int set(const gt_field *field, const gt_tls_call *self, PyObject *value)
{
    return gt_field_set(field, self->connection, value);
}

int gt_tls_leave(gt_tls_call *self)
{
    const bool waited = self->state == TLS_WAITS;
    self->state = TLS_DONE;
    if (!waited)
        return 0;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int result = set(self->sends ? &tls.sending : &tls.receiving, self, Py_False);
    if (!self->sends && result == 0) {
        PyObject *feeding = Py_XNewRef(gt_field_peek(&tls.feeding, self->connection));
        if (feeding && gt_slot_is(&tls.over, feeding, Py_None)) {
            result = gt_field_set(&tls.is_taken, feeding, Py_False);
        } else if (feeding) { /* a task waits for its turn */
            PyObject *ended = PyObject_CallMethodNoArgs(feeding, tls.end);
            result = ended ? 0 : -1;
            Py_XDECREF(ended);
        }
        Py_XDECREF(feeding);
    }
    if (type) {
        PyErr_Clear();
        PyErr_Restore(type, value, traceback);
        return -1;
    }
    return result;
}

static PySendResult fail(gt_tls_call *self)
{
    gt_tls_leave(self);
    return PYGEN_ERROR;
}

/* Await what is awaited: one step. */
static PySendResult pass_on(const gt_tls_call *self, PyObject *message, PyObject **result)
{
    PyObject *awaited = Py_NewRef(self->awaited);
    const PySendResult sent = PyIter_Send(awaited, message, result);
    Py_DECREF(awaited);
    return sent;
}

/* Go on with a coroutine of Python's, whose reference it takes.  NULL: exception set. */
static PySendResult follow(gt_tls_call *self, PyObject *coroutine, PyObject **result)
{
    if (!coroutine)
        return fail(self);
    Py_XSETREF(self->awaited, coroutine);
    self->state = TLS_FOLLOWS;
    const PySendResult sent = pass_on(self, Py_None, result);
    if (sent != PYGEN_NEXT)
        self->state = TLS_DONE;
    return sent;
}

/* Python's own call does all of it. */
static PySendResult follow_python(gt_tls_call *self, PyObject **result)
{
    if (gt_tls_leave(self) < 0)
        return PYGEN_ERROR;
    PyObject *arguments[] = {self->connection, self->argument};
    return follow(self, PyObject_Vectorcall(self->sends ? tls.send : tls.receive, arguments, 2, NULL), result);
}

static PySendResult wait_below(gt_tls_call *self, enum gt_stream_call kind, gt_connection *below)
{
    gt_call *call = gt_call_new(&gt_stream_kinds[kind], below->proactor, (PyObject *)below);
    if (!call)
        return fail(self);
    if (kind == GT_RECEIVE)
        call->max = tls.chunk;
    Py_XSETREF(self->awaited, (PyObject *)call);
    return PYGEN_NEXT;
}

/* Call a function of the connection's that returns nothing.  Takes the reference of `second`, which may be NULL. */
static int call_python(const gt_tls_call *self, PyObject *name, PyObject *first, PyObject *second)
{
    PyObject *returned = PyObject_CallMethodObjArgs(self->connection, name, first, second, NULL);
    Py_XDECREF(second);
    Py_XDECREF(returned);
    return returned ? 0 : -1;
}

/* Bytes that a queue has given away are lost, if it is for want of memory that the exception is set.  What comes behind them
 * would follow on what came before, so the connection is broken from now on.  Returns -1. */
static int lose(const gt_tls_call *self, const gt_field *error)
{
    if (PyErr_ExceptionMatches(PyExc_MemoryError) && is(error, self, Py_None))
        set(error, self, tls.out_of_memory); /* where it lies: that allocates nothing */
    return -1;
}

/* --- receiving --- */

static bool can_receive(const gt_tls_call *self)
{
    PyObject *inbound = gt_field_peek(&tls.inbound, self->connection);
    const long answered = gt_slot_number(&tls.answered, self->connection);
    return is_whole(self) && is(&tls.ended, self, Py_False) && inbound && PyBytes_CheckExact(inbound) &&
           PyBytes_GET_SIZE(inbound) == 0 && answered >= 0 && answered < tls.most_answered;
}

/* All of what was decrypted; or as much as was asked for, and the rest is queued.  Takes the reference of `data`. */
static PyObject *answer_with(const gt_tls_call *self, PyObject *data)
{
    if (set(&tls.has_received_nothing, self, Py_False) < 0) {
        Py_DECREF(data);
        return NULL;
    }
    if (self->argument == Py_None)
        return data;
    const Py_ssize_t max = PyLong_AsSsize_t(self->argument); /* >= 1: it was looked at when the call was made */
    if (PyBytes_GET_SIZE(data) <= max)
        return data;
    const int queued = call_python(self, tls.arrived, data, NULL);
    Py_DECREF(data);
    return queued < 0 ? NULL : PyObject_CallMethodObjArgs(self->connection, tls.taken, self->argument, NULL);
}

/* Bytes have come from below.  1: *result is the answer, 0: they were no data, or a part of it, 2: Python is to go on, -1:
 * exception set. */
static int decrypt(const gt_tls_call *self, PyObject *received, PyObject **result)
{
    PyObject *engine = Py_XNewRef(gt_field_peek(&tls.engine, self->connection));
    if (PyBytes_GET_SIZE(received) == 0 || !can_receive(self)) {
        Py_XDECREF(engine);
        return call_python(self, tls.decrypt_received, received, NULL) < 0 ? -1 : 2;
    }
    PyObject *data = gt_tls_feed(engine, received) < 0 ? NULL : gt_tls_read(engine);
    const int outgoing = data ? gt_tls_has_outgoing(engine) : -1;
    const bool plain = outgoing == 0 && !gt_tls_has_ended(engine) && can_receive(self);
    Py_DECREF(engine);
    if (outgoing < 0) {
        Py_XDECREF(data);
        return -1;
    }
    if (!plain) {
        const int queued = call_python(self, tls.decrypted, data, NULL);
        Py_DECREF(data);
        return queued < 0 ? -1 : 2;
    }
    if (PyBytes_GET_SIZE(data) == 0) {
        Py_DECREF(data);
        return 0;
    }
    *result = answer_with(self, data);
    return *result ? 1 : -1;
}

/* A deadline below is also how a close ends the calls of a connection that is not closed below yet. */
static PySendResult receive_failed(gt_tls_call *self, const gt_connection *below)
{
    const bool closed = PyErr_ExceptionMatches(below->proactor->too_slow_error) && !is(&tls.is_closed, self, Py_False);
    if (closed) {
        PyErr_Clear();
        PyObject *checked = PyObject_CallMethodNoArgs(self->connection, tls.check_open);
        Py_XDECREF(checked);
    }
    return fail(self);
}

static PySendResult go_on_receiving(gt_tls_call *self, PyObject *message, PyObject **result)
{
    for (;;) {
        const gt_connection *below = (gt_connection *)((gt_call *)self->awaited)->owner;
        PyObject *received = NULL;
        const PySendResult sent = pass_on(self, message, &received);
        if (sent == PYGEN_NEXT) {
            *result = received;
            return sent;
        }
        if (sent == PYGEN_ERROR)
            return receive_failed(self, below);
        const int decrypted = decrypt(self, received, result);
        Py_DECREF(received);
        if (decrypted < 0) {
            lose(self, &tls.error);
            return fail(self);
        }
        if (decrypted == 1) {
            if (gt_tls_leave(self) == 0)
                return PYGEN_RETURN;
            Py_CLEAR(*result);
            lose(self, &tls.error);
            return PYGEN_ERROR;
        }
        gt_connection *next = connection_below(self);
        if (decrypted == 2 || !next || !can_receive(self))
            return follow_python(self, result);
        if (wait_below(self, GT_RECEIVE, next) == PYGEN_ERROR)
            return PYGEN_ERROR;
        message = Py_None;
    }
}

static PySendResult start_receive(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = connection_below(self);
    if (!below || !is(&tls.receiving, self, Py_False) || is_taken(&tls.feeding, self) || !can_receive(self))
        return follow_python(self, result);
    self->state = TLS_WAITS;
    if (set(&tls.receiving, self, Py_True) < 0 ||
        gt_field_set(&tls.is_taken, gt_field_peek(&tls.feeding, self->connection), Py_True) < 0)
        return fail(self);
    if (wait_below(self, GT_RECEIVE, below) == PYGEN_ERROR)
        return PYGEN_ERROR;
    return go_on_receiving(self, Py_None, result);
}

/* --- sending --- */

static bool can_send(const gt_tls_call *self, const gt_connection *below)
{
    const gt_stream *stream = below->closed ? NULL : below->stream;
    PyObject *changes = gt_field_peek(&tls.changes, self->connection);
    return stream && !stream->closing && stream->outbound.size < stream->send_high &&
           !gt_connection_cannot_send_now(below) && is_whole(self) && is(&tls.send_error, self, Py_None) &&
           is(&tls.is_send_incomplete, self, Py_False) && !is_taken(&tls.making_room, self) &&
           is(&tls.pieces, self, Py_None) && changes && gt_slot_number(&tls.watched, changes) == 0;
}

/* Queue below what OpenSSL has made.  Whether that is too much to go on: 1; -1: exception set. */
static int send_below(const gt_tls_call *self, gt_connection *below, PyObject *engine)
{
    PyObject *outgoing = gt_tls_take_outgoing(engine);
    if (!outgoing)
        return -1;
    int behind;
    if (can_send(self, below)) {
        behind = gt_stream_queue_bytes(below->stream, outgoing);
        if (behind < 0)
            PyErr_NoMemory();
        else
            behind = below->stream->outbound.size >= below->stream->send_high;
    } else { /* a finalizer has closed it, say: Python's function finds out, and keeps the error */
        behind = call_python(self, tls.send_below, outgoing, NULL) < 0 ? -1 : 1;
    }
    Py_DECREF(outgoing);
    return behind < 0 ? lose(self, &tls.send_error) : behind;
}

/* Encrypt and send.  0: done, 1: there is something to wait for, or to raise; -1: exception set. */
static int encrypt(const gt_tls_call *self, gt_connection *below, Py_ssize_t length)
{
    PyObject *engine = Py_NewRef(gt_field_peek(&tls.engine, self->connection));
    Py_ssize_t done;
    int behind = gt_tls_write(engine, self->argument, length, &done);
    if (behind == 0) {
        PyObject *count = PyLong_FromSsize_t(done);
        behind = !count || call_python(self, tls.encrypted, self->argument, count) < 0 ? -1 : 1;
    } else if (behind > 0) {
        Py_INCREF(below);
        behind = send_below(self, below, engine);
        Py_DECREF(below);
    }
    Py_DECREF(engine);
    return behind;
}

/* The length of what is to be sent, in one piece; -1: it is Python's to send, in pieces or not at all. */
static Py_ssize_t length_of(const gt_tls_call *self)
{
    Py_ssize_t length;
    if (PyBytes_CheckExact(self->argument)) {
        length = PyBytes_GET_SIZE(self->argument);
    } else {
        Py_buffer view;
        if (!(PyByteArray_CheckExact(self->argument) || PyMemoryView_Check(self->argument)) ||
            PyObject_GetBuffer(self->argument, &view, PyBUF_SIMPLE) < 0) {
            PyErr_Clear();
            return -1;
        }
        length = view.len;
        PyBuffer_Release(&view);
    }
    return length > 0 && length <= gt_slot_number(&tls.piece, self->connection) ? length : -1;
}

static PySendResult send_now(gt_tls_call *self, gt_connection *below, Py_ssize_t length, PyObject **result)
{
    int behind = encrypt(self, below, length);
    if (behind < 0)
        return fail(self);
    if (behind > 0) {
        PyObject *coroutine = PyObject_CallMethodNoArgs(self->connection, tls.finish_send);
        if (coroutine)
            self->state = TLS_FOLLOWS; /* the coroutine leaves in its own way */
        return follow(self, coroutine, result);
    }
    if (gt_tls_leave(self) < 0)
        return PYGEN_ERROR;
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

/* The wait that is a turn of the scheduler, or the cancellation, is over. */
static PySendResult go_on_sending(gt_tls_call *self, PyObject *message, PyObject **result)
{
    const PySendResult sent = pass_on(self, message, result);
    if (sent == PYGEN_NEXT)
        return sent;
    if (sent == PYGEN_ERROR)
        return fail(self);
    Py_CLEAR(*result);
    gt_connection *below = connection_below(self);
    const Py_ssize_t length = length_of(self);
    if (!below || length < 0 || !can_send(self, below))
        return follow_python(self, result);
    return send_now(self, below, length, result);
}

static PySendResult start_send(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = connection_below(self);
    const Py_ssize_t length = length_of(self);
    if (!below || length < 0 || !is(&tls.sending, self, Py_False) || below->sending.call || !can_send(self, below))
        return follow_python(self, result);
    gt_proactor *proactor = below->proactor;
    PyObject *task = gt_trio_current_task(&proactor->trio);
    const int cancelled = task ? gt_trio_cancel_is_pending(&proactor->trio, task) : -1;
    if (cancelled < 0)
        return fail(self);
    self->state = TLS_WAITS;
    if (set(&tls.sending, self, Py_True) < 0)
        return fail(self);
    if (cancelled || proactor->answers_left <= 1) {
        if (wait_below(self, GT_WRITABLE, below) == PYGEN_ERROR)
            return PYGEN_ERROR;
        return go_on_sending(self, Py_None, result);
    }
    proactor->answers_left--;
    if (gt_trio_count_cancel_point(&proactor->trio, task) < 0)
        return fail(self);
    return send_now(self, below, length, result);
}

/* --- both --- */

bool gt_tls_can_step(const gt_tls_call *self)
{
    if (self->runs)
        PyErr_SetString(PyExc_RuntimeError, "a step of this receive() or send() is in progress");
    return !self->runs;
}

static PySendResult step(gt_tls_call *self, PyObject *message, PyObject **result)
{
    switch (self->state) {
    case TLS_NEW:
        return self->sends ? start_send(self, result) : start_receive(self, result);
    case TLS_WAITS: {
        const gt_call *call = (gt_call *)self->awaited;
        if (message == Py_None && call->state == GT_CALL_PARKED &&
            call->waiter->task) { /* waking takes the task from there */
            PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
            return PYGEN_ERROR;
        }
        return self->sends ? go_on_sending(self, message, result) : go_on_receiving(self, message, result);
    }
    case TLS_FOLLOWS: {
        const PySendResult sent = pass_on(self, message, result);
        if (sent != PYGEN_NEXT)
            self->state = TLS_DONE;
        return sent;
    }
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited receive() or send(): call it again");
        return PYGEN_ERROR;
    }
}

PySendResult gt_tls_drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_tls_call *self = (gt_tls_call *)object;
    *result = NULL;
    if (!gt_tls_can_step(self))
        return PYGEN_ERROR;
    self->runs = true;
    const PySendResult sent = step(self, message, result);
    self->runs = false;
    return sent;
}

/* --- what is Python's --- */

static int find_names(void)
{
    const struct {
        PyObject **place;
        const char *name;
    } names[] = {
        {&tls.finish_send, "_finish_send"},
        {&tls.decrypted, "_decrypted"},
        {&tls.decrypt_received, "_decrypt_received"},
        {&tls.encrypted, "_encrypted"},
        {&tls.send_below, "_send_below"},
        {&tls.arrived, "_arrived"},
        {&tls.taken, "_taken"},
        {&tls.check_open, "_check_open"},
        {&tls.end, "end"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!(*names[i].place = PyUnicode_InternFromString(names[i].name)))
            return -1;
    return 0;
}

static int find_slots(PyTypeObject *type, PyTypeObject *exclusive, PyTypeObject *changes)
{
    const struct {
        gt_field *field;
        const char *name;
    } slots[] = {
        {&tls.is_closed, "_is_closed"},
        {&tls.below, "_below"},
        {&tls.engine, "_engine"},
        {&tls.error, "_error"},
        {&tls.send_error, "_send_error"},
        {&tls.receiving, "_receiving"},
        {&tls.inbound, "_inbound"},
        {&tls.ended, "_ended"},
        {&tls.answered, "_answered"},
        {&tls.feeding, "_feeding"},
        {&tls.has_received_nothing, "_has_received_nothing"},
        {&tls.sending, "_sending"},
        {&tls.unencrypted, "_unencrypted"},
        {&tls.making_room, "_making_room"},
        {&tls.is_send_incomplete, "_is_send_incomplete"},
        {&tls.piece, "_piece"},
        {&tls.pieces, "_pieces"},
        {&tls.changes, "_changes"},
    };
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (gt_slot_resolve(slots[i].field, type, slots[i].name) < 0)
            return -1;
    if (gt_slot_resolve(&tls.is_taken, exclusive, "is_taken") < 0 || gt_slot_resolve(&tls.over, exclusive, "_over") < 0)
        return -1;
    return gt_slot_resolve(&tls.watched, changes, "_watched");
}

int gt_tls_calls_configure(const gt_tls_classes *classes)
{
    tls.receive = Py_NewRef(classes->receive);
    tls.send = Py_NewRef(classes->send);
    tls.out_of_memory = Py_NewRef(classes->out_of_memory);
    tls.chunk = (size_t)classes->chunk;
    tls.most_answered = classes->most_answered;
    return find_names() < 0 ? -1 : find_slots(classes->connection, classes->exclusive, classes->changes);
}
