/* stream.c: a connection as the kernel sees it.
 *
 * The state of a stream says what should be in flight; gt_stream_prepare() (stream_prepare.c) is the one place that turns it
 * into SQEs, and gt_stream_complete() (stream_complete.c) the one place that turns CQEs into state.  Everything else changes
 * the state and puts the stream on the proactor's list of streams that want something, which is worked off before the next
 * io_uring_enter.  A stream for which the ring has no SQE stays on the list, so nothing asked for is ever dropped, cancels
 * included; and all that a task sends in one step leaves in one operation, but for the first large piece over TLS
 * (gt_stream_push_large).
 *
 *     in flight            prepared when                               ended by
 *     ------------------   -----------------------------------------   ------------------------------------------
 *     receive, multishot   open, no end or error, not paused, not      EOF, error, ENOBUFS, or its cancel
 *                          suspended, and a task waits
 *     receive of a         the same, no task waits, and less than a    its CQE
 *     portion              portion is unread
 *     cancel of receive    paused, suspended, stale, or closing; of a  see gt_slot_cancel()
 *                          multishot one also when a portion is unread,
 *                          or other buffers are wanted
 *     watch (a poll)       open, no end or error, not suspended, not   the peer's hangup or an error, or its cancel
 *                          broken, and no more than twice
 *     cancel of watch      suspended, or closing                       see gt_slot_cancel()
 *     send                 open, something outbound                    its CQE, for up to GT_GATHERED segments
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
 * A program that reads slowly receives in portions.  A multishot receive brings all that the buffers hold, 256 KiB as a rule,
 * before anything can stop it, and the kernel takes such a burst for a fast reader: it grows the socket's buffer, and opens
 * the window in larger steps from then on (tcp_rcv_space_adjust()).  A program that works off 300 kB/s would let its peer
 * move nothing for more than a second at a time, and a peer with an idle timeout cuts it off, although bytes flow all the
 * time.  So a receive is multishot only while a task waits for more than is queued.  Otherwise it brings a portion, and it is
 * armed while less than a portion is unread.  The first one of a connection is a portion, too: its reader has not shown its rate yet.
 * A multishot receive that has brought more than a portion beyond what its task took gives way as well.  A program that keeps
 * up empties its queue in each tick and waits, and never sees that.  One that looks at its queue without waiting (peek()), or
 * is called back, wants all that the marks allow there: for it portions go on up to the high mark.
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
 * Nearly always no task waits for the end of a send, and nothing follows it.  Such a send is a quiet one (gt_send_quietly): its
 * completion is made when the run is woken by something else, and does not wake it.  So an answer and the wait for the next
 * question are one system call, and not two.
 * With many busy connections there is no such wait: while the kernel sends one batch the next one arrives.  Then a message
 * costs some percent less with completions of the kernel's, so behind a large batch no send is quiet.
 *
 * While no send is in flight (of a stream that is blocked it is a poll for room) the bytes can also be offered to the kernel by a
 * plain send(2), in between (gt_stream_push).  The kernel reports room only when a third of the socket's buffer is free, up to some
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
#include <sys/socket.h>

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
    stream->inbound.spares = &proactor->spares;
    gt_outbound_init(&stream->outbound, &proactor->spares);
    stream->next = proactor->streams;
    if (stream->next)
        stream->next->previous = stream;
    proactor->streams = stream;
    proactor->stream_count++;
    gt_spares_limit(&proactor->spares, proactor->stream_count);
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
    gt_spares_limit(&proactor->spares, proactor->stream_count);
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
    /* Pieces of the ring's buffers go back in the thread of the run only, where no io_uring_enter is under way; else when the
     * stream is destroyed. */
    if (stream->inbound.lent_count == 0 || gt_proactor_is_in_thread(stream->proactor))
        gt_inbound_clear(&stream->inbound);
    gt_outbound_clear(&stream->outbound, stream->send_in_flight);
    gt_stream_want(stream);
    return error;
}

static void go_on(gt_stream *stream)
{
    stream->receive_paused = stream->full_seen = false;
    gt_stream_want(stream);
}

/* The receive that is not armed would be, for a queue of this size: gt_stream_prepare() decides. */
static bool is_short(const gt_stream *stream, size_t size)
{
    return !stream->receive.armed && (size < GT_PORTION || stream->receive_ahead);
}

void gt_stream_consumed(gt_stream *stream)
{
    if (stream->receive.armed && !stream->receive_paused) /* the usual case */
        return;
    size_t size = gt_inbound_size(&stream->inbound);
    if (stream->receive_paused ? size <= stream->receive_low || size < stream->fill : is_short(stream, size))
        go_on(stream);
}

void gt_stream_fill(gt_stream *stream, size_t count)
{
    stream->fill = count;
    if (!stream->closing && gt_inbound_size(&stream->inbound) < count &&
        (stream->receive_paused || !stream->receive.armed))
        go_on(stream);
}

void gt_stream_look_ahead(gt_stream *stream)
{
    if (stream->receive_ahead || stream->closing)
        return;
    stream->receive_ahead = true;
    gt_stream_want(stream);
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

void gt_stream_unregister(gt_stream *stream)
{
    gt_file_unregister(stream->proactor->ring, stream->file);
    stream->file = 0;
}

/* Only when it is idle and nothing is outbound. */
int gt_stream_take(gt_stream *stream)
{
    int fd = stream->fd;
    gt_stream_unregister(stream);
    stream->detached = true;
    begin_closing(stream);
    gt_inbound_clear(&stream->inbound);
    gt_stream_want(stream);
    return fd;
}
