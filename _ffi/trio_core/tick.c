/* tick.c: from one batch to the next.
 *
 * Stands for, in trio/_core/_run.py:
 *     unrolled_run       the loop `while runner.tasks:`, from one batch of steps to the next
 *     run                runner.io_manager.get_events(timeout)
 *
 * for as long as nothing is unusual: there is no instrument, no guest, no task that waits for the run to fall idle, and the
 * clock is the system's and does not jump.  All of that is looked at again before each tick, because the tasks of a batch
 * can change it.  At the first thing that is unusual Trio's own loop goes on; it begins a tick with nothing left over.
 *
 *     unrolled_run                               here
 *     ----------------------------------------   -------------------------------------------------------------------
 *     timeout                                    0 with tasks on the run queue, else deadlines.next_deadline() and the clock
 *     get_events(), process_events()             called by name: any I/O manager; what get_events() raises is raised by run()
 *     deadlines.expire(now)                      called only when a deadline has passed, or the heap is due for pruning
 *     batch = list(runq), _r.random() < 0.5      the same; with _ALLOW_DETERMINISTIC_SCHEDULING it is Trio's to do
 */
#include "core.h"

#define MAX_TIMEOUT 86400.0 /* _MAX_TIMEOUT */

/* 1: this tick can be made here, 0: it cannot, -1: exception set */
static int is_usual(PyObject *runner)
{
    if (tc_get(tc_core.runner.is_guest, runner) != Py_False ||
        !Py_IS_TYPE(tc_get(tc_core.runner.clock, runner), tc_core.system_clock_type))
        return 0;
    PyObject *hooks = tc_hooks(runner);
    if (!hooks)
        return -1;
    bool observed = PyDict_GET_SIZE(hooks) > 1;
    Py_DECREF(hooks);
    PyObject *tasks = tc_get(tc_core.runner.tasks, runner);
    if (observed || !PySet_Check(tasks) || PySet_GET_SIZE(tasks) == 0)
        return 0;
    Py_ssize_t idlers = PyObject_Size(tc_get(tc_core.runner.waiting_for_idle, runner));
    if (idlers != 0)
        return idlers < 0 ? -1 : 0;
    PyObject *threshold = tc_get(tc_core.runner.autojump_threshold, runner);
    int jumps = threshold == tc_core.infinity ? 0 : PyObject_RichCompareBool(threshold, tc_core.infinity, Py_NE);
    if (jumps != 0)
        return jumps < 0 ? -1 : 0;
    PyObject *ordered = PyDict_GetItemWithError(tc_core.run_module, tc_names._ALLOW_DETERMINISTIC_SCHEDULING);
    return ordered == Py_False ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* A number that a method without arguments returns.  -1 with an exception set, and only then an exception is set. */
static double ask(PyObject *object, PyObject *method)
{
    Py_INCREF(object);
    PyObject *answer = PyObject_CallMethodNoArgs(object, method);
    Py_DECREF(object);
    double number = answer ? PyFloat_AsDouble(answer) : -1.0;
    Py_XDECREF(answer);
    return number;
}

static double get_timeout(PyObject *runner, Py_ssize_t scheduled)
{
    if (scheduled > 0)
        return 0;
    double deadline = ask(tc_get(tc_core.runner.deadlines, runner), tc_names.next_deadline);
    if (PyErr_Occurred())
        return -1;
    if (deadline == Py_HUGE_VAL)
        return MAX_TIMEOUT;
    double timeout = deadline - ask(tc_get(tc_core.runner.clock, runner), tc_names.current_time);
    return PyErr_Occurred() ? -1 : timeout <= 0 ? 0 : timeout < MAX_TIMEOUT ? timeout : MAX_TIMEOUT;
}

/* A wait has raised, with the exception that is set: that comes out of run() as it is, and not as an error of Trio's. */
static int end_run(PyObject *runner)
{
    PyObject *exception = gt_take_exception();
    PyObject *outcome = PyObject_CallOneArg(tc_core.error_type, exception);
    Py_DECREF(exception);
    if (!outcome)
        return -1;
    tc_give(tc_core.runner.main_task_outcome, runner, outcome);
    return 1;
}

/* 0, 1 when the run is over, -1 */
static int wait_for_events(PyObject *runner, double timeout)
{
    PyObject *manager = Py_NewRef(tc_get(tc_core.runner.io_manager, runner));
    PyObject *argument = timeout == 0 ? PyLong_FromLong(0) : PyFloat_FromDouble(timeout);
    PyObject *events = argument ? PyObject_CallMethodOneArg(manager, tc_names.get_events, argument) : NULL;
    int result = -1;
    if (events)
        result = tc_drop(PyObject_CallMethodOneArg(manager, tc_names.process_events, events));
    else if (argument)
        result = end_run(runner);
    Py_XDECREF(argument);
    Py_XDECREF(events);
    Py_DECREF(manager);
    return result;
}

/* Cancel the scopes whose deadline has passed. */
static int expire(PyObject *runner)
{
    PyObject *deadlines = tc_get(tc_core.runner.deadlines, runner);
    PyObject *heap = tc_get(tc_core.deadlines.heap, deadlines);
    Py_ssize_t length = PyList_CheckExact(heap) ? PyList_GET_SIZE(heap) : -1;
    if (length == 0)
        return 0;
    PyObject *entry = length > 0 ? PyList_GET_ITEM(heap, 0) : NULL;
    PyObject *first =
        entry && PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) > 0 ? PyTuple_GET_ITEM(entry, 0) : NULL;
    if (!first || !(PyFloat_CheckExact(first) || PyLong_CheckExact(first))) {
        PyErr_SetString(PyExc_TypeError, "Trio's heap of deadlines is not a list of tuples");
        return -1;
    }
    double earliest = PyFloat_AsDouble(first);
    long active = PyLong_AsLong(tc_get(tc_core.deadlines.active, deadlines));
    if (PyErr_Occurred())
        return -1;
    double now = ask(tc_get(tc_core.runner.clock, runner), tc_names.current_time);
    if (PyErr_Occurred())
        return -1;
    if (earliest > now && length <= active * 2 + tc_core.prune_threshold)
        return 0;
    PyObject *time = PyFloat_FromDouble(now);
    if (!time)
        return -1;
    deadlines = Py_NewRef(tc_get(tc_core.runner.deadlines, runner));
    int result = tc_drop(PyObject_CallMethodOneArg(deadlines, tc_names.expire, time));
    Py_DECREF(deadlines);
    Py_DECREF(time);
    return result;
}

/* What is on the run queue, in the order of the steps: a new list. */
static PyObject *take_batch(PyObject *runner)
{
    PyObject *queue = Py_NewRef(tc_get(tc_core.runner.runq, runner));
    PyObject *batch = PySequence_List(queue);
    if (batch && tc_drop(PyObject_CallMethodNoArgs(queue, tc_names.clear)) < 0)
        Py_CLEAR(batch);
    Py_DECREF(queue);
    PyObject *random = batch ? PyDict_GetItemWithError(tc_core.run_module, tc_names._r) : NULL;
    if (!random) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "Trio has no random numbers");
        Py_XDECREF(batch);
        return NULL;
    }
    double number = ask(random, tc_names.random);
    if (PyErr_Occurred() || (number < 0.5 && PyList_Reverse(batch) < 0))
        Py_CLEAR(batch);
    return batch;
}

/* One tick.  0, 1 when the run is over, -1 */
static int tick(PyObject *runner)
{
    Py_ssize_t scheduled = PyObject_Size(tc_get(tc_core.runner.runq, runner));
    double timeout = scheduled < 0 ? -1 : get_timeout(runner, scheduled);
    int waited = timeout < 0 ? -1 : wait_for_events(runner, timeout);
    if (waited != 0)
        return waited;
    PyObject *batch = expire(runner) < 0 ? NULL : take_batch(runner);
    int result = batch ? tc_run_batch(runner, batch) : -1;
    Py_XDECREF(batch);
    return result;
}

/* tick_batch(runner, batch): the batch, and then tick after tick, until Trio's loop is to make the next one.  Whether the run
 * is over. */
PyObject *tc_tick_batch(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (!tc_check_batch(arguments, count))
        return NULL;
    PyObject *runner = arguments[0];
    int usual, result = tc_run_batch(runner, arguments[1]);
    while (result == 0 && (usual = is_usual(runner)) != 0)
        result = usual < 0 ? -1 : tick(runner);
    return result < 0 ? NULL : PyBool_FromLong(result);
}
