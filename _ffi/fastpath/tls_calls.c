/* tls_calls.c: receive() and send() of a TLS connection over one on the ring, and the wait that calls back, in the plain case.
 *
 * Python's class (gain_trio/_transports/_tls/_tls_connection.py) has both in full.  In nearly every call all that they find is
 * what they hope for: the connection is open and whole, nothing is queued, no other task is in the way, no renegotiation is in
 * progress, and the peer's bytes are data.  Then each of them is one call of the connection below and two of ssl's, and is made
 * here without a frame of Python.
 *
 *     receive    wait for an arrival at the connection below; decrypt what came; again until that was some data
 *     send       a cancellation point; encrypt; queue below what came of it, and offer that to the kernel if it is large;
 *                wait until less than the mark is left of it there
 *     deliver    wait for a change of the connection below; decrypt what came; call back with how much that was; again
 *
 * A call is an awaitable like those of call.c, and awaits another one: a call of the connection below, or Python's coroutine.
 *
 *     NEW ──drive──> DONE                           a send that has to wait for nothing
 *      ├────drive──> WAITS ──drive──> DONE          in a call of the connection below
 *      │              └──drive──> FOLLOWS
 *      └────drive──> FOLLOWS ──drive──> DONE        Python's coroutine, to which everything is passed on
 *
 * One that delivers is one wait after the other, each with these states, and calls back between two of them, as in call.c.
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

static gt_tls_functions python;

void gt_tls_calls_configure(const gt_tls_functions *functions) { python = *functions; }

/* --- what is awaited --- */

static int set(const gt_field *field, const gt_tls_call *self, PyObject *value)
{
    return gt_field_set(field, self->connection, value);
}

/* The call was the one that did this. */
static int end_exclusive(const gt_tls_call *self, const gt_field *field)
{
    PyObject *exclusive = Py_XNewRef(gt_field_peek(field, self->connection));
    int result = 0;
    if (exclusive && gt_slot_is(&gt_tls.over, exclusive, Py_None)) {
        result = gt_field_set(&gt_tls.is_taken, exclusive, Py_False);
    } else if (exclusive) { /* a task waits for its turn */
        PyObject *ended = PyObject_CallMethodNoArgs(exclusive, gt_tls.end);
        result = ended ? 0 : -1;
        Py_XDECREF(ended);
    }
    Py_XDECREF(exclusive);
    return result;
}

/* It is, from now on.  -1: exception set. */
static int take_exclusive(const gt_tls_call *self, const gt_field *field)
{
    PyObject *exclusive = gt_field_get(field, self->connection);
    if (!exclusive)
        return -1;
    const int result = gt_field_set(&gt_tls.is_taken, exclusive, Py_True);
    Py_DECREF(exclusive);
    return result;
}

static int stop_making_room(gt_tls_call *self)
{
    if (!self->makes_room)
        return 0;
    self->makes_room = false;
    return end_exclusive(self, &gt_tls.making_room);
}

int gt_tls_leave(gt_tls_call *self)
{
    const bool waited = self->state == TLS_WAITS;
    self->state = TLS_DONE;
    if (!waited)
        return 0;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const bool sends = self->kind == TLS_SENDS;
    int result = set(sends ? &gt_tls.sending : &gt_tls.receiving, self, Py_False);
    if (self->kind == TLS_DELIVERS && gt_tls_end_watching(self->connection) < 0)
        result = -1;
    if (result == 0)
        result = sends ? stop_making_room(self) : end_exclusive(self, &gt_tls.feeding);
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
    PyObject *function = self->kind == TLS_SENDS ? python.send : python.receive;
    return follow(self, PyObject_Vectorcall(function, arguments, 2, NULL), result);
}

static PySendResult wait_below(gt_tls_call *self, enum gt_stream_call kind, gt_connection *below)
{
    gt_call *call = gt_call_new(&gt_stream_kinds[kind], below->proactor, (PyObject *)below);
    if (!call)
        return fail(self);
    if (kind == GT_CHANGE)
        call->max = (size_t)self->watched;
    if (kind != GT_WRITABLE && below->stream)
        below->stream->lends = true;
    Py_XSETREF(self->awaited, (PyObject *)call);
    return PYGEN_NEXT;
}

/* Receiving is this call's from now on, and so is decrypting.  -1: exception set. */
static int take_receiving(gt_tls_call *self)
{
    self->state = TLS_WAITS;
    return set(&gt_tls.receiving, self, Py_True) < 0 ? -1 : take_exclusive(self, &gt_tls.feeding);
}

/* Whether it can be. */
static bool can_take_receiving(const gt_tls_call *self)
{
    return gt_slot_is(&gt_tls.receiving, self->connection, Py_False) &&
           !gt_tls_is_taken(&gt_tls.feeding, self->connection);
}

/* --- receiving --- */

/* All of what was decrypted; or as much as was asked for, and the rest is queued.  Takes the reference of `data`. */
static PyObject *answer_with(const gt_tls_call *self, PyObject *data)
{
    if (set(&gt_tls.has_received_nothing, self, Py_False) < 0) {
        Py_DECREF(data);
        return NULL;
    }
    if (self->argument == Py_None)
        return data;
    const Py_ssize_t max = PyLong_AsSsize_t(self->argument); /* >= 1: it was looked at when the call was made */
    if (PyBytes_GET_SIZE(data) <= max)
        return data;
    const int queued = gt_tls_call_python(self->connection, gt_tls.arrived, data, NULL);
    Py_DECREF(data);
    return queued < 0 ? NULL : PyObject_CallMethodObjArgs(self->connection, gt_tls.taken, self->argument, NULL);
}

/* A deadline below is also how a close ends the calls of a connection that is not closed below yet. */
static PySendResult receive_failed(gt_tls_call *self, const gt_connection *below)
{
    const bool closed = PyErr_ExceptionMatches(below->proactor->too_slow_error) &&
                        !gt_slot_is(&gt_tls.is_closed, self->connection, Py_False);
    if (closed) {
        PyErr_Clear();
        PyObject *checked = PyObject_CallMethodNoArgs(self->connection, gt_tls.check_open);
        Py_XDECREF(checked);
    }
    return fail(self);
}

/* Encrypted bytes have arrived below, or it has ended.  What gt_tls_decrypt() returns. */
static int decrypt_arrived(const gt_tls_call *self, const gt_connection *below, bool some, PyObject **data)
{
    if (!some) {
        PyObject *end = PyBytes_FromStringAndSize(NULL, 0);
        const int result = end ? gt_tls_call_python(self->connection, gt_tls.decrypt_received, end, NULL) : -1;
        Py_XDECREF(end);
        return result < 0 ? -1 : 2;
    }
    gt_stream *stream = below->closed ? NULL : below->stream;
    if (!stream || stream->closing || !gt_tls_can_receive(self->connection))
        return 2;
    const size_t lent = gt_inbound_lent_size(&stream->inbound, gt_tls.chunk);
    const size_t head = gt_inbound_head_size(&stream->inbound);
    return gt_tls_decrypt(self->connection, stream, lent > 0 ? lent : head < gt_tls.chunk ? head : gt_tls.chunk, data);
}

static PySendResult go_on_receiving(gt_tls_call *self, PyObject *message, PyObject **result)
{
    for (;;) {
        const gt_connection *below = (gt_connection *)((gt_call *)self->awaited)->owner;
        PyObject *arrived = NULL;
        const PySendResult sent = pass_on(self, message, &arrived);
        if (sent == PYGEN_NEXT) {
            *result = arrived;
            return sent;
        }
        if (sent == PYGEN_ERROR)
            return receive_failed(self, below);
        PyObject *data = NULL;
        int decrypted = decrypt_arrived(self, below, arrived == Py_True, &data);
        Py_DECREF(arrived);
        if (decrypted == 1 && !(*result = answer_with(self, data)))
            decrypted = gt_tls_lose(self->connection, &gt_tls.error);
        if (decrypted < 0)
            return fail(self);
        if (decrypted == 1) {
            if (gt_tls_leave(self) == 0)
                return PYGEN_RETURN;
            Py_CLEAR(*result);
            gt_tls_lose(self->connection, &gt_tls.error);
            return PYGEN_ERROR;
        }
        gt_connection *next = gt_tls_below(self->connection);
        if (decrypted == 2 || !next || !gt_tls_can_receive(self->connection))
            return follow_python(self, result);
        if (wait_below(self, GT_ARRIVAL, next) == PYGEN_ERROR)
            return PYGEN_ERROR;
        message = Py_None;
    }
}

static PySendResult start_receive(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = gt_tls_below(self->connection);
    if (!below || !can_take_receiving(self) || !gt_tls_can_receive(self->connection))
        return follow_python(self, result);
    if (take_receiving(self) < 0)
        return fail(self);
    if (wait_below(self, GT_ARRIVAL, below) == PYGEN_ERROR)
        return PYGEN_ERROR;
    return go_on_receiving(self, Py_None, result);
}

/* --- sending --- */

static PySendResult send_done(gt_tls_call *self, PyObject **result)
{
    if (gt_tls_leave(self) < 0)
        return PYGEN_ERROR;
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

/* Its data is queued below: Python's coroutine waits for the rest, if there is one, and raises what there is to raise. */
static PySendResult finish_in_python(gt_tls_call *self, PyObject **result)
{
    if (stop_making_room(self) < 0)
        return fail(self);
    PyObject *coroutine = PyObject_CallMethodNoArgs(self->connection, gt_tls.finish_send);
    if (coroutine)
        self->state = TLS_FOLLOWS; /* the coroutine leaves in its own way */
    return follow(self, coroutine, result);
}

/* The wait for room has ended with an exception, which is set. */
static PySendResult making_room_failed(gt_tls_call *self, PyObject **result)
{
    if (!PyErr_ExceptionMatches(gt_tls.broken_error))
        return fail(self);
    PyObject *error = gt_take_exception();
    const int noted = gt_tls_call_python(self->connection, gt_tls.send_failed, error, NULL);
    Py_DECREF(error);
    return noted < 0 ? fail(self) : finish_in_python(self, result);
}

static PySendResult go_on_making_room(gt_tls_call *self, PyObject *message, PyObject **result)
{
    const PySendResult sent = pass_on(self, message, result);
    if (sent == PYGEN_NEXT)
        return sent;
    if (sent == PYGEN_ERROR)
        return making_room_failed(self, result);
    Py_CLEAR(*result);
    if (stop_making_room(self) < 0)
        return fail(self);
    const gt_connection *below = gt_tls_below(self->connection);
    return below && gt_tls_can_send(self->connection, below) ? send_done(self, result) : finish_in_python(self, result);
}

/* What is queued below is too much to go on, or there is something to raise. */
static PySendResult make_room(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = gt_tls_below(self->connection); /* encrypting may have run the program's code */
    /* A sender that gets room goes on at once, and may take it all again.  Python's wait leaves a turn to a receiver. */
    if (!below || below->sending.call || !gt_tls_needs_only_room(self->connection, below) ||
        gt_tls_answers_may_wait(self->connection))
        return finish_in_python(self, result);
    if (take_exclusive(self, &gt_tls.making_room) < 0)
        return fail(self);
    self->makes_room = true;
    if (wait_below(self, GT_WRITABLE, below) == PYGEN_ERROR)
        return PYGEN_ERROR;
    return go_on_making_room(self, Py_None, result);
}

static PySendResult send_now(gt_tls_call *self, gt_connection *below, Py_ssize_t length, PyObject **result)
{
    const int behind = gt_tls_encrypt(self->connection, below, self->argument, length);
    if (behind < 0)
        return fail(self);
    return behind > 0 ? make_room(self, result) : send_done(self, result);
}

/* The wait that is a turn of the scheduler, or the cancellation, is over; or the one for room. */
static PySendResult go_on_sending(gt_tls_call *self, PyObject *message, PyObject **result)
{
    if (self->makes_room)
        return go_on_making_room(self, message, result);
    const PySendResult sent = pass_on(self, message, result);
    if (sent == PYGEN_NEXT)
        return sent;
    if (sent == PYGEN_ERROR)
        return fail(self);
    Py_CLEAR(*result);
    gt_connection *below = gt_tls_below(self->connection);
    const Py_ssize_t length = gt_tls_length_of(self->connection, self->argument);
    if (!below || length < 0 || !gt_tls_can_send(self->connection, below))
        return follow_python(self, result);
    return send_now(self, below, length, result);
}

static PySendResult start_send(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = gt_tls_below(self->connection);
    const Py_ssize_t length = gt_tls_length_of(self->connection, self->argument);
    if (!below || length < 0 || !gt_slot_is(&gt_tls.sending, self->connection, Py_False) || below->sending.call ||
        !gt_tls_can_send(self->connection, below))
        return follow_python(self, result);
    gt_proactor *proactor = below->proactor;
    PyObject *task = gt_trio_current_task(&proactor->trio);
    const int cancelled = task ? gt_trio_cancel_is_pending(&proactor->trio, task) : -1;
    if (cancelled < 0)
        return fail(self);
    self->state = TLS_WAITS;
    if (set(&gt_tls.sending, self, Py_True) < 0)
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

/* --- calling back --- */

static PyObject *watched_by(const gt_tls_call *self) { return PyTuple_GET_ITEM(self->argument, 3); }

/* Python's own wait finds what there is to report. */
static PySendResult follow_wait(gt_tls_call *self, PyObject **result)
{
    if (gt_tls_leave(self) < 0)
        return PYGEN_ERROR;
    PyObject *arguments[] = {self->connection, watched_by(self)};
    return follow(self, PyObject_Vectorcall(python.wait_change, arguments, 2, NULL), result);
}

/* The wait, until it has an answer. */
static PySendResult go_on_watching(gt_tls_call *self, PyObject *message, PyObject **result)
{
    PyObject *change = NULL;
    const PySendResult sent = pass_on(self, message, &change);
    if (sent == PYGEN_NEXT) {
        *result = change;
        return sent;
    }
    if (sent == PYGEN_ERROR)
        return fail(self);
    const Py_ssize_t seen = gt_tls_see(self->connection, change, self->watched);
    Py_DECREF(change);
    if (seen < 0)
        return fail(self);
    if (seen == 0)
        return follow_wait(self, result);
    if (gt_tls_leave(self) < 0)
        return PYGEN_ERROR;
    *result = PyLong_FromSsize_t(seen);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PySendResult start_watching(gt_tls_call *self, PyObject **result)
{
    gt_connection *below = gt_tls_below(self->connection);
    if (!below || !can_take_receiving(self) || !gt_tls_is_quiet(self->connection, self->watched))
        return follow_wait(self, result);
    if (take_receiving(self) < 0 || gt_tls_begin_watching(self->connection, watched_by(self), below) < 0)
        return fail(self);
    if (wait_below(self, GT_CHANGE, below) == PYGEN_ERROR)
        return PYGEN_ERROR;
    return go_on_watching(self, Py_None, result);
}

/* Call back with *result, the answer of a wait, and with those that follow it; or return it. */
static PySendResult deliver(gt_tls_call *self, PyObject **result)
{
    for (;;) {
        const Py_ssize_t count = PyLong_AsSsize_t(*result);
        if (count == -1 && PyErr_Occurred()) {
            Py_CLEAR(*result);
            return PYGEN_ERROR;
        }
        if (count <= 0 || (size_t)count > self->most)
            return PYGEN_RETURN;
        const int64_t slice_ns = (size_t)count > self->most_untimed ? self->slice_ns : GT_UNTIMED;
        const int slow = gt_call_back(self->argument, *result, slice_ns);
        Py_CLEAR(*result);
        if (slow < 0)
            return PYGEN_ERROR;
        if (slow > 0) {
            *result = PyLong_FromLong(GT_CHANGED);
            return *result ? PYGEN_RETURN : PYGEN_ERROR;
        }
        const PySendResult sent = start_watching(self, result);
        if (sent != PYGEN_RETURN)
            return sent;
    }
}

/* --- both --- */

bool gt_tls_can_step(const gt_tls_call *self)
{
    if (self->runs)
        PyErr_SetString(PyExc_RuntimeError, "a step of this receive() or send() is in progress");
    return !self->runs;
}

static PySendResult start(gt_tls_call *self, PyObject **result)
{
    if (self->kind == TLS_DELIVERS)
        return start_watching(self, result);
    return self->kind == TLS_SENDS ? start_send(self, result) : start_receive(self, result);
}

static PySendResult go_on(gt_tls_call *self, PyObject *message, PyObject **result)
{
    const gt_call *call = (gt_call *)self->awaited;
    if (message == Py_None && call->state == GT_CALL_PARKED &&
        call->waiter->task) { /* waking takes the task from there */
        PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
        return PYGEN_ERROR;
    }
    if (self->kind == TLS_DELIVERS)
        return go_on_watching(self, message, result);
    return self->kind == TLS_SENDS ? go_on_sending(self, message, result) : go_on_receiving(self, message, result);
}

static PySendResult go_on_following(gt_tls_call *self, PyObject *message, PyObject **result)
{
    const PySendResult sent = pass_on(self, message, result);
    if (sent != PYGEN_NEXT)
        self->state = TLS_DONE;
    return sent;
}

static PySendResult step(gt_tls_call *self, PyObject *message, PyObject **result)
{
    PySendResult sent;
    switch (self->state) {
    case TLS_NEW:
        sent = start(self, result);
        break;
    case TLS_WAITS:
        sent = go_on(self, message, result);
        break;
    case TLS_FOLLOWS:
        sent = go_on_following(self, message, result);
        break;
    default:
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited receive() or send(): call it again");
        return PYGEN_ERROR;
    }
    return sent == PYGEN_RETURN && self->kind == TLS_DELIVERS ? deliver(self, result) : sent;
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
