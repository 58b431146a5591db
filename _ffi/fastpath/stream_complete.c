/* stream_complete.c: from CQEs to the state of a connection, and to the tasks that wait for it.  The essay is in stream.c: by
 * what each operation ends, and which results are not the end of the stream. */
#include "fastpath.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>

#define MOST_LARGE_PIECES 8

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

bool gt_stream_wake_receiver(const gt_stream *stream)
{
    return stream->connection && wake_satisfied(stream->connection->receiving.call);
}

/* The same of a call that looks at both directions, which a send may have failed, or brought what is watched.  What a send
 * changes is nothing to any other.  (A detach looks at a poll for room, whose end wakes every receiver.) */
static void wake_watcher(const gt_stream *stream)
{
    gt_call *call = stream->connection ? stream->connection->receiving.call : NULL;
    if (call && call->kind->watches_sends && (stream->send_error || (call->max & GT_WATCH_SENT)))
        wake_satisfied(call);
}

static bool wake_sender(const gt_stream *stream)
{
    return stream->connection && wake_satisfied(stream->connection->sending.call);
}

/* True when there is news for the program.  A task that waits for more than there is gets none. */
static bool is_news(const gt_stream *stream)
{
    return !stream->connection || !gt_direction_waits(&stream->connection->receiving) ||
           gt_stream_wake_receiver(stream);
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
        gt_stream_wake_receiver(stream); /* a GT_CHANGE reports it, be the queue full or not */
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

/* Whether a connection's pieces are large is seen from the last few, and by some distance, because the receive has to be
 * started again for it.  A message that fills one buffer and a bit more of the next one counts up and down in turns, and stays
 * where it is. */
static inline void learn_size(gt_stream *stream, size_t size)
{
    if (size < GT_LARGE_PIECE && stream->large_pieces == 0 && !stream->receive_bytes)
        return;
    if (size >= GT_LARGE_PIECE && stream->large_pieces < MOST_LARGE_PIECES)
        stream->large_pieces++;
    else if (size < GT_LARGE_PIECE && stream->large_pieces > 0)
        stream->large_pieces--;
    if (gt_stream_wants_bytes(stream) != stream->receive_bytes)
        gt_stream_want(stream);
}

bool gt_stream_wants_bytes(const gt_stream *stream)
{
    const uint8_t least = stream->receive_bytes ? 1 : MOST_LARGE_PIECES;
    return stream->large_pieces >= least && !stream->lends && !stream->proactor->bytes_buffers.refused;
}

/* -1: out of memory, no exception set. */
static int queue_in_bytes_buffer(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    gt_bytes_buffers *set = &stream->proactor->bytes_buffers;
    PyObject *piece = gt_bytes_buffers_take(set, cqe);
    if (piece)
        return gt_inbound_append_object(&stream->inbound, piece);
    return gt_inbound_append(&stream->inbound, gt_buffers_data(&set->buffers, cqe), (size_t)cqe->res);
}

/* Queue what has arrived.  0, or -1: out of memory, no exception set. */
static int queue_received(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (stream->receive_bytes)
        return queue_in_bytes_buffer(stream, cqe);
    gt_inbound *queue = &stream->inbound;
    struct gt_ring *ring = stream->proactor->ring;
    const bool begins = stream->lends && cqe->res >= (int)GT_LENT_LEAST && gt_inbound_is_empty(queue) &&
                        stream->connection && gt_direction_waits(&stream->connection->receiving);
    if (!begins && (queue->lent_count == 0 || queue->lent_count == GT_LENT))
        return gt_inbound_append(queue, gt_buffers_data(&ring->buffers, cqe), (size_t)cqe->res);
    gt_inbound_lend(queue, ring, cqe);
    gt_stream_want(stream); /* behind the task's turn it is looked whether that has read it */
    return 0;
}

static void give_back(gt_stream *stream, struct gt_buffers *buffers, const struct io_uring_cqe *cqe)
{
    gt_buffers_recycle(buffers, cqe);
    if (stream->receive_bytes) /* the ring publishes its own only */
        gt_buffers_publish(buffers);
}

/* A receive has ended, for the kernel too.  Whether that is news. */
static GT_APART bool receive_ended(gt_stream *stream, const struct io_uring_cqe *cqe, struct gt_buffers *buffers)
{
    bool news = stream->receive_suspended;
    stream->receive.armed = stream->receive.cancelled = false;
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
        if (cqe->res == -ENOBUFS && (stream->receive_succeeded ? buffers->held_count == 0 : !gt_buffers_widen(buffers)))
            stream->proactor->starvations++;
        if (stream->receive_bytes) /* it may have been widened */
            gt_buffers_publish(buffers);
        if (!stream->closing && cqe->res == -ENOBUFS && !stream->receive_succeeded)
            gt_stream_want_first(stream);
        else if (!stream->closing)
            gt_stream_want(stream);
    }
    return news;
}

/* A receive has used a buffer.  Whether that is news. */
static bool received(gt_stream *stream, const struct io_uring_cqe *cqe, struct gt_buffers *buffers)
{
    bool news = false;
    if (stream->timed)
        stream->active_at = stream->proactor->now;
    if (cqe->res > 0 && !stream->closing && !stream->receive_error) {
        if (stream->connection)
            stream->connection->bytes_received += (uint64_t)cqe->res;
        if (GT_UNLIKELY(queue_received(stream, cqe) < 0)) {
            stream->receive_error = ENOMEM; /* there is a gap in the stream now, so it is broken */
            gt_stream_want(stream);
        } else {
            stream->unseen += (size_t)cqe->res;
            learn_size(stream, (size_t)cqe->res);
        }
        news = true;
    }
    stream->receive_succeeded = true;
    give_back(stream, buffers, cqe);
    return news;
}

static bool receive_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    gt_proactor *proactor = stream->proactor;
    struct gt_buffers *buffers = stream->receive_bytes ? &proactor->bytes_buffers.buffers : &proactor->ring->buffers;
    bool news = cqe->flags & IORING_CQE_F_BUFFER ? received(stream, cqe, buffers) : false;
    /* Not when closing: a stream whose close is prepared wants nothing, and one on the list is not destroyed. */
    if (GT_UNLIKELY(stream->hung_up) && !stream->receive_stale && !stream->closing && !gt_completion_is_final(cqe)) {
        stream->receive_stale = true;
        gt_stream_want(stream);
    }
    if (GT_UNLIKELY(gt_completion_is_final(cqe)))
        news |= receive_ended(stream, cqe, buffers);
    size_t size = gt_inbound_size(&stream->inbound);
    if (GT_UNLIKELY(!stream->receive_paused && size >= stream->receive_high && size >= stream->fill)) {
        stream->receive_paused = true;
        gt_stream_want(stream);
    } else if (GT_UNLIKELY(size >= GT_PORTION) && stream->receive_multishot && !stream->closing) {
        gt_stream_want(stream); /* it is looked at again when the program has had its turn */
    }
    return news && !stream->closing && is_news(stream);
}

/* The events of a poll, 0 if it has failed.  They are unsigned in newer headers, and the result of an operation is not. */
static uint32_t poll_events(const struct io_uring_cqe *cqe) { return cqe->res > 0 ? (uint32_t)cqe->res : 0; }

/* The receive reports the end, and may have done so in the same batch: the stream is looked at again after it.  Only where
 * receiving has stopped a GT_CHANGE raises an error from here, see stream_calls.c. */
static GT_APART bool watch_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (gt_completion_is_final(cqe))
        stream->watch.armed = stream->watch.cancelled = false;
    if (stream->closing)
        return false;
    const uint32_t events = poll_events(cqe);
    if (events) {
        stream->receive_stale |= !stream->hung_up;
        stream->hung_up = true;
        stream->failed |= (events & EPOLLERR) != 0;
    }
    if ((events & EPOLLHUP) && !stream->broken) {
        stream->broken = true;
        gt_stream_ask_for_error(stream);
    }
    gt_stream_want(stream);
    gt_stream_wake_receiver(stream);
    return stream->receive_suspended && is_news(stream);
}

static GT_APART bool poll_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (gt_completion_is_final(cqe)) {
        stream->send_in_flight = 0;
        stream->send_polls = stream->send.armed = stream->send.cancelled = false;
    }
    if (cqe->res < 0 && !is_retry(-cqe->res) && !stream->send_error)
        stream->send_error = -cqe->res;
    const uint32_t events = poll_events(cqe);
    stream->poll_hung_up |= (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) { /* the next send finds an error of the socket */
        stream->room |= stream->room_wanted;
        stream->room_wanted = stream->send_blocked = false;
    }
    if (stream->closing || stream->send_error)
        gt_outbound_clear(&stream->outbound, 0);
    else
        gt_stream_want(stream); /* something may have been queued behind a poll that no call waits for any more */
    bool detaches = gt_stream_wake_receiver(stream); /* a detach has waited for its end */
    return wake_sender(stream) || detaches;
}

/* The kernel has accepted this many bytes of a send. */
static inline void count_sent(gt_stream *stream, size_t length)
{
    if (stream->timed)
        stream->active_at = stream->proactor->now;
    if (stream->connection)
        stream->connection->bytes_sent += (uint64_t)length;
    gt_outbound_sent(&stream->outbound, length);
}

/* A send has ended with this result, and not because all of its bytes were accepted. */
static GT_APART void account_short_send(gt_stream *stream, ssize_t result)
{
    stream->send_blocked = result >= 0 || result == -EAGAIN;
    if (result > 0) {
        /* The socket may also have had an error after the bytes that it took, and reports it once. */
        stream->send_short = true;
        count_sent(stream, (size_t)result);
    } else if (result == 0) { /* send(2) of some bytes never takes none of them: this one is at its end */
        stream->send_error = stream->send_error ? stream->send_error : EPIPE;
    } else if (!is_retry((int)-result) && !stream->send_error) {
        stream->send_error = result == -EPIPE && stream->socket_error ? stream->socket_error : (int)-result;
    }
}

/* A send of `length` bytes has ended with this result: what sendmsg(2) returns, or a negative errno. */
GT_INLINED void account_send(gt_stream *stream, ssize_t result, size_t length)
{
    if (GT_UNLIKELY(result != (ssize_t)length)) {
        account_short_send(stream, result);
        return;
    }
    stream->send_blocked = stream->send_short = false;
    count_sent(stream, length);
}

/* After a send: what comes next, and whether a task is to be resumed. */
GT_INLINED bool sending_changed(gt_stream *stream)
{
    if (GT_UNLIKELY(stream->closing || stream->send_error))
        gt_outbound_clear(&stream->outbound, 0);
    /* It wants the next send, the poll for room, or the cancel of a poll that nothing waits for any more. */
    if (!stream->closing && (stream->outbound.size > 0 || stream->room_wanted || stream->send_polls))
        gt_stream_want(stream);
    wake_watcher(stream);
    return wake_sender(stream);
}

static bool send_completed(gt_stream *stream, const struct io_uring_cqe *cqe)
{
    if (GT_UNLIKELY(stream->send_polls))
        return poll_completed(stream, cqe);
    stream->send_in_flight = 0;
    stream->send.armed = stream->send.cancelled = false;
    account_send(stream, cqe->res, stream->send_length);
    bool news = sending_changed(stream);
    if (GT_UNLIKELY(stream->gather) && stream->outbound.size == 0) { /* an idle connection keeps none */
        PyMem_Free(stream->gather);
        stream->gather = NULL;
    }
    return news;
}

/* Send the first segments, and return what the system call does.  A lone one goes by send(2): the kernel copies no header. */
static ssize_t offer(const gt_stream *stream, size_t *length)
{
    struct iovec pieces[GT_GATHERED];
    struct msghdr header = {.msg_iov = pieces};
    const uint32_t count = gt_outbound_gather(&stream->outbound, pieces, length);
    if (count == 1)
        return send(stream->fd, pieces[0].iov_base, pieces[0].iov_len, (int)GT_SEND_FLAGS);
    header.msg_iovlen = (__typeof__(header.msg_iovlen))count;
    return sendmsg(stream->fd, &header, (int)GT_SEND_FLAGS);
}

/* Offer the kernel what is outbound, now: nothing of it may be in flight.  Runs no Python. */
void gt_stream_push(gt_stream *stream)
{
    if (stream->closing || stream->send_error || stream->proactor->ring->dead || stream->outbound.size == 0 ||
        (stream->send.armed && !stream->send_polls))
        return;
    ssize_t sent;
    do {
        size_t length;
        sent = offer(stream, &length);
        account_send(stream, sent < 0 ? -(ssize_t)errno : sent, length);
    } while (sent > 0 && stream->outbound.size > 0 && !stream->send_blocked);
    sending_changed(stream);
}

/* The first large piece since the stream was prepared goes to the kernel while the processor's cache has it, and its peer
 * works on it during the rest of the batch.  What the program sends behind it leaves in one operation.  Not from a timed stream:
 * the time at which it moved a byte is that of the batch. */
void gt_stream_push_large(gt_stream *stream, size_t length)
{
    if (length < GT_PUSHED_LEAST || stream->outbound.size > GT_PUSHED_MOST || stream->send_pushed ||
        stream->send_blocked || stream->timed)
        return;
    stream->send_pushed = true;
    gt_stream_push(stream);
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
    if (GT_UNLIKELY(stream->closing) && stream->fd < 0 && !stream->wanting &&
        gt_slot_retire(stream->proactor->ring, stream->slot))
        gt_stream_destroy(stream);
    return news;
}
