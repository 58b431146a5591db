/* handler.c: the coroutine of a handler, resumed past the coroutine that awaits it.
 *
 * In a server's task the handler is awaited by a coroutine that keeps the books of its connection.  As long as the handler runs,
 * each step of the task would go through that one, which passes on what the handler yields and does nothing else: a twentieth of
 * what a small message costs outside the kernel.  So the task has another coroutine for that time, in
 * trio.lowlevel.Task.coro, which resumes the handler itself:
 *
 *     task.coro ──> outer ──awaits──> gt_handler ──> handler     in the first step
 *     task.coro ──> gt_handler ──> handler                       behind that; `outer` is suspended
 *     task.coro ──> outer ──awaits──> gt_handler                 the handler has ended: this is how, and outer goes on
 *
 * For Trio gt_handler is a coroutine as any other.  It has send(), throw() and close(), and the attributes of the handler's
 * coroutine: by cr_frame Trio finds out whether Ctrl-C may interrupt what it has interrupted (trio._core._ki, since Trio 0.28;
 * with an older one, which marks a frame instead, the task keeps its coroutine), and by cr_frame and cr_await where a task waits.
 *
 *     NEW ──send──> PASSING ──> DONE                 the task has another coroutine by now: this is an awaitable that passes
 *      │                                             everything on
 *      └──send──> DIRECT ──> ENDED ──> FOLLOWING     outer gets the outcome.  Code that has kept this object as the task's
 *                                                    coroutine (greenback does) resumes outer by it from then on
 *
 * Only a coroutine is passed by that awaits the handler itself and is the task's own.  Its code is compared for that, because a
 * task may have a coroutine that drives another one, and does more than to pass things on (again greenback's does).
 *
 * While it is DIRECT, gt_handler and outer own each other.  An abandoned run leaves such cycles to the garbage collector, which
 * closes the coroutines.
 */
#include "fastpath.h"

#include <frameobject.h> /* for PyFrame_GetBack() before Python 3.11 */

enum handler_state { NEW, PASSING, DIRECT, ENDED, FOLLOWING, DONE };

typedef struct {
    PyObject_HEAD
    PyObject *coro;  /* the handler's; while ENDED, what that has returned or raised */
    PyObject *outer; /* what awaits this object, unless that turns out not to be the task's own coroutine */
    gt_proactor *proactor;
    uint8_t state; /* enum handler_state */
    bool raised;
    bool running;  /* `coro`, or what it awaits, in its place */
    bool delivers; /* the second of these */
} gt_handler;

/* What is resumed now, borrowed, or NULL. */
static PyObject *resumed(const gt_handler *self)
{
    return self->state < ENDED ? self->coro : self->state == FOLLOWING ? self->outer : NULL;
}

/* As with any coroutine.  Returns NULL. */
static GT_COLD PyObject *raise_over(void)
{
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited handler");
    return NULL;
}

static GT_COLD PyObject *raise_running(void)
{
    PyErr_SetString(PyExc_ValueError, "this handler is running already");
    return NULL;
}

/* --- the task's coroutine --- */

/* Whether this Trio asks a task's coroutine for its frame. */
static bool can_exchange(const gt_trio *trio)
{
    return trio->bound && trio->laid_out && trio->ki_protected.offset >= 0;
}

/* The task that runs, borrowed, if its coroutine can be exchanged; else NULL, without an exception. */
static PyObject *known_task(gt_proactor *proactor)
{
    gt_trio *trio = &proactor->trio;
    if (!can_exchange(trio) || proactor->closed || !gt_proactor_is_in_thread(proactor))
        return NULL;
    PyObject *task = gt_trio_current_task(trio);
    if (!task)
        PyErr_Clear();
    return task && gt_trio_knows_layout(trio, task) ? task : NULL;
}

/* Where that task has its coroutine, or NULL. */
static PyObject **known_place(gt_proactor *proactor)
{
    PyObject *task = known_task(proactor);
    return task ? gt_field_place(&proactor->trio.coro, task) : NULL;
}

static void pass_on(gt_handler *self)
{
    self->state = PASSING;
    Py_CLEAR(self->outer);
}

static void take_over(gt_handler *self)
{
    PyObject **place = known_place(self->proactor);
    if (!place || *place != self->outer) {
        pass_on(self);
        return;
    }
    *place = Py_NewRef((PyObject *)self);
    Py_DECREF(self->outer); /* the task's reference, which is not the last one */
    self->state = DIRECT;
}

static void hand_back(gt_handler *self)
{
    PyObject **place = known_place(self->proactor);
    if (place && *place == (PyObject *)self) {
        *place = Py_NewRef(self->outer);
        Py_DECREF(self); /* never the last one: the caller has another */
    }
}

/* --- driving --- */

static PySendResult answer(gt_handler *self, PyObject **result)
{
    PyObject *outcome = self->coro;
    self->coro = NULL;
    self->state = FOLLOWING;
    if (!outcome) {
        raise_over();
        return PYGEN_ERROR;
    }
    return gt_give_kept(outcome, self->raised, result);
}

/* Whether outer is being resumed, or closed, and this object by it.  -1: exception set. */
static int is_called_by_outer(const gt_handler *self)
{
    PyObject *running = PyObject_GetAttrString(self->outer, "cr_running");
    int result = running ? PyObject_IsTrue(running) : -1;
    Py_XDECREF(running);
    return result;
}

/* Drop the handler's coroutine: last of all, because weak references to it may have callbacks, and what it held finalizers.  The
 * exception that is set stays set. */
static void drop(PyObject *coro)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_DECREF(coro);
    PyErr_Restore(type, value, traceback);
}

/* The handler has ended, in this way. */
static PySendResult ended(gt_handler *self, PySendResult sent, PyObject **result)
{
    const bool was_direct = self->state == DIRECT;
    PyObject *coro = self->coro;
    self->raised = sent == PYGEN_ERROR;
    self->coro = self->raised ? gt_take_exception() : *result;
    *result = NULL;
    self->state = ENDED;
    if (was_direct)
        hand_back(self);
    const int goes_on = was_direct ? is_called_by_outer(self) : 1;
    PySendResult answered = PYGEN_ERROR;
    if (goes_on == 0)
        answered = PyIter_Send(self->outer, Py_None, result); /* it asks for the answer */
    else if (goes_on > 0)
        answered = answer(self, result);
    drop(coro);
    return answered;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_handler *self = (gt_handler *)object;
    *result = NULL;
    if (self->state == ENDED)
        return answer(self, result);
    PyObject *target = resumed(self);
    if (GT_UNLIKELY(!target || self->running)) {
        (void)(target ? raise_running() : raise_over());
        return PYGEN_ERROR;
    }
    if (GT_UNLIKELY(self->state == FOLLOWING))
        return PyIter_Send(target, message, result);
    if (GT_UNLIKELY(self->state == NEW))
        take_over(self);
    self->running = true;
    PySendResult sent = PyIter_Send(target, message, result);
    self->running = false;
    return sent == PYGEN_NEXT ? sent : ended(self, sent, result);
}

/* The step of a task whose handler awaits a call that delivers, made without the handler's coroutine. */
bool gt_handler_deliver(gt_call *call, PyObject *coro, PyObject **result)
{
    gt_handler *self = (gt_handler *)coro;
    if (!Py_IS_TYPE(coro, &gt_handler_type) || self->state != DIRECT || self->running)
        return false;
    if (GT_UNLIKELY(!self->proactor->caller))
        self->proactor->caller = PyEval_GetFrame();
    self->running = self->delivers = true;
    const bool waits = gt_call_deliver(call, result);
    self->running = self->delivers = false;
    return waits;
}

static PyObject *handler_send(PyObject *self, PyObject *message)
{
    Py_INCREF(self);
    PyObject *result = gt_send(self, message);
    Py_DECREF(self);
    return result;
}

/* As from a send: what a method of a coroutine has returned or raised. */
static PySendResult sent_by_method(PyObject *returned, PyObject **result)
{
    *result = returned;
    if (returned)
        return PYGEN_NEXT;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration))
        return PYGEN_ERROR;
    PyObject *stop = gt_take_exception(), *value = ((PyStopIterationObject *)stop)->value;
    *result = Py_NewRef(value ? value : Py_None);
    Py_DECREF(stop);
    return PYGEN_RETURN;
}

static PyObject *raise_stop(PyObject *value)
{
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    Py_DECREF(value);
    if (stop)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    return NULL;
}

static PyObject *handler_throw(gt_handler *self, PyObject *arguments)
{
    PyObject *target = resumed(self);
    if (!target || self->running)
        return target ? raise_running() : raise_over();
    PyObject *method = PyObject_GetAttrString(target, "throw");
    if (!method)
        return NULL;
    Py_INCREF(self);
    const bool follows = self->state == FOLLOWING;
    if (self->state == NEW)
        pass_on(self);
    self->running = !follows;
    PyObject *result, *returned = PyObject_Call(method, arguments, NULL);
    self->running = false;
    Py_DECREF(method);
    PySendResult sent = sent_by_method(returned, &result);
    if (sent != PYGEN_NEXT && !follows)
        sent = ended(self, sent, &result);
    Py_DECREF(self);
    return sent == PYGEN_RETURN ? raise_stop(result) : sent == PYGEN_NEXT ? result : NULL;
}

static PyObject *handler_close(gt_handler *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *target = resumed(self);
    if (!target)
        Py_RETURN_NONE;
    if (self->running)
        return raise_running();
    const int inner =
        self->state == DIRECT ? is_called_by_outer(self) : 1; /* 0: it is the task's coroutine that is closed */
    if (inner < 0)
        return NULL;
    Py_INCREF(self);
    if (self->state == NEW)
        pass_on(self);
    PyObject *result;
    if (self->state == FOLLOWING) {
        result = PyObject_CallMethod(self->outer, "close", NULL);
    } else if (inner) {
        self->running = true;
        result = PyObject_CallMethod(target, "close", NULL);
        self->running = false;
        self->state = DONE;
        Py_CLEAR(self->coro);
    } else {
        result = PyObject_CallMethod(self->outer, "close", NULL); /* closes what it awaits, which is this object */
    }
    Py_DECREF(self);
    return result;
}

/* --- the attributes of a coroutine --- */

static PyObject *get_of_coroutine(gt_handler *self, void *name)
{
    PyObject *target = resumed(self);
    return target ? PyObject_GetAttrString(target, name) : Py_NewRef(Py_None);
}

/* The frame of the callback that runs in the handler's place: the first one above the code that drives the proactor.  NULL: what
 * asks for it was not called by that callback, but runs in another thread; no exception. */
static PyFrameObject *callback_frame(const gt_handler *self)
{
    PyFrameObject *frame = (PyFrameObject *)Py_XNewRef((PyObject *)PyEval_GetFrame());
    while (frame) {
        PyFrameObject *back = PyFrame_GetBack(frame);
        if (back == self->proactor->caller) {
            Py_DECREF(back);
            break;
        }
        Py_SETREF(frame, back);
    }
    return frame;
}

static PyObject *get_frame(gt_handler *self, void *name)
{
    PyFrameObject *frame = self->delivers && self->proactor->caller ? callback_frame(self) : NULL;
    if (!frame && PyErr_Occurred()) /* out of memory */
        return NULL;
    return frame ? (PyObject *)frame : get_of_coroutine(self, name);
}

static PyObject *get_awaited(gt_handler *self, void *name)
{
    return self->delivers ? Py_NewRef(Py_None) : get_of_coroutine(self, name);
}

static PyObject *get_flag(gt_handler *self, void *name)
{
    PyObject *target = resumed(self);
    return target ? PyObject_GetAttrString(target, name) : Py_NewRef(Py_False);
}

static PyObject *get_is_running(gt_handler *self, void *name)
{
    return self->delivers ? Py_NewRef(Py_True) : get_flag(self, name);
}

#if PY_VERSION_HEX >= 0x030b0000
static PyObject *get_is_suspended(gt_handler *self, void *name)
{
    return self->delivers ? Py_NewRef(Py_False) : get_flag(self, name);
}
#endif

#define ATTRIBUTE(NAME, GETTER, TEXT) {NAME, (getter)GETTER, NULL, PyDoc_STR(TEXT), NAME}

static PyGetSetDef handler_getset[] = {
    ATTRIBUTE("cr_await", get_awaited, "What the handler awaits."),
    ATTRIBUTE("cr_code", get_of_coroutine, "The handler's code."),
    ATTRIBUTE("cr_frame", get_frame, "The handler's frame."),
    ATTRIBUTE("cr_origin", get_of_coroutine, "Where the handler's coroutine was made."),
    ATTRIBUTE("cr_running", get_is_running, "Whether the handler runs."),
#if PY_VERSION_HEX >= 0x030b0000
    ATTRIBUTE("cr_suspended", get_is_suspended, "Whether the handler waits."),
#endif
    ATTRIBUTE("__name__", get_of_coroutine, "The handler's name."),
    ATTRIBUTE("__qualname__", get_of_coroutine, "The handler's qualified name."),
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef handler_methods[] = {
    {"send", handler_send, METH_O, PyDoc_STR("Resume the handler.")},
    {"throw", (PyCFunction)handler_throw, METH_VARARGS, PyDoc_STR("Raise an exception in the handler.")},
    {"close", (PyCFunction)handler_close, METH_NOARGS, PyDoc_STR("End the handler.")},
    {NULL, NULL, 0, NULL},
};

/* --- life --- */

static int handler_traverse(gt_handler *self, visitproc visit, void *arg)
{
    Py_VISIT(self->coro);
    Py_VISIT(self->outer);
    Py_VISIT(self->proactor);
    return 0;
}

static int handler_clear(gt_handler *self)
{
    self->state = DONE;
    Py_CLEAR(self->coro);
    Py_CLEAR(self->outer);
    return 0;
}

static void handler_dealloc(gt_handler *self)
{
    PyObject_GC_UnTrack(self);
    handler_clear(self);
    Py_CLEAR(self->proactor);
    PyObject_GC_Del(self);
}

static PyAsyncMethods handler_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject gt_handler_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Handler",
    .tp_basicsize = sizeof(gt_handler),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("The coroutine of a handler, which its task resumes past the one that awaits it."),
    .tp_dealloc = (destructor)handler_dealloc,
    .tp_traverse = (traverseproc)handler_traverse,
    .tp_clear = (inquiry)handler_clear,
    .tp_as_async = &handler_async,
    .tp_iter = gt_self,
    .tp_iternext = gt_next,
    .tp_methods = handler_methods,
    .tp_getset = handler_getset,
};

/* The coroutine of the task that runs, if it has this code.  NULL: exception set, or none. */
static PyObject *coroutine_with(gt_proactor *proactor, PyObject *code)
{
    PyObject **place = known_place(proactor);
    if (!place || !*place || !PyCoro_CheckExact(*place))
        return NULL;
    PyObject *outer = *place, *own = PyObject_GetAttrString(outer, "cr_code");
    Py_XDECREF(own);
    return own == code ? Py_NewRef(outer) : NULL;
}

/* Whether this is a coroutine that has yet to begin: `await` refuses any other, or asks it for an iterator.  (No exception.) */
static bool is_new(PyObject *awaitable)
{
    if (!PyCoro_CheckExact(awaitable))
        return false;
    PyObject *awaited = PyObject_GetAttrString(awaitable, "cr_await");
    Py_XDECREF(awaited);
    PyErr_Clear();
    return awaited == Py_None;
}

/* _handled(awaitable, code): what the coroutine with this code is to await in the place of an awaitable, or itself. */
PyObject *gt_connection_handled(gt_connection *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "_handled() takes an awaitable and a code object");
        return NULL;
    }
    PyObject *coro = arguments[0], *outer = NULL;
    if (is_new(coro) && self->proactor && self->proactor->in_place)
        outer = coroutine_with(self->proactor, arguments[1]);
    if (!outer)
        return PyErr_Occurred() ? NULL : Py_NewRef(coro);
    gt_handler *handler = PyObject_GC_New(gt_handler, &gt_handler_type);
    if (!handler) {
        Py_DECREF(outer);
        return NULL;
    }
    memset((char *)handler + sizeof(PyObject), 0, sizeof *handler - sizeof(PyObject));
    handler->coro = Py_NewRef(coro);
    handler->outer = outer;
    handler->proactor = (gt_proactor *)Py_NewRef(self->proactor);
    PyObject_GC_Track(handler);
    return (PyObject *)handler;
}
