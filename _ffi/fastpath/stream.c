/* stream.c: a connection as the kernel sees it.
 *
 * The state of a stream says what should be in flight; gt_stream_prepare() is the one place that turns it into SQEs, and
 * gt_stream_complete() the one place that turns CQEs into state.  Everything else changes the state and puts the stream on
 * the proactor's list of streams that want something, which is worked off before the next io_uring_enter.  A stream for which
 * the ring has no SQE stays on the list, so nothing asked for is ever dropped, cancels included; and all that a task sends in
 * one step leaves in one operation.
 *
 *     in flight            prepared when                               ended by
 *     ------------------   -----------------------------------------   ------------------------------------------
 *     receive, multishot   open, no end or error, not paused, not      EOF, error, ENOBUFS, or its cancel
 *                          suspended
 *     cancel of receive    paused, suspended, stale, or closing        see gt_slot_cancel()
 *     watch (a poll)       open, no end or error, not suspended, not   the peer's hangup or an error, or its cancel
 *                          broken, and no more than twice
 *     cancel of watch      suspended, or closing                       see gt_slot_cancel()
 *     send                 open, something outbound                    its CQE, for up to GATHERED segments
 *     poll for room        open, room wanted or send blocked, and no   there is room, an error, or its cancel; it
 *                          send in flight                              stands where a send would
 *     cancel of that       there is room, or no call wants it any      see gt_slot_cancel()
 *                          more, or closing
 *     cancel of send       closing                                     the same
 *     close                closing                                     its CQE; the last one frees the stream
 *     nop for a close      closing, and the descriptor was taken       the same
 *
 * Receiving is paused and goes on by the size of the inbound queue.  A task that waits for `fill` bytes (0: none does) takes
 * nothing before they are there, so until then the queue must not be what stops them:
 *
 *     pause    when bytes arrive       at the high mark, and at `fill` if that is more
 *     go on    when bytes are taken    at the low mark or below, or below `fill`
 *              when a task waits       below `fill`
 *
 * The end must not be missed.  A multishot receive waits to be woken again once a socket says that nothing is queued any
 * more, and takes one wake-up for several.  When the end is on the socket before that, nothing wakes it again, and it never
 * reports the end: a peer that sends and hangs up in one go (axboe/liburing issue 1549, mended in March 2026), and, seen on
 * Linux 6.18 with that mend, a receive that is armed on a socket whose peer is gone and which holds more than the kernel's 32
 * buffers for one go.  TCP reports queued bytes that are not there to get a FIN out of this, but not a reset; and Unix sockets
 * do not.  So a second operation, a poll for nothing but hangups and errors, watches the socket.  When it has fired, a receive
 * that goes on without having reported the end is *stale*: it is cancelled, and the next one, which looks at the socket before
 * it waits, brings what is queued, or the end.  No more can arrive then, so this comes to an end, too.
 *
 * A connection that has been reset is *broken*, and the watch reports that as well (EPOLLHUP: both directions are shut down).
 * Bytes that have arrived can be received even so.  But the program would compute an answer to them, and to the next ones,
 * for a peer that is gone, until the run waits and the kernel is asked to send the first: so from the watch's completion on,
 * sends fail.  A peer that has shut down its side first can still reset the connection afterwards.  As long as the receive
 * has not come to the end, no operation may be in flight that would notice; then the watch is armed once more, as a multishot
 * poll, which reports changes.
 *
 * No send waits in the kernel (MSG_DONTWAIT): the kernel accepts as many bytes as the socket has room for, and the completion
 * reports their number.  The rest waits for a poll for room, and then the next send goes.  A send that waits (MSG_WAITALL)
 * would save that poll, but it completes when the peer has made room for the last of its bytes and reports nothing before: a
 * peer that reads 2 MB/s of a send of 40 MB looks like one that reads nothing for twenty seconds, and idle timeouts, write
 * limits and the bounds of a close cut it off.  So bytes count as sent from the tick of the loop on in which the kernel has
 * accepted them.  A small send, which the kernel accepts whole, is one operation either way.
 *
 * Because only a poll is in flight while a stream is blocked, its bytes can also be offered to the kernel by a plain send(2),
 * in between (gt_stream_push).  The kernel reports room only when a third of the socket's buffer is free, up to some
 * megabytes, and it accepts bytes as soon as there is any room: a caller that would give up on a peer because too much is
 * unsent offers the bytes first.
 *
 * A peer that has shut down its side may still read what is sent, and slowly.  But to io_uring every poll of such a socket is
 * answered at once, whatever it is for (it always asks for hangups, too).  So once a hangup has been seen the poll for room is
 * a multishot one, which goes on after its first answer and then reports changes only.
 *
 * The descriptor can be taken away (detach).  A receive in flight would still bring bytes then, and they would be lost: so
 * receiving is suspended, which cancels the receive as a pause does, and the watch with it, until their final CQEs are in; the
 * bytes that come on the way are queued as ever.  Then the descriptor changes its owner in one step with the queue.  The rest
 * is a close in which a nop stands for the close, so that there is one way in which slots are given back.
 *
 * Closing prepares cancel before close, in this order: an operation in flight holds a reference to the socket, and while
 * one is held close(2) sends no FIN.  All three are submitted together, so the peer sees it at once.
 *
 * When more arrives than there are buffers, the receives end with ENOBUFS, in the order of their completions.  Armed again in
 * that order, the stream that took the last buffers would be the first to take them again, for as long as it has data, and
 * the others would starve.  So those that got nothing go first.
 *
 * Three results are not the end of the stream: ECANCELED (we asked for it), ENOBUFS (no buffer was left; by the time the
 * receive is armed again the buffers of the batch are back), and a CQE without F_MORE (the kernel ends a multishot receive
 * when it likes).
 */
#include "fastpath.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGEST_SEND (1U << 26) /* bytes an operation; more is sent by the next one */
#define GATHERED 32U            /* segments an operation */
#define SEND_FLAGS ((uint32_t)(MSG_NOSIGNAL | MSG_DONTWAIT))

/* The kernel reads it until the operation has completed. */
struct gt_gather {
    struct msghdr header;
    struct iovec pieces[GATHERED];
};

gt_stream *gt_stream_open(gt_proactor *proactor, gt_connection *connection, int fd)
{
    if (!proactor->ring->buffers.memory) { /* they are opened where the rest of what a stream needs is there, too */
        PyErr_SetString(PyExc_RuntimeError,
                        "this run's ring has tier \"poll\": the kernel lacks what connections on the ring need, or "
                        "RingOptions.unwanted (GAIN_TRIO_UNWANTED) has some of it");
        return NULL;
    }
    gt_stream *stream = PyMem_Calloc(1, sizeof *stream);
    if (!stream) {
        PyErr_NoMemory();
        return NULL;
    }
    bool room = proactor->stream_count < proactor->ring->max_slots;
    stream->slot = room ? gt_slot_open(proactor->ring, GT_SLOT_STREAM, stream) : GT_NO_SLOT;
    if (stream->slot == GT_NO_SLOT) {
        PyMem_Free(stream);
        PyObject *arguments =
            Py_BuildValue("(is)", ENOSPC, "the ring's table of connections is full (RingOptions.max_slots)");
        if (arguments) {
            PyErr_SetObject(PyExc_OSError, arguments);
            Py_DECREF(arguments);
        }
        return NULL;
    }
    stream->proactor = proactor;
    stream->connection = connection;
    stream->fd = fd;
    stream->receive.tag = GT_TAG_RECV;
    stream->watch.tag = GT_TAG_WATCH;
    stream->send.tag = GT_TAG_SEND;
    stream->next = proactor->streams;
    if (stream->next)
        stream->next->previous = stream;
    proactor->streams = stream;
    proactor->stream_count++;
    gt_stream_want(stream);
    return stream;
}

void gt_stream_destroy(gt_stream *stream)
{
    gt_proactor *proactor = stream->proactor;
    if (stream->previous)
        stream->previous->next = stream->next;
    else
        proactor->streams = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    proactor->stream_count--;
    proactor->closing_count -= stream->closing;
    proactor->timed_streams -= stream->timed;
    if (stream->connection)
        stream->connection->stream = NULL;
    gt_inbound_clear(&stream->inbound);
    gt_outbound_free(&stream->outbound);
    PyMem_Free(stream->gather);
    PyMem_Free(stream);
}

void gt_stream_want(gt_stream *stream)
{
    if (!stream->wanting)
        gt_proactor_link_wanting(stream->proactor, stream);
}

void gt_stream_want_first(gt_stream *stream)
{
    if (!stream->wanting)
        gt_proactor_link_starved(stream->proactor, stream);
}

static void begin_closing(gt_stream *stream)
{
    stream->closing = true;
    stream->proactor->closing_count++;
}

int gt_stream_close(gt_stream *stream, bool reset)
{
    /* linger(0): close(2) sends RST and drops what the kernel has (socket(7)) */
    const struct linger linger = {.l_onoff = 1, .l_linger = 0};
    int error = 0;
    if (stream->closing)
        return 0;
    if (stream->proactor->ring
            ->dead) { /* the child of a fork: the socket, and so its linger option, is the parent's, too */
        begin_closing(stream);
        return 0;
    }
    if ((reset || stream->send_incomplete) && setsockopt(stream->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) < 0)
        error = errno;
    begin_closing(stream);
    gt_inbound_clear(&stream->inbound);
    gt_outbound_clear(&stream->outbound, stream->send_in_flight);
    gt_stream_want(stream);
    return error;
}

/* True when the operation is not in flight, or its cancel is. */
static bool prepare_cancel(gt_stream *stream, gt_operation *operation)
{
    struct gt_ring *ring = stream->proactor->ring;
    if (operation->armed && !operation->cancelled)
        operation->cancelled = gt_slot_cancel(ring, gt_key(ring, stream->slot, operation->tag));
    return !operation->armed || operation->cancelled;
}

/* The SQE for an operation, which counts as armed then.  NULL: the ring has none. */
static struct io_uring_sqe *arm(gt_stream *stream, gt_operation *operation)
{
    struct io_uring_sqe *sqe = gt_slot_sqe(stream->proactor->ring, stream->slot, operation->tag);
    if (sqe)
        operation->armed = true;
    return sqe;
}

static bool prepare_close(gt_stream *stream)
{
    if (!prepare_cancel(stream, &stream->receive) || !prepare_cancel(stream, &stream->send) ||
        !prepare_cancel(stream, &stream->watch))
        return false;
    if (stream->fd < 0)
        return true;
    struct io_uring_sqe *sqe = gt_slot_sqe(stream->proactor->ring, stream->slot, GT_TAG_CLOSE);
    if (!sqe)
        return false;
    if (stream->detached)
        gt_prep_nop(sqe);
    else
        gt_prep_close(sqe, stream->fd);
    stream->fd = -1;
    return true;
}

static bool prepare_receive(gt_stream *stream)
{
    bool over = stream->end_of_stream || stream->receive_error;
    bool unwanted = over || stream->receive_paused || stream->receive_suspended;
    if (stream->receive.armed) /* also when it is over: with a gap in the queue the kernel may go on */
        return !(unwanted || stream->receive_stale) || prepare_cancel(stream, &stream->receive);
    if (unwanted)
        return true;
    struct io_uring_sqe *sqe = arm(stream, &stream->receive);
    if (!sqe)
        return false;
    gt_prep_recv_multishot(sqe, stream->fd, stream->proactor->ring->buffers.group);
    stream->receive_stale = stream->receive_succeeded = false;
    return true;
}

static bool prepare_watch(gt_stream *stream)
{
    if (stream->watch.armed)
        return !stream->receive_suspended || prepare_cancel(stream, &stream->watch);
    if (stream->receive_suspended || stream->end_of_stream || stream->receive_error || stream->broken ||
        stream->watch_again)
        return true;
    struct io_uring_sqe *sqe = arm(stream, &stream->watch);
    if (!sqe)
        return false;
    gt_prep_poll(sqe, stream->fd, EPOLLRDHUP | EPOLLHUP | EPOLLERR, stream->hung_up);
    stream->watch_again = stream->hung_up;
    return true;
}

/* The first segments, up to GATHERED of them: how many, and their bytes. */
static uint32_t gather_segments(const gt_outbound *outbound, struct iovec *pieces, size_t *length)
{
    uint32_t count = 0;
    *length = 0;
    while (count < outbound->count && count < GATHERED && *length < LARGEST_SEND) {
        const gt_segment *segment = gt_outbound_at(outbound, count);
        size_t sent = count == 0 ? outbound->sent : 0, piece = segment->length - sent;
        if (piece > LARGEST_SEND - *length)
            piece = LARGEST_SEND - *length;
        pieces[count++] = (struct iovec){.iov_base = segment->data + sent, .iov_len = piece};
        *length += piece;
    }
    return count;
}

/* Several segments leave in one operation: a header and a body are one message to the peer, too, and not two. */
static void prepare_gathered(gt_stream *stream, struct io_uring_sqe *sqe)
{
    gt_gather *gather = stream->gather;
    size_t length;
    uint32_t count = gather_segments(&stream->outbound, gather->pieces, &length);
    gather->header = (struct msghdr){.msg_iov = gather->pieces, .msg_iovlen = count};
    stream->send_length = (uint32_t)length;
    stream->send_in_flight = count;
    gt_prep_sendmsg(sqe, stream->fd, &gather->header, SEND_FLAGS);
}

static bool prepare_send(gt_stream *stream)
{
    struct io_uring_sqe *sqe = arm(stream, &stream->send);
    if (!sqe)
        return false;
    if (stream->outbound.count > 1 && !stream->gather)
        stream->gather = PyMem_Malloc(sizeof *stream->gather);
    if (stream->outbound.count > 1 && stream->gather) { /* without memory for that, one after the other */
        prepare_gathered(stream, sqe);
        return true;
    }
    const gt_segment *head = gt_outbound_at(&stream->outbound, 0);
    size_t length = head->length - stream->outbound.sent;
    stream->send_length = length > LARGEST_SEND ? LARGEST_SEND : (uint32_t)length;
    stream->send_in_flight = 1;
    gt_prep_send(sqe, stream->fd, head->data + stream->outbound.sent, stream->send_length, SEND_FLAGS);
    return true;
}

/* The kernel has no room for more of what this stream sends, or of what is sent past it: see GT_ROOM. */
static bool prepare_poll(gt_stream *stream)
{
    struct io_uring_sqe *sqe = arm(stream, &stream->send);
    if (!sqe)
        return false;
    gt_prep_poll(sqe, stream->fd, EPOLLOUT, stream->hung_up || stream->poll_hung_up);
    stream->send_polls = true;
    stream->send_in_flight = 1;
    return true;
}

/* True when all that the state asks for is prepared, false when the ring had no SQE. */
bool gt_stream_prepare(gt_stream *stream)
{
    if (stream->closing)
        return prepare_close(stream);
    bool needs_room = stream->room_wanted || (stream->send_blocked && stream->outbound.size > 0);
    if (!stream->send.armed && stream->outbound.size > 0 && !stream->send_blocked && !prepare_send(stream))
        return false;
    if (!stream->send.armed && needs_room && !prepare_poll(stream))
        return false;
    if (stream->send_polls && !needs_room && !prepare_cancel(stream, &stream->send))
        return false;
    return prepare_receive(stream) && prepare_watch(stream);
}

/* The kernel's "try again" in all its forms: the operation is over, the stream is not. */
static bool is_retry(int error) { return error == ECANCELED || error == EINTR || error == EAGAIN || error == ENOBUFS; }

/* Have the task of a call resumed, if one waits and its call is satisfied. */
static bool wake_satisfied(const gt_call *call)
{
    if (!call || !call->waiter->task || !call->kind->is_satisfied(call))
        return false;
    gt_proactor_ready(call->proactor, call->waiter);
    return true;
}

static bool wake_receiver(const gt_stream *stream)
{
    return stream->connection && wake_satisfied(stream->connection->receiving.call);
}

static bool wake_sender(const gt_stream *stream)
{
    return stream->connection && wake_satisfied(stream->connection->sending.call);
}

/* True when there is news for the program.  A task that waits for more than there is gets none. */
static bool is_news(const gt_stream *stream)
{
    return !stream->connection || !gt_direction_waits(&stream->connection->receiving) || wake_receiver(stream);
}

/* A socket reports its error once, and the watch may have fired without one, for entries of the socket's error queue. */
void gt_stream_ask_for_error(gt_stream *stream)
{
    int error = 0;
    socklen_t size = sizeof error;
    stream->failed = false;
    if (getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error)
        stream->socket_error = error;
}

int gt_stream_check_sending(gt_stream *stream)
{
    if (stream->broken && !stream->send_error) {
        int known = stream->socket_error ? stream->socket_error : stream->receive_error;
        stream->send_error = known ? known : EPIPE;
    }
    if (stream->send_error)
        return stream->send_error;
    return stream->send_incomplete ? ECANCELED : 0; /* the peer would take the next bytes for the other half */
}

/* Both directions are shut down: the peer has reset the connection. */
static bool is_gone(const gt_stream *stream)
{
    struct pollfd asked = {.fd = stream->fd};
    return poll(&asked, 1, 0) > 0 && (asked.revents & POLLHUP);
}

static bool receive_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    struct gt_buffers *buffers = &stream->proactor->ring->buffers;
    bool news = false;
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        if (stream->timed)
            stream->active_at = stream->proactor->now;
        if (cqe->res > 0 && !stream->closing && !stream->receive_error) {
            if (stream->connection)
                stream->connection->bytes_received += (uint64_t)cqe->res;
            if (gt_inbound_append(&stream->inbound, gt_buffers_data(buffers, cqe), (size_t)cqe->res) < 0) {
                stream->receive_error = ENOMEM; /* there is a gap in the stream now, so it is broken */
                gt_stream_want(stream);
            } else {
                stream->unseen += (size_t)cqe->res;
            }
            news = true;
        }
        stream->receive_succeeded = true;
        gt_buffers_recycle(buffers, cqe);
    }
    /* Not when closing: a stream whose close is prepared wants nothing, and one on the list is not destroyed. */
    if (stream->hung_up && !stream->receive_stale && !stream->closing && !gt_completion_is_final(cqe)) {
        stream->receive_stale = true;
        gt_stream_want(stream);
    }
    if (gt_completion_is_final(cqe)) {
        stream->receive.armed = stream->receive.cancelled = false;
        news |= stream->receive_suspended;
        if (stream->receive_error) { /* it was broken before; the receive was cancelled, or gets that error */
            news = true;
        } else if (cqe->res == 0 &&
                   ((stream->send_short && is_gone(stream)) || (stream->send_error && stream->send_error != EPIPE))) {
            /* A socket reports its error once.  The send got it, so to the receive a reset looks like the end. */
            stream->receive_error = stream->send_error && stream->send_error != EPIPE ? stream->send_error : ECONNRESET;
            news = true;
        } else if (cqe->res == 0 && stream->socket_error) {
            stream->receive_error = stream->socket_error;
            news = true;
        } else if (cqe->res == 0) {
            stream->end_of_stream = news = true;
        } else if (cqe->res < 0 && !is_retry(-cqe->res)) {
            stream->receive_error = -cqe->res;
            stream->broken |= !stream->closing && is_gone(stream);
            news = true;
        } else {
            /* A receive that has had some of the buffers provided may well have had all of them; others are held back. */
            if (cqe->res == -ENOBUFS &&
                (stream->receive_succeeded ? buffers->held_count == 0 : !gt_buffers_widen(buffers)))
                stream->proactor->starvations++;
            if (!stream->closing && cqe->res == -ENOBUFS && !stream->receive_succeeded)
                gt_stream_want_first(stream);
            else if (!stream->closing)
                gt_stream_want(stream);
        }
    }
    size_t size = gt_inbound_size(&stream->inbound);
    if (!stream->receive_paused && size >= stream->receive_high && size >= stream->fill) {
        stream->receive_paused = true;
        gt_stream_want(stream);
    }
    return news && !stream->closing && is_news(stream);
}

/* The receive reports the end, and may have done so in the same batch: the stream is looked at again after it.  Only where
 * receiving has stopped a GT_CHANGE raises an error from here, see stream_calls.c. */
static bool watch_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (gt_completion_is_final(cqe))
        stream->watch.armed = stream->watch.cancelled = false;
    if (stream->closing)
        return false;
    if (cqe->res > 0) {
        stream->receive_stale |= !stream->hung_up;
        stream->hung_up = true;
        stream->failed |= (cqe->res & EPOLLERR) != 0;
    }
    if (cqe->res > 0 && (cqe->res & EPOLLHUP) && !stream->broken) {
        stream->broken = true;
        gt_stream_ask_for_error(stream);
    }
    gt_stream_want(stream);
    wake_receiver(stream);
    return stream->receive_suspended && is_news(stream);
}

static bool poll_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (gt_completion_is_final(cqe)) {
        stream->send_in_flight = 0;
        stream->send_polls = stream->send.armed = stream->send.cancelled = false;
    }
    if (cqe->res < 0 && !is_retry(-cqe->res) && !stream->send_error)
        stream->send_error = -cqe->res;
    stream->poll_hung_up |= cqe->res > 0 && (cqe->res & (EPOLLRDHUP | EPOLLHUP));
    if (cqe->res > 0 && cqe->res & (EPOLLOUT | EPOLLERR | EPOLLHUP)) { /* the next send finds an error of the socket */
        stream->room |= stream->room_wanted;
        stream->room_wanted = stream->send_blocked = false;
    }
    if (stream->closing || stream->send_error)
        gt_outbound_clear(&stream->outbound, 0);
    else
        gt_stream_want(stream); /* something may have been queued behind a poll that no call waits for any more */
    bool detaches = wake_receiver(stream); /* a detach has waited for its end */
    return wake_sender(stream) || detaches;
}

/* A send of `length` bytes has ended with this result: what sendmsg(2) returns, or a negative errno. */
static void account_send(gt_stream *stream, ssize_t result, size_t length)
{
    stream->send_blocked = (result >= 0 && (size_t)result < length) || result == -EAGAIN;
    if (result > 0) {
        /* The socket may also have had an error after the bytes that it took, and reports it once. */
        stream->send_short = (size_t)result < length;
        if (stream->timed)
            stream->active_at = stream->proactor->now;
        if (stream->connection)
            stream->connection->bytes_sent += (uint64_t)result;
        gt_outbound_sent(&stream->outbound, (size_t)result);
    } else if (result == 0) { /* send(2) of some bytes never takes none of them: this one is at its end */
        stream->send_error = stream->send_error ? stream->send_error : EPIPE;
    } else if (!is_retry((int)-result) && !stream->send_error) {
        stream->send_error = result == -EPIPE && stream->socket_error ? stream->socket_error : (int)-result;
    }
}

/* After a send: what comes next, and whether a task is to be resumed. */
static bool sending_changed(gt_stream *stream)
{
    if (stream->closing || stream->send_error)
        gt_outbound_clear(&stream->outbound, 0);
    /* It wants the next send, the poll for room, or the cancel of a poll that nothing waits for any more. */
    if (!stream->closing && (stream->outbound.size > 0 || stream->room_wanted || stream->send_polls))
        gt_stream_want(stream);
    wake_receiver(stream); /* a GT_CHANGE may wait for this */
    return wake_sender(stream);
}

static bool send_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (stream->send_polls)
        return poll_completed(stream, cqe);
    stream->send_in_flight = 0;
    stream->send.armed = stream->send.cancelled = false;
    account_send(stream, cqe->res, stream->send_length);
    bool news = sending_changed(stream);
    if (stream->gather && stream->outbound.size == 0) { /* an idle connection keeps none */
        PyMem_Free(stream->gather);
        stream->gather = NULL;
    }
    return news;
}

/* Offer the kernel what is outbound, now: nothing of it may be in flight.  Runs no Python. */
void gt_stream_push(gt_stream *stream)
{
    if (stream->closing || stream->send_error || stream->proactor->ring->dead || stream->outbound.size == 0 ||
        (stream->send.armed && !stream->send_polls))
        return;
    ssize_t sent;
    do {
        struct iovec pieces[GATHERED];
        size_t length;
        struct msghdr header = {.msg_iov = pieces};
        header.msg_iovlen = gather_segments(&stream->outbound, pieces, &length);
        sent = sendmsg(stream->fd, &header, (int)SEND_FLAGS);
        account_send(stream, sent < 0 ? -(ssize_t)errno : sent, length);
    } while (sent > 0 && stream->outbound.size > 0 && !stream->send_blocked);
    sending_changed(stream);
}

/* The caller has kept the ring's books for this CQE already.  May destroy the stream. */
bool gt_stream_complete(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    bool news = false;
    switch (gt_key_tag(cqe->user_data)) {
    case GT_TAG_RECV:
        news = receive_completed(stream, cqe);
        break;
    case GT_TAG_SEND:
        news = send_completed(stream, cqe);
        break;
    case GT_TAG_WATCH:
        news = watch_completed(stream, cqe);
        break;
    case GT_TAG_CLOSE:  /* an error here means that other code has closed our descriptor: nothing is left to close */
    case GT_TAG_CANCEL: /* the cancelled operation has a CQE of its own; where none was found, that CQE was on its way */
    case GT_TAG_DATAGRAM:
    case GT_TAG_MAIN:
    case GT_TAG_NONE:
        break;
    }
    if (stream->closing && stream->fd < 0 && !stream->wanting && gt_slot_retire(stream->proactor->ring, stream->slot))
        gt_stream_destroy(stream);
    return news;
}

static void go_on(gt_stream *stream)
{
    stream->receive_paused = stream->full_seen = false;
    gt_stream_want(stream);
}

void gt_stream_consumed(gt_stream *stream)
{
    size_t size = gt_inbound_size(&stream->inbound);
    if (stream->receive_paused && (size <= stream->receive_low || size < stream->fill))
        go_on(stream);
}

void gt_stream_fill(gt_stream *stream, size_t count)
{
    stream->fill = count;
    if (stream->receive_paused && !stream->closing && gt_inbound_size(&stream->inbound) < count)
        go_on(stream);
}

void gt_stream_want_room(gt_stream *stream, bool wanted)
{
    stream->room_wanted = wanted;
    stream->room = false;
    if (!stream->closing)
        gt_stream_want(stream);
}

void gt_stream_suspend(gt_stream *stream, bool suspended)
{
    if (stream->receive_suspended == suspended)
        return;
    stream->receive_suspended = suspended;
    if (!stream->closing)
        gt_stream_want(stream);
}

/* Only when it is idle and nothing is outbound. */
int gt_stream_take(gt_stream *stream)
{
    int fd = stream->fd;
    stream->detached = true;
    begin_closing(stream);
    gt_inbound_clear(&stream->inbound);
    gt_stream_want(stream);
    return fd;
}
