/* awaitable.c: what `await connection.receive()` awaits.
 *
 * A call makes one small object, which comes from a free list and goes back to it.  The first time it is driven, it answers
 * from memory if it can; otherwise it parks the current task by yielding the connection's trap, which is Trio's own
 * WaitTaskRescheduled, made once per connection and direction.  It is driven again when the task is resumed: with None by
 * the fast path (gt_trio_resume), with an Outcome by Trio's scheduler.  The data is not in that message but in the
 * connection's queue, so whatever happens between waking and running (a cancellation, a KeyboardInterrupt) loses nothing.
 *
 *     NEW ──drive──> DONE                        answered from memory
 *      ├────drive──> YIELDED ──drive──> DONE     the same, after a turn of the scheduler
 *      └────drive──> PARKED ──drive──> DONE      the usual wait
 *                     └──drive──> PARKED         woken, but there was nothing left, or not enough: wait again
 *                     └──throw/close──> DONE
 *
 * The turn of the scheduler is for a task that has gone on without one for a millisecond ("turns" in agenda.c), and for
 * answers that move no bytes: the end of the stream told again, a send of nothing.  With these it could go on for ever, and
 * nobody could cancel it.  A fill moves none either, but whoever is told that the bytes are there takes them; one of nothing, or at the end, counts.  Nor does
 * a wait for news (events.c), which tells of each byte once.
 *
 * A task is woken when its call is satisfied, and not for less: a fill of 64 MiB is not resumed for every chunk of them.
 * While a fill is parked the stream knows for how much (gt_stream_fill), so that it is not paused before that is there.
 *
 * Python drives it in three ways (am_send, __next__, send), depending on its version and on whether it is being traced:
 * all of them lead to drive().
 */
#include "fastpath.h"

#include <errno.h>

enum { NEW, YIELDED, PARKED, DONE };

#define FREE_LIST_SIZE 256
static gt_awaitable *free_list[FREE_LIST_SIZE];
static int free_count;

gt_awaitable *gt_awaitable_new(gt_connection *connection, enum gt_call call)
{
    gt_awaitable *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &gt_awaitable_type);
    } else {
        self = PyObject_GC_New(gt_awaitable, &gt_awaitable_type);
        if (!self)
            return NULL;
    }
    Py_INCREF(connection);
    self->connection = connection;
    self->data = NULL;
    self->offset = 0;
    self->parts = NULL;
    self->next_part = 0;
    self->before = 0;
    self->length = 0;
    self->max = SIZE_MAX;
    self->call = (uint8_t)call;
    self->state = NEW;
    self->has_view = self->is_finalized = false;
    memset(&self->view, 0, sizeof self->view);
    PyObject_GC_Track(self);
    return self;
}

static bool receives(const gt_awaitable *self) { return self->call <= GT_DETACH; }

static gt_direction *direction_of(const gt_awaitable *self)
{
    return receives(self) ? &self->connection->receiving : &self->connection->sending;
}

/* Has it queued a part of its data, and not the rest? */
bool gt_awaitable_is_torn(const gt_awaitable *self)
{
    size_t queued = self->before + self->offset;
    return self->call == GT_SEND && queued > 0 && queued < self->length;
}

/* A part of a message: bytes as they are, of anything else a view, which keeps it from changing its size meanwhile. */
static PyObject *as_part(PyObject *object)
{
    if (PyBytes_CheckExact(object))
        return Py_NewRef(object);
    PyObject *view = PyMemoryView_FromObject(object);
    if (view && !PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(view), 'C')) {
        Py_CLEAR(view);
        PyErr_SetString(PyExc_BufferError, "send() needs buffers in one piece each");
    }
    return view;
}

static size_t part_length(PyObject *part)
{
    return PyBytes_CheckExact(part) ? (size_t)PyBytes_GET_SIZE(part) : (size_t)PyMemoryView_GET_BUFFER(part)->len;
}

int gt_awaitable_set_parts(gt_awaitable *self, PyObject *sequence)
{
    PyObject *parts = PySequence_Tuple(sequence); /* of a tuple it is the tuple itself */
    if (!parts)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(parts);
    PyObject *taken = PyTuple_New(count);
    for (Py_ssize_t i = 0; taken && i < count; i++) {
        PyObject *part = as_part(PyTuple_GET_ITEM(parts, i));
        if (!part) {
            Py_CLEAR(taken);
            break;
        }
        PyTuple_SET_ITEM(taken, i, part);
        self->length += part_length(part);
    }
    Py_DECREF(parts);
    self->parts = taken;
    return taken ? 0 : -1;
}

static void release_view(gt_awaitable *self)
{
    Py_CLEAR(self->data);
    if (self->has_view) {
        self->has_view = false;
        PyBuffer_Release(&self->view);
    }
}

/* Make the next part the current one.  1, 0: there is none, -1: exception set. */
static int next_part(gt_awaitable *self)
{
    if (!self->parts || self->next_part == PyTuple_GET_SIZE(self->parts))
        return 0;
    PyObject *part = PyTuple_GET_ITEM(self->parts, self->next_part);
    self->next_part++;
    self->before += self->offset;
    self->offset = 0;
    release_view(self);
    if (PyBytes_CheckExact(part)) {
        self->data = Py_NewRef(part);
        return 1;
    }
    if (PyObject_GetBuffer(part, &self->view, PyBUF_SIMPLE) < 0)
        return -1;
    self->has_view = true;
    return 1;
}

/* The call is over, however it ended: its task waits no more, its buffer may change. */
static void finish(gt_awaitable *self)
{
    gt_direction *direction = direction_of(self);
    if (direction->awaitable == self) {
        direction->awaitable = NULL;
        if (self->call == GT_FILL && self->connection->stream)
            self->connection->stream->fill = 0;
        if (self->call == GT_DETACH && self->connection->stream)
            gt_stream_hold(self->connection->stream, false);
        if (self->call == GT_ROOM && self->connection->stream)
            gt_stream_want_room(self->connection->stream, false);
        Py_CLEAR(direction->task);
    }
    self->state = DONE;
    if (gt_awaitable_is_torn(self) && self->connection->stream)
        self->connection->stream->send_torn = true;
    release_view(self);
    Py_CLEAR(self->parts);
}

PyObject *gt_raise_broken(gt_reactor *reactor, int error)
{
    PyObject *exception = PyObject_CallFunction(reactor->make_broken, "i", error);
    if (exception) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return NULL;
}

static PyObject *raise_broken(const gt_awaitable *self, int error)
{
    return gt_raise_broken(self->connection->reactor, error);
}

static PyObject *raise_closed(const gt_awaitable *self, const char *message)
{
    PyErr_SetString(self->connection->reactor->closed_error, message);
    return NULL;
}

/* --- answering: 1 with *result set, 0 when the task has to wait, -1 with an exception --- */

static int answer_receive(gt_awaitable *self, PyObject **result)
{
    gt_stream *stream = self->connection->stream;
    if (gt_inbound_size(&stream->inbound) > 0) {
        if (self->call == GT_RECEIVE) {
            *result = gt_inbound_take_piece(&stream->inbound, self->max);
        } else {
            size_t length = gt_inbound_size(&stream->inbound), room = (size_t)self->view.len;
            *result = PyLong_FromSize_t(length < room ? length : room);
            if (*result) /* else nothing is taken */
                gt_inbound_take_into(&stream->inbound, self->view.buf, room);
        }
        gt_stream_consumed(stream);
        return *result ? 1 : -1;
    }
    if (stream->receive_error) {
        raise_broken(self, stream->receive_error);
        return -1;
    }
    if (stream->end_of_stream) {
        stream->end_told = true;
        *result = self->call == GT_RECEIVE ? PyBytes_FromStringAndSize(NULL, 0) : PyLong_FromLong(0);
        return *result ? 1 : -1;
    }
    return 0;
}

static int answer_fill(gt_awaitable *self, PyObject **result)
{
    gt_stream *stream = self->connection->stream;
    size_t queued = gt_inbound_size(&stream->inbound);
    if (queued < self->max) {
        if (stream->receive_error) {
            raise_broken(self, stream->receive_error);
            return -1;
        }
        if (!stream->end_of_stream)
            return 0;
        stream->end_told = true;
    }
    *result = PyLong_FromSize_t(queued);
    return *result ? 1 : -1;
}

/* The descriptor changes hands in the same step in which the caller gets it, and with all that was received. */
static int answer_detach(gt_awaitable *self, PyObject **result)
{
    gt_connection *connection = self->connection;
    gt_stream *stream = connection->stream;
    if (stream->receive_error || stream->send_error) {
        raise_broken(self, stream->receive_error ? stream->receive_error : stream->send_error);
        return -1;
    }
    bool sends = stream->outbound.size > 0 || (stream->send_in_flight && !stream->send_polls);
    if (sends || connection->sending.awaitable || connection->send_held) {
        PyErr_SetString(connection->reactor->busy_error, "another task is already sending on this connection");
        return -1;
    }
    if (!gt_stream_is_idle(stream))
        return 0;
    PyObject *queued = gt_inbound_peek(&stream->inbound, SIZE_MAX);
    PyObject *taken = queued ? Py_BuildValue("(iN)", stream->fd, queued) : NULL;
    if (!taken)
        return -1;
    if (stream->closing) { /* by a finalizer, in a garbage collection */
        Py_DECREF(taken);
        raise_closed(self, "this connection was closed");
        return -1;
    }
    gt_stream_take(stream);
    connection->closed = true;
    *result = taken;
    return 1;
}

#define REFERENCE 4096 /* a bytes object this large is referenced until it is sent, not copied */

static size_t current_length(const gt_awaitable *self)
{
    return self->data ? (size_t)PyBytes_GET_SIZE(self->data) : self->has_view ? (size_t)self->view.len : 0;
}

/* Queue as much of the data as the marks allow: all of it, unless it is a large buffer that the caller may change later.  With
 * `all` the marks do not matter. */
static int queue_current(gt_awaitable *self, bool all)
{
    gt_stream *stream = self->connection->stream;
    if (self->data && PyBytes_GET_SIZE(self->data) >= REFERENCE) {
        if (self->offset == 0 && gt_outbound_reference(&stream->outbound, self->data) < 0)
            return -1;
        self->offset = (size_t)PyBytes_GET_SIZE(self->data);
    } else {
        const char *data = self->data ? PyBytes_AS_STRING(self->data) : self->view.buf;
        size_t left = current_length(self) - self->offset;
        if (left > REFERENCE && !all) {
            size_t mark =
                stream->send_high > REFERENCE ? stream->send_high : REFERENCE; /* small marks, but no small sends */
            size_t room = stream->outbound.size < mark ? mark - stream->outbound.size : 0;
            if (left > room)
                left = room;
        }
        if (left > 0 && gt_outbound_copy(&stream->outbound, data + self->offset, left, stream->send_in_flight) < 0)
            return -1;
        self->offset += left;
    }
    return 0;
}

/* The same of all parts.  They are queued together, and leave together: see prepare_gathered() in stream.c. */
static int queue_data(gt_awaitable *self, bool all)
{
    int more = 1;
    while (more > 0) {
        if (self->offset < current_length(self) && queue_current(self, all) < 0) {
            PyErr_NoMemory();
            return -1;
        }
        if (self->offset < current_length(self))
            break;
        more = next_part(self);
    }
    if (self->connection->stream->outbound.size > 0)
        gt_stream_want(self->connection->stream);
    return more < 0 ? -1 : 0;
}

int gt_stream_queue_whole(gt_stream *stream, PyObject *data)
{
    int queued;
    if (PyBytes_CheckExact(data) && PyBytes_GET_SIZE(data) >= REFERENCE) {
        queued = gt_outbound_reference(&stream->outbound, data);
        gt_stream_want(stream);
    } else {
        Py_buffer view;
        if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
            return -1;
        if (stream->closing) { /* the code of whoever owns the buffer may have closed it */
            PyBuffer_Release(&view);
            PyErr_SetString(stream->reactor->closed_error, "this connection was closed");
            return -1;
        }
        queued = view.len ? gt_outbound_copy(&stream->outbound, view.buf, (size_t)view.len, stream->send_in_flight) : 0;
        if (stream->outbound.size > 0)
            gt_stream_want(stream);
        PyBuffer_Release(&view);
    }
    if (queued < 0)
        PyErr_NoMemory();
    return queued;
}

static int answer_send(gt_awaitable *self, PyObject **result)
{
    gt_connection *connection = self->connection;
    if (connection->send_eof) {
        raise_closed(self, "send_eof() was called on this connection");
        return -1;
    }
    gt_stream *stream = connection->stream;
    if (self->before + self->offset == 0 && stream->outbound.size >= stream->send_high)
        return 0; /* so that sends that are cancelled over and over do not fill the memory */
    if (queue_data(self, false) < 0)
        return -1;
    if (self->before + self->offset < self->length || stream->outbound.size >= stream->send_high)
        return 0;
    *result = Py_NewRef(Py_None);
    return 1;
}

/* Of a call that is parked: is there a reason to resume it? */
bool gt_awaitable_is_satisfied(const gt_awaitable *self)
{
    const gt_connection *connection = self->connection;
    const gt_stream *stream = connection->stream;
    if (!stream)
        return true;
    if (receives(self)) {
        if (self->call == GT_DETACH)
            return gt_stream_is_idle(stream) || stream->closing;
        if (self->call == GT_INBOUND)
            return gt_inbound_has_news(stream);
        size_t needed = self->call == GT_FILL ? self->max : 1;
        return gt_inbound_size(&stream->inbound) >= needed || stream->receive_error || stream->end_of_stream;
    }
    if (stream->send_error)
        return true;
    if (self->call == GT_ROOM)
        return stream->room;
    if (self->call == GT_FLUSH || self->call == GT_CLOSE_FLUSH)
        return stream->outbound.size == 0;
    return stream->outbound.size < stream->send_high;
}

static bool is_refused(const gt_awaitable *self)
{
    const gt_connection *connection = self->connection;
    return !connection->stream || connection->stream->closing || (connection->closed && self->call != GT_CLOSE_FLUSH);
}

static int answer(gt_awaitable *self, PyObject **result)
{
    gt_connection *connection = self->connection;
    gt_stream *stream = connection->stream;
    if (is_refused(self)) {
        raise_closed(self, "this connection was closed");
        return -1;
    }
    if (self->call == GT_DETACH)
        return answer_detach(self, result);
    if (self->call == GT_INBOUND)
        return gt_answer_inbound(connection, result);
    if (receives(self))
        return self->call == GT_FILL ? answer_fill(self, result) : answer_receive(self, result);
    int refused = stream->send_error;
    if (!refused && stream->send_torn)
        refused = ECANCELED;
    if (!refused && self->call == GT_SEND && self->length > 0 && !connection->send_eof)
        refused = gt_stream_check_sending(stream);
    if (refused) {
        raise_broken(self, refused);
        return -1;
    }
    if (self->call == GT_SEND)
        return answer_send(self, result);
    if (!gt_awaitable_is_satisfied(self))
        return 0;
    *result = Py_NewRef(Py_None);
    return 1;
}

/* Its deadline has passed.  The connection stays good: of a send that was begun the rest is queued, and will be sent. */
static int raise_late(gt_awaitable *self)
{
    if (gt_awaitable_is_torn(self) && queue_data(self, true) < 0)
        return -1;
    PyErr_SetString(self->connection->reactor->too_slow_error, receives(self)
                                                                   ? "the connection's read deadline has passed"
                                                                   : "the connection's write deadline has passed");
    return -1;
}

/* --- driving --- */

static PySendResult park(gt_awaitable *self, PyObject *task, PyObject **result)
{
    gt_direction *direction = direction_of(self);
    if (self->call != GT_CLOSE_FLUSH && gt_connection_watch(self->connection, direction) < 0)
        return PYGEN_ERROR;
    PyObject *trap = gt_direction_trap(self->connection, direction);
    if (!trap)
        return PYGEN_ERROR;
    /* Both may run Python, if only a garbage collection with somebody's finalizer.  One that closes this connection wakes the
     * tasks parked here, of which this is none yet: nobody would ever wake it. */
    if (is_refused(self)) {
        raise_closed(self, "this connection was closed");
        return PYGEN_ERROR;
    }
    Py_XSETREF(direction->task, Py_NewRef(task));
    direction->awaitable = self;
    direction->late = false;
    if (self->call == GT_FILL && self->connection->stream)
        gt_stream_fill(self->connection->stream, self->max);
    if (self->call == GT_DETACH && self->connection->stream)
        gt_stream_hold(self->connection->stream, true);
    if (self->call == GT_ROOM && self->connection->stream)
        gt_stream_want_room(self->connection->stream, true);
    gt_reactor_begin_turn(self->connection->reactor);
    self->state = PARKED;
    *result = Py_NewRef(trap);
    return PYGEN_NEXT;
}

/* Would the answer move no bytes, and be the same however often it is asked for? */
static bool moves_nothing(const gt_awaitable *self)
{
    const gt_stream *stream = self->connection->stream;
    if (self->call == GT_SEND)
        return self->length == 0;
    if (self->call == GT_FILL)
        return self->max == 0 || (stream && stream->end_told && gt_inbound_size(&stream->inbound) < self->max);
    if (self->call == GT_DETACH)
        return false;
    if (self->call == GT_INBOUND)
        return stream && gt_inbound_is_over(stream);
    return receives(self) && stream && stream->end_told && gt_inbound_size(&stream->inbound) == 0;
}

static PySendResult start(gt_awaitable *self, PyObject *task, PyObject **result)
{
    gt_trio *trio = &self->connection->reactor->trio;
    if (self->connection->closed && self->call != GT_CLOSE_FLUSH) {
        raise_closed(self, "this connection was closed");
        return PYGEN_ERROR;
    }
    /* On a closed connection a call in progress has been refused, and is over but for its task's next step. */
    if ((direction_of(self)->awaitable || (self->connection->send_held && !receives(self))) &&
        !self->connection->closed) {
        PyErr_Format(self->connection->reactor->busy_error, "another task is already %s on this connection",
                     receives(self) ? "receiving" : "sending");
        return PYGEN_ERROR;
    }
    int cancelled = gt_trio_cancel_is_pending(trio, task);
    if (cancelled < 0)
        return PYGEN_ERROR;
    if (cancelled) /* nothing has been done yet; parking lets Trio deliver it */
        return park(self, task, result);
    if (self->state == NEW && (moves_nothing(self) || gt_reactor_turn_is_over(self->connection->reactor))) {
        self->state = YIELDED;
        *result = Py_NewRef(trio->checkpoint);
        return PYGEN_NEXT;
    }
    /* Counted first, because that can fail, and then no bytes may have been moved.  What steps a task counts that it parks. */
    if ((!receives(self) || gt_awaitable_is_satisfied(self)) && gt_trio_count_cancel_point(trio, task) < 0)
        return PYGEN_ERROR;
    int answered = answer(self, result);
    if (answered == 0)
        return park(self, task, result);
    return answered > 0 ? PYGEN_RETURN : PYGEN_ERROR;
}

static PySendResult resume(gt_awaitable *self, PyObject *task, PyObject *message, PyObject **result)
{
    /* `woken` is one object for all wake-ups, and an Outcome can be unwrapped once. */
    if (message != Py_None && message != self->connection->reactor->trio.woken) {
        PyObject *value = PyObject_CallMethod(message, "unwrap", NULL);
        if (!value)
            return PYGEN_ERROR;
        Py_DECREF(value);
        if (self->state == DONE) { /* unwrap() is somebody's code, and may have ended the call */
            PyErr_SetString(PyExc_RuntimeError, "this receive() or send() was ended while it was resumed");
            return PYGEN_ERROR;
        }
    }
    if (self->state == YIELDED)
        return start(self, task, result);
    int answered = answer(self, result);
    if (answered == 0 && direction_of(self)->late)
        answered = raise_late(self);
    if (answered == 0)
        return park(self, task, result);
    return answered > 0 ? PYGEN_RETURN : PYGEN_ERROR;
}

/* It was awaited, and fails before it begins. */
static PySendResult end_unstarted(gt_awaitable *self)
{
    if (self->state == NEW) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        finish(self);
        PyErr_Restore(type, value, traceback);
    }
    return PYGEN_ERROR;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_awaitable *self = (gt_awaitable *)object;
    *result = NULL;
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited receive() or send(): call it again");
        return PYGEN_ERROR;
    }
    if (self->connection->reactor->closed) { /* the run is over, and there is no telling what it knew of tasks */
        raise_closed(self, "this connection was closed at the end of its run");
        return end_unstarted(self);
    }
    if (!gt_reactor_check_thread(self->connection->reactor))
        return end_unstarted(self);
    if (self->state == PARKED && message == Py_None && direction_of(self)->awaitable == self &&
        direction_of(self)->task) { /* whoever wakes the task takes it from there first */
        PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
        return end_unstarted(self);
    }
    PyObject *task = gt_trio_current_task(&self->connection->reactor->trio);
    if (!task)
        return end_unstarted(self);
    PySendResult sent = self->state == NEW ? start(self, task, result) : resume(self, task, message, result);
    if (sent == PYGEN_RETURN) {
        finish(self);
    } else if (sent == PYGEN_ERROR) {
        /* finish() may run the code of whoever owns the buffer: the exception is kept out of its sight */
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        finish(self);
        PyErr_Restore(type, value, traceback);
    }
    return sent;
}

static PyObject *awaitable_send(PyObject *self, PyObject *message) { return gt_drive_by_method(drive, self, message); }

static PyObject *awaitable_next(PyObject *self) { return gt_drive_by_method(drive, self, Py_None); }

static PyObject *awaitable_self(PyObject *self) { return Py_NewRef(self); }

static PyObject *awaitable_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    finish((gt_awaitable *)self);
    Py_RETURN_NONE;
}

static PyObject *awaitable_throw(PyObject *self, PyObject *args)
{
    finish((gt_awaitable *)self);
    return gt_raise_thrown(args);
}

static int awaitable_traverse(gt_awaitable *self, visitproc visit, void *arg)
{
    Py_VISIT(self->connection);
    Py_VISIT(self->data);
    if (self->has_view)
        Py_VISIT(self->view.obj);
    Py_VISIT(self->parts);
    return 0;
}

static const char *name_of(const gt_awaitable *self)
{
    static const char *const names[] = {
        [GT_RECEIVE] = "Connection.receive",     [GT_RECEIVE_INTO] = "Connection.receive_into",
        [GT_FILL] = "Connection._fill",          [GT_INBOUND] = "Connection._wait_inbound",
        [GT_DETACH] = "Connection._detach",      [GT_SEND] = "Connection.send",
        [GT_FLUSH] = "Connection.flush",         [GT_WRITABLE] = "Connection._wait_writable",
        [GT_ROOM] = "Connection._wait_for_room", [GT_CLOSE_FLUSH] = "Connection._close_flush",
    };
    return names[self->call];
}

/* The garbage collector calls it of one in a cycle, whatever has become of it. */
static void awaitable_finalize(gt_awaitable *self)
{
    self->is_finalized = true;
    if (self->state == NEW)
        gt_warn_never_awaited((PyObject *)self, name_of(self));
}

void gt_awaitable_withdraw(gt_awaitable *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    finish(self);
    Py_DECREF(self);
    PyErr_Restore(type, value, traceback);
}

static void awaitable_dealloc(gt_awaitable *self)
{
    if (self->state == NEW && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    if (self->connection)
        finish(self);
    Py_CLEAR(self->connection);
    if (free_count < FREE_LIST_SIZE && !self->is_finalized) /* Python finalizes an object once */
        free_list[free_count++] = self;
    else
        PyObject_GC_Del(self);
}

static PyMethodDef awaitable_methods[] = {
    {"send", awaitable_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", awaitable_throw, METH_VARARGS, PyDoc_STR("End the call with an exception.")},
    {"close", awaitable_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods awaitable_async = {
    .am_await = awaitable_self,
    .am_send = drive,
};

PyTypeObject gt_awaitable_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Call",
    .tp_basicsize = sizeof(gt_awaitable),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call in progress on a connection."),
    .tp_dealloc = (destructor)awaitable_dealloc,
    .tp_finalize = (destructor)awaitable_finalize,
    .tp_traverse = (traverseproc)awaitable_traverse,
    .tp_as_async = &awaitable_async,
    .tp_iter = awaitable_self,
    .tp_iternext = awaitable_next,
    .tp_methods = awaitable_methods,
};
