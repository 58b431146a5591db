/* prefetch.h: what a connection's turn needs is in the processor's cache when the turn comes.
 *
 * The kernel spends some microseconds on a message, and uses much memory for it.  With some hundred busy connections nothing
 * of a connection is left in the near caches from one message to the next.  Its turn begins with twenty reads, one behind
 * the other because each finds the address of the next, and each waits for as long as a hundred instructions take.  But a
 * batch says whose turns come, and to begin a read without waiting for it (prefetch) costs one instruction.  So both loops
 * over a batch, over its completions and over the tasks to be resumed, look some places ahead where a run has that many
 * connections (with fewer most reads find what they need in the near caches, and the instructions cost more).  For the place that is
 * furthest off they begin with what they have the address of, and for each place nearer with what could be found there.
 * (Slots are small, and are read at once.)
 *
 *     completions      4 ahead   the stream
 *                      3         its connection
 *                      2         the call that is in progress there
 *                      1         the waiter of the call
 *     tasks            3 ahead   the task, what its call yields to Trio, and the frame that awaits the call
 *                      2         the task's coroutine and context, and what a call that delivers needs for its callback
 *                      1         the conn that the callback gets, and the bytes that receive() has returned last, which are
 *                                dropped now
 *
 * Where a pointer is followed, the object is alive: a stream lives until its last completion is worked off, the list of
 * tasks owns its waiters, and everything else is reached by pointers that are kept true at all times.  The frame and the
 * bytes are addresses only.  They were true when they were noted; whatever lies there by now is never read, and a prefetch
 * of any address is harmless.
 *
 * All of this is inlined, and has to be: GCC takes a function that does nothing but prefetch for one without effect, and
 * leaves out the calls of it.
 */
#ifndef GAIN_TRIO_PREFETCH_H
#define GAIN_TRIO_PREFETCH_H

#include "fastpath.h"

#define GT_FEW 256U /* connections, up to which nothing is gained */
#define GT_LINE 64U
#define GT_GC_HEAD 16U    /* bytes in front of an object that the garbage collector knows */
#define GT_TASK_SIZE 160U /* bytes of Trio's Task */
#define GT_CONN_SIZE 128U /* the same of a conn, as far as they are used for each message */
/* Bytes of a coroutine of a few variables: from Python 3.11 on its frame is a part of it. */
#define GT_COROUTINE_SIZE 256U
#define GT_COROUTINE_HEAD 96U /* in front of the frame, with what the garbage collector has there */

/* A line for each 64 bytes: the last bytes may lie in one more.  Never of NULL, for which the processor would look. */
GT_INLINED void gt_prefetch_at(uintptr_t place, size_t size)
{
    for (size_t at = 0; at < size; at += GT_LINE)
        __builtin_prefetch((const void *)(place + at), 1);
}

GT_INLINED void gt_prefetch(const void *place, size_t size)
{
    if (place)
        gt_prefetch_at((uintptr_t)place, size);
}

GT_INLINED void gt_prefetch_object(const void *object, size_t size)
{
    if (object)
        gt_prefetch_at((uintptr_t)object - GT_GC_HEAD, size + GT_GC_HEAD);
}

/* Where the frame lies that runs in this thread: only for a prefetch.  NULL where Python does not say. */
GT_INLINED const void *gt_frame_place(void)
{
#if PY_VERSION_HEX >= 0x030d0000 && PY_VERSION_HEX < 0x030f0000
    return PyThreadState_Get()->current_frame;
#elif PY_VERSION_HEX >= 0x030b0000 && PY_VERSION_HEX < 0x030d0000
    return PyThreadState_Get()->cframe->current_frame;
#elif PY_VERSION_HEX < 0x030b0000
    return PyThreadState_Get()->frame;
#else
    return NULL;
#endif
}

GT_INLINED bool gt_prefetches(const gt_proactor *proactor) { return proactor->stream_count > GT_FEW; }

/* --- completions --- */

#define GT_AHEAD 4

/* The streams of the completions that come next, NULL for those of another kind. */
typedef struct {
    const gt_stream *first, *second, *third;
} gt_coming;

/* Only of a receive: a send mostly ends in the batch behind the one that has prepared it, and to look for its stream costs
 * more than it saves. */
GT_INLINED const gt_stream *gt_receiving_stream(const struct gt_ring *ring, const struct io_uring_cqe *cqe)
{
    const struct gt_slot *slot = gt_key_tag(cqe->user_data) == GT_TAG_RECV ? gt_slot_find(ring, cqe->user_data) : NULL;
    return slot && slot->kind == GT_SLOT_STREAM && slot->in_flight > 0 ? slot->owner : NULL;
}

/* The call in progress that is for what a stream receives, or NULL. */
GT_INLINED const gt_call *gt_receiving_call(const gt_stream *stream)
{
    return stream && stream->connection ? stream->connection->receiving.call : NULL;
}

/* Before the completion at `index` is worked off.  The loop begins at -GT_AHEAD, which is before the first one: then the
 * reads for the first few are under way together, too. */
GT_INLINED void gt_prefetch_completions(gt_coming *coming, const gt_proactor *proactor, int64_t index, int64_t count)
{
    const gt_call *call = gt_receiving_call(coming->first);
    if (call)
        gt_prefetch_object(call->waiter, sizeof *call->waiter);
    if ((call = gt_receiving_call(coming->second)))
        gt_prefetch_object(call, sizeof *call);
    if (coming->third)
        gt_prefetch_object(coming->third->connection, offsetof(gt_connection, attributes));
    const int64_t fourth = index + GT_AHEAD;
    const gt_stream *stream = fourth < count ? gt_receiving_stream(proactor->ring, &proactor->batch[fourth]) : NULL;
    gt_prefetch(stream, sizeof *stream);
    *coming = (gt_coming){.first = coming->second, .second = coming->third, .third = stream};
}

/* --- tasks --- */

GT_INLINED const gt_stream *gt_stream_of_call(const gt_call *call)
{
    return call && call->kind->of_connection ? ((gt_connection *)call->owner)->stream : NULL;
}

GT_INLINED void gt_prefetch_field(const gt_field *field, PyObject *object, size_t size)
{
    gt_prefetch_object(*gt_field_place(field, object), size);
}

GT_INLINED void gt_prefetch_task(const gt_waiter *waiter)
{
    gt_prefetch_object(waiter->task, GT_TASK_SIZE);
    gt_prefetch(waiter->trap, 1);
    if (waiter->frame)
        gt_prefetch_at((uintptr_t)waiter->frame - GT_COROUTINE_HEAD, GT_COROUTINE_SIZE);
}

GT_INLINED void gt_prefetch_coroutine(const gt_trio *trio, const gt_waiter *waiter)
{
    if (!waiter->task || !gt_trio_knows_layout(trio, waiter->task))
        return;
    gt_prefetch_field(&trio->context, waiter->task, GT_LINE);
    gt_prefetch_field(&trio->schedule_points, waiter->task, 1);
    gt_prefetch_field(&trio->cancel_points, waiter->task, 1);
    if (waiter->call && waiter->call->kind->deliver) { /* mostly without the coroutine */
        gt_prefetch_field(&trio->coro, waiter->task, GT_LINE);
        gt_prefetch(waiter->call->parts, GT_LINE);
    } else {
        gt_prefetch_field(&trio->coro, waiter->task, GT_COROUTINE_SIZE);
    }
}

GT_INLINED void gt_prefetch_bytes(const gt_waiter *waiter)
{
    const gt_stream *stream = gt_stream_of_call(waiter->call);
    if (!stream)
        return;
    if (waiter->call->kind->deliver && waiter->call->parts)
        gt_prefetch_object(PyTuple_GET_ITEM(waiter->call->parts, 1), GT_CONN_SIZE);
    gt_prefetch(stream->given, 1);
}

/* Before the first step of a batch. */
GT_INLINED void gt_prefetch_first_steps(const gt_proactor *proactor)
{
    const gt_waiter *first = proactor->ready_first, *second = first ? first->next : NULL;
    if (!second || !gt_prefetches(proactor)) /* one task alone has waited for nothing else meanwhile */
        return;
    gt_prefetch_task(first);
    gt_prefetch_task(second);
    if (second->next)
        gt_prefetch_task(second->next);
    gt_prefetch_coroutine(&proactor->trio, first);
    gt_prefetch_coroutine(&proactor->trio, second);
    gt_prefetch_bytes(first);
}

/* Before each step, when its waiter is off the list. */
GT_INLINED void gt_prefetch_steps(const gt_proactor *proactor)
{
    const gt_waiter *next = gt_prefetches(proactor) ? proactor->ready_first : NULL;
    if (!next)
        return;
    gt_prefetch_bytes(next);
    if (!(next = next->next))
        return;
    gt_prefetch_coroutine(&proactor->trio, next);
    if ((next = next->next))
        gt_prefetch_task(next);
}

#endif
