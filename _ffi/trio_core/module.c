/* module.c: gain_trio._trio_core.
 *
 * The types are static, and the module's state is Trio's types (core.h), of which a process has one set.  A sub-interpreter
 * has a Trio of its own, so the module refuses to be imported there; Trio's own code runs in it as ever.
 */
#include "core.h"
#include "epoll.h"

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

static PyObject *check_epoll(PyObject *Py_UNUSED(module), PyObject *epoll)
{
    return tc_epoll_check(epoll) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Each piece is in the code of Trio's functions; one that others make use of has to be known here, too. */
static PyObject *set_pieces(PyObject *Py_UNUSED(module), PyObject *names)
{
    const struct {
        const char *name;
        bool *place;
    } known[] = {{"tick", &tc_core.in.tick}, {"epoll", &tc_core.in.epoll}};
    bool found[] = {false, false};
    if (!PyTuple_CheckExact(names)) {
        PyErr_SetString(PyExc_TypeError, "set_pieces() takes a tuple of names");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (!PyUnicode_Check(name)) {
            PyErr_SetString(PyExc_TypeError, "the name of a piece is a str");
            return NULL;
        }
        for (size_t j = 0; j < 2; j++)
            found[j] |= PyUnicode_CompareWithASCIIString(name, known[j].name) == 0;
    }
    for (size_t j = 0; j < 2; j++)
        *known[j].place = found[j];
    Py_RETURN_NONE;
}

#define FAST(name, function, doc) {name, (PyCFunction)function, METH_FASTCALL, PyDoc_STR(doc)}

static PyMethodDef functions[] = {
    FAST("configure", tc_configure, "configure(part, seam): take Trio's types for a part, once."),
    {"set_manager", set_manager, METH_O,
     PyDoc_STR("set_manager($module, type, /)\n--\n\nThe I/O manager with a proactor and two tables of its waits.")},
    {"check_socket", check_socket, METH_O,
     PyDoc_STR("check_socket($module, socket, /)\n--\n\nRaise unless sockets are laid out as this module expects.")},
    {"check_epoll", check_epoll, METH_O,
     PyDoc_STR(
         "check_epoll($module, epoll, /)\n--\n\nRaise unless a select.epoll is laid out as this module expects.")},
    {"set_pieces", set_pieces, METH_O,
     PyDoc_STR("set_pieces($module, names, /)\n--\n\nThe pieces that are in, of which some make use of others.")},
    FAST("set_shortcut", tc_set_shortcut, "set_shortcut(function, call): how C gets to what a function calls first."),
    {"has_shortcut", tc_has_shortcut, METH_O,
     PyDoc_STR("has_shortcut($module, function, /)\n--\n\nWhether C gets past the frame of this function.")},
    FAST("set_guards", tc_set_guards, "set_guards(piece, guards): what has to be as it is for the piece to be used."),
    {"is_intact", tc_is_intact, METH_O,
     PyDoc_STR("is_intact($module, piece, /)\n--\n\nWhether nothing that the piece stands for was replaced.")},
    FAST("epoll_wait", tc_epoll_wait_method, "EpollIOManager._epoll_wait: what to await, or None."),
    FAST("reschedule", tc_step_reschedule, "Runner.reschedule: whether it is done."),
    FAST("step_batch", tc_step_batch, "The inner loop of unrolled_run."),
    FAST("tick_batch", tc_tick_batch, "The same, and the ticks after it that are usual ones."),
    FAST("checkpoint", tc_checkpoint, "An awaitable: a schedule point; returns whether all is done."),
    FAST("cancel_shielded_checkpoint", tc_shielded_checkpoint, "An awaitable: a schedule point."),
    FAST("checkpoint_if_cancelled", tc_pass_checkpoint, "Whether nothing is cancelled."),
    {"wait_task_rescheduled", tc_wait_rescheduled, METH_O, PyDoc_STR("An awaitable: the task is parked.")},
    FAST("scope_init", tc_scope_init, "CancelScope.__init__: whether it is done."),
    {"scope_enter", tc_scope_enter, METH_O, PyDoc_STR("CancelScope.__enter__: whether it is done.")},
    FAST("scope_exit", tc_scope_exit, "CancelScope.__exit__: what it returns, or None."),
    FAST("move_on_after", tc_move_on_after, "move_on_after: the scope, or None."),
    FAST("fail_after", tc_fail_after, "fail_after: the context manager, or None."),
    FAST("first_iteration", tc_first_iteration, "AsyncGenerators.install_hooks: the hook to set, or None."),
    {"nursery_enter", tc_nursery_enter, METH_O, PyDoc_STR("NurseryManager.__aenter__: the nursery, or None.")},
    FAST("nursery_exit", tc_nursery_exit, "NurseryManager.__aexit__: what to await, or None."),
    {"park", tc_park, METH_O, PyDoc_STR("ParkingLot.park: what to await, or None.")},
    FAST("unpark", tc_unpark, "ParkingLot.unpark: the tasks, or None."),
    {"acquire", tc_acquire, METH_O, PyDoc_STR("Lock.acquire: what to await, or None.")},
    {"release", tc_release, METH_O, PyDoc_STR("Lock.release: whether it is done.")},
    {"lock_enter", tc_lock_enter, METH_O, PyDoc_STR("AsyncContextManagerMixin.__aenter__: what to await, or None.")},
    {"lock_exit", tc_lock_exit, METH_O, PyDoc_STR("AsyncContextManagerMixin.__aexit__: whether it is done.")},
    {"event_wait", tc_event_wait, METH_O, PyDoc_STR("Event.wait: what to await, or None.")},
    {"event_set", tc_event_set, METH_O, PyDoc_STR("Event.set: whether it is done.")},
    FAST("channel_send", tc_channel_send, "MemorySendChannel.send: what to await, or None."),
    {"channel_receive", tc_channel_receive, METH_O, PyDoc_STR("MemoryReceiveChannel.receive: what to await, or None.")},
    {"channel_next", tc_channel_next, METH_O, PyDoc_STR("ReceiveChannel.__anext__: what to await, or None.")},
    FAST("spawn", tc_spawn, "Runner.spawn_impl: the task, or None."),
    FAST("start_soon", tc_start_soon, "Nursery.start_soon: whether it is done."),
    FAST("task_exited", tc_exit, "Runner.task_exited: whether it is done."),
    FAST("socket_helper", tc_socket_helper, "_SocketType._nonblocking_helper: what to await, or None."),
    {"socket_readable", tc_socket_readable, METH_O, PyDoc_STR("_SocketType.is_readable: what it returns, or None.")},
    FAST("socket_sendto", tc_socket_sendto, "_SocketType.sendto: what to await, or None."),
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
    if (tc_names_init() < 0 || tc_guards_init() < 0 || PyType_Ready(&tc_point_type) < 0 ||
        PyType_Ready(&tc_wait_type) < 0 || PyType_Ready(&tc_socket_call_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddType(module, &tc_socket_method_type) < 0 ||
                   PyModule_AddIntConstant(module, "INTERFACE", TC_INTERFACE) < 0))
        Py_CLEAR(module);
    return module;
}
