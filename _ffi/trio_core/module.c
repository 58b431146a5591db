/* module.c: gain_trio._trio_core, and what it is told of Trio.
 *
 * The types are static, and the module's state is Trio's types (core.h), of which a process has one set.  A sub-interpreter
 * has a Trio of its own, so the module refuses to be imported there; Trio's own code runs in it as ever.
 */
#include "core.h"

tc_core_type tc_core;

typedef struct {
    tc_slot *slot;
    const char *type; /* the name of the seam's attribute */
    const char *name;
    bool optional; /* newer, or older, releases do not have it: -1 */
} slot_of;

#define TASK(field, name) {&tc_core.task.field, "task_type", name, false}
#define RUNNER(field, name) {&tc_core.runner.field, "runner_type", name, false}
#define SCOPE(field, name) {&tc_core.scope.field, "scope_type", name, false}
#define STATUS(field, name) {&tc_core.status.field, "status_type", name, false}

static const slot_of slots[] = {
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
    {&tc_core.value.unwrapped, "value_type", "_unwrapped", false},
    {&tc_core.value.value, "value_type", "value", false},
};

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

static int take_types(PyObject *seam)
{
    const struct {
        PyTypeObject **place;
        const char *name;
    } types[] = {
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
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        PyObject *type = PyObject_GetAttrString(seam, types[i].name);
        if (!type)
            return -1;
        if (!PyType_Check(type)) {
            PyErr_Format(PyExc_TypeError, "%s is not a type", types[i].name);
            Py_DECREF(type);
            return -1;
        }
        Py_XSETREF(*types[i].place, (PyTypeObject *)type);
    }
    return 0;
}

static int take_objects(PyObject *seam)
{
    const struct {
        PyObject **place;
        const char *name;
    } objects[] = {
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
        {&tc_core.receive_method, "receive_method"},
        {&tc_core.send_method, "send_method"},
        {&tc_core.receive_some, "receive_some"},
        {&tc_core.run_module, "run_module"},
        {&tc_core.heappush, "heappush"},
        {&tc_core.next_counter, "next_counter"},
        {&tc_core.lot_breakers, "lot_breakers"},
        {&tc_core.ki_key, "ki_key"},
        {&tc_core.default_receive_size, "default_receive_size"},
    };
    for (size_t i = 0; i < sizeof objects / sizeof objects[0]; i++) {
        PyObject *value = PyObject_GetAttrString(seam, objects[i].name);
        if (!value)
            return -1;
        Py_XSETREF(*objects[i].place, value);
    }
    PyObject *threshold = PyObject_GetAttrString(seam, "prune_threshold");
    tc_core.prune_threshold = threshold ? PyLong_AsSsize_t(threshold) : -1;
    Py_XDECREF(threshold);
    return PyErr_Occurred() ? -1 : 0;
}

/* What the send() of a native coroutine calls, by which step.c knows one. */
static int take_coroutine_send(PyObject *seam)
{
    PyObject *coroutine = PyObject_CallMethod(seam, "make_coroutine", NULL);
    PyObject *send = coroutine ? PyObject_GetAttr(coroutine, tc_names.send) : NULL;
    PyObject *closed = send ? PyObject_CallMethodNoArgs(coroutine, tc_names.close) : NULL;
    int result = closed ? 0 : -1;
    if (result == 0 && PyCoro_CheckExact(coroutine) && PyCFunction_CheckExact(send)) {
        tc_core.coroutine_send = PyCFunction_GET_FUNCTION(send);
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
    if (PyDict_CheckExact(tc_core.run_module) && PyType_Check(tc_core.trap_type) && PyType_Check(tc_core.detach_type) &&
        PyFloat_CheckExact(tc_core.infinity) && PyLong_CheckExact(tc_core.default_receive_size) &&
        PyDict_Check(tc_core.lot_breakers) && PyLong_AsSsize_t(tc_core.default_receive_size) > 0)
        return 0;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "Trio's parts are not what they were");
    return -1;
}

/* Once in a process: until then, and after an error, nothing of this module may be used. */
PyObject *tc_configure(PyObject *Py_UNUSED(module), PyObject *seam)
{
    if (tc_core.configured) {
        PyErr_SetString(PyExc_RuntimeError, "this process's Trio is known already");
        return NULL;
    }
    if (take_types(seam) < 0 || take_objects(seam) < 0)
        return NULL;
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (find_slot(&slots[i], seam) < 0)
            return NULL;
    if (take_coroutine_send(seam) < 0 || check_kinds() < 0)
        return NULL;
    tc_core.configured = true;
    Py_RETURN_NONE;
}

static PyObject *set_manager(PyObject *Py_UNUSED(module), PyObject *type)
{
    if (!PyType_Check(type)) {
        PyErr_SetString(PyExc_TypeError, "set_manager() takes a class of I/O managers");
        return NULL;
    }
    Py_INCREF(type);
    PyTypeObject *old = tc_core.manager_type;
    tc_core.manager_type = (PyTypeObject *)type;
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyObject *check_socket(PyObject *Py_UNUSED(module), PyObject *socket)
{
    if (!tc_core.plain_socket_type || !PyObject_TypeCheck(socket, tc_core.plain_socket_type)) {
        PyErr_SetString(PyExc_TypeError, "check_socket() takes a socket.socket");
        return NULL;
    }
    if (tc_sockets_check(socket) < 0)
        return NULL;
    Py_RETURN_NONE;
}

#define FAST(name, function, doc) {name, (PyCFunction)function, METH_FASTCALL, PyDoc_STR(doc)}

static PyMethodDef functions[] = {
    {"configure", tc_configure, METH_O, PyDoc_STR("configure($module, seam, /)\n--\n\nTake Trio's types, once.")},
    {"set_manager", set_manager, METH_O,
     PyDoc_STR("set_manager($module, type, /)\n--\n\nThe I/O manager whose poll(descriptor, events) waits.")},
    {"check_socket", check_socket, METH_O,
     PyDoc_STR("check_socket($module, socket, /)\n--\n\nRaise unless sockets are laid out as this module expects.")},
    FAST("reschedule", tc_step_reschedule, "Runner.reschedule: whether it is done."),
    FAST("step_batch", tc_step_batch, "The inner loop of unrolled_run."),
    FAST("tick_batch", tc_tick_batch, "The same, and the ticks after it that are usual ones."),
    {"checkpoint", tc_checkpoint, METH_NOARGS,
     PyDoc_STR("An awaitable: a schedule point; returns whether all is done.")},
    {"cancel_shielded_checkpoint", tc_shielded_checkpoint, METH_NOARGS, PyDoc_STR("An awaitable: a schedule point.")},
    {"checkpoint_if_cancelled", tc_pass_checkpoint, METH_NOARGS, PyDoc_STR("Whether nothing is cancelled.")},
    {"wait_task_rescheduled", tc_wait_rescheduled, METH_O, PyDoc_STR("An awaitable: the task is parked.")},
    FAST("scope_init", tc_scope_init, "CancelScope.__init__: whether it is done."),
    {"scope_enter", tc_scope_enter, METH_O, PyDoc_STR("CancelScope.__enter__: whether it is done.")},
    FAST("scope_exit", tc_scope_exit, "CancelScope.__exit__: what it returns, or None."),
    FAST("spawn", tc_spawn, "Runner.spawn_impl: the task, or None."),
    FAST("start_soon", tc_start_soon, "Nursery.start_soon: whether it is done."),
    FAST("task_exited", tc_exit, "Runner.task_exited: whether it is done."),
    FAST("socket_helper", tc_socket_helper, "_SocketType._nonblocking_helper: what to await, or None."),
    FAST("receive_some", tc_receive_some, "SocketStream.receive_some: what to await, or None."),
    FAST("send_all", tc_send_all, "SocketStream.send_all: what to await, or None."),
    {"stream_next", tc_stream_next, METH_O, PyDoc_STR("ReceiveStream.__anext__: what to await, or None.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gain_trio._trio_core",
    .m_doc = PyDoc_STR("Trio's own hot path, for gain_trio._acceleration to put in."),
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__trio_core(void); /* the prototype that Python.h has no way to give */

PyMODINIT_FUNC PyInit__trio_core(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError,
                        "gain_trio speeds Trio up in the main interpreter only; in a sub-interpreter "
                        "Trio's own code runs");
        return NULL;
    }
    if (tc_names_init() < 0 || PyType_Ready(&tc_checkpoint_type) < 0 || PyType_Ready(&tc_socket_call_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddType(module, &tc_socket_method_type) < 0)
        Py_CLEAR(module);
    return module;
}
