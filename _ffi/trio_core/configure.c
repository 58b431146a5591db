/* configure.c: the facts about this process's Trio, part by part: the core first, then those that each of the pieces
 * needs that came later.  A part that this Trio has not keeps its piece out, and no other.
 */
#include "core.h"

tc_core_type tc_core;

typedef struct {
    tc_slot *slot;
    const char *type; /* the name of the seam's attribute */
    const char *name;
    bool optional; /* newer, or older, releases do not have it: -1 */
} slot_of;

typedef struct {
    PyTypeObject **place;
    const char *name;
} type_of;

typedef struct {
    PyObject **place;
    const char *name;
} object_of;

/* --- the core --- */

#define TASK(field, name) {&tc_core.task.field, "task_type", name, false}
#define RUNNER(field, name) {&tc_core.runner.field, "runner_type", name, false}
#define SCOPE(field, name) {&tc_core.scope.field, "scope_type", name, false}
#define STATUS(field, name) {&tc_core.status.field, "status_type", name, false}

static const slot_of core_slots[] = {
    TASK(parent_nursery, "_parent_nursery"),
    TASK(coro, "coro"),
    TASK(runner, "_runner"),
    TASK(name, "name"),
    TASK(context, "context"),
    TASK(counter, "_counter"),
    {&tc_core.task.ki_protected, "task_type", "_ki_protected", true},
    TASK(next_send_fn, "_next_send_fn"),
    TASK(next_send, "_next_send"),
    TASK(abort_func, "_abort_func"),
    TASK(custom_sleep_data, "custom_sleep_data"),
    TASK(child_nurseries, "_child_nurseries"),
    TASK(eventual_parent_nursery, "_eventual_parent_nursery"),
    TASK(cancel_points, "_cancel_points"),
    TASK(schedule_points, "_schedule_points"),
    TASK(cancel_status, "_cancel_status"),
    RUNNER(instruments, "instruments"),
    RUNNER(io_manager, "io_manager"),
    RUNNER(clock, "clock"),
    RUNNER(runq, "runq"),
    RUNNER(tasks, "tasks"),
    RUNNER(deadlines, "deadlines"),
    RUNNER(init_task, "init_task"),
    RUNNER(main_task, "main_task"),
    RUNNER(main_task_outcome, "main_task_outcome"),
    RUNNER(autojump_threshold, "clock_autojump_threshold"),
    RUNNER(is_guest, "is_guest"),
    RUNNER(ki_pending, "ki_pending"),
    RUNNER(waiting_for_idle, "waiting_for_idle"),
    SCOPE(cancel_status, "_cancel_status"),
    SCOPE(has_been_entered, "_has_been_entered"),
    SCOPE(registered_deadline, "_registered_deadline"),
    SCOPE(cancel_called, "_cancel_called"),
    SCOPE(cancelled_caught, "cancelled_caught"),
    {&tc_core.scope.cancel_reason, "scope_type", "_cancel_reason", true},
    {&tc_core.scope.relative_deadline, "scope_type", "_relative_deadline", true},
    SCOPE(deadline, "_deadline"),
    SCOPE(shield, "_shield"),
    STATUS(scope, "_scope"),
    STATUS(effectively_cancelled, "effectively_cancelled"),
    STATUS(parent, "_parent"),
    STATUS(children, "_children"),
    STATUS(tasks, "_tasks"),
    STATUS(abandoned, "abandoned_by_misnesting"),
    {&tc_core.deadlines.heap, "deadlines_type", "_heap", false},
    {&tc_core.deadlines.active, "deadlines_type", "_active", false},
    {&tc_core.system_clock.offset, "system_clock_type", "offset", true},
    {&tc_core.value.unwrapped, "value_type", "_unwrapped", false},
    {&tc_core.value.value, "value_type", "value", false},
    {NULL, NULL, NULL, false},
};

static const type_of core_types[] = {
    {&tc_core.task_type, "task_type"},
    {&tc_core.runner_type, "runner_type"},
    {&tc_core.scope_type, "scope_type"},
    {&tc_core.status_type, "status_type"},
    {&tc_core.deadlines_type, "deadlines_type"},
    {&tc_core.value_type, "value_type"},
    {&tc_core.socket_type, "socket_type"},
    {&tc_core.stream_type, "stream_type"},
    {&tc_core.system_clock_type, "system_clock_type"},
    {&tc_core.plain_socket_type, "plain_socket_type"},
    {&tc_core.deque_type, "deque_type"},
    {&tc_core.detector_type, "detector_type"},
    {NULL, NULL},
};

static const object_of core_objects[] = {
    {&tc_core.error_type, "error_type"},
    {&tc_core.trap_type, "trap_type"},
    {&tc_core.detach_type, "detach_type"},
    {&tc_core.checkpoint_message, "checkpoint_message"},
    {&tc_core.no_send, "no_send"},
    {&tc_core.run_context, "run_context"},
    {&tc_core.infinity, "infinity"},
    {&tc_core.unusual_yield, "unusual_yield"},
    {&tc_core.translate, "translate"},
    {&tc_core.checkpoint_if_cancelled, "checkpoint_if_cancelled"},
    {&tc_core.wait_readable, "wait_readable"},
    {&tc_core.wait_writable, "wait_writable"},
    {&tc_core.sendto_function, "sendto_function"},
    {&tc_core.receive_method, "receive_method"},
    {&tc_core.send_method, "send_method"},
    {&tc_core.receive_some, "receive_some"},
    {&tc_core.helper_method, "helper_method"},
    {&tc_core.resolve_method, "resolve_method"},
    {&tc_core.finished_method, "finished_method"},
    {&tc_core.close_method, "close_method"},
    {&tc_core.run_module, "run_module"},
    {&tc_core.heappush, "heappush"},
    {&tc_core.next_counter, "next_counter"},
    {&tc_core.lot_breakers, "lot_breakers"},
    {&tc_core.ki_key, "ki_key"},
    {&tc_core.default_receive_size, "default_receive_size"},
    {&tc_core.abort_succeeded, "abort_succeeded"},
    {NULL, NULL},
};

/* --- locks, with parking lots --- */

static const type_of lock_types[] = {
    {&tc_core.lot_type, "lot_type"},
    {&tc_core.lock_type, "lock_type"},
    {&tc_core.fifo_lock_type, "fifo_lock_type"},
    {NULL, NULL},
};

static const object_of lock_objects[] = {
    {&tc_core.broken_resource_error, "broken_resource_error"},
    {&tc_core.broken_lock, "broken_lock"},
    {&tc_core.acquire_method, "acquire_method"},
    {&tc_core.acquire_nowait_method, "acquire_nowait_method"},
    {&tc_core.release_method, "release_method"},
    {NULL, NULL},
};

static const slot_of lock_slots[] = {
    {&tc_core.lot.parked, "lot_type", "_parked", false},
    {&tc_core.lot.broken_by, "lot_type", "broken_by", true},
    {NULL, NULL, NULL, false},
};

/* --- events --- */

static const type_of event_types[] = {
    {&tc_core.event_type, "event_type"},
    {NULL, NULL},
};

static const slot_of event_slots[] = {
    {&tc_core.event.tasks, "event_type", "_tasks", false},
    {&tc_core.event.flag, "event_type", "_flag", false},
    {NULL, NULL, NULL, false},
};

/* --- channels --- */

#define CHANNEL(field, name) {&tc_core.channel.field, "channel_state_type", name, false}

static const type_of channel_types[] = {
    {&tc_core.channel_state_type, "channel_state_type"},
    {&tc_core.send_channel_type, "send_channel_type"},
    {&tc_core.receive_channel_type, "receive_channel_type"},
    {NULL, NULL},
};

static const object_of channel_objects[] = {
    {&tc_core.end_of_channel, "end_of_channel"},
    {&tc_core.take_method, "take_method"},
    {&tc_core.take_nowait_method, "take_nowait_method"},
    {&tc_core.put_nowait_method, "put_nowait_method"},
    {NULL, NULL},
};

static const slot_of channel_slots[] = {
    CHANNEL(max_buffer_size, "max_buffer_size"),
    CHANNEL(data, "data"),
    CHANNEL(open_senders, "open_send_channels"),
    CHANNEL(open_receivers, "open_receive_channels"),
    CHANNEL(send_tasks, "send_tasks"),
    CHANNEL(receive_tasks, "receive_tasks"),
    {&tc_core.channel.peak, "channel_state_type", "peak_buffer_used", true},
    {NULL, NULL, NULL, false},
};

/* --- timeouts --- */

static const type_of timeout_types[] = {
    {&tc_core.fail_after_type, "fail_after_type"},
    {NULL, NULL},
};

static const object_of timeout_objects[] = {
    {&tc_core.fail_after_function, "fail_after_function"},
    {&tc_core.become_plain, "become_plain"},
    {&tc_core.plain_enter, "plain_enter"},
    {&tc_core.plain_exit, "plain_exit"},
    {NULL, NULL},
};

static const slot_of timeout_slots[] = {
    {&tc_core.manager.function, "fail_after_type", "_function", false},
    {&tc_core.manager.arguments, "fail_after_type", "_arguments", false},
    {&tc_core.manager.keywords, "fail_after_type", "_keywords", false},
    {&tc_core.manager.scope, "fail_after_type", "_scope", false},
    {NULL, NULL, NULL, false},
};

/* --- nurseries --- */

static const type_of nursery_types[] = {
    {&tc_core.nursery_type, "nursery_type"},
    {&tc_core.nursery_manager_type, "nursery_manager_type"},
    {NULL, NULL},
};

static const object_of nursery_objects[] = {
    {&tc_core.nested_method, "nested_method"},
    {&tc_core.nursery_aborted, "nursery_aborted"},
    {&tc_core.nursery_add, "nursery_add"},
    {&tc_core.nursery_error, "nursery_error"},
    {NULL, NULL},
};

/* --- Trio's I/O manager on Linux --- */

static const type_of epoll_types[] = {
    {&tc_core.epoll_manager_type, "epoll_manager_type"},
    {&tc_core.epoll_waiters_type, "epoll_waiters_type"},
    {&tc_core.epoll_type, "epoll_type"},
    {NULL, NULL},
};

static const object_of epoll_objects[] = {
    {&tc_core.busy_resource_error, "busy_resource_error"},
    {NULL, NULL},
};

static const slot_of epoll_slots[] = {
    {&tc_core.epoll_manager.epoll, "epoll_manager_type", "_epoll", false},
    {&tc_core.epoll_manager.registered, "epoll_manager_type", "_registered", false},
    {&tc_core.epoll_manager.force_wakeup, "epoll_manager_type", "_force_wakeup", false},
    {&tc_core.epoll_manager.force_wakeup_fd, "epoll_manager_type", "_force_wakeup_fd", false},
    {&tc_core.epoll_waiters.read_task, "epoll_waiters_type", "read_task", false},
    {&tc_core.epoll_waiters.write_task, "epoll_waiters_type", "write_task", false},
    {&tc_core.epoll_waiters.current_flags, "epoll_waiters_type", "current_flags", false},
    {NULL, NULL, NULL, false},
};

/* --- async generators --- */

static const type_of generator_types[] = {
    {&tc_core.generators_type, "generators_type"},
    {&tc_core.weak_set_type, "weak_set_type"},
    {NULL, NULL},
};

static const object_of generator_objects[] = {
    {&tc_core.weak_set_defers, "weak_set_defers"},
    {NULL, NULL},
};

static const slot_of generator_slots[] = {
    {&tc_core.generators.alive, "generators_type", "alive", false},
    {NULL, NULL, NULL, false},
};

/* --- all of them --- */

static int find_slot(const slot_of *wanted, PyObject *seam)
{
    PyObject *type = PyObject_GetAttrString(seam, wanted->type);
    PyObject *descriptor = type ? PyObject_GetAttrString(type, wanted->name) : NULL;
    *wanted->slot = -1;
    if (!type)
        return -1;
    if (!descriptor && wanted->optional) {
        PyErr_Clear();
        Py_DECREF(type);
        return 0;
    }
    PyErr_Clear();
    if (descriptor && Py_IS_TYPE(descriptor, &PyMemberDescr_Type) && PyType_Check(type)) {
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        /* One inherited lies at the same place. */
        if (member->type == T_OBJECT_EX &&
            PyType_IsSubtype((PyTypeObject *)type, ((PyDescrObject *)descriptor)->d_type))
            *wanted->slot = member->offset;
    }
    if (*wanted->slot < 0)
        PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, wanted->name);
    Py_XDECREF(descriptor);
    Py_DECREF(type);
    return *wanted->slot < 0 ? -1 : 0;
}

static int take_types(PyObject *seam, const type_of *types)
{
    for (; types->place; types++) {
        PyObject *type = PyObject_GetAttrString(seam, types->name);
        if (!type)
            return -1;
        if (!PyType_Check(type)) {
            PyErr_Format(PyExc_TypeError, "%s is not a type", types->name);
            Py_DECREF(type);
            return -1;
        }
        Py_XSETREF(*types->place, (PyTypeObject *)type);
    }
    return 0;
}

static int take_objects(PyObject *seam, const object_of *objects)
{
    for (; objects->place; objects++) {
        PyObject *value = PyObject_GetAttrString(seam, objects->name);
        if (!value)
            return -1;
        Py_XSETREF(*objects->place, value);
    }
    return 0;
}

static int take_slots(PyObject *seam, const slot_of *slots)
{
    for (; slots->slot; slots++)
        if (find_slot(slots, seam) < 0)
            return -1;
    return 0;
}

/* What the send() of a native coroutine calls, by which step.c knows one. */
static int take_coroutine_send(PyObject *seam)
{
    PyObject *coroutine = PyObject_CallMethod(seam, "make_coroutine", NULL);
    PyObject *send = coroutine ? PyObject_GetAttr(coroutine, tc_names.send) : NULL;
    PyObject *closed = send ? PyObject_CallMethodNoArgs(coroutine, tc_names.close) : NULL;
    int result = closed ? 0 : -1;
    if (result == 0 && PyCoro_CheckExact(coroutine) && PyCFunction_CheckExact(send)) {
        tc_core.coroutine_send = ((PyCFunctionObject *)send)->m_ml;
    } else if (result == 0) {
        PyErr_SetString(PyExc_TypeError, "the send() of a coroutine is not what it was");
        result = -1;
    }
    Py_XDECREF(closed);
    Py_XDECREF(send);
    Py_XDECREF(coroutine);
    return result;
}

static int check_kinds(void)
{
    if (tc_core.plain_vectorcall && PyDict_CheckExact(tc_core.run_module) && PyType_Check(tc_core.trap_type) &&
        PyType_Check(tc_core.detach_type) && PyFloat_CheckExact(tc_core.infinity) &&
        PyLong_CheckExact(tc_core.default_receive_size) && PyDict_Check(tc_core.lot_breakers) &&
        PyLong_AsSsize_t(tc_core.default_receive_size) > 0)
        return 0;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "Trio's parts are not what they were");
    return -1;
}

PyCFunction tc_function_of(PyTypeObject *type, PyObject *name, int flags)
{
    PyObject *method = PyObject_GetAttr((PyObject *)type, name);
    PyCFunction function = NULL;
    if (method && Py_IS_TYPE(method, &PyMethodDescr_Type) &&
        (((PyMethodDescrObject *)method)->d_method->ml_flags & ~METH_COEXIST) == flags)
        function = ((PyMethodDescrObject *)method)->d_method->ml_meth;
    PyErr_Clear();
    Py_XDECREF(method);
    return function;
}

static int finish_core(PyObject *seam)
{
    if (PyFunction_Check(tc_core.unusual_yield)) /* it is any function of Python's */
        tc_core.plain_vectorcall = ((PyFunctionObject *)tc_core.unusual_yield)->vectorcall;
    tc_core.deque_append = tc_function_of(tc_core.deque_type, tc_names.append, METH_O);
    tc_core.deque_popleft = tc_function_of(tc_core.deque_type, tc_names.popleft, METH_NOARGS);
    PyObject *threshold = PyObject_GetAttrString(seam, "prune_threshold");
    tc_core.prune_threshold = threshold ? PyLong_AsSsize_t(threshold) : -1;
    Py_XDECREF(threshold);
    if (!tc_core.no_arguments)
        tc_core.no_arguments = PyTuple_New(0);
    if (PyErr_Occurred() || !tc_core.no_arguments || take_coroutine_send(seam) < 0)
        return -1;
    return check_kinds();
}

static int finish_waits(PyObject *Py_UNUSED(seam))
{
    if (!tc_core.last_name)
        tc_core.last_name = PyTuple_Pack(1, tc_names.last);
    return tc_core.last_name ? 0 : -1;
}

static int finish_locks(PyObject *seam)
{
    tc_core.breaks_lots = tc_core.lot.broken_by >= 0;
    return finish_waits(seam);
}

static int finish_timeouts(PyObject *Py_UNUSED(seam)) { return tc_fail_after_init(); }

static const struct part {
    const char *name;
    const type_of *types;
    const object_of *objects;
    const slot_of *slots;
    int (*finish)(PyObject *seam);
} parts[] = {
    {"core", core_types, core_objects, core_slots, finish_core},
    {"timeouts", timeout_types, timeout_objects, timeout_slots, finish_timeouts},
    {"nurseries", nursery_types, nursery_objects, NULL, NULL},
    {"locks", lock_types, lock_objects, lock_slots, finish_locks},
    {"events", event_types, NULL, event_slots, NULL},
    {"channels", channel_types, channel_objects, channel_slots, finish_waits},
    {"epoll", epoll_types, epoll_objects, epoll_slots, NULL},
    {"generators", generator_types, generator_objects, generator_slots, NULL},
};

static int take_part(const struct part *part, PyObject *seam)
{
    if (take_types(seam, part->types) < 0 || (part->objects && take_objects(seam, part->objects) < 0) ||
        (part->slots && take_slots(seam, part->slots) < 0))
        return -1;
    return part->finish ? part->finish(seam) : 0;
}

/* The parts are of one Trio; a process has another one where that was imported anew. */
static int refuse_another_trio(PyObject *seam)
{
    PyObject *run_module = PyObject_GetAttrString(seam, "run_module");
    if (run_module && run_module != tc_core.run_module)
        PyErr_SetString(PyExc_TypeError, "it was imported anew, and the pieces are those of the first one");
    Py_XDECREF(run_module);
    return PyErr_Occurred() ? -1 : 0;
}

/* configure(name, seam): once in a process for each part; until then, and after an error, nothing of it may be used.  A part
 * that is configured stays as it is: where a Ctrl-C has ended what configures all of them, the next run does that again, and
 * begins with the core. */
PyObject *tc_configure(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    static bool configured[sizeof parts / sizeof parts[0]];
    const char *name = count == 2 && PyUnicode_Check(arguments[0]) ? PyUnicode_AsUTF8(arguments[0]) : NULL;
    for (size_t i = 0; name && i < sizeof parts / sizeof parts[0]; i++) {
        if (strcmp(parts[i].name, name) != 0)
            continue;
        const bool is_core = parts[i].types == core_types;
        if (configured[i] ? is_core && refuse_another_trio(arguments[1]) < 0 : take_part(&parts[i], arguments[1]) < 0)
            return NULL;
        configured[i] = true;
        Py_RETURN_NONE;
    }
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "configure() takes the name of a part, and a seam");
    return NULL;
}
