/* tls_methods.c: the awaitable of tls_calls.c as a Python object, and the methods of the class of TLS connections that make one.
 *
 * The class asks for them by hasten_tls().  The offsets of its slots are the process's, so it has to be the first to do so: the
 * class of a package that was imported anew stays as it is, in Python.
 */
#include "tls.h"

static gt_tls_functions python; /* owned: as they were before */

/* --- the awaitable --- */

static PyObject *drive_by_method(PyObject *self, PyObject *message)
{
    return gt_drive_by_method(gt_tls_drive, self, message);
}

static PyObject *call_next(PyObject *self) { return gt_drive_by_method(gt_tls_drive, self, Py_None); }

/* End what is awaited, by its method of this name. */
static PyObject *end_awaited(const gt_tls_call *self, const char *name, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *awaited = Py_NewRef(self->awaited);
    PyObject *method = PyObject_GetAttrString(awaited, name);
    PyObject *returned = method ? PyObject_Vectorcall(method, arguments, (size_t)count, NULL) : NULL;
    Py_XDECREF(method);
    Py_DECREF(awaited);
    return returned;
}

static PyObject *call_throw(gt_tls_call *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!gt_tls_can_step(self))
        return NULL;
    if (self->state == TLS_NEW || self->state == TLS_DONE) {
        self->state = TLS_DONE;
        return gt_raise_thrown(arguments, count);
    }
    PyObject *yielded = end_awaited(self, "throw", arguments, count);
    if (!yielded) /* a coroutine that has returned raises StopIteration, which is this call's, too */
        gt_tls_leave(self);
    return yielded;
}

static PyObject *call_close(gt_tls_call *self, PyObject *Py_UNUSED(ignored))
{
    if (!gt_tls_can_step(self))
        return NULL;
    const bool awaits = self->state == TLS_WAITS || self->state == TLS_FOLLOWS;
    PyObject *closed = awaits ? end_awaited(self, "close", NULL, 0) : Py_NewRef(Py_None);
    if (gt_tls_leave(self) < 0)
        Py_CLEAR(closed);
    return closed;
}

/* As the interpreter does for a coroutine, which ends with the last reference to it. */
static void call_finalize(gt_tls_call *self)
{
    if (self->state == TLS_DONE)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const char *const names[] = {[TLS_RECEIVES] = "TlsConnection.receive",
                                 [TLS_SENDS] = "TlsConnection.send",
                                 [TLS_DELIVERS] = "TlsConnection._deliver"};
    const char *name = names[self->kind];
    if (self->state == TLS_NEW) {
        if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s' was never awaited", name) < 0)
            PyErr_WriteUnraisable((PyObject *)self);
    } else {
        PyObject *closed = call_close(self, NULL);
        if (!closed)
            PyErr_WriteUnraisable((PyObject *)self);
        Py_XDECREF(closed);
    }
    PyErr_Restore(type, value, traceback);
}

static int call_traverse(gt_tls_call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->connection);
    Py_VISIT(self->awaited);
    Py_VISIT(self->argument);
    return 0;
}

static void call_dealloc(gt_tls_call *self)
{
    if (self->state != TLS_DONE && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->awaited);
    Py_CLEAR(self->argument);
    Py_CLEAR(self->connection);
    PyObject_GC_Del(self);
}

/* __await__(): as the interpreter does with a coroutine, it refuses a second task while the first one waits. */
static PyObject *call_await(gt_tls_call *self)
{
    if (self->state != TLS_WAITS && self->state != TLS_FOLLOWS)
        return Py_NewRef(self);
    PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
    return NULL;
}

static PyMethodDef call_methods[] = {
    {"send", drive_by_method, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL, PyDoc_STR("End the call with an exception.")},
    {"close", (PyCFunction)call_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods call_async = {
    .am_await = (unaryfunc)call_await,
    .am_send = gt_tls_drive,
};

PyTypeObject gt_tls_call_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.TlsCall",
    .tp_basicsize = sizeof(gt_tls_call),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call of a TLS connection in progress."),
    .tp_dealloc = (destructor)call_dealloc,
    .tp_finalize = (destructor)call_finalize,
    .tp_traverse = (traverseproc)call_traverse,
    .tp_as_async = &call_async,
    .tp_iter = gt_self,
    .tp_iternext = call_next,
    .tp_methods = call_methods,
};

/* --- the connection's methods --- */

/* Takes the reference of `argument`, which may be NULL with an exception set. */
static gt_tls_call *new_call(PyObject *connection, PyObject *argument, uint8_t kind)
{
    gt_tls_call *self = argument ? PyObject_GC_New(gt_tls_call, &gt_tls_call_type) : NULL;
    if (!self) {
        Py_XDECREF(argument);
        return NULL;
    }
    self->connection = Py_NewRef(connection);
    self->awaited = NULL;
    self->argument = argument;
    self->most = self->most_untimed = 0;
    self->slice_ns = GT_UNTIMED;
    self->watched = 0;
    self->state = TLS_NEW;
    self->kind = kind;
    self->makes_room = self->runs = false;
    PyObject_GC_Track(self);
    return self;
}

static PyObject *connection_send(PyObject *self, PyObject *data)
{
    return (PyObject *)new_call(self, Py_NewRef(data), TLS_SENDS);
}

static PyObject *connection_deliver(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    gt_delivery delivery;
    if (!gt_delivery_parse(&delivery, args, given))
        return NULL;
    gt_tls_call *call = new_call(self, PyTuple_Pack(4, args[0], args[1], args[5], args[2]), TLS_DELIVERS);
    if (!call)
        return NULL;
    const gt_connection *below = gt_tls_below(self);
    call->watched = delivery.watched;
    call->most = below ? delivery.most : delivery.most_untimed; /* the rest is for the caller to time */
    call->most_untimed = delivery.most_untimed;
    if (below)
        call->slice_ns = below->proactor->slice_ns;
    return (PyObject *)call;
}

/* Arguments that are not plain are Python's to judge. */
static PyObject *connection_receive(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    PyObject *max = given > 0 ? args[0] : Py_None;
    bool plain = given <= 1 && !names && (max == Py_None || PyLong_CheckExact(max));
    if (plain && max != Py_None) {
        const Py_ssize_t value = PyLong_AsSsize_t(max);
        plain = value >= 1;
        if (value == -1)
            PyErr_Clear();
    }
    if (plain)
        return (PyObject *)new_call(self, Py_NewRef(max), TLS_RECEIVES);
    PyObject *bound = PyObject_CallMethod(python.receive, "__get__", "O", self);
    PyObject *coroutine = bound ? PyObject_Vectorcall(bound, args, (size_t)given, names) : NULL;
    Py_XDECREF(bound);
    return coroutine;
}

static PyMethodDef receive_method = {"receive", (PyCFunction)(void (*)(void))connection_receive,
                                     METH_FASTCALL | METH_KEYWORDS,
                                     PyDoc_STR("receive($self, /, max_bytes=None)\n--\n\nSee Connection.receive().")};
static PyMethodDef send_method = {"send", connection_send, METH_O,
                                  PyDoc_STR("send($self, data, /)\n--\n\nSee Connection.send().")};

static PyMethodDef deliver_method = {
    "_deliver", (PyCFunction)(void (*)(void))connection_deliver, METH_FASTCALL,
    PyDoc_STR("_deliver($self, callback, first, watched, most, timed, learn, /)\n--\n\n"
              "Wait for changes, call back for bytes, and return the first other answer.")};

/* Python's class has no method of this name: delivery_of() has a loop of its own where there is none. */
static int add_deliver(PyTypeObject *type)
{
    PyObject *descriptor = PyDescr_NewMethod(type, &deliver_method);
    const int result = descriptor ? PyObject_SetAttrString((PyObject *)type, "_deliver", descriptor) : -1;
    Py_XDECREF(descriptor);
    return result;
}

PyObject *gt_hasten_tls(PyObject *Py_UNUSED(module), PyObject *args)
{
    gt_tls_classes given;
    PyTypeObject *engine;
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOnl:hasten_tls", &PyType_Type, &given.connection, &PyType_Type, &engine,
                          &PyType_Type, &given.exclusive, &PyType_Type, &given.changes, &given.out_of_memory,
                          &given.interrupted, &given.broken_error, &given.chunk, &given.most_answered))
        return NULL;
    if (python.receive)
        Py_RETURN_NONE;
    if (gt_tls_configure(&given) < 0 || gt_tls_engine_replace(engine) < 0 ||
        gt_tls_nowait_replace(given.connection) < 0)
        return NULL;
    python.receive = gt_tls_replace(given.connection, &receive_method);
    python.send = python.receive ? gt_tls_replace(given.connection, &send_method) : NULL;
    python.wait_change = python.send ? PyObject_GetAttrString((PyObject *)given.connection, "_wait_change") : NULL;
    if (!python.wait_change || add_deliver(given.connection) < 0)
        return NULL;
    gt_tls_calls_configure(&python);
    Py_RETURN_NONE;
}
