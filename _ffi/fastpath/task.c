/* task.c: resuming a Trio task.
 *
 * Trio wakes a task by putting it on its run queue; its loop then makes one step of it.  That loop is Python and costs
 * several times what the rest of a small message does, so a task that is parked in one of our own calls is stepped here, at
 * once, when its completion has been reaped.  gt_trio_resume() does for one step what trio._core._run.unrolled_run does:
 *
 *     unrolled_run                                     here
 *     ----------------------------------------------   ---------------------------------------------
 *     reschedule(): _abort_func, custom_sleep_data     cleared before the step
 *     GLOBAL_RUN_CONTEXT.task                          set; deleted when the task has exited, before the handler of a
 *                                                      signal that ended a wait, before the clock is asked, and before
 *                                                      Trio's loop goes on, but not between two steps, nor while a wait
 *                                                      that lingers is asleep: a dict that grows and shrinks is resized
 *                                                      all the time
 *     task.context.run(task.coro.send, ...)            PyContext_Enter, PyIter_Send, PyContext_Exit
 *     _schedule_points, _cancel_points                 counted
 *     WaitTaskRescheduled: _abort_func, then a         the same, in the same order
 *       pending KeyboardInterrupt, then a cancel
 *     any other message                                seam.unusual_yield
 *     return or exception: task_exited                 the same for None; else seam.task_exited, which makes the outcome
 *     after_task_step                                  seam.step_observed, if the step has added an instrument
 *
 * Everything unusual goes through Trio's scheduler, by gt_trio_reschedule(): a run with instruments that watch tasks or I/O
 * (their hooks are called as often, and in the same order, as in any run), a coroutine that is not a native one, and a task
 * that a program has scheduled already or has parked with an abort function of its own.
 *
 * Lingering.  With one busy connection even a tick of Trio's loop for every message costs more than the message.  When the
 * steps of a batch have left nothing for the loop to do, which is to say that it would compute the same timeout and wait
 * again, the proactor waits again at once.  gt_trio_can_linger() is that condition: no task is scheduled, no task waits for
 * the run to fall idle (wait_all_tasks_blocked, MockClock), no instrument observes the run, and the earliest deadline is
 * the same as before.  In guest mode, where the host loop has to run between two ticks, and with a clock that is not Trio's
 * own, which a step may have moved, the condition never holds (seam.may_linger).  The end of the wait does not change, so no
 * deadline is missed; and the number of deadlines is bounded, because only Trio's loop prunes them.
 */
#include "fastpath.h"

static PyObject *name_task, *name_main_task, *name_abort_func, *name_attempt_cancel, *name_attempt_ki;
static PyObject *observing_hooks[5];

int gt_task_module_init(void)
{
    static const char *const hooks[] = {"task_scheduled", "before_task_step", "after_task_step", "before_io_wait",
                                        "after_io_wait"};
    for (size_t i = 0; i < 5; i++)
        if (!(observing_hooks[i] = PyUnicode_InternFromString(hooks[i])))
            return -1;
    if (!(name_task = PyUnicode_InternFromString("task")) ||
        !(name_main_task = PyUnicode_InternFromString("main_task")) ||
        !(name_abort_func = PyUnicode_InternFromString("abort_func")) ||
        !(name_attempt_cancel = PyUnicode_InternFromString("_attempt_delivery_of_any_pending_cancel")) ||
        !(name_attempt_ki = PyUnicode_InternFromString("_attempt_delivery_of_pending_ki")))
        return -1;
    return 0;
}

/* --- binding to a run --- */

int gt_trio_bind(gt_trio *trio, PyObject *seam)
{
    if (trio->coro.name) {
        PyErr_SetString(PyExc_RuntimeError, "a proactor is bound to a run once");
        return -1;
    }
    struct {
        PyObject **place;
        const char *name;
    } objects[] = {
        {&trio->checkpoint, "checkpoint"},
        {&trio->run_context, "run_context"},
        {&trio->runner, "runner"},
        {&trio->instruments, "instruments"},
        {&trio->trap_type, "trap_type"},
        {&trio->task_type, "task_type"},
        {&trio->abort_succeeded, "abort_succeeded"},
        {&trio->woken, "woken"},
        {&trio->reschedule, "reschedule"},
        {&trio->task_exited, "task_exited"},
        {&trio->runner_task_exited, "runner_task_exited"},
        {&trio->unusual_yield, "unusual_yield"},
        {&trio->step_observed, "step_observed"},
        {&trio->current_time, "current_time"},
        {&trio->currently_ki_protected, "currently_ki_protected"},
        {&trio->run_queue, "run_queue"},
        {&trio->waiting_for_idle, "waiting_for_idle"},
        {&trio->deadlines, "deadlines"},
        {&trio->infinity, "infinity"},
    };
    for (size_t i = 0; i < sizeof objects / sizeof objects[0]; i++) {
        PyObject *value = PyObject_GetAttrString(seam, objects[i].name);
        if (!value)
            return -1;
        Py_XSETREF(*objects[i].place, value);
    }
    PyObject *may_linger = PyObject_GetAttrString(seam, "may_linger");
    if (!may_linger)
        return -1;
    trio->may_linger = may_linger == Py_True;
    Py_DECREF(may_linger);
    PyObject *status_type = PyObject_GetAttrString(seam, "cancel_status_type");
    if (!status_type)
        return -1;
    struct {
        gt_field *field;
        PyObject *type;
        const char *name;
    } fields[] = {
        {&trio->coro, trio->task_type, "coro"},
        {&trio->context, trio->task_type, "context"},
        {&trio->abort_func, trio->task_type, "_abort_func"},
        {&trio->custom_sleep_data, trio->task_type, "custom_sleep_data"},
        {&trio->next_send_fn, trio->task_type, "_next_send_fn"},
        {&trio->cancel_points, trio->task_type, "_cancel_points"},
        {&trio->schedule_points, trio->task_type, "_schedule_points"},
        {&trio->cancel_status, trio->task_type, "_cancel_status"},
        {&trio->ki_protected, trio->task_type, "_ki_protected"},
        {&trio->effectively_cancelled, status_type, "effectively_cancelled"},
        {&trio->ki_pending, (PyObject *)Py_TYPE(trio->runner), "ki_pending"},
        {&trio->autojump_threshold, (PyObject *)Py_TYPE(trio->runner), "clock_autojump_threshold"},
        {&trio->deadline_heap, (PyObject *)Py_TYPE(trio->deadlines), "_heap"},
    };
    int result = 0;
    bool is_laid_out = true;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0] && result == 0; i++) {
        result = gt_field_resolve(fields[i].field, fields[i].type, fields[i].name);
        const bool is_asked_for = fields[i].type == trio->task_type || fields[i].type == status_type;
        if (is_asked_for && fields[i].field != &trio->ki_protected) /* which is newer, and read by Trio only */
            is_laid_out &= fields[i].field->offset >= 0;
    }
    trio->laid_out = result == 0 && is_laid_out ? trio->task_type : NULL;
    Py_DECREF(status_type);
    if (result == 0 && (!PyDict_Check(trio->run_context) || !PyDict_Check(trio->instruments))) {
        PyErr_SetString(PyExc_TypeError, "run_context and instruments must be dicts");
        result = -1;
    }
    trio->bound = result == 0;
    return result;
}

/* Let go of the run.  Only constants are left: a call that is still parked may end with them. */
void gt_trio_unbind(gt_trio *trio)
{
    trio->bound = false;
    trio->entered = trio->stepped = NULL;
    Py_CLEAR(trio->parked);
    Py_CLEAR(trio->run_context);
    Py_CLEAR(trio->runner);
    Py_CLEAR(trio->main_task);
    Py_CLEAR(trio->instruments);
    Py_CLEAR(trio->reschedule);
    Py_CLEAR(trio->task_exited);
    Py_CLEAR(trio->runner_task_exited);
    Py_CLEAR(trio->unusual_yield);
    Py_CLEAR(trio->step_observed);
    Py_CLEAR(trio->current_time);
    Py_CLEAR(trio->currently_ki_protected);
    Py_CLEAR(trio->run_queue);
    Py_CLEAR(trio->waiting_for_idle);
    Py_CLEAR(trio->deadlines);
}

void gt_trio_free(gt_trio *trio)
{
    gt_trio_unbind(trio);
    Py_CLEAR(trio->trap_type);
    Py_CLEAR(trio->checkpoint);
    trio->laid_out = NULL;
    Py_CLEAR(trio->task_type);
    Py_CLEAR(trio->abort_succeeded);
    Py_CLEAR(trio->woken);
    Py_CLEAR(trio->infinity);
    gt_field *fields[] = {&trio->coro,
                          &trio->context,
                          &trio->abort_func,
                          &trio->custom_sleep_data,
                          &trio->next_send_fn,
                          &trio->cancel_points,
                          &trio->schedule_points,
                          &trio->cancel_status,
                          &trio->ki_protected,
                          &trio->effectively_cancelled,
                          &trio->ki_pending,
                          &trio->autojump_threshold,
                          &trio->deadline_heap};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        Py_CLEAR(fields[i]->name);
}

int gt_trio_traverse(gt_trio *trio, visitproc visit, void *arg)
{
    Py_VISIT(trio->parked);
    Py_VISIT(trio->run_context);
    Py_VISIT(trio->runner);
    Py_VISIT(trio->main_task);
    Py_VISIT(trio->instruments);
    Py_VISIT(trio->trap_type);
    Py_VISIT(trio->checkpoint);
    Py_VISIT(trio->task_type);
    Py_VISIT(trio->abort_succeeded);
    Py_VISIT(trio->woken);
    Py_VISIT(trio->reschedule);
    Py_VISIT(trio->task_exited);
    Py_VISIT(trio->runner_task_exited);
    Py_VISIT(trio->unusual_yield);
    Py_VISIT(trio->step_observed);
    Py_VISIT(trio->current_time);
    Py_VISIT(trio->currently_ki_protected);
    Py_VISIT(trio->run_queue);
    Py_VISIT(trio->waiting_for_idle);
    Py_VISIT(trio->deadlines);
    Py_VISIT(trio->infinity);
    return 0;
}

/* --- the state of the run --- */

PyObject *gt_trio_current_task(gt_trio *trio)
{
    if (trio->stepped) /* it is in the run context, too, where a look costs a tenth of a small message */
        return trio->stepped;
    PyObject *task = trio->bound ? PyDict_GetItemWithError(trio->run_context, name_task) : NULL;
    if (!task && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError,
                        "must be called from async context, in the run that the connection belongs to");
    return task;
}

/* Is a task being stepped in this thread?  Else it is the host's code, or a finalizer, that runs. */
bool gt_trio_is_in_task(const gt_trio *trio)
{
    if (!trio->bound)
        return false;
    return PyDict_Contains(trio->run_context, name_task) == 1; /* a name: comparing it cannot fail */
}

static GT_COLD int ask_for_keyboard_interrupt(gt_trio *trio, PyObject *task)
{
    if (!trio->main_task) {
        PyObject *main_task = PyObject_GetAttr(trio->runner, name_main_task);
        if (!main_task)
            return -1;
        if (main_task != Py_None)
            trio->main_task = main_task;
        else
            Py_DECREF(main_task);
    }
    if (task != trio->main_task)
        return 0;
    PyObject *pending = gt_field_get(&trio->ki_pending, trio->runner);
    if (!pending)
        return -1;
    int result = PyObject_IsTrue(pending);
    Py_DECREF(pending);
    return result;
}

/* Only the main task is ever interrupted, and it is the same one for the whole run once there is one. */
static inline int keyboard_interrupt_is_pending(gt_trio *trio, PyObject *task)
{
    const bool is_known =
        trio->main_task && (task != trio->main_task || gt_field_peek(&trio->ki_pending, trio->runner) == Py_False);
    return is_known ? 0 : ask_for_keyboard_interrupt(trio, task);
}

static GT_COLD int ask_for_cancel(gt_trio *trio, PyObject *task)
{
    PyObject *status = gt_field_get(&trio->cancel_status, task);
    if (!status)
        return -1;
    PyObject *cancelled = gt_field_get(&trio->effectively_cancelled, status);
    Py_DECREF(status);
    if (!cancelled)
        return -1;
    int result = PyObject_IsTrue(cancelled);
    Py_DECREF(cancelled);
    return result;
}

static inline int cancel_is_effective(gt_trio *trio, PyObject *task)
{
    PyObject *status = gt_trio_knows_layout(trio, task) ? *gt_field_place(&trio->cancel_status, task) : NULL;
    return status && gt_field_peek(&trio->effectively_cancelled, status) == Py_False ? 0 : ask_for_cancel(trio, task);
}

int gt_trio_cancel_is_pending(gt_trio *trio, PyObject *task)
{
    int result = cancel_is_effective(trio, task);
    return result == 0 ? keyboard_interrupt_is_pending(trio, task) : result;
}

int gt_trio_count_cancel_point(gt_trio *trio, PyObject *task) { return gt_field_increment(&trio->cancel_points, task); }

int gt_trio_is_protected_as(gt_trio *trio, PyObject *task)
{
    const PyObject *own = gt_field_peek(&trio->ki_protected, task);
    if (!own)
        return 0;
    PyObject *now = PyObject_CallNoArgs(trio->currently_ki_protected);
    if (!now)
        return -1;
    const int result = (now == Py_True) == (own == Py_True);
    Py_DECREF(now);
    return result;
}

/* Is there an instrument to which a step made here would look different from one made by Trio's loop? */
bool gt_trio_is_observed(gt_trio *trio)
{
    if (PyDict_GET_SIZE(trio->instruments) <= 1) /* "_all" is always there */
        return false;
    for (size_t i = 0; i < sizeof observing_hooks / sizeof observing_hooks[0]; i++) {
        int found = PyDict_Contains(trio->instruments, observing_hooks[i]);
        if (found < 0)
            PyErr_Clear(); /* cannot happen with interned strings; Trio's scheduler is right in any case */
        if (found != 0)
            return true;
    }
    return false;
}

/* --- lingering --- */

#define MAX_NEW_DEADLINES 256

/* The entry on top of the heap of deadlines, owned, or NULL; their number; -1 on error. */
int gt_trio_note_deadlines(gt_trio *trio, gt_deadlines *found)
{
    PyObject *heap = Py_XNewRef(gt_field_peek(&trio->deadline_heap, trio->deadlines));
    if (!heap && !(heap = gt_field_get(&trio->deadline_heap, trio->deadlines)))
        return -1;
    if (!PyList_Check(heap)) {
        PyErr_SetString(PyExc_TypeError, "Trio's heap of deadlines is not a list");
        Py_DECREF(heap);
        return -1;
    }
    found->count = PyList_GET_SIZE(heap);
    found->earliest = found->count > 0 ? Py_NewRef(PyList_GET_ITEM(heap, 0)) : NULL;
    Py_DECREF(heap);
    return 0;
}

static int jumps(gt_trio *trio)
{
    if (gt_field_peek(&trio->autojump_threshold, trio->runner) == trio->infinity)
        return 0;
    PyObject *threshold = gt_field_get(&trio->autojump_threshold, trio->runner);
    int result = threshold ? PyObject_RichCompareBool(threshold, trio->infinity, Py_NE) : -1;
    Py_XDECREF(threshold);
    return result;
}

/* 1 when Trio's loop would only wait again, and for as long as it does now; 0 when not; -1 on error. */
int gt_trio_can_linger(gt_trio *trio, const gt_deadlines *noted)
{
    if (!trio->may_linger || gt_trio_is_observed(trio))
        return 0;
    Py_ssize_t scheduled = PyObject_Size(trio->run_queue);
    Py_ssize_t idlers = PyObject_Size(trio->waiting_for_idle);
    if (scheduled != 0 || idlers != 0)
        return scheduled < 0 || idlers < 0 ? -1 : 0;
    int jumping = jumps(trio);
    if (jumping != 0)
        return jumping < 0 ? -1 : 0;
    gt_deadlines now;
    if (gt_trio_note_deadlines(trio, &now) < 0)
        return -1;
    bool same = now.earliest == noted->earliest && now.count < noted->count + MAX_NEW_DEADLINES;
    Py_XDECREF(now.earliest);
    return same;
}

/* --- resuming --- */

/* A task that is scheduled already looks by itself; Trio schedules no task twice.  A task that is not parked with `abort` gets
 * an outcome of its own: the call that it is parked in unwraps it, and an Outcome can be unwrapped once. */
int gt_trio_reschedule(gt_trio *trio, PyObject *task, PyObject *abort)
{
    int idle = gt_field_is(&trio->next_send_fn, task, Py_None);
    if (idle <= 0)
        return idle;
    int parked = gt_field_is(&trio->abort_func, task, abort);
    if (parked < 0)
        return -1;
    PyObject *result = PyObject_CallFunctionObjArgs(trio->reschedule, task, parked ? trio->woken : NULL, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int call_and_drop(PyObject *function, PyObject *first, PyObject *second, PyObject *third)
{
    PyObject *result = PyObject_CallFunctionObjArgs(function, first, second, third, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int call_method_and_drop(PyObject *object, PyObject *name)
{
    PyObject *result = PyObject_CallMethodNoArgs(object, name);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int task_returned(gt_trio *trio, PyObject *task, PyObject *value)
{
    /* Trio unwraps the outcomes of the main task and of its own init task alone, so one object will do for all others that
     * return nothing. */
    const bool is_usual = value == Py_None && trio->main_task && task != trio->main_task;
    int result = is_usual ? call_and_drop(trio->runner_task_exited, task, trio->woken, NULL)
                          : call_and_drop(trio->task_exited, task, value, Py_None);
    Py_DECREF(value);
    return result;
}

static int task_raised(gt_trio *trio, PyObject *task)
{
    PyObject *exception = gt_take_exception();
    int result = call_and_drop(trio->task_exited, task, Py_None, exception);
    Py_DECREF(exception);
    return result;
}

/* The abort function of a trap, owned.  Nearly always it is the trap that the call that parked last has yielded. */
static PyObject *abort_of(const gt_trio *trio, PyObject *trap)
{
    if (trio->parked && trap == trio->parked->trap)
        return Py_NewRef((PyObject *)trio->parked);
    return PyObject_GetAttr(trap, name_abort_func);
}

/* A counter of a task whose layout is known. */
static inline int count_up(const gt_field *field, PyObject *task)
{
    return gt_increment_in_place(*gt_field_place(field, task)) ? 0 : gt_field_increment(field, task);
}

static int task_waits(gt_trio *trio, PyObject *task, PyObject *trap)
{
    PyObject *abort = abort_of(trio, trap);
    if (!abort)
        return -1;
    Py_XSETREF(*gt_field_place(&trio->abort_func, task), abort);
    if (count_up(&trio->cancel_points, task) < 0)
        return -1;
    /* A KeyboardInterrupt is outside all cancel scopes, so it comes first. */
    int interrupted = keyboard_interrupt_is_pending(trio, task);
    if (GT_UNLIKELY(interrupted) && (interrupted < 0 || call_method_and_drop(task, name_attempt_ki) < 0))
        return -1;
    int cancelled = cancel_is_effective(trio, task);
    if (GT_UNLIKELY(cancelled) && (cancelled < 0 || call_method_and_drop(task, name_attempt_cancel) < 0))
        return -1;
    return 0;
}

static int task_yielded(gt_trio *trio, PyObject *task, PyObject *message, bool *waits)
{
    int result = count_up(&trio->schedule_points, task);
    *waits = (PyObject *)Py_TYPE(message) == trio->trap_type;
    if (result == 0) {
        if (*waits)
            result = task_waits(trio, task, message);
        else
            result = call_and_drop(trio->unusual_yield, task, message, NULL);
    }
    Py_DECREF(message);
    return result;
}

/* One step of `coro` inside `context`, as Context.run(coro.send, None) would make it, or of the call that is delivered by itself. */
static int step_in_context(PyObject *coro, PyObject *context, gt_call *delivers, PySendResult *sent, PyObject **result)
{
    if (GT_UNLIKELY(PyContext_Enter(context) < 0))
        return -1;
    const bool waits = delivers && delivers->kind->deliver(delivers, coro, result);
    *sent = waits ? PYGEN_NEXT : Py_TYPE(coro)->tp_as_async->am_send(coro, Py_None, result); /* see gt_trio_resume() */
    PyObject *exception = GT_UNLIKELY(*sent == PYGEN_ERROR) ? gt_take_exception() : NULL;
    if (GT_UNLIKELY(PyContext_Exit(context) < 0)) {
        Py_XDECREF(exception);
        Py_CLEAR(*result);
        return -1;
    }
    if (GT_UNLIKELY(exception))
        gt_restore_exception(exception);
    return 0;
}

static int enter_task(gt_trio *trio, PyObject *task)
{
    if (trio->entered == task) /* with one busy connection it is always the same one */
        return 0;
    if (PyDict_SetItem(trio->run_context, name_task, task) < 0)
        return -1;
    trio->entered = task;
    return 0;
}

static void set_none(const gt_field *field, PyObject *object)
{
    PyObject **place = gt_field_place(field, object);
    if (*place != Py_None)
        Py_XSETREF(*place, Py_NewRef(Py_None));
}

GT_INLINED int step(gt_trio *trio, PyObject *task, PyObject *coro, PyObject *context, gt_call *delivers)
{
    set_none(&trio->abort_func, task);
    set_none(&trio->custom_sleep_data, task);
    if (enter_task(trio, task) < 0)
        return -1;
    bool waits = false; /* else it may have exited, and no code may take it for the current task */
    PySendResult sent = PYGEN_ERROR;
    PyObject *value = NULL;
    trio->stepped = task;
    int result = step_in_context(coro, context, delivers, &sent, &value);
    trio->stepped = NULL;
    if (result == 0) {
        if (sent == PYGEN_NEXT)
            result = task_yielded(trio, task, value, &waits);
        else if (sent == PYGEN_RETURN)
            result = task_returned(trio, task, value);
        else
            result = task_raised(trio, task);
    }
    if (result == 0 && gt_trio_is_observed(trio)) /* it was not when the step began */
        result = call_and_drop(trio->step_observed, task, NULL, NULL);
    if (result == 0 && !waits)
        result = gt_trio_leave_task(trio);
    return result; /* -1: Trio itself is broken, and the run ends with TrioInternalError */
}

int gt_trio_leave_task(gt_trio *trio)
{
    if (!trio->entered)
        return 0;
    trio->entered = NULL;
    return PyDict_DelItem(trio->run_context, name_task);
}

/* Resume a task that was parked by this waiter.  1: stepped, 0: it has to go through Trio's scheduler, -1: error. */
int gt_trio_resume(gt_trio *trio, PyObject *task, gt_waiter *waiter)
{
    if (GT_UNLIKELY(!gt_trio_knows_layout(trio, task) || gt_trio_is_observed(trio)))
        return 0;
    /* Else a program drives our awaitables itself, or has rescheduled a task of ours. */
    if (GT_UNLIKELY(*gt_field_place(&trio->next_send_fn, task) != Py_None ||
                    *gt_field_place(&trio->abort_func, task) != (PyObject *)waiter))
        return 0;
    PyObject *coro = *gt_field_place(&trio->coro, task), *context = *gt_field_place(&trio->context, task);
    if (GT_UNLIKELY(!coro || !(PyCoro_CheckExact(coro) || Py_IS_TYPE(coro, &gt_handler_type)) || !context))
        return 0;
    gt_call *delivers = waiter->call->kind->deliver ? waiter->call : NULL;
    Py_INCREF(coro);
    Py_INCREF(context);
    Py_XINCREF(delivers); /* a finalizer may end it, and the waiter have another one then */
    const int result = step(trio, task, coro, context, delivers);
    Py_XDECREF(delivers);
    Py_DECREF(context);
    Py_DECREF(coro);
    return result < 0 ? -1 : 1;
}
