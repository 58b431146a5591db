/* call.c: the engine of calls (call.h): what `await` does.
 *
 * A call is one small object, which comes from a free list and goes back to it.  The first time it is driven, it answers
 * from memory if it can; otherwise it parks the current task by yielding its waiter's trap, which is Trio's own
 * WaitTaskRescheduled.  Trap and waiter are made once and used by one call after the other.  The call is driven again when
 * the task is resumed: with None by the fast path (gt_trio_resume), with an Outcome by Trio's scheduler.  The data is not in
 * that message but in a queue of the owner, so whatever happens between waking and running (a cancellation, a
 * KeyboardInterrupt) loses nothing.
 *
 *     NEW ──drive──> DONE                        answered from memory
 *      ├────drive──> YIELDED ──drive──> DONE     the same, after a turn of the scheduler
 *      └────drive──> PARKED ──drive──> DONE      the usual wait
 *                     ├──drive──> PARKED         woken, but there was nothing left, or not enough: wait again
 *                     └──throw/close──> DONE
 *
 * A call that delivers (GT_DELIVER in stream_calls.c) is one wait after the other, each with the states above.  When a wait is
 * over, the callback runs that it is for, in the step of the task and before the next wait begins, as it would in a loop in
 * Python; the caller gets the first answer that is not for the callback, or the callback's exception.  A callback that gets many
 * bytes is timed: when it has taken longer than a time slice, the caller learns the time, and decides anew how many bytes the
 * callback gets at once.
 *
 * Nearly always such a call waits again behind the callback, and the coroutine that awaits it would only pass that on.  So the
 * task's step is made without that coroutine where it can be (gt_handler_deliver): the call is driven by itself, and the coroutine
 * is resumed, in the same step, when there is an answer for it.  Whether the callback would see a difference is found out once a
 * call, while the coroutine runs for the call's second delivery (a short connection has no second one).  Meanwhile that coroutine
 * is suspended, not running: where the callback holds it, and resumes or closes it itself, the task ends with an error.
 *
 *     PARKED ──deliver──> PARKED                      called back, and waits again
 *        └──────deliver──> ANSWERED ──drive──> DONE   the coroutine gets the answer
 *
 * The turn of the scheduler is for a task that has gone on without one for a millisecond ("time slices" in worklists.c), and for
 * answers that move no bytes: the end of the stream once more, a send of nothing.  With these a task could go on for ever,
 * and no cancellation would reach it.
 *
 * Python drives a call in three ways (am_send, __next__, send), depending on its version and on whether it is being traced:
 * all of them lead to drive().
 */
#include "prefetch.h"

#include <errno.h>

#define FREE_LIST_SIZE 256
#define DELIVERIES_WITH_COROUTINE 2 /* of a call */

static gt_call *free_list[FREE_LIST_SIZE];
static int free_count;

/* --- exceptions --- */

int gt_raise_os_error(int error)
{
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

PyObject *gt_raise_broken(gt_proactor *proactor, int error)
{
    PyObject *exception = PyObject_CallFunction(proactor->make_broken, "i", error);
    if (exception) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        Py_DECREF(exception);
    }
    return NULL;
}

int gt_call_raise_closed(const gt_call *self)
{
    PyErr_Format(self->proactor->closed_error, "this %s was closed", self->kind->owner);
    return -1;
}

/* --- life --- */

gt_call *gt_call_new(const gt_kind *kind, gt_proactor *proactor, PyObject *owner)
{
    gt_call *self;
    if (!GT_UNLIKELY(free_count == 0)) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &gt_call_type);
    } else {
        self = PyObject_GC_New(gt_call, &gt_call_type);
        if (!self)
            return NULL;
    }
    self->kind = kind;
    self->proactor = proactor;
    self->owner = Py_NewRef(owner);
    self->waiter = NULL;
    self->data = self->parts = NULL;
    self->state = GT_CALL_NEW;
    self->view = NULL;
    self->is_finalized = false;
    memset(&self->datagram, 0, sizeof self->datagram); /* the largest of the union */
    PyObject_GC_Track(self);
    return self;
}
_Static_assert(sizeof(((gt_call *)NULL)->datagram) >= sizeof(((gt_call *)NULL)->poll) &&
                   sizeof(((gt_call *)NULL)->datagram) >= 7 * sizeof(size_t),
               "gt_call_new() clears all of the union");

bool gt_call_set_view(gt_call *self, PyObject *buffer, int flags)
{
    Py_buffer *view = PyMem_Malloc(sizeof *view);
    if (!view) {
        PyErr_NoMemory();
        return false;
    }
    if (PyObject_GetBuffer(buffer, view, flags) < 0) {
        PyMem_Free(view);
        return false;
    }
    self->view = view;
    return true;
}

void gt_call_release(gt_call *self)
{
    Py_CLEAR(self->data);
    Py_buffer *view = self->view;
    if (GT_UNLIKELY(view)) {
        self->view = NULL;
        PyBuffer_Release(view);
        PyMem_Free(view);
    }
}

/* The call is over, however it ended: its task waits no more, its buffer may change.  May run Python code at last. */
static void end(gt_call *self)
{
    if (self->state == GT_CALL_DONE)
        return;
    self->state = GT_CALL_DONE;
    self->kind->end(self);
    gt_waiter *waiter = self->waiter;
    self->waiter = NULL;
    if (waiter)
        gt_waiter_give_back(self->proactor, waiter);
    gt_call_release(self);
    Py_CLEAR(self->parts);
}

/* The same of a call of a connection that was answered without a wait. */
GT_INLINED void end_at_once(gt_call *self)
{
    self->state = GT_CALL_DONE;
    gt_call_release(self);
    Py_CLEAR(self->parts);
}

/* The same, with the exception that is set kept out of sight of the code that may run. */
static GT_COLD void end_with_exception(gt_call *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    end(self);
    PyErr_Restore(type, value, traceback);
}

gt_call *gt_call_withdraw(gt_call *self)
{
    end_with_exception(self);
    Py_DECREF(self);
    return NULL;
}

static int call_traverse(gt_call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    Py_VISIT(self->waiter);
    Py_VISIT(self->data);
    Py_VISIT(self->parts);
    if (self->view)
        Py_VISIT(self->view->obj);
    return 0;
}

/* As the interpreter does for a coroutine; where warnings are errors, no caller could catch one.  The garbage collector calls
 * this for a call in a cycle, whatever its state. */
static void call_finalize(gt_call *self)
{
    self->is_finalized = true;
    if (self->state != GT_CALL_NEW)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s' was never awaited", self->kind->name) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, traceback);
}

static void call_dealloc(gt_call *self)
{
    if (GT_UNLIKELY(self->state == GT_CALL_NEW) && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    if (GT_UNLIKELY(self->state != GT_CALL_DONE))
        end(self);
    Py_CLEAR(self->owner);
    if (GT_UNLIKELY(free_count == FREE_LIST_SIZE || self->is_finalized)) /* Python finalizes an object once */
        PyObject_GC_Del(self);
    else
        free_list[free_count++] = self;
}

/* --- driving --- */

static PySendResult park(gt_call *self, PyObject *task, bool cancelled, PyObject **result)
{
    if (GT_UNLIKELY(!task)) { /* drive() looked for none, because a woken call of this kind always has its answer */
        PyErr_SetString(PyExc_SystemError, "a receive() or send() was woken without an answer");
        return PYGEN_ERROR;
    }
    if (!self->waiter) {
        gt_waiter *waiter = gt_waiter_take(self->proactor);
        if (GT_UNLIKELY(!waiter))
            return PYGEN_ERROR;
        waiter->call = self;
        self->waiter = waiter;
    }
    if (GT_UNLIKELY(self->proactor->trio.parked != self->waiter))
        Py_XSETREF(self->proactor->trio.parked, (gt_waiter *)Py_NewRef(self->waiter));
    /* That may have run Python code, if only a garbage collection with its finalizers.  What closes the owner wakes the tasks
     * that are parked, of which this is none yet: the row looks once more whether the call is refused. */
    if (GT_UNLIKELY(self->kind->park && self->kind->park(self, cancelled) < 0))
        return PYGEN_ERROR;
    if (GT_UNLIKELY(self->state == GT_CALL_DONE)) { /* the same code may have closed this very call */
        self->kind->end(self);
        PyErr_SetString(PyExc_RuntimeError, "this receive() or send() was ended before it could wait");
        return PYGEN_ERROR;
    }
    Py_XSETREF(self->waiter->task, Py_NewRef(task));
    self->waiter->frame = self->kind->deliver ? NULL : gt_frame_place(); /* seldom is it resumed for a callback */
    gt_proactor_begin_slice(self->proactor);
    self->state = GT_CALL_PARKED;
    *result = Py_NewRef(self->waiter->trap);
    return PYGEN_NEXT;
}

static PySendResult answer(gt_call *self, PyObject *task, PyObject **result)
{
    int answered = self->kind->answer(self, result);
    if (GT_UNLIKELY(answered == 0))
        return park(self, task, false, result);
    return GT_UNLIKELY(answered < 0) ? PYGEN_ERROR : PYGEN_RETURN;
}

GT_INLINED PySendResult start(gt_call *self, PyObject *task, PyObject **result)
{
    const gt_kind *kind = self->kind;
    gt_trio *trio = &self->proactor->trio;
    if (GT_UNLIKELY(kind->refuse && kind->refuse(self) < 0))
        return PYGEN_ERROR;
    if (kind->needs_satisfied && !kind->is_satisfied(self)) /* Trio looks for a cancellation when the task has parked */
        return park(self, task, false, result);
    int cancelled = gt_trio_cancel_is_pending(trio, task);
    if (GT_UNLIKELY(cancelled < 0))
        return PYGEN_ERROR;
    if (GT_UNLIKELY(cancelled)) /* nothing has been done yet; parking lets Trio deliver it */
        return park(self, task, true, result);
    if (GT_UNLIKELY(self->state == GT_CALL_NEW && kind->in_place &&
                    ((kind->moves_nothing && kind->moves_nothing(self)) || gt_proactor_turn_is_over(self->proactor)))) {
        self->state = GT_CALL_YIELDED;
        *result = Py_NewRef(trio->checkpoint);
        return PYGEN_NEXT;
    }
    /* Counted first, because that can fail, and then no bytes may have been moved.  What steps a task counts that it parks. */
    if (GT_UNLIKELY((kind->sends || kind->is_satisfied(self)) && gt_trio_count_cancel_point(trio, task) < 0))
        return PYGEN_ERROR;
    return answer(self, task, result);
}

static PySendResult resume(gt_call *self, PyObject *task, PyObject *message, PyObject **result)
{
    /* `woken` is one object for all wake-ups, and an Outcome can be unwrapped once. */
    if (GT_UNLIKELY(message != Py_None && message != self->proactor->trio.woken)) {
        PyObject *value = PyObject_CallMethod(message, "unwrap", NULL);
        if (!value)
            return PYGEN_ERROR;
        Py_DECREF(value);
        if (self->state == GT_CALL_DONE) { /* unwrap() is the program's code, and may have ended the call */
            PyErr_SetString(PyExc_RuntimeError, "this receive() or send() was ended while it was resumed");
            return PYGEN_ERROR;
        }
    }
    return self->state == GT_CALL_YIELDED ? start(self, task, result) : answer(self, task, result);
}

/* The program's code has raised the exception that is set.  Returns -1. */
static GT_COLD int has_raised(void)
{
    gt_restore_exception(gt_never_stop(gt_take_exception()));
    return -1;
}

/* A callback has taken its time for these bytes: who has asked for the wait learns from that, and asks again. */
static int learn(PyObject *parts, PyObject *count, int64_t elapsed)
{
    PyObject *time = PyLong_FromLongLong(elapsed);
    PyObject *learned = time ? PyObject_CallFunctionObjArgs(PyTuple_GET_ITEM(parts, 2), count, time, NULL) : NULL;
    Py_XDECREF(time);
    Py_XDECREF(learned);
    return learned ? 1 : has_raised();
}

int gt_call_back(PyObject *parts, PyObject *count, int64_t slice_ns)
{
    const bool timed = slice_ns != GT_UNTIMED;
    const int64_t began = timed ? gt_monotonic_ns() : 0;
    PyObject *function = PyTuple_GET_ITEM(parts, 0);
    PyObject *arguments[] = {NULL, PyTuple_GET_ITEM(parts, 1), count};
    PyObject *returned;
    if (PyMethod_Check(function)) { /* as it calls its function, but for a copy of the arguments */
        arguments[0] = PyMethod_GET_SELF(function);
        returned = PyObject_Vectorcall(PyMethod_GET_FUNCTION(function), arguments, 3, NULL);
    } else {
        returned = PyObject_Vectorcall(function, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(returned);
    if (GT_UNLIKELY(!returned))
        return has_raised();
    const int64_t elapsed = timed ? gt_monotonic_ns() - began : 0;
    return timed && elapsed >= slice_ns ? learn(parts, count, elapsed) : 0;
}

/* Whether the callback would find things as they are now if the coroutine that awaits the call were not resumed for it: no
 * coroutine of the task protects it from Ctrl-C in a way of its own, or handles an exception.  1, 0, or -1 with an exception. */
static GT_COLD int can_be_alone(gt_call *self, PyObject *task)
{
    PyObject *type, *value, *traceback;
    PyErr_GetExcInfo(&type, &value, &traceback);
    const bool handles = value && value != Py_None;
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return handles ? 0 : gt_trio_is_protected_as(&self->proactor->trio, task);
}

/* Behind a callback, when no bytes are in hand: what finds it out is Python code, in which a signal's handler may raise. */
static int count_delivery(gt_call *self, PyObject *task)
{
    if (++self->deliveries < DELIVERIES_WITH_COROUTINE)
        return 0;
    const int alone = can_be_alone(self, task);
    self->alone = alone > 0;
    return alone < 0 ? -1 : 0;
}

/* After a callback, which may have done anything.  false: exception set. */
static bool can_go_on(const gt_call *self)
{
    if (self->state == GT_CALL_DELIVERS)
        return gt_proactor_check_thread(self->proactor); /* it may have forked, and this may be the child */
    PyErr_SetString(PyExc_RuntimeError, "this wait was ended by the callback that it delivers to");
    return false;
}

/* *result is the answer of a wait. */
static PySendResult deliver(gt_call *self, PyObject *task, PyObject **result)
{
    for (;;) {
        Py_ssize_t count = gt_ssize_of(*result); /* made by the row */
        if (count <= 0 || (size_t)count > self->most)
            return PYGEN_RETURN;
        self->kind->end(self); /* of the wait: to the callback none is in progress */
        self->state = GT_CALL_DELIVERS;
        PyObject *parts = Py_NewRef(self->parts), *bytes = *result; /* the callback may end the call */
        const bool timed = (size_t)count > self->most_untimed;
        const int slow = gt_call_back(parts, bytes, timed ? self->proactor->slice_ns : GT_UNTIMED);
        *result = slow > 0 ? PyLong_FromLong(GT_CHANGED) : NULL;
        Py_DECREF(parts);
        Py_DECREF(bytes);
        const bool failed =
            slow < 0 || (slow && !*result) ||
            (GT_UNLIKELY(self->deliveries < DELIVERIES_WITH_COROUTINE) && count_delivery(self, task) < 0);
        if (failed || !can_go_on(self)) {
            Py_CLEAR(*result);
            return PYGEN_ERROR;
        }
        if (slow)
            return PYGEN_RETURN;
        self->state = GT_CALL_NEW;
        PySendResult sent = start(self, task, result);
        if (sent != PYGEN_RETURN)
            return sent;
    }
}

/* The task that drives the call, borrowed.  NULL with an exception if it cannot. */
static PyObject *driving_task(const gt_call *self, const PyObject *message)
{
    gt_proactor *proactor = self->proactor;
    if (GT_UNLIKELY(proactor->closed)) { /* the run is over, and what it knew of tasks is gone */
        PyErr_Format(proactor->closed_error, "this %s was closed at the end of its run", self->kind->owner);
        return NULL;
    }
    if (!gt_proactor_check_thread(proactor))
        return NULL;
    if (GT_UNLIKELY(self->state == GT_CALL_PARKED && message == Py_None &&
                    self->waiter->task)) { /* waking takes the task from there */
        PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
        return NULL;
    }
    return gt_trio_current_task(&proactor->trio);
}

static GT_COLD PySendResult refuse_to_drive(const gt_call *self)
{
    PyErr_SetString(PyExc_RuntimeError, self->state == GT_CALL_DONE
                                            ? "cannot reuse an awaited receive() or send(): call it again"
                                            : "this wait is being awaited already");
    return PYGEN_ERROR;
}

static PySendResult hand_over(gt_call *self, PyObject **result)
{
    PyObject *answer = self->data;
    self->data = NULL;
    self->state = GT_CALL_DONE;
    return gt_give_kept(answer, self->raises, result);
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_call *self = (gt_call *)object;
    *result = NULL;
    if (GT_UNLIKELY(self->state >= GT_CALL_DELIVERS))
        return self->state == GT_CALL_ANSWERED ? hand_over(self, result) : refuse_to_drive(self);
    PyObject *task = NULL;
    if (self->state != GT_CALL_PARKED ||
        self->kind->in_place) { /* else this step is its last one, whatever became of the run */
        task = driving_task(self, message);
        if (GT_UNLIKELY(!task)) {
            if (self->state == GT_CALL_NEW) /* it was awaited, and fails before it begins */
                end_with_exception(self);
            return PYGEN_ERROR;
        }
    }
    PySendResult sent = self->state == GT_CALL_NEW ? start(self, task, result) : resume(self, task, message, result);
    if (sent == PYGEN_RETURN && self->kind->deliver)
        sent = deliver(self, task, result);
    if (sent == PYGEN_RETURN && !self->waiter && self->kind->of_connection)
        end_at_once(self);
    else if (sent == PYGEN_RETURN)
        end(self);
    else if (GT_UNLIKELY(sent == PYGEN_ERROR))
        end_with_exception(self);
    return sent;
}

/* The coroutine that awaits the call is to have this answer. */
static GT_COLD void keep_answer(gt_call *self, bool raises, PyObject *result)
{
    PyObject *answer = raises ? gt_take_exception() : result;
    end(self); /* where no task could be found to drive it, this has yet to be done */
    self->data = answer;
    self->raises = raises;
    self->state = GT_CALL_ANSWERED;
}

bool gt_call_deliver(gt_call *self, PyObject **result)
{
    if (!self->alone || GT_UNLIKELY(self->state != GT_CALL_PARKED || self->waiter->task)) /* or another task's by now */
        return false;
    const PySendResult sent = drive((PyObject *)self, Py_None, result);
    if (sent == PYGEN_NEXT)
        return true;
    keep_answer(self, sent == PYGEN_ERROR, *result);
    *result = NULL;
    return false;
}

static PyObject *drive_by_method(PyObject *object, PyObject *message)
{
    if (gt_prepare_stop() < 0) {
        end_with_exception((gt_call *)object);
        return NULL;
    }
    return gt_drive_by_method(drive, object, message);
}

static PyObject *call_next(PyObject *self) { return drive_by_method(self, Py_None); }

static PyObject *call_close(gt_call *self, PyObject *Py_UNUSED(ignored))
{
    end(self);
    Py_RETURN_NONE;
}

static PyObject *call_throw(gt_call *self, PyObject *const *arguments, Py_ssize_t count)
{
    end(self);
    return gt_raise_thrown(arguments, count);
}

static PyObject *call_stop(gt_call *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *task = gt_call_stop(self);
    return task ? task : Py_NewRef(Py_None);
}

static PyObject *get_waits(gt_call *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->waiter && self->waiter->task);
}

static PyMethodDef call_methods[] = {
    {"send", drive_by_method, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL, PyDoc_STR("End the call with an exception.")},
    {"close", (PyCFunction)call_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {"stop", (PyCFunction)call_stop, METH_NOARGS,
     PyDoc_STR("stop($self, /)\n--\n\nStop waiting: the task that waited, to be rescheduled by the caller, or None.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef call_getset[] = {
    {"waits", (getter)get_waits, NULL, PyDoc_STR("Whether a task waits in it."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyAsyncMethods call_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject gt_call_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Call",
    .tp_basicsize = sizeof(gt_call),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call in progress: of a connection, of an endpoint, or a wait for readiness."),
    .tp_dealloc = (destructor)call_dealloc,
    .tp_finalize = (destructor)call_finalize,
    .tp_traverse = (traverseproc)call_traverse,
    .tp_as_async = &call_async,
    .tp_iter = gt_self,
    .tp_iternext = call_next,
    .tp_methods = call_methods,
    .tp_getset = call_getset,
};
