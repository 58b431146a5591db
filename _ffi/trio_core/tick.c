/* tick.c: from one batch to the next.
 *
 * Stands for, in trio/_core/_run.py:
 *     unrolled_run       the loop `while runner.tasks:`, from one batch of steps to the next
 *     run                runner.io_manager.get_events(timeout)
 *     Deadlines          next_deadline(), while the earliest is not stale; expire(), before the earliest
 *     SystemClock        current_time()
 *
 * for as long as nothing is unusual: there is no instrument, no guest, no task that waits for the run to fall idle, and the
 * clock is the system's and does not jump.  All of that is looked at again before each tick, because the tasks of a batch
 * can change it.  At the first thing that is unusual Trio's own loop goes on; it begins a tick with nothing left over.
 *
 *     unrolled_run                               here
 *     ----------------------------------------   -------------------------------------------------------------------
 *     timeout                                    0 with tasks on the run queue, else until the next deadline
 *     get_events(), process_events()             epoll.c for Trio's I/O manager, io_manager.c for gain_trio's, and those of any
 *                                                other by name; what get_events() raises is raised by run()
 *     deadlines.expire(now)                      called only when a deadline has passed, or the heap is due for pruning
 *     batch = list(runq), _r.random() < 0.5      the same; with _ALLOW_DETERMINISTIC_SCHEDULING it is Trio's to do
 */
#include "core.h"
#include "epoll.h"
#include "io_manager.h"

#define MAX_TIMEOUT 86400.0 /* _MAX_TIMEOUT */

/* 1: this tick can be made here, 0: it cannot, -1: exception set */
static int is_usual(PyObject *runner)
{
    if (tc_get(tc_core.runner.is_guest, runner) != Py_False || !tc_intact(TC_tick) || !tc_intact(TC_step) ||
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
    static tc_item known;
    PyObject *ordered = tc_find_item(&known, tc_core.run_module, tc_names._ALLOW_DETERMINISTIC_SCHEDULING);
    return ordered == Py_False ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* What `heap[0]` is: (deadline, identity, scope), borrowed.  NULL with an exception, or without one for an empty heap. */
static PyObject *earliest_entry(PyObject *deadlines)
{
    PyObject *heap = tc_get(tc_core.deadlines.heap, deadlines);
    if (PyList_CheckExact(heap) && PyList_GET_SIZE(heap) == 0)
        return NULL;
    PyObject *entry = PyList_CheckExact(heap) ? PyList_GET_ITEM(heap, 0) : NULL;
    if (entry && PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) == 3 &&
        Py_IS_TYPE(PyTuple_GET_ITEM(entry, 2), tc_core.scope_type) &&
        (PyFloat_CheckExact(PyTuple_GET_ITEM(entry, 0)) || PyLong_CheckExact(PyTuple_GET_ITEM(entry, 0))))
        return entry;
    PyErr_SetString(PyExc_TypeError, "Trio's heap of deadlines is not a list of tuples");
    return NULL;
}

/* -1 with an exception set, and only then an exception is set. */
static double next_deadline(PyObject *runner)
{
    PyObject *deadlines = tc_get(tc_core.runner.deadlines, runner), *entry = earliest_entry(deadlines);
    if (!entry)
        return PyErr_Occurred() ? -1 : Py_HUGE_VAL;
    PyObject *deadline = PyTuple_GET_ITEM(entry, 0);
    if (deadline == tc_get(tc_core.scope.registered_deadline, PyTuple_GET_ITEM(entry, 2)))
        return PyFloat_AsDouble(deadline);
    return tc_ask(deadlines, tc_names.next_deadline); /* it may be stale, and then Trio removes it */
}

static double get_timeout(PyObject *runner, Py_ssize_t scheduled)
{
    if (scheduled > 0)
        return 0;
    double deadline = next_deadline(runner);
    if (PyErr_Occurred())
        return -1;
    if (deadline == Py_HUGE_VAL)
        return MAX_TIMEOUT;
    double timeout = deadline - tc_now(runner);
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

/* get_events() and process_events() of any manager.  0; 1: the wait has raised, -1: the rest has; exception set for both. */
static int wait_by_name(PyObject *manager, PyObject *timeout)
{
    PyObject *events = PyObject_CallMethodOneArg(manager, tc_names.get_events, timeout);
    if (!events)
        return 1;
    int result = tc_drop(PyObject_CallMethodOneArg(manager, tc_names.process_events, events));
    Py_DECREF(events);
    return result;
}

/* 0, 1 when the run is over, -1 */
static int wait_for_events(PyObject *runner, double timeout)
{
    PyObject *manager = Py_NewRef(tc_get(tc_core.runner.io_manager, runner));
    int result;
    if (tc_core.in.epoll && tc_epoll_is_manager(manager)) {
        result = tc_epoll_tick(manager, timeout);
    } else {
        PyObject *argument = timeout == 0 ? PyLong_FromLong(0) : PyFloat_FromDouble(timeout);
        result = !argument                     ? -1
                 : tc_ring_is_manager(manager) ? tc_ring_tick(manager, argument)
                                               : wait_by_name(manager, argument);
        Py_XDECREF(argument);
    }
    Py_DECREF(manager);
    return result == 1 ? end_run(runner) : result;
}

/* Cancel the scopes whose deadline has passed. */
static int expire(PyObject *runner)
{
    PyObject *deadlines = tc_get(tc_core.runner.deadlines, runner), *entry = earliest_entry(deadlines);
    if (!entry)
        return PyErr_Occurred() ? -1 : 0;
    double earliest = PyFloat_AsDouble(PyTuple_GET_ITEM(entry, 0));
    Py_ssize_t length = PyList_GET_SIZE(tc_get(tc_core.deadlines.heap, deadlines));
    long active = PyLong_AsLong(tc_get(tc_core.deadlines.active, deadlines));
    double now = PyErr_Occurred() ? -1 : tc_now(runner);
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

/* list(queue), and queue.clear(): a new list. */
static PyObject *empty_queue(PyObject *queue)
{
    if (!tc_core.deque_popleft || !Py_IS_TYPE(queue, tc_core.deque_type)) {
        PyObject *tasks = PySequence_List(queue);
        if (tasks && tc_drop(PyObject_CallMethodNoArgs(queue, tc_names.clear)) < 0)
            Py_CLEAR(tasks);
        return tasks;
    }
    PyObject *tasks = PyList_New(Py_SIZE(queue)); /* it may collect garbage, and so wake a task */
    for (Py_ssize_t i = 0; tasks && i < PyList_GET_SIZE(tasks); i++) {
        PyObject *task = tc_core.deque_popleft(queue, NULL);
        if (!task)
            Py_CLEAR(tasks);
        else
            PyList_SET_ITEM(tasks, i, task);
    }
    return tasks;
}

/* What is on the run queue, in the order of the steps: a new list. */
static PyObject *take_batch(PyObject *runner)
{
    PyObject *queue = Py_NewRef(tc_get(tc_core.runner.runq, runner));
    PyObject *batch = empty_queue(queue);
    Py_DECREF(queue);
    static tc_item known;
    PyObject *random = batch ? tc_find_item(&known, tc_core.run_module, tc_names._r) : NULL;
    if (!random) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "Trio has no random numbers");
        Py_XDECREF(batch);
        return NULL;
    }
    double number = tc_ask(random, tc_names.random);
    if (PyErr_Occurred() || (number < 0.5 && PyList_Reverse(batch) < 0))
        Py_CLEAR(batch);
    return batch;
}

/* One tick.  What is left of its batch is put in `rest`, which is empty.  0, 1 when the run is over, -1 */
static int tick(const tc_batches *batches, PyObject *rest)
{
    PyObject *runner = batches->runner;
    Py_ssize_t scheduled = PyObject_Size(tc_get(tc_core.runner.runq, runner));
    double timeout = scheduled < 0 ? -1 : get_timeout(runner, scheduled);
    int waited = timeout < 0 ? -1 : wait_for_events(runner, timeout);
    if (waited != 0)
        return waited;
    PyObject *batch = expire(runner) < 0 ? NULL : take_batch(runner);
    int result = batch ? tc_run_batch(batches, batch) : -1;
    if (result == 0 && PyList_GET_SIZE(batch) > 0)
        result = PyList_SetSlice(rest, 0, 0, batch);
    Py_XDECREF(batch);
    return result;
}

/* tick_batch(runner, batch): the batch, and then tick after tick, until Trio's loop is to make the next one.  Whether the run
 * is over. */
PyObject *tc_tick_batch(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    tc_batches batches;
    if (!tc_check_batch(arguments, count) || tc_begin_batches(&batches, arguments[0]) < 0)
        return NULL;
    int usual, result = tc_run_batch(&batches, arguments[1]);
    while (result == 0 && PyList_GET_SIZE(arguments[1]) == 0 && (usual = is_usual(arguments[0])) != 0)
        result = usual < 0 ? -1 : tick(&batches, arguments[1]);
    tc_end_batches(&batches);
    return result < 0 ? NULL : PyBool_FromLong(result);
}
