/* run.c: what the other parts ask of a run, and of Trio's GLOBAL_RUN_CONTEXT. */
#include "core.h"

#if PY_VERSION_HEX < 0x030b0000
#include <longintrepr.h> /* Python.h has it from 3.11 on */
#endif

/* GLOBAL_RUN_CONTEXT is a threading.local; its dict in a thread is one object for as long as the thread state lives, and
 * looking it up is expensive.  This is the dict of the thread that asked last, which has the GIL for thousands of steps.  It is
 * borrowed: the thread state owns it, and the number of the thread state, which is never used twice, shows whether this is still
 * the same one. */
static struct {
    uint64_t thread_state;
    PyObject *dict;
} here;

/* The task that a step has put into such a dict. */
static tc_item current;

/* The run whose batches this thread makes, because the steps, the tasks that they spawn and those that end ask for the same dict.
 * Borrowed from the caller of tc_begin_batches(). */
static _Thread_local tc_batches batches_here;

PyObject *tc_context(void)
{
    uint64_t number = PyThreadState_Get()->id;
    if (here.dict && here.thread_state == number)
        return here.dict;
    PyObject *dict = PyObject_GetAttr(tc_core.run_context, tc_names.__dict__);
    if (!dict)
        return NULL;
    if (!PyDict_CheckExact(dict)) {
        PyErr_SetString(PyExc_TypeError, "Trio's run context has no dict");
        Py_DECREF(dict);
        return NULL;
    }
    here.dict = dict;
    here.thread_state = number;
    Py_DECREF(dict);
    return dict;
}

int tc_set_current_task(PyObject *context, PyObject *task)
{
    int result = PyDict_SetItem(context, tc_names.task, task);
    if (result == 0)
        tc_note_item(&current, context, task);
    return result;
}

PyObject *tc_current_task(void)
{
    PyObject *context = tc_context();
    PyObject *task = context ? tc_find_item(&current, context, tc_names.task) : NULL;
    if (!task) {
        PyErr_Clear(); /* Trio's own code, which comes next, raises what there is to raise */
        return NULL;
    }
    return Py_IS_TYPE(task, tc_core.task_type) && Py_IS_TYPE(tc_get(tc_core.task.runner, task), tc_core.runner_type)
               ? task
               : NULL;
}

int tc_is_cancelled(PyObject *task)
{
    PyObject *status = tc_get(tc_core.task.cancel_status, task);
    if (!Py_IS_TYPE(status, tc_core.status_type))
        return 1; /* the init task, between its nurseries: Trio's own code looks at it */
    int cancelled = tc_is_true(tc_get(tc_core.status.effectively_cancelled, status));
    if (cancelled != 0)
        return cancelled;
    PyObject *runner = tc_get(tc_core.task.runner, task);
    if (task != tc_get(tc_core.runner.main_task, runner))
        return 0;
    return tc_is_true(tc_get(tc_core.runner.ki_pending, runner));
}

double tc_ask(PyObject *object, PyObject *method)
{
    Py_INCREF(object);
    PyObject *answer = PyObject_CallMethodNoArgs(object, method);
    Py_DECREF(object);
    double number = answer ? PyFloat_AsDouble(answer) : -1.0;
    Py_XDECREF(answer);
    return number;
}

/* SystemClock.current_time(): self.offset + perf_counter() */
static double system_time(PyObject *clock)
{
    double offset = PyFloat_AsDouble(tc_get(tc_core.system_clock.offset, clock));
    static tc_item known;
    PyObject *counter = tc_find_item(&known, tc_core.run_module, tc_names.perf_counter);
    if (!counter && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "Trio has lost its clock");
    if (PyErr_Occurred())
        return -1;
    Py_INCREF(counter);
    PyObject *answer = PyObject_CallNoArgs(counter);
    Py_DECREF(counter);
    double seconds = answer ? PyFloat_AsDouble(answer) : -1.0;
    Py_XDECREF(answer);
    return PyErr_Occurred() ? -1 : offset + seconds;
}

double tc_now(PyObject *runner)
{
    PyObject *clock = tc_get(tc_core.runner.clock, runner);
    if (!tc_core.in.tick || !tc_intact(TC_tick) || !Py_IS_TYPE(clock, tc_core.system_clock_type) ||
        tc_core.system_clock.offset < 0)
        return tc_ask(clock, tc_names.current_time);
    Py_INCREF(clock);
    double now = system_time(clock);
    Py_DECREF(clock);
    return now;
}

PyObject *tc_hooks(PyObject *runner)
{
    PyObject *instruments = tc_get(tc_core.runner.instruments, runner);
    if (batches_here.hooks && batches_here.runner == runner && batches_here.instruments == instruments)
        return Py_NewRef(batches_here.hooks);
    if (PyDict_Check(instruments)) /* a dict before Trio 0.28, then a UserDict */
        return Py_NewRef(instruments);
    PyObject *hooks = PyObject_GetAttr(instruments, tc_names.data);
    if (hooks && !PyDict_Check(hooks)) {
        PyErr_SetString(PyExc_TypeError, "Trio's instruments are not in a dict");
        Py_CLEAR(hooks);
    }
    return hooks;
}

int tc_begin_batches(tc_batches *batches, PyObject *runner)
{
    batches->runner = runner;
    batches->hooks = tc_hooks(runner);
    if (!batches->hooks)
        return -1;
    batches->instruments = Py_NewRef(tc_get(tc_core.runner.instruments, runner));
    batches_here = *batches;
    return 0;
}

void tc_end_batches(tc_batches *batches)
{
    batches_here = (tc_batches){NULL, NULL, NULL};
    Py_CLEAR(batches->instruments);
    Py_CLEAR(batches->hooks);
}

int tc_observe(PyObject *runner, PyObject *hooks, PyObject *hook, PyObject *task)
{
    if (PyDict_GET_SIZE(hooks) <= 1) /* "_all" is always there */
        return 0;
    int there = PyDict_Contains(hooks, hook);
    if (there <= 0)
        return there;
    PyObject *instruments = Py_NewRef(tc_get(tc_core.runner.instruments, runner));
    PyObject *result = PyObject_CallMethodObjArgs(instruments, tc_names.call, hook, task, NULL);
    Py_DECREF(instruments);
    return tc_drop(result);
}

int tc_append(PyObject *queue, PyObject *item)
{
    if (tc_core.deque_append && Py_IS_TYPE(queue, tc_core.deque_type))
        return tc_drop(tc_core.deque_append(queue, item));
    return tc_drop(PyObject_CallMethodOneArg(queue, tc_names.append, item));
}

/* The only digit of a number that has one, and is positive; NULL for any other. */
static digit *digit_of(PyObject *number)
{
#if PY_VERSION_HEX >= 0x030f0000 ||                                                                                    \
    defined(Py_GIL_DISABLED) /* another layout, or a count of references that is split */
    (void)number;
    return NULL;
#elif PY_VERSION_HEX < 0x030c0000
    return Py_SIZE(number) == 1 ? ((PyLongObject *)number)->ob_digit : NULL;
#else
    PyLongObject *object = (PyLongObject *)number;
    return PyUnstable_Long_IsCompact(object) && PyUnstable_Long_CompactValue(object) > 0 ? object->long_value.ob_digit
                                                                                         : NULL;
#endif
}

#define GREATEST_SMALL 256 /* Python has one object for each number up to here */

int tc_add(tc_slot slot, PyObject *object, long difference)
{
    PyObject *old = tc_get(slot, object);
    digit *only = PyLong_CheckExact(old) ? digit_of(old) : NULL;
    long long number = only ? (long long)*only : PyLong_AsLongLong(old);
    if (!only && number == -1 && PyErr_Occurred())
        return -1;
    if (only && Py_REFCNT(old) == 1 && number > GREATEST_SMALL && number + difference > GREATEST_SMALL &&
        number + difference < PyLong_BASE) {
        *only = (digit)(number + difference); /* nothing else refers to the object, so no code sees it change */
        return 0;
    }
    PyObject *sum = PyLong_FromLongLong(number + difference);
    if (!sum)
        return -1;
    tc_give(slot, object, sum);
    return 0;
}

PyObject *tc_value(PyObject *value)
{
    if (!tc_intact(TC_outcomes))
        return PyObject_CallOneArg((PyObject *)tc_core.value_type, value);
    PyObject *outcome = tc_core.value_type->tp_alloc(tc_core.value_type, 0);
    if (outcome) {
        tc_set(tc_core.value.unwrapped, outcome, Py_False);
        tc_set(tc_core.value.value, outcome, value);
    }
    return outcome;
}

PyObject *tc_unwrap_value(PyObject *message)
{
    if (!Py_IS_TYPE(message, tc_core.value_type) || tc_get(tc_core.value.unwrapped, message) != Py_False)
        return NULL;
    tc_set(tc_core.value.unwrapped, message, Py_True);
    return Py_NewRef(tc_get(tc_core.value.value, message));
}

PyObject *tc_unwrap(PyObject *message)
{
    PyObject *value = tc_intact(TC_outcomes) ? tc_unwrap_value(message) : NULL;
    return value ? value : PyObject_CallMethodNoArgs(message, tc_names.unwrap);
}

bool tc_is_own(PyObject *object, PyObject *name, PyObject *function)
{
    PyObject *method = NULL;
#if PY_VERSION_HEX < 0x030d0000 /* from there on Python keeps it for itself */
    bool is_unbound = _PyObject_GetMethod(object, name, &method);
#else
    method = PyObject_GetAttr(object, name);
    bool is_unbound = false;
#endif
    if (!method) {
        PyErr_Clear();
        return false;
    }
    bool own = is_unbound ? method == function : PyMethod_Check(method) && PyMethod_GET_FUNCTION(method) == function;
    Py_DECREF(method);
    return own;
}

PyObject *tc_new_object(PyTypeObject *type) { return type->tp_new(type, tc_core.no_arguments, NULL); }

PyObject *tc_trap(PyObject *abort_func)
{
    if (!tc_intact(TC_outcomes))
        return PyObject_CallOneArg(tc_core.trap_type, abort_func);
    PyObject *trap = tc_new_object((PyTypeObject *)tc_core.trap_type);
    /* As its own __init__ does: the class is frozen, and so has a __setattr__ that refuses. */
    if (trap && PyObject_GenericSetAttr(trap, tc_names.abort_func, abort_func) < 0)
        Py_CLEAR(trap);
    return trap;
}

PyObject *tc_throw_into(PyObject *awaitable, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *method = PyObject_GetAttr(awaitable, tc_names.throw);
    if (!method)
        return NULL;
    PyObject *result = PyObject_Vectorcall(method, arguments, (size_t)count, NULL);
    Py_DECREF(method);
    return result;
}
