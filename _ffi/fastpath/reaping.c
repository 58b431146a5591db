/* reaping.c: from completions to tasks.
 *
 * Trio's loop calls the I/O manager twice a tick, and the manager calls here:
 *
 *     wait(timeout)   work off the streams that want something (prepare SQEs); one io_uring_enter that submits, waits and
 *                     runs deferred work; copy the CQEs out, give their places back, and bring every stream's state up to
 *                     date.  No task runs in this phase (a garbage collection may, with its finalizers).
 *     process()       resume the tasks for which there is news, and hand the completions of single operations to Python.
 *
 * Two phases, because resuming a task runs the program, and the program may do anything: close connections further on in
 * the batch, cancel tasks that are about to be resumed, open new connections.  It finds the state of all of them complete,
 * and what it changes is seen before the next task is resumed.
 *
 * Between the two Trio's loop looks whether there is anything else to do.  When there is not, and it would only come back to
 * wait again, wait() does both phases itself and waits on: see "lingering" in task.c.
 *
 * wait() returns how much news there is, and 0 only when the timeout is over: completions that are housekeeping (a cancel's
 * acknowledgement, a send that no task waits for) do not end the wait.  Trio's MockClock and wait_all_tasks_blocked() rely
 * on it.
 */
#include "endpoint.h"
#include "prefetch.h"

#include <errno.h>

#define RETRY_NS 10000000LL /* how long a wait may be while the ring has no SQE for what is wanted */
/* Trio's _MAX_TIMEOUT, for which its loop waits when there is no deadline: then no timer is set, and no clock is looked at. */
#define LONGEST_NS (24 * 60 * 60 * 1000000000LL)
#define MAX_ROUNDS 1000 /* submissions that a look (a wait of no time) makes at most */
#define MAX_PASSES 4    /* reaps a wait: what an overflown queue still holds is for the next one */

/* --- the two lists --- */

/* Prepare what the streams on the list want; one that gets no SQE stays, and ends the round. */
void gt_proactor_prepare(gt_proactor *proactor)
{
    gt_stream *stream;
    while ((stream = proactor->wanting_first)) {
        if (!gt_stream_prepare(stream))
            return;
        proactor->wanting_first = stream->next_wanting;
        if (!proactor->wanting_first)
            proactor->wanting_last = NULL;
        if (proactor->wanting_starved == stream)
            proactor->wanting_starved = NULL;
        stream->wanting = false;
    }
}

/* --- checks --- */

bool gt_proactor_check_idle(const gt_proactor *proactor)
{
    if (!proactor->running)
        return true;
    PyErr_SetString(PyExc_RuntimeError, "this proactor is waiting or processing already; tasks cannot drive it");
    return false;
}

bool gt_proactor_check_open(const gt_proactor *proactor)
{
    if (proactor->closed || !proactor->ring) {
        PyErr_SetString(PyExc_RuntimeError, "this proactor is closed");
        return false;
    }
    return gt_proactor_check_thread(proactor);
}

/* --- reaping --- */

static GT_COLD void recycle_stale(gt_proactor *proactor, const struct io_uring_cqe *cqe)
{
    if (gt_key_tag(cqe->user_data) != GT_TAG_DATAGRAM) {
        if (proactor->bytes_buffers.buffers.entries)
            return; /* it may be of either group, and in the wrong one it could be used twice */
        gt_buffers_recycle(&proactor->ring->buffers, cqe);
    } else if (proactor->datagram_buffers.memory) {
        gt_buffers_recycle(&proactor->datagram_buffers, cqe);
        gt_buffers_publish(&proactor->datagram_buffers);
    }
}

/* For Python: its key, its result, its flags, and whether the result is a descriptor. */
static PyObject *make_completion(const struct io_uring_cqe *cqe, bool is_descriptor)
{
    PyObject *completion = PyTuple_New(4);
    if (!completion)
        return NULL;
    PyTuple_SET_ITEM(completion, 0, PyLong_FromUnsignedLongLong(cqe->user_data));
    PyTuple_SET_ITEM(completion, 1, PyLong_FromLong(cqe->res));
    PyTuple_SET_ITEM(completion, 2, PyLong_FromUnsignedLong(cqe->flags));
    PyTuple_SET_ITEM(completion, 3, PyLong_FromLong(is_descriptor));
    for (Py_ssize_t i = 0; completion && i < 4; i++)
        if (!PyTuple_GET_ITEM(completion, i))
            Py_CLEAR(completion);
    return completion;
}

/* What a single operation has come to is for its owner, or for Python. */
static int collect_operation(gt_proactor *proactor, const struct io_uring_cqe *cqe, const struct gt_slot *slot,
                             bool *news)
{
    if (gt_key_tag(cqe->user_data) != GT_TAG_MAIN)
        return 0;
    if (slot->abandoned) {
        gt_completion_discard(slot, cqe);
        if (cqe->flags & IORING_CQE_F_BUFFER)
            gt_buffers_recycle(&proactor->ring->buffers, cqe);
        return 0;
    }
    if (slot->owner) {
        *news |= gt_poll_complete(slot->owner, cqe);
        return 0;
    }
    *news = true;
    PyObject *completion = make_completion(cqe, slot->yields_descriptor && cqe->res >= 0);
    int result = completion ? PyList_Append(proactor->completions, completion) : -1;
    Py_XDECREF(completion);
    if (result < 0)
        gt_completion_discard(slot, cqe);
    return result;
}

/* The completion of a single operation, or of what is gone. */
static GT_APART int collect_single(gt_proactor *proactor, const struct io_uring_cqe *cqe, bool *news)
{
    struct gt_slot slot;
    if (gt_completion_is_nobodys(cqe))
        return 0;
    if (gt_slot_complete(proactor->ring, cqe, &slot))
        return collect_operation(proactor, cqe, &slot, news);
    if (cqe->flags & IORING_CQE_F_BUFFER) /* stale, but its buffer is real */
        recycle_stale(proactor, cqe);
    return 0;
}

static inline int collect_one(gt_proactor *proactor, const struct io_uring_cqe *cqe, bool *news)
{
    const struct gt_slot *slot = gt_slot_complete_owned(proactor->ring, cqe);
    if (!slot)
        return collect_single(proactor, cqe, news);
    *news |= slot->kind == GT_SLOT_STREAM ? gt_stream_complete(slot->owner, cqe) : gt_socket_complete(slot->owner, cqe);
    return 0;
}

/* Bring the state up to date.  How many completions were news, -1 on error (all of the batch is accounted for even then). */
static Py_ssize_t collect(gt_proactor *proactor)
{
    Py_ssize_t news = 0;
    if (proactor->timed_streams > 0 && gt_ring_ready(proactor->ring) > 0 &&
        (gt_trio_leave_task(&proactor->trio) < 0 || /* the clock is Python's code, and handlers of signals run in it */
         gt_proactor_look_at_clock(proactor) < 0))
        return -1;
    PyObject *type = NULL, *value = NULL, *traceback = NULL; /* of an error, out of the way of the rest of the batch */
    proactor->batch_size = 0;
    for (int pass = 0; pass < MAX_PASSES; pass++) {
        uint32_t count = gt_ring_reap(proactor->ring, proactor->batch, proactor->batch_capacity);
        proactor->batch_size += count;
        /* Of one or two there would be nothing to work on while a read is under way. */
        const bool ahead = count > 2 && gt_prefetches(proactor);
        gt_coming coming = {NULL, NULL, NULL};
        for (int64_t i = ahead ? -GT_AHEAD : 0; i < count; i++) {
            if (ahead)
                gt_prefetch_completions(&coming, proactor, i, count);
            if (i < 0)
                continue;
            bool is_news = false;
            if (GT_UNLIKELY(collect_one(proactor, &proactor->batch[i], &is_news) < 0)) {
                Py_CLEAR(type);
                Py_CLEAR(value);
                Py_CLEAR(traceback);
                PyErr_Fetch(&type, &value, &traceback);
            }
            news += is_news;
        }
        if (!gt_ring_overflown(proactor->ring))
            break;
        if (gt_ring_enter(proactor->ring, 0) <
            0) /* moves what overflowed into the queue; an error repeats itself next tick */
            break;
    }
    if (!type)
        return news;
    PyErr_Restore(type, value, traceback);
    return -1;
}

/* --- wait and process --- */

static int enter(gt_proactor *proactor, int64_t timeout_ns)
{
    gt_proactor_prepare(proactor);
    gt_sockets_prepare(proactor);
    int result;
    if (proactor->ready_first) /* a send() that waited can go on */
        timeout_ns = 0;
    if (timeout_ns == 0 && gt_ring_unsubmitted(proactor->ring) == 0)
        return gt_ring_enter(proactor->ring, 0); /* at most a look: not worth the GIL's hand-over */
    if (timeout_ns > RETRY_NS && gt_proactor_is_held_up(proactor))
        timeout_ns = RETRY_NS;
    Py_BEGIN_ALLOW_THREADS result = gt_ring_enter(proactor->ring, timeout_ns);
    Py_END_ALLOW_THREADS return result;
}

static bool parse_timeout(PyObject *argument, int64_t *timeout_ns)
{
    double seconds = PyFloat_AsDouble(argument);
    if (seconds == -1.0 && PyErr_Occurred())
        return false;
    if (!(seconds > 0))
        *timeout_ns = 0;
    else if (seconds >= 1e9)
        *timeout_ns = GT_NO_TIMEOUT;
    else
        *timeout_ns = (int64_t)(seconds * 1e9) > 0 ? (int64_t)(seconds * 1e9) : 1;
    return true;
}

/* Resume the tasks for which there is news.  Signals are looked for before the first step, because their handlers run in the frame
 * that is current then: a Ctrl-C that came during the wait would interrupt the task that happens to be resumed first, and not
 * the main task, as one that comes between two steps of Trio's loop.  One that comes later finds the code of a step, or is seen by
 * that of the next one. */
static int resume_ready(gt_proactor *self)
{
    gt_prefetch_first_steps(self);
    if (GT_UNLIKELY(PyErr_CheckSignals() < 0))
        return -1;
    for (;;) {
        /* A handler may have forked, as may a task, and this may be the child. */
        if (GT_UNLIKELY(!gt_proactor_check_thread(self)))
            return -1;
        gt_waiter *waiter = gt_proactor_pop_ready(self);
        if (!waiter)
            return 0;
        gt_prefetch_steps(self);
        int result = gt_waiter_resume(waiter);
        Py_DECREF(waiter);
        if (GT_UNLIKELY(result < 0))
            return -1;
    }
}

/* Leave the exception that is set to process(), as news.  Trio turns what process() raises into a TrioInternalError, with which
 * it ends the run in good order; out of wait() an exception leaves trio.run() bare, with the run unclosed.  Only a handler of a
 * signal does that here, as it does in Trio's own I/O manager. */
static Py_ssize_t postpone(gt_proactor *self)
{
    Py_XSETREF(self->failure, gt_take_exception());
    return 1;
}

/* Whether a connection's task is next.  Else it may be a signal that has ended the wait, by the descriptor that Trio has it write
 * to, and its handler is to find no task current, because none runs.  (A signal that comes together with bytes of a connection is
 * as one that comes between two steps of a batch, and finds the task of the last step.) */
static bool next_is_a_step(const gt_proactor *self)
{
    const gt_waiter *waiter = self->ready_first;
    return waiter && waiter->task && waiter->call && waiter->call->kind->in_place;
}

/* Do what process() would do, if Trio's loop would do nothing else.  Whether to wait again.  `goes_on`: the wait has lingered
 * before, and no code of the program has run since it was found that it can. */
static bool linger(gt_proactor *self, const gt_deadlines *noted, bool goes_on)
{
    if (!self->in_place || !self->trio.bound || PyList_GET_SIZE(self->completions) > 0)
        return 0;
    int can = goes_on ? 1 : gt_trio_can_linger(&self->trio, noted);
    if (can > 0 && !next_is_a_step(self))
        can = gt_trio_leave_task(&self->trio) < 0 ? -1 : 1;
    if (can > 0)
        can = resume_ready(self) < 0 ? -1 : gt_trio_can_linger(&self->trio, noted);
    if (can < 0)
        postpone(self);
    return can > 0;
}

/* One wait as Trio sees it: until there is something for its loop to do (how much: > 0), or the time is over (0).  -1: error. */
static Py_ssize_t wait_for_news(gt_proactor *self, int64_t timeout, const gt_deadlines *noted)
{
    const int64_t end = timeout == 0 || timeout == GT_NO_TIMEOUT ? timeout : gt_monotonic_ns() + timeout;
    Py_ssize_t news = PyList_GET_SIZE(self->completions) + (self->ready_first != NULL);
    int rounds = 0;
    bool lingers = false;
    int64_t began = 0;
    uint64_t before = 0;
    for (;;) {
        int result = enter(self, news > 0 ? 0 : timeout);
        gt_proactor_begin_slice(self);
        Py_ssize_t collected = collect(self);
        if (collected < 0)
            return postpone(self);
        news += collected;
        if (news == 0 && self->ready_first)
            news = 1;
        /* The kernel reports EINTR only if nothing was submitted by the same call. */
        if (news == 0 && timeout > 0) {
            lingers = false;
            if (gt_trio_leave_task(&self->trio) < 0)
                return postpone(self);
            if (PyErr_CheckSignals() < 0 || !gt_proactor_check_thread(self))
                return -1; /* a handler may have forked, and this may be the child */
        }
        if (result < 0 && result != -EINTR && result != -ETIME && result != -EBUSY && result != -EAGAIN) {
            errno = -result;
            PyErr_SetFromErrno(PyExc_OSError);
            return postpone(self);
        }
        if (timeout == 0) {
            /* Housekeeping may have asked for more (the next piece of a long send, a receive to arm again), and what comes
             * of it may be news, as may be what an overflown queue still holds: nothing is idle before that is done. */
            bool more = self->wanting_first || self->wanting_sockets || gt_ring_overflown(self->ring) ||
                        gt_ring_ready(self->ring) > 0 || gt_quiet_is_ready(self->ring);
            if (news > 0 || !more || ++rounds >= MAX_ROUNDS)
                return news;
            if (rounds == 1) {
                began = gt_monotonic_ns();
                before = self->ring->completions;
            } else if (gt_monotonic_ns() - began >= self->slice_ns) {
                /* Two ends of a large transfer can keep it busy for long.  That is no idleness, but tasks have a turn. */
                return self->ring->completions != before;
            }
            continue;
        }
        if (news > 0) {
            lingers = linger(self, noted, lingers && self->timed_streams == 0);
            if (!lingers)
                return news;
            news = 0;
        }
        if (timeout != GT_NO_TIMEOUT) {
            timeout = end - gt_monotonic_ns();
            if (timeout <= 0)
                return 0;
        }
    }
}

static void stop_running(gt_proactor *self)
{
    self->running = false;
    self->caller = NULL;
}

PyObject *gt_proactor_wait(gt_proactor *self, PyObject *argument)
{
    int64_t timeout;
    if (!gt_proactor_check_open(self) || !gt_proactor_check_idle(self) || !parse_timeout(argument, &timeout))
        return NULL;
    gt_deadlines noted = {NULL, 0};
    if (timeout > 0 && self->trio.bound && gt_trio_note_deadlines(&self->trio, &noted) < 0)
        return NULL;
    if (timeout >= LONGEST_NS && self->trio.bound && noted.count == 0)
        timeout = GT_NO_TIMEOUT;
    self->running = true;
    Py_ssize_t news = wait_for_news(self, timeout, &noted);
    if (news >= 0 && gt_trio_leave_task(&self->trio) < 0) /* it was left before a handler raised */
        news = postpone(self);
    stop_running(self);
    Py_XDECREF(noted.earliest);
    return news < 0 ? NULL : PyLong_FromSsize_t(news);
}

PyObject *gt_proactor_process(gt_proactor *self, PyObject *Py_UNUSED(ignored))
{
    if (!gt_proactor_check_open(self) || !gt_proactor_check_idle(self))
        return NULL;
    if (self->failure) {
        gt_restore_exception(self->failure);
        self->failure = NULL;
        return NULL;
    }
    self->running = true;
    int resumed = resume_ready(self);
    if (resumed == 0)
        resumed = gt_trio_leave_task(&self->trio);
    stop_running(self);
    if (resumed < 0)
        return NULL;
    if (PyList_GET_SIZE(self->completions) == 0)
        Py_RETURN_NONE;
    PyObject *fresh = PyList_New(0);
    if (!fresh)
        return NULL;
    PyObject *completions = self->completions;
    self->completions = fresh;
    return completions;
}
