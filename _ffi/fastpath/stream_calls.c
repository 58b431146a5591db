/* stream_calls.c: the calls of a connection, as rows of the engine's table (call.h).
 *
 *     receive, receive_into   the next bytes
 *     next                    the same, for `async for`
 *     message, wait_data      next and arrival as waits between two messages (between.c)
 *     fill                    until a number of bytes is queued, or no more will be; takes none
 *     arrival                 until bytes are queued, or no more will be: whether there are some; takes none
 *     wait_change             until something has changed since its last answer; takes nothing
 *     deliver                 the same, but for bytes it calls back and waits again
 *     detach                  until nothing is in flight: the descriptor and what is queued.  The last call of the receiving side.
 *     send                    queue bytes, and wait while more than the high mark is outbound
 *     flush                   until nothing is outbound
 *     wait_writable           until outbound is below the high mark
 *     wait_for_room           until the kernel would take something, for a task that sends past the connection
 *     close_flush             flush on a connection that is closed for the program
 *
 * A task is woken when its call is satisfied, and not for less: a fill of 64 MiB is not resumed for every chunk of them.
 * While a fill is parked the stream knows for how much (gt_stream_fill), so that it is not paused before that is there.
 *
 * A fill moves no bytes, but its caller takes them next; one of nothing, or at the end, counts as an answer that moves nothing.
 *
 * wait_change is the one wait of code that is called back and that looks at the connection between two waits.  Its answers, in
 * this order:
 *
 *     CHANGED    the program has asked for an answer (_note_change), or the kernel has taken bytes (for WATCH_SENT)
 *     n > 0      the number of bytes that have arrived, MOST_SEEN at a time, so that others have a turn between two answers
 *     an error   of either direction: a program that only writes has no other call that could raise it
 *     ENDED      by the peer, in every answer from then on
 *     FULL       the queue is at its high mark, and nothing more will come until the program takes some; once a pause
 *     an error   of the socket, while it is like that (for WATCH_RESETS)
 *
 * Each byte is reported once.  A byte that the program takes before it was reported counts as reported.  The queue is first in,
 * first out, so the unreported bytes that are left are those that are still queued: the lesser of the two numbers.
 *
 * That last error is raised though the kernel may have bytes that came before it.  The program can still have them, if it takes
 * what is queued and asks again.  A program that may never take anything asks for this error, or it would wait for ever for a
 * peer that has reset the connection.  The socket reports its error once, so it is asked no sooner than then, and the receive
 * that comes to the end of the bytes gets the answer.
 */
#include "fastpath.h"

#include <errno.h>

#define MOST_SEEN 65536U

static gt_connection *connection_of(const gt_call *self) { return (gt_connection *)self->owner; }

static gt_direction *direction_of(const gt_call *self)
{
    gt_connection *connection = connection_of(self);
    return self->kind->sends ? &connection->sending : &connection->receiving;
}

static GT_COLD int raise_broken(const gt_call *self, int error)
{
    gt_raise_broken(self->proactor, error);
    return -1;
}

static bool is_refused(const gt_call *self)
{
    const gt_connection *connection = connection_of(self);
    return !connection->stream || connection->stream->closing || (connection->closed && self->kind->keeps_deadline);
}

/* What a call of a connection that is closed raises.  Returns -1. */
static GT_COLD int raise_closed(const gt_connection *connection)
{
    const char *detached = "this connection was detached: use what detach() or start_tls() has returned";
    PyErr_SetString(connection->proactor->closed_error, connection->detached ? detached : "this connection was closed");
    return -1;
}

/* NULL with an exception when the connection is closed. */
static gt_stream *stream_to_receive(const gt_call *self)
{
    if (GT_UNLIKELY(is_refused(self))) {
        raise_closed(connection_of(self));
        return NULL;
    }
    return connection_of(self)->stream;
}

/* The stream breaks off in what was sent last, or it can send nothing any more.  Returns -1. */
static int raise_unsendable(const gt_call *self, const gt_stream *stream)
{
    return raise_broken(self, stream->send_error ? stream->send_error : ECANCELED);
}

/* The same as stream_to_receive(), and NULL when nothing can be sent any more. */
static gt_stream *stream_to_send(const gt_call *self)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream || (!stream->send_error && !stream->send_incomplete))
        return stream;
    raise_unsendable(self, stream);
    return NULL;
}

bool gt_connection_open_stream(gt_connection *self, gt_stream **stream)
{
    if (!self->proactor) {
        PyErr_SetString(PyExc_RuntimeError, "this connection was never initialised");
        return false;
    }
    if (!gt_proactor_check_thread(self->proactor))
        return false;
    *stream = self->closed ? NULL : self->stream;
    if (!*stream || (*stream)->closing) {
        raise_closed(self);
        return false;
    }
    return true;
}

/* --- receiving --- */

static bool has_received(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || !gt_inbound_is_empty(&stream->inbound) || stream->receive_error || stream->end_of_stream;
}

static bool is_at_end(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return stream && stream->end_reported && gt_inbound_is_empty(&stream->inbound);
}

/* 1 at the end of the stream, 0 when more may come, -1 with the connection's error. */
static int nothing_more(const gt_call *self, gt_stream *stream)
{
    if (stream->receive_error)
        return raise_broken(self, stream->receive_error);
    stream->end_reported |= stream->end_of_stream;
    return stream->end_of_stream;
}

static int answer_receive(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    if (!gt_inbound_is_empty(&stream->inbound)) {
        *result = gt_inbound_take_piece(&stream->inbound, self->max);
        stream->given = *result;
        gt_stream_consumed(stream);
        return *result ? 1 : -1;
    }
    int ended = nothing_more(self, stream);
    if (ended > 0)
        *result = PyBytes_FromStringAndSize(NULL, 0);
    return ended > 0 && !*result ? -1 : ended;
}

/* `async for` has an exception for the end. */
static int answer_next(gt_call *self, PyObject **result)
{
    const int answered = answer_receive(self, result);
    if (answered < 0 || (answered == 0 && !gt_between_is_over(self)))
        return answered;
    if (GT_LIKELY(answered > 0 && PyBytes_GET_SIZE(*result) > 0))
        return 1;
    Py_CLEAR(*result);
    PyErr_SetNone(PyExc_StopAsyncIteration);
    return -1;
}

static int answer_arrival(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    const bool some = !gt_inbound_is_empty(&stream->inbound);
    const int ended = some ? 1 : nothing_more(self, stream);
    if (ended > 0)
        *result = PyBool_FromLong(some);
    return ended;
}

static int answer_wait_data(gt_call *self, PyObject **result)
{
    const int answered = answer_arrival(self, result);
    if (answered != 0 || !gt_between_is_over(self))
        return answered;
    *result = Py_NewRef(Py_False);
    return 1;
}

static int answer_receive_into(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    size_t length = gt_inbound_size(&stream->inbound), room = (size_t)self->view->len;
    int ended = length > 0 ? 1 : nothing_more(self, stream);
    if (ended <= 0)
        return ended;
    *result = PyLong_FromSize_t(length < room ? length : room);
    if (!*result) /* then nothing is taken */
        return -1;
    if (length > 0) {
        gt_inbound_take_into(&stream->inbound, self->view->buf, room);
        gt_stream_consumed(stream);
    }
    return 1;
}

static bool is_filled(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || gt_inbound_size(&stream->inbound) >= self->max || stream->receive_error || stream->end_of_stream;
}

static bool fill_moves_nothing(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return self->max == 0 || (stream && stream->end_reported && gt_inbound_size(&stream->inbound) < self->max);
}

static int answer_fill(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    size_t queued = gt_inbound_size(&stream->inbound);
    int ended = queued >= self->max ? 1 : nothing_more(self, stream);
    if (ended > 0)
        *result = PyLong_FromSize_t(queued);
    return ended > 0 && !*result ? -1 : ended;
}

static void ask_fill(gt_stream *stream, const gt_call *self, bool wanted)
{
    gt_stream_fill(stream, wanted ? self->max : 0);
}

static bool is_idle(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || gt_stream_is_idle(stream) || stream->closing;
}

/* The descriptor changes hands in the same step in which the caller gets it, and with all that was received. */
static int answer_detach(gt_call *self, PyObject **result)
{
    gt_connection *connection = connection_of(self);
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    if (stream->receive_error || stream->send_error)
        return raise_broken(self, stream->receive_error ? stream->receive_error : stream->send_error);
    bool sends = stream->outbound.size > 0 || (stream->send.armed && !stream->send_polls);
    if (sends || connection->sending.call || connection->send_held) {
        PyErr_SetString(self->proactor->busy_error, "another task is already sending on this connection");
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
        return gt_call_raise_closed(self);
    }
    gt_stream_take(stream);
    connection->closed = true;
    connection->detached = true;
    *result = taken;
    return 1;
}

static void ask_suspend(gt_stream *stream, const gt_call *Py_UNUSED(self), bool wanted)
{
    gt_stream_suspend(stream, wanted);
}

/* --- what has changed --- */

static void ask_look_ahead(gt_stream *stream, const gt_call *Py_UNUSED(self), bool wanted)
{
    if (wanted)
        gt_stream_look_ahead(stream);
}

static size_t count_unseen(const gt_stream *stream)
{
    size_t queued = gt_inbound_size(&stream->inbound);
    return stream->unseen < queued ? stream->unseen : queued;
}

static bool has_changed(const gt_call *self, const gt_stream *stream)
{
    return stream->change_noted ||
           ((self->max & GT_WATCH_SENT) && stream->sent_seen != connection_of(self)->bytes_sent);
}

static bool is_newly_full(const gt_stream *stream) { return stream->receive_paused && !stream->full_seen; }

static bool may_have_failed(const gt_call *self, const gt_stream *stream)
{
    return (self->max & GT_WATCH_RESETS) && stream->receive_paused && (stream->failed || stream->socket_error);
}

static bool has_failed(gt_stream *stream)
{
    if (stream->failed)
        gt_stream_ask_for_error(stream);
    return stream->socket_error != 0;
}

static bool has_answer(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    const bool has_unseen = stream && stream->unseen > 0 && !gt_inbound_is_empty(&stream->inbound);
    return !stream || has_unseen || has_changed(self, stream) || stream->receive_error || stream->send_error ||
           stream->end_of_stream || is_newly_full(stream) || may_have_failed(self, stream);
}

static bool changes_no_more(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return stream && stream->end_reported && count_unseen(stream) == 0 && !has_changed(self, stream);
}

static int answer_change(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    size_t unseen = count_unseen(stream);
    if (has_changed(self, stream)) {
        stream->change_noted = false;
        stream->sent_seen = connection_of(self)->bytes_sent;
        *result = PyLong_FromLong(GT_CHANGED);
    } else if (unseen > 0) {
        size_t seen = unseen < MOST_SEEN ? unseen : MOST_SEEN;
        stream->unseen = unseen - seen;
        *result = PyLong_FromSize_t(seen);
    } else if (stream->receive_error || stream->send_error) {
        return raise_broken(self, stream->receive_error ? stream->receive_error : stream->send_error);
    } else if (stream->end_of_stream) {
        stream->end_reported = true;
        *result = PyLong_FromLong(GT_ENDED);
    } else if (is_newly_full(stream)) {
        stream->full_seen = true;
        *result = PyLong_FromLong(GT_FULL);
    } else if (may_have_failed(self, stream) && has_failed(stream)) {
        return raise_broken(self, stream->socket_error);
    } else {
        return 0;
    }
    return *result ? 1 : -1;
}

/* --- sending --- */

static GT_COLD int raise_ended(const gt_call *self)
{
    PyErr_SetString(self->proactor->closed_error, "send_eof() was called on this connection");
    return -1;
}

static int answer_send(gt_call *self, PyObject **result)
{
    gt_stream *stream = stream_to_receive(self);
    if (!stream)
        return -1;
    bool ended = connection_of(self)->send_eof;
    if (self->length > 0 && !ended && !stream->send_incomplete)
        gt_stream_check_sending(stream);
    if (GT_UNLIKELY(stream->send_error || stream->send_incomplete))
        return raise_unsendable(self, stream);
    if (GT_UNLIKELY(ended))
        return raise_ended(self);
    if (GT_UNLIKELY(self->before + self->offset == 0 && stream->outbound.size >= stream->send_high))
        return 0; /* so that sends that are cancelled over and over do not fill the memory */
    const bool is_small =
        self->data && !self->parts && self->length < GT_REFERENCE && self->length > 0 && self->offset == 0;
    if (GT_UNLIKELY((is_small ? gt_call_queue_small(self, stream) : gt_call_queue_parts(self, false)) < 0))
        return -1;
    if (GT_UNLIKELY(self->before + self->offset < self->length || stream->outbound.size >= stream->send_high))
        return 0;
    *result = Py_NewRef(Py_None);
    return 1;
}

static bool sends_nothing(const gt_call *self) { return self->length == 0; }

static bool is_writable(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || stream->send_error || stream->outbound.size < stream->send_high;
}

static bool is_flushed(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || stream->send_error || stream->outbound.size == 0;
}

static bool has_room(const gt_call *self)
{
    const gt_stream *stream = connection_of(self)->stream;
    return !stream || stream->send_error || stream->room;
}

static void ask_room(gt_stream *stream, const gt_call *Py_UNUSED(self), bool wanted)
{
    gt_stream_want_room(stream, wanted);
}

/* The calls of the sending side that send nothing themselves wait for a state, and return None. */
static int answer_none(gt_call *self, PyObject **result)
{
    if (!stream_to_send(self))
        return -1;
    if (!self->kind->is_satisfied(self))
        return 0;
    *result = Py_NewRef(Py_None);
    return 1;
}

/* --- all of them --- */

static GT_COLD int raise_busy(const gt_call *self)
{
    PyErr_Format(self->proactor->busy_error, "another task is already %s on this connection",
                 self->kind->sends ? "sending" : "receiving");
    return -1;
}

static int refuse(const gt_call *self)
{
    const gt_connection *connection = connection_of(self);
    if (GT_UNLIKELY(
            connection->closed)) /* a call in progress has been refused, and is over but for its task's next step */
        return self->kind->keeps_deadline ? raise_closed(connection) : 0;
    if (GT_UNLIKELY(direction_of(self)->call || (connection->send_held && self->kind->sends)))
        return raise_busy(self);
    if (GT_UNLIKELY(self->kind->between && gt_between_is_taken(connection)))
        return raise_busy(self);
    return 0;
}

/* Its deadline has passed.  The connection stays good: the rest of a send that was begun is queued, and will be sent. */
static GT_COLD int raise_late(gt_call *self)
{
    if (gt_call_is_incomplete(self) && gt_call_queue_parts(self, true) < 0)
        return -1;
    PyErr_Format(self->proactor->too_slow_error, "the connection's %s deadline has passed",
                 self->kind->sends ? "write" : "read");
    return -1;
}

static int park(gt_call *self, bool Py_UNUSED(cancelled))
{
    gt_connection *connection = connection_of(self);
    gt_direction *direction = direction_of(self);
    if (GT_UNLIKELY(self->state == GT_CALL_PARKED) && self->late)
        return raise_late(self);
    direction->call =
        self; /* first, because a drain that begins in the Python code of the next two has to see the wait */
    if (GT_UNLIKELY(self->kind->between && gt_between_park(connection) < 0))
        return -1;
    if (GT_UNLIKELY(self->kind->keeps_deadline && gt_connection_watch(connection, direction) < 0))
        return -1;
    if (GT_UNLIKELY(self->state == GT_CALL_DONE)) /* by the same code: the engine raises that */
        return 0;
    if (GT_UNLIKELY(is_refused(self)))
        return raise_closed(connection);
    self->late = false;
    if (self->kind->ask)
        self->kind->ask(connection->stream, self, true);
    return 0;
}

static void end(gt_call *self)
{
    gt_direction *direction = direction_of(self);
    gt_stream *stream = connection_of(self)->stream;
    if (direction->call == self) {
        direction->call = NULL;
        if (self->kind->ask && stream)
            self->kind->ask(stream, self, false);
        if (self->kind->between)
            gt_between_end(connection_of(self));
    }
    if (GT_UNLIKELY(gt_call_is_incomplete(self)) && stream)
        stream->send_incomplete = true;
}

/* clang-format off */
#define EVERY(NAME) .name = "Connection." NAME, .owner = "connection", .of_connection = true, .in_place = true, .refuse = refuse, .park = park, .end = end
#define RECEIVING(NAME) EVERY(NAME), .keeps_deadline = true
#define SENDING(NAME) EVERY(NAME), .keeps_deadline = true, .sends = true

const gt_kind gt_stream_kinds[] = {
    [GT_RECEIVE] = {RECEIVING("receive"), .needs_satisfied = true, .is_satisfied = has_received, .answer = answer_receive, .moves_nothing = is_at_end},
    [GT_NEXT] = {RECEIVING("__anext__"), .needs_satisfied = true, .is_satisfied = has_received, .answer = answer_next, .moves_nothing = is_at_end},
    [GT_MESSAGE] = {RECEIVING("messages().__anext__"), .needs_satisfied = true, .between = true, .is_satisfied = has_received, .answer = answer_next, .moves_nothing = is_at_end},
    [GT_WAIT_DATA] = {RECEIVING("wait_data"), .needs_satisfied = true, .between = true, .is_satisfied = has_received, .answer = answer_wait_data, .moves_nothing = is_at_end},
    [GT_RECEIVE_INTO] = {RECEIVING("receive_into"), .needs_satisfied = true, .is_satisfied = has_received, .answer = answer_receive_into, .moves_nothing = is_at_end},
    [GT_FILL] = {RECEIVING("_fill"), .needs_satisfied = true, .is_satisfied = is_filled, .answer = answer_fill, .moves_nothing = fill_moves_nothing, .ask = ask_fill},
    [GT_ARRIVAL] = {RECEIVING("receive"), .needs_satisfied = true, .is_satisfied = has_received, .answer = answer_arrival, .moves_nothing = is_at_end},
    [GT_CHANGE] = {RECEIVING("_wait_change"), .needs_satisfied = true, .watches_sends = true, .is_satisfied = has_answer, .answer = answer_change, .moves_nothing = changes_no_more, .ask = ask_look_ahead},
    [GT_DELIVER] = {RECEIVING("_deliver"), .needs_satisfied = true, .watches_sends = true, .deliver = gt_handler_deliver, .is_satisfied = has_answer, .answer = answer_change, .moves_nothing = changes_no_more, .ask = ask_look_ahead},
    [GT_DETACH] = {RECEIVING("_detach"), .is_satisfied = is_idle, .answer = answer_detach, .ask = ask_suspend},
    [GT_SEND] = {SENDING("send"), .is_satisfied = is_writable, .answer = answer_send, .moves_nothing = sends_nothing, .excludes_sends = true},
    [GT_FLUSH] = {SENDING("flush"), .is_satisfied = is_flushed, .answer = answer_none},
    [GT_WRITABLE] = {SENDING("_wait_writable"), .is_satisfied = is_writable, .answer = answer_none},
    [GT_ROOM] = {SENDING("_wait_for_room"), .is_satisfied = has_room, .answer = answer_none, .ask = ask_room, .excludes_sends = true},
    [GT_CLOSE_FLUSH] = {EVERY("_close_flush"), .sends = true, .is_satisfied = is_flushed, .answer = answer_none},
};
/* clang-format on */
