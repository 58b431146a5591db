/* stream_prepare.c: from the state of a connection to SQEs.  The essay is in stream.c: what is in flight when. */
#include "fastpath.h"

#include <errno.h>
#include <sys/epoll.h>

#define QUIET_BATCH 8U /* completions, of which an echo has two: behind a larger batch no send is quiet, see stream.c */

#define REGISTERED_BEHIND 32U /* sends: see files.c; a divisor of 256 */

/* The kernel reads it until the operation has completed. */
struct gt_gather {
    struct msghdr header;
    struct iovec pieces[GT_GATHERED];
};

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
    if (!GT_UNLIKELY(!sqe))
        operation->armed = true;
    return sqe;
}

/* The kernel looks a registered file up when it takes the operation.  A send that it has not taken (for lack of memory) would go to
 * the next socket in that place of the table, so the place is given back no sooner than that. */
static bool can_unregister(const gt_stream *stream)
{
    struct gt_ring *ring = stream->proactor->ring;
    if (!stream->file || !stream->send.armed || gt_ring_unsubmitted(ring) == 0)
        return true;
    gt_ring_submit(ring);
    return gt_ring_unsubmitted(ring) == 0;
}

static bool prepare_close(gt_stream *stream)
{
    if (!prepare_cancel(stream, &stream->receive) || !prepare_cancel(stream, &stream->send) ||
        !prepare_cancel(stream, &stream->watch))
        return false;
    if (stream->fd < 0)
        return true;
    if (!can_unregister(stream))
        return false;
    struct io_uring_sqe *sqe = gt_slot_sqe(stream->proactor->ring, stream->slot, GT_TAG_CLOSE);
    if (!sqe)
        return false;
    gt_stream_unregister(stream);
    if (stream->detached)
        gt_prep_nop(sqe);
    else
        gt_prep_close(sqe, stream->fd);
    stream->fd = -1;
    return true;
}

/* A task waits for more than is queued. */
static bool is_awaited(const gt_stream *stream, size_t size)
{
    return size < stream->fill || (stream->connection && gt_direction_waits(&stream->connection->receiving));
}

/* Up to the high mark, with small marks a page at least. */
static uint32_t portion(const gt_stream *stream, size_t size)
{
    size_t room = stream->receive_high > size ? stream->receive_high - size : 0;
    return room > GT_PORTION ? GT_PORTION : room < GT_PAGE ? GT_PAGE : (uint32_t)room;
}

/* The buffers of a receive are chosen when it is armed.  Returns the group. */
static uint16_t choose_buffers(gt_stream *stream)
{
    gt_proactor *proactor = stream->proactor;
    stream->receive_bytes =
        gt_stream_wants_bytes(stream) && gt_bytes_buffers_open(&proactor->bytes_buffers, proactor->ring);
    return stream->receive_bytes ? proactor->bytes_buffers.buffers.group : proactor->ring->buffers.group;
}

/* The tasks have had their turn: what is in the queue now, they have left there. */
static bool prepare_receive(gt_stream *stream)
{
    size_t size = gt_inbound_size(&stream->inbound);
    bool over = stream->end_of_stream || stream->receive_error;
    bool unwanted = over || stream->receive_paused || stream->receive_suspended;
    bool ahead = size >= GT_PORTION && !is_awaited(stream, size); /* of the program */
    if (stream->receive.armed) { /* also when it is over: with a gap in the queue the kernel may go on */
        if (stream->receive_multishot)
            unwanted |= ahead || gt_stream_wants_bytes(stream) != stream->receive_bytes;
        return !(unwanted || stream->receive_stale) || prepare_cancel(stream, &stream->receive);
    }
    if (unwanted || (ahead && !stream->receive_ahead))
        return true;
    struct io_uring_sqe *sqe = arm(stream, &stream->receive);
    if (!sqe)
        return false;
    stream->receive_multishot = stream->receive_begun && is_awaited(stream, size);
    const uint16_t group = choose_buffers(stream);
    if (stream->receive_multishot)
        gt_prep_recv_multishot(sqe, stream->fd, group);
    else
        gt_prep_recv(sqe, stream->fd, portion(stream, size), group);
    stream->receive_begun = true;
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

/* Several segments leave in one operation: a header and a body are one message to the peer, too, and not two. */
static void prepare_gathered(gt_stream *stream, struct io_uring_sqe *sqe)
{
    gt_gather *gather = stream->gather;
    size_t length;
    uint32_t count = gt_outbound_gather(&stream->outbound, gather->pieces, &length);
    gather->header = (struct msghdr){.msg_iov = gather->pieces};
    gather->header.msg_iovlen = (__typeof__(gather->header.msg_iovlen))count; /* an int where the C library is musl */
    stream->send_length = (uint32_t)length;
    stream->send_in_flight = count;
    gt_prep_sendmsg(sqe, stream->fd, &gather->header, GT_SEND_FLAGS);
    gt_prep_registered(sqe, stream->file);
}

/* Nothing follows this send, and no task waits for its end: it need not wake the run.  The time of the last byte is that of the
 * batch that brings the completion, so where that matters it has to come at once. */
static bool is_followed_by_nothing(const gt_stream *stream)
{
    if (stream->proactor->batch_size > QUIET_BATCH)
        return false;
    const gt_connection *connection = stream->connection;
    if (!connection || stream->timed || stream->receive_suspended || stream->room_wanted ||
        stream->outbound.size != stream->send_length || connection->sending.call)
        return false;
    const gt_call *call = connection->receiving.call;
    const bool waits_for_change =
        call && (call->kind == &gt_stream_kinds[GT_CHANGE] || call->kind == &gt_stream_kinds[GT_DELIVER]);
    return !waits_for_change || !(call->max & GT_WATCH_SENT);
}

/* A connection that sends often is worth a place in the ring's table; where that has none left it tries again later. */
static void count_plain_send(gt_stream *stream)
{
    if (++stream->plain_sends % REGISTERED_BEHIND == 0)
        stream->file = gt_file_register(stream->proactor->ring, stream->fd);
}

static bool prepare_send(gt_stream *stream)
{
    struct io_uring_sqe *sqe = arm(stream, &stream->send);
    if (!sqe)
        return false;
    if (GT_UNLIKELY(stream->file == 0))
        count_plain_send(stream);
    if (GT_UNLIKELY(stream->outbound.count > 1) && !stream->gather)
        stream->gather = PyMem_Malloc(sizeof *stream->gather);
    if (GT_UNLIKELY(stream->outbound.count > 1) && stream->gather) { /* without memory for that, one after the other */
        prepare_gathered(stream, sqe);
        return true;
    }
    const gt_segment *head = gt_outbound_at(&stream->outbound, 0);
    size_t length = head->length - stream->outbound.sent;
    stream->send_length = length > GT_LARGEST_SEND ? GT_LARGEST_SEND : (uint32_t)length;
    stream->send_in_flight = 1;
    gt_prep_send(sqe, stream->fd, head->data + stream->outbound.sent, stream->send_length, GT_SEND_FLAGS);
    gt_prep_registered(sqe, stream->file);
    if (is_followed_by_nothing(stream))
        gt_send_quietly(stream->proactor->ring, sqe);
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
    stream->send_pushed = false;
    if (GT_UNLIKELY(stream->closing))
        return prepare_close(stream);
    if (GT_UNLIKELY(stream->inbound.lent_count > 0 && gt_inbound_settle(&stream->inbound) < 0 &&
                    !stream->receive_error)) {
        stream->receive_error = ENOMEM; /* as where it cannot be queued when it arrives */
        gt_stream_wake_receiver(stream);
    }
    bool needs_room = stream->room_wanted || (stream->send_blocked && stream->outbound.size > 0);
    if (!stream->send.armed && stream->outbound.size > 0 && !stream->send_blocked && !prepare_send(stream))
        return false;
    if (!stream->send.armed && needs_room && !prepare_poll(stream))
        return false;
    if (stream->send_polls && !needs_room && !prepare_cancel(stream, &stream->send))
        return false;
    return prepare_receive(stream) && prepare_watch(stream);
}
