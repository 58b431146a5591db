/* spawn.c: the beginning and the end of a task.
 *
 * Stands for, in trio/_core/_run.py:
 *     Nursery.start_soon
 *     Runner.spawn_impl     for a coroutine function (a plain one, or a method) in an open nursery, in the current context
 *     Runner.task_exited    for a task that has returned a value, and left nothing behind: no nursery, no parking lot that it
 *                           would break, no misnested scope; and that is neither the main nor the init task
 *
 * Whatever else there is (partial functions, objects that can be called, system tasks, a task that raises) is Trio's to do.
 */
#include "wait.h"

/* Set the cancel status of a task that is not parked, so that there is no cancellation to deliver. */
int tc_activate_status(PyObject *task, PyObject *status)
{
    PyObject *old = tc_get(tc_core.task.cancel_status, task);
    if (status != Py_None && PySet_Add(tc_get(tc_core.status.tasks, status), task) < 0)
        return -1;
    if (old != Py_None && PySet_Discard(tc_get(tc_core.status.tasks, old), task) < 0)
        return -1;
    tc_set(tc_core.task.cancel_status, task, status);
    return 0;
}

static bool is_status(PyObject *status)
{
    return Py_IS_TYPE(status, tc_core.status_type) && PyAnySet_CheckExact(tc_get(tc_core.status.tasks, status));
}

/* --- spawn_impl --- */

static bool is_coroutine_function(PyObject *function)
{
    if (PyMethod_Check(function))
        function = PyMethod_GET_FUNCTION(function);
    return PyFunction_Check(function) && (((PyCodeObject *)PyFunction_GET_CODE(function))->co_flags & CO_COROUTINE);
}

/* f"{module}.{qualified}" */
static PyObject *join_name(PyObject *module, PyObject *qualified)
{
    Py_ssize_t before = PyUnicode_GET_LENGTH(module), after = PyUnicode_GET_LENGTH(qualified);
    Py_UCS4 highest = PyUnicode_MAX_CHAR_VALUE(module), other = PyUnicode_MAX_CHAR_VALUE(qualified);
    PyObject *name = PyUnicode_New(before + 1 + after, highest > other ? highest : other);
    if (name &&
        (PyUnicode_CopyCharacters(name, 0, module, 0, before) < 0 || PyUnicode_WriteChar(name, before, '.') < 0 ||
         PyUnicode_CopyCharacters(name, before + 1, qualified, 0, after) < 0))
        Py_CLEAR(name);
    return name;
}

/* f"{function.__module__}.{function.__qualname__}", of a function or of a method, which has them from its function. */
static PyObject *make_name(PyObject *function, PyObject *name)
{
    if (name != Py_None)
        return Py_NewRef(name);
    if (PyMethod_Check(function))
        function = PyMethod_GET_FUNCTION(function);
    const PyFunctionObject *plain = (PyFunctionObject *)function;
    PyObject *module = Py_NewRef(plain->func_module ? plain->func_module : Py_None);
    PyObject *qualified = Py_NewRef(plain->func_qualname);
    PyObject *result = PyUnicode_CheckExact(module) && PyUnicode_CheckExact(qualified)
                           ? join_name(module, qualified)
                           : PyUnicode_FromFormat("%S.%S", module, qualified);
    Py_DECREF(module);
    Py_DECREF(qualified);
    return result;
}

/* Mark the coroutine's frame, as Trio before 0.28 does. */
static int mark_frame(PyObject *coro)
{
    if (tc_core.ki_key == Py_None)
        return 0;
    PyObject *frame = PyObject_GetAttr(coro, tc_names.cr_frame);
    PyObject *locals = frame ? PyObject_GetAttr(frame, tc_names.f_locals) : NULL;
    PyObject *result = locals ? PyObject_CallMethod(locals, "setdefault", "OO", tc_core.ki_key, Py_False) : NULL;
    Py_XDECREF(frame);
    Py_XDECREF(locals);
    return tc_drop(result);
}

/* Takes the references to `coro`, `name` and `context`. */
static PyObject *make_task(PyObject *runner, PyObject *nursery, PyObject *coro, PyObject *name, PyObject *context)
{
    PyObject *counter = PyObject_CallNoArgs(tc_core.next_counter), *nurseries = PyList_New(0);
    PyObject *zero = PyLong_FromLong(0);
    PyObject *task = counter && nurseries && zero ? tc_core.task_type->tp_alloc(tc_core.task_type, 0) : NULL;
    if (!task) {
        Py_XDECREF(counter);
        Py_XDECREF(nurseries);
        Py_XDECREF(zero);
        Py_DECREF(coro);
        Py_DECREF(name);
        Py_DECREF(context);
        return NULL;
    }
    tc_give(tc_core.task.coro, task, coro);
    tc_give(tc_core.task.name, task, name);
    tc_give(tc_core.task.context, task, context);
    tc_give(tc_core.task.counter, task, counter);
    tc_give(tc_core.task.child_nurseries, task, nurseries);
    tc_set(tc_core.task.cancel_points, task, zero);
    tc_give(tc_core.task.schedule_points, task, zero);
    tc_set(tc_core.task.parent_nursery, task, nursery);
    tc_set(tc_core.task.runner, task, runner);
    if (tc_core.task.ki_protected >= 0)
        tc_set(tc_core.task.ki_protected, task, Py_False);
    tc_set(tc_core.task.next_send_fn, task, Py_None);
    tc_set(tc_core.task.next_send, task, Py_None);
    tc_set(tc_core.task.abort_func, task, Py_None);
    tc_set(tc_core.task.custom_sleep_data, task, Py_None);
    tc_set(tc_core.task.eventual_parent_nursery, task, Py_None);
    tc_set(tc_core.task.cancel_status, task, Py_None);
    return task;
}

/* A task that calls function(*arguments), not yet one of the run's; NULL: Trio has to do it, or raise what it raises. */
static PyObject *begin(PyObject *runner, PyObject *nursery, PyObject *function, PyObject *arguments, PyObject *name)
{
    PyObject *context = PyContext_CopyCurrent();
    PyObject *coro = context ? PyObject_Call(function, arguments, NULL) : NULL;
    if (!coro || !PyCoro_CheckExact(coro) || mark_frame(coro) < 0 || !(name = make_name(function, name))) {
        PyErr_Clear();
        if (coro && PyCoro_CheckExact(coro)) /* it never ran, and Trio makes another one: no warning of it */
            Py_XDECREF(PyObject_CallMethodNoArgs(coro, tc_names.close));
        PyErr_Clear();
        Py_XDECREF(context);
        Py_XDECREF(coro);
        return NULL;
    }
    return make_task(runner, nursery, coro, name, context);
}

static int introduce(PyObject *runner, PyObject *task, PyObject *children, PyObject *status)
{
    PyObject *tasks = tc_get(tc_core.runner.tasks, runner);
    if (PySet_Add(tasks, task) < 0)
        return -1;
    if (PySet_Add(children, task) < 0 || tc_activate_status(task, status) < 0) {
        PyObject *exception = gt_take_exception();
        PySet_Discard(children, task);
        PySet_Discard(tasks, task);
        gt_restore_exception(exception);
        return -1;
    }
    PyObject *hooks = tc_hooks(runner);
    if (!hooks)
        return -1;
    int result = tc_observe(runner, hooks, tc_names.task_spawned, task);
    Py_DECREF(hooks);
    return result < 0 ? -1 : tc_reschedule(runner, task, Py_None);
}

/* A new task in the nursery, scheduled; NULL without an exception: Trio has to do it. */
static PyObject *spawn(PyObject *runner, PyObject *function, PyObject *arguments, PyObject *nursery, PyObject *name)
{
    if (!Py_IS_TYPE(runner, tc_core.runner_type) || !is_coroutine_function(function) ||
        !PyTuple_CheckExact(arguments) || (name != Py_None && !PyUnicode_CheckExact(name)) ||
        !PyAnySet_CheckExact(tc_get(tc_core.runner.tasks, runner)) || !tc_intact(TC_spawning))
        return NULL;
    PyObject *closed = PyObject_GetAttr(nursery, tc_names._closed);
    PyObject *children = closed == Py_False ? PyObject_GetAttr(nursery, tc_names._children) : NULL;
    PyObject *status = children ? PyObject_GetAttr(nursery, tc_names._cancel_status) : NULL;
    PyObject *task = NULL;
    PyErr_Clear();
    if (status && is_status(status) && PyAnySet_CheckExact(children))
        task = begin(runner, nursery, function, arguments, name);
    if (task) {
        int scheduled = introduce(runner, task, children, status);
        if (scheduled == 0)
            PyErr_SetString(PyExc_RuntimeError, "a new task is scheduled already");
        if (scheduled <= 0)
            Py_CLEAR(task);
    }
    Py_XDECREF(closed);
    Py_XDECREF(children);
    Py_XDECREF(status);
    return task;
}

/* spawn(runner, function, arguments, nursery, name, system_task, context): the task, or None for Trio to do it. */
PyObject *tc_spawn(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 7 || arguments[3] == Py_None || arguments[5] != Py_False || arguments[6] != Py_None)
        Py_RETURN_NONE;
    PyObject *task = spawn(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]);
    return task || PyErr_Occurred() ? task : Py_NewRef(Py_None);
}

/* start_soon(nursery, function, arguments, name): whether it is done. */
PyObject *tc_start_soon(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *context = count == 4 ? tc_context() : NULL;
    PyObject *runner = context ? PyDict_GetItemWithError(context, tc_names.runner) : NULL;
    PyErr_Clear();
    if (!runner)
        Py_RETURN_FALSE;
    PyObject *task = spawn(runner, arguments[1], arguments[2], arguments[0], arguments[3]);
    if (task)
        Py_DECREF(task);
    else if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(task != NULL);
}

/* --- task_exited --- */

static int is_usual_exit(PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !Py_IS_TYPE(arguments[0], tc_core.runner_type) || !Py_IS_TYPE(arguments[1], tc_core.task_type) ||
        !Py_IS_TYPE(arguments[2], tc_core.value_type) || !tc_intact(TC_spawning))
        return 0;
    PyObject *runner = arguments[0], *task = arguments[1];
    PyObject *nurseries = tc_get(tc_core.task.child_nurseries, task),
             *status = tc_get(tc_core.task.cancel_status, task);
    if (!PyList_CheckExact(nurseries) || PyList_GET_SIZE(nurseries) > 0 || !is_status(status) ||
        tc_get(tc_core.status.abandoned, status) != Py_False || task == tc_get(tc_core.runner.init_task, runner) ||
        task == tc_get(tc_core.runner.main_task, runner) || tc_get(tc_core.task.parent_nursery, task) == Py_None ||
        !PyAnySet_CheckExact(tc_get(tc_core.runner.tasks, runner)))
        return 0;
    int breaks = PySequence_Contains(tc_core.lot_breakers, task);
    return breaks < 0 ? -1 : !breaks;
}

static bool has(PyObject *nursery, PyObject *name, PyObject *expected)
{
    PyObject *value = PyObject_GetAttr(nursery, name);
    Py_XDECREF(value);
    if (!value)
        PyErr_Clear();
    return value == expected;
}

/* What Nursery._check_nursery_closed does for a nursery without children, whose block has ended. */
static int close_nursery(PyObject *nursery)
{
    PyObject *starts = PyObject_GetAttr(nursery, tc_names._pending_starts);
    int pending = starts && PyLong_CheckExact(starts) ? PyObject_IsTrue(starts) : -1;
    Py_XDECREF(starts);
    PyObject *parent = pending == 0 ? PyObject_GetAttr(nursery, tc_names._parent_task) : NULL;
    if (!parent || !has(nursery, tc_names._parent_waiting_in_aexit, Py_True) ||
        !tc_is_own(nursery, tc_names._check_nursery_closed, tc_core.close_method)) {
        PyErr_Clear();
        Py_XDECREF(parent);
        return tc_drop(PyObject_CallMethodNoArgs(nursery, tc_names._check_nursery_closed));
    }
    int result = PyObject_SetAttr(nursery, tc_names._closed, Py_True);
    if (result == 0)
        result = PyObject_SetAttr(nursery, tc_names._parent_waiting_in_aexit, Py_False);
    if (result == 0)
        result = tc_wake(parent, NULL);
    Py_DECREF(parent);
    return result;
}

/* What Nursery._child_finished does with a value. */
static int leave_nursery(PyObject *nursery, PyObject *children, PyObject *task)
{
    if (PySet_Discard(children, task) < 0)
        return -1;
    if (PySet_GET_SIZE(children) > 0)
        return 0;
    return has(nursery, tc_names._nested_child_running, Py_True) ? 0 : close_nursery(nursery);
}

/* exit(runner, task, outcome): whether it is done. */
PyObject *tc_exit(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    int usual = is_usual_exit(arguments, count);
    if (usual <= 0)
        return usual < 0 ? NULL : Py_NewRef(Py_False);
    PyObject *runner = arguments[0], *task = arguments[1];
    PyObject *nursery = Py_NewRef(tc_get(tc_core.task.parent_nursery, task));
    PyObject *children = PyObject_GetAttr(nursery, tc_names._children);
    if (!children || !PyAnySet_CheckExact(children) ||
        !tc_is_own(nursery, tc_names._child_finished, tc_core.finished_method)) {
        PyErr_Clear();
        Py_XDECREF(children);
        Py_DECREF(nursery);
        Py_RETURN_FALSE;
    }
    int result = tc_activate_status(task, Py_None);
    if (result == 0)
        result = PySet_Discard(tc_get(tc_core.runner.tasks, runner), task) < 0 ? -1 : 0;
    if (result == 0)
        result = leave_nursery(nursery, children, task);
    Py_DECREF(children);
    Py_DECREF(nursery);
    PyObject *hooks = result == 0 ? tc_hooks(runner) : NULL;
    if (!hooks)
        return NULL;
    result = tc_observe(runner, hooks, tc_names.task_exited, task);
    Py_DECREF(hooks);
    return result < 0 ? NULL : Py_NewRef(Py_True);
}
