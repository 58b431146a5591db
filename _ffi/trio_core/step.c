/* step.c: one batch of steps, and putting a task on the run queue.
 *
 * Stands for, in trio/_core/_run.py:
 *     unrolled_run       the loop `while batch:`, and nothing else of it
 *     Runner.reschedule
 *
 *     unrolled_run                               here
 *     ----------------------------------------   ------------------------------------------------------------------
 *     while batch: task = batch.pop()            the same, while all that a step calls is Trio's; signals are looked for before each step, and after the last
 *                                                one, as Python does it at the end of each turn of the loop, in the
 *                                                frame of unrolled_run, which is protected: later, in the frame of the
 *                                                next task, Ctrl-C would interrupt whichever task that is
 *     GLOBAL_RUN_CONTEXT.task = task             set; deleted when the task has exited and after the last step, but not
 *                                                between two steps, because a dict that grows and shrinks is resized
 *                                                all the time
 *     task.context.run(next_send_fn, next_send)  PyContext_Enter, PyIter_Send, PyContext_Exit; another function than
 *                                                the send() of the task's own coroutine is called as Trio calls it
 *     the traceback without its top frames       has no such frames
 *     task_exited()                              called by name, so that it is Trio's or spawn.c's
 *     messages                                   in the same order; an unknown one is the seam's
 */
#include "core.h"

/* --- Runner.reschedule --- */

/* coro.send.  The type of native coroutines cannot be changed, so their methods need no looking up. */
static PyObject *send_of(PyObject *coro)
{
    return PyCoro_CheckExact(coro) ? PyCFunction_NewEx(tc_core.coroutine_send, coro, NULL)
                                   : PyObject_GetAttr(coro, tc_names.send);
}

/* Put a task on the run queue that is not on it.  Takes the references to `send` and `outcome`.  0 or -1 */
static int schedule(PyObject *runner, PyObject *hooks, PyObject *task, PyObject *send, PyObject *outcome)
{
    if (!send || !outcome) {
        Py_XDECREF(send);
        Py_XDECREF(outcome);
        return -1;
    }
    PyObject *queue = Py_NewRef(tc_get(tc_core.runner.runq, runner));
    tc_give(tc_core.task.next_send_fn, task, send);
    tc_give(tc_core.task.next_send, task, outcome);
    tc_set(tc_core.task.abort_func, task, Py_None);
    tc_set(tc_core.task.custom_sleep_data, task, Py_None);
    int result = 0;
    if (tc_get(tc_core.runner.is_guest, runner) != Py_False) {
        Py_ssize_t length = PyObject_Size(queue);
        if (length == 0)
            result = tc_drop(PyObject_CallMethodNoArgs(runner, tc_names.force_guest_tick_asap));
        else if (length < 0)
            result = -1;
    }
    if (result == 0)
        result = tc_append(queue, task);
    Py_DECREF(queue);
    return result == 0 ? tc_observe(runner, hooks, tc_names.task_scheduled, task) : -1;
}

int tc_reschedule(PyObject *runner, PyObject *task, PyObject *next_send)
{
    if (!Py_IS_TYPE(runner, tc_core.runner_type) || !Py_IS_TYPE(task, tc_core.task_type) ||
        tc_get(tc_core.task.runner, task) != runner || tc_get(tc_core.task.next_send_fn, task) != Py_None)
        return 0;
    PyObject *hooks = tc_hooks(runner);
    if (!hooks)
        return -1;
    PyObject *send = send_of(tc_get(tc_core.task.coro, task));
    PyObject *outcome = !send ? NULL : next_send ? Py_NewRef(next_send) : tc_value(Py_None);
    int result = schedule(runner, hooks, task, send, outcome);
    Py_DECREF(hooks);
    return result < 0 ? -1 : 1;
}

/* reschedule(runner, task, next_send): True, or False for Trio to do it. */
PyObject *tc_step_reschedule(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !tc_intact(TC_step))
        Py_RETURN_FALSE;
    int result = tc_reschedule(arguments[0], arguments[1], arguments[2] == tc_core.no_send ? NULL : arguments[2]);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

/* --- one step --- */

static bool is_send_of(PyObject *function, PyObject *coro)
{
    return PyCFunction_CheckExact(function) && PyCFunction_GET_SELF(function) == coro && PyCoro_CheckExact(coro) &&
           ((PyCFunctionObject *)function)->m_ml == tc_core.coroutine_send;
}

/* Call function(message), which is coro.send almost always.  PYGEN_ERROR: exception set. */
static PySendResult resume(PyObject *function, PyObject *message, PyObject *coro, PyObject **value)
{
    if (is_send_of(function, coro))
        return PyIter_Send(coro, message, value);
    *value = PyObject_CallOneArg(function, message);
    if (*value)
        return PYGEN_NEXT;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration))
        return PYGEN_ERROR;
    PyObject *stop = gt_take_exception();
    PyObject *returned = ((PyStopIterationObject *)stop)->value;
    *value = Py_NewRef(returned ? returned : Py_None);
    Py_DECREF(stop);
    return PYGEN_RETURN;
}

static PySendResult resume_in_context(PyObject *context, PyObject *function, PyObject *message, PyObject *coro,
                                      PyObject **value)
{
    if (PyContext_Enter(context) < 0)
        return PYGEN_ERROR;
    PySendResult sent = resume(function, message, coro, value);
    PyObject *exception = sent == PYGEN_ERROR ? gt_take_exception() : NULL;
    if (PyContext_Exit(context) < 0) {
        Py_XDECREF(exception);
        Py_CLEAR(*value);
        return PYGEN_ERROR;
    }
    if (exception)
        gt_restore_exception(exception);
    return sent;
}

static int call_task_exited(PyObject *runner, PyObject *task, PyObject *outcome)
{
    if (!outcome)
        return -1;
    PyObject *arguments[] = {runner, task, outcome};
    PyObject *result = PyObject_VectorcallMethod(tc_names.task_exited, arguments, 3, NULL);
    Py_DECREF(outcome);
    return tc_drop(result);
}

static int task_waits(PyObject *runner, PyObject *task, PyObject *trap, bool own)
{
    PyObject *abort_func = PyObject_GetAttr(trap, tc_names.abort_func);
    if (!abort_func || tc_add(tc_core.task.cancel_points, task, 1) < 0) {
        Py_XDECREF(abort_func);
        return -1;
    }
    tc_give(tc_core.task.abort_func, task, abort_func);
    if (task == tc_get(tc_core.runner.main_task, runner)) {
        int interrupted = tc_is_true(tc_get(tc_core.runner.ki_pending, runner));
        /* A KeyboardInterrupt is outside all cancel scopes, so it comes first. */
        if (interrupted < 0 ||
            (interrupted && tc_drop(PyObject_CallMethodNoArgs(task, tc_names._attempt_delivery_of_pending_ki)) < 0))
            return -1;
    }
    PyObject *status = tc_get(tc_core.task.cancel_status, task);
    if (own && Py_IS_TYPE(status, tc_core.status_type) &&
        tc_get(tc_core.status.effectively_cancelled, status) == Py_False)
        return 0;
    return tc_drop(PyObject_CallMethodNoArgs(task, tc_names._attempt_delivery_of_any_pending_cancel));
}

/* Outcome.Value(None), while outcomes are intact: `used`, if it is one that only its caller still has. */
static PyObject *value_of_none(PyObject *used)
{
    Py_ssize_t weak = tc_core.value_type->tp_weaklistoffset;
    if (Py_REFCNT(used) != 1 || !Py_IS_TYPE(used, tc_core.value_type) || (weak && *(PyObject **)((char *)used + weak)))
        return tc_value(Py_None);
    tc_set(tc_core.value.unwrapped, used, Py_False);
    tc_set(tc_core.value.value, used, Py_None);
    return Py_NewRef(used);
}

/* What the step has replaced of Trio's is called for it. */
static int reschedule_by_name(PyObject *runner, PyObject *task)
{
    return tc_drop(PyObject_CallMethodOneArg(runner, tc_names.reschedule, task));
}

/* Value(value) or Error(exception), likewise. */
static PyObject *outcome_by_name(PyObject *name, PyObject *value)
{
    PyObject *type = PyDict_GetItemWithError(tc_core.run_module, name);
    if (!type) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "Trio has lost its outcomes");
        return NULL;
    }
    Py_INCREF(type);
    PyObject *outcome = PyObject_CallOneArg(type, value);
    Py_DECREF(type);
    return outcome;
}

/* A schedule point.  `function` is what resumed the task, and does so again when it is its coroutine's own; `used` is what the
 * task was resumed with. */
static int task_passes(PyObject *runner, PyObject *hooks, PyObject *task, PyObject *function, PyObject *used)
{
    PyObject *coro = tc_get(tc_core.task.coro, task);
    if (tc_get(tc_core.task.next_send_fn, task) != Py_None || tc_get(tc_core.task.runner, task) != runner) {
        PyErr_SetString(PyExc_AssertionError, "a task that is to be scheduled is scheduled already");
        return -1;
    }
    PyObject *send = is_send_of(function, coro) ? Py_NewRef(function) : send_of(coro);
    return schedule(runner, hooks, task, send, send ? value_of_none(used) : NULL);
}

static int task_yielded(PyObject *runner, PyObject *hooks, PyObject *task, PyObject *message, PyObject *function,
                        PyObject *used)
{
    bool own = tc_intact(TC_step);
    if (tc_add(tc_core.task.schedule_points, task, 1) < 0)
        return -1;
    if (message == tc_core.checkpoint_message)
        return own ? task_passes(runner, hooks, task, function, used) : reschedule_by_name(runner, task);
    if ((PyObject *)Py_TYPE(message) == tc_core.trap_type)
        return task_waits(runner, task, message, own);
    if ((PyObject *)Py_TYPE(message) == tc_core.detach_type)
        return call_task_exited(runner, task, PyObject_GetAttr(message, tc_names.final_outcome));
    return tc_drop(PyObject_CallFunctionObjArgs(tc_core.unusual_yield, runner, task, message, NULL));
}

static int task_raised(PyObject *runner, PyObject *task)
{
    PyObject *exception = gt_take_exception();
    PyObject *outcome = outcome_by_name(tc_names.Error, exception);
    Py_DECREF(exception);
    return call_task_exited(runner, task, outcome);
}

/* The part of a step that runs the task. */
static int run_task(PyObject *runner, PyObject *hooks, PyObject *task, bool *exited)
{
    PyObject *function = tc_get(tc_core.task.next_send_fn, task);
    if (function == Py_None) {
        PyErr_SetString(PyExc_AssertionError, "a task on the run queue has nothing to be resumed with");
        return -1;
    }
    PyObject *message = tc_get(tc_core.task.next_send, task);
    PyObject *coro = Py_NewRef(tc_get(tc_core.task.coro, task));
    PyObject *context = Py_NewRef(tc_get(tc_core.task.context, task));
    /* The references are the task's. */
    *(PyObject **)((char *)task + tc_core.task.next_send_fn) = Py_NewRef(Py_None);
    *(PyObject **)((char *)task + tc_core.task.next_send) = Py_NewRef(Py_None);
    PyObject *value = NULL;
    PySendResult sent = resume_in_context(context, function, message, coro, &value);
    Py_DECREF(context);
    Py_DECREF(coro);
    int result;
    *exited = sent != PYGEN_NEXT;
    if (sent == PYGEN_NEXT)
        result = task_yielded(runner, hooks, task, value, function, message);
    else if (sent == PYGEN_RETURN)
        result = call_task_exited(runner, task,
                                  tc_intact(TC_step) ? tc_value(value) : outcome_by_name(tc_names.Value, value));
    else
        result = task_raised(runner, task);
    Py_XDECREF(value);
    Py_DECREF(message); /* not before: the last reference to an outcome may be the last one to much else */
    Py_DECREF(function);
    return result;
}

static int leave_task(PyObject *context)
{
    if (PyDict_DelItem(context, tc_names.task) == 0)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_KeyError))
        return -1;
    PyErr_Clear();
    return 0;
}

static int step(PyObject *runner, PyObject *hooks, PyObject *context, PyObject *task)
{
    bool exited = false;
    int result = tc_set_current_task(context, task);
    if (result == 0)
        result = tc_observe(runner, hooks, tc_names.before_task_step, task);
    if (result == 0)
        result = run_task(runner, hooks, task, &exited);
    if (result == 0)
        result = tc_observe(runner, hooks, tc_names.after_task_step, task);
    if (result == 0 && exited)
        result = leave_task(context); /* no code may take it for the current task while it is finalized */
    return result;
}

/* list.pop(), for which there is no function.  The list keeps its room, as it does there. */
static PyObject *take_last(PyObject *list)
{
    Py_ssize_t last = PyList_GET_SIZE(list) - 1;
    PyObject *item = PyList_GET_ITEM(list, last);
    Py_SET_SIZE((PyVarObject *)list, last);
    return item; /* its reference was the list's */
}

/* Step the tasks of `batch`, a list that only the caller refers to, from its end.  0 or -1 */
static int run_all(PyObject *runner, PyObject *hooks, PyObject *context, PyObject *batch)
{
    int result = PyErr_CheckSignals();
    while (result == 0 && PyList_GET_SIZE(batch) > 0 && tc_intact(TC_step)) {
        PyObject *task = take_last(batch); /* the list does not keep a task that exits */
        if (!Py_IS_TYPE(task, tc_core.task_type)) {
            PyErr_SetString(PyExc_TypeError, "what is on the run queue is not a Trio task");
            result = -1;
        }
        if (result == 0)
            result = step(runner, hooks, context, task);
        Py_DECREF(task);
        if (result == 0)
            result = PyErr_CheckSignals();
    }
    return result == 0 ? leave_task(context) : -1;
}

int tc_run_batch(const tc_batches *batches, PyObject *batch)
{
    PyObject *context = tc_context();
    if (!context)
        return -1;
    Py_INCREF(context);
    int result = run_all(batches->runner, batches->hooks, context, batch);
    Py_DECREF(context);
    return result;
}

bool tc_check_batch(PyObject *const *arguments, Py_ssize_t count)
{
    if (count == 2 && Py_IS_TYPE(arguments[0], tc_core.runner_type) && PyList_CheckExact(arguments[1]))
        return true;
    PyErr_SetString(PyExc_TypeError, "a batch takes Trio's runner and a list of tasks");
    return false;
}

/* step_batch(runner, batch): whether the run is over, which it is not. */
PyObject *tc_step_batch(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    tc_batches batches;
    if (!tc_check_batch(arguments, count) || tc_begin_batches(&batches, arguments[0]) < 0)
        return NULL;
    int result = tc_run_batch(&batches, arguments[1]);
    tc_end_batches(&batches);
    return result < 0 ? NULL : Py_NewRef(Py_False);
}
