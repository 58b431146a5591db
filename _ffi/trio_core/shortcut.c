/* shortcut.c: Trio's functions that C calls, without a frame of the interpreter.
 *
 * Stands for no code of Trio's, but for the way to the code that gain_trio._acceleration has put into a function.  The
 * interpreter's `with` statement, the call of a class, step.c and gain_trio's proactor call a function by its vectorcall pointer.  For some functions
 * whose code calls this module first, that pointer leads here: what the code would call is called at once, and when it says
 * that the case is not ordinary, the code runs as it would have run.  So the two ways are the same, but for the frame, which
 * costs more than what these functions do.
 *
 * A call made by Python code is made in the frame of that code before Python 3.12, and never comes here.
 *
 * Tools still see the calls: the code runs while the thread is traced or profiled, while the function has another code than the
 * one that was put in, and from Python 3.13 on while a tool of sys.monitoring watches calls or lines.  C cannot ask Python 3.12
 * for that, so a tool that watches all code does not see these functions there.
 */
#include "core.h"

/* What a function is called by, and the code that it must have for that; NULL: there is no such function now. */
typedef struct {
    const char *name; /* what the code calls of this module */
    vectorcallfunc call;
    PyObject *code;
} shortcut;

static PyObject *call_scope_init(PyObject *, PyObject *const *, size_t, PyObject *);
static PyObject *call_scope_enter(PyObject *, PyObject *const *, size_t, PyObject *);
static PyObject *call_scope_exit(PyObject *, PyObject *const *, size_t, PyObject *);
static PyObject *call_task_exited(PyObject *, PyObject *const *, size_t, PyObject *);
static PyObject *call_reschedule(PyObject *, PyObject *const *, size_t, PyObject *);

enum { SCOPE_INIT, SCOPE_ENTER, SCOPE_EXIT, TASK_EXITED, RESCHEDULE, SHORTCUTS };

static shortcut shortcuts[SHORTCUTS] = {
    [SCOPE_INIT] = {"scope_init", call_scope_init, NULL}, [SCOPE_ENTER] = {"scope_enter", call_scope_enter, NULL},
    [SCOPE_EXIT] = {"scope_exit", call_scope_exit, NULL}, [TASK_EXITED] = {"task_exited", call_task_exited, NULL},
    [RESCHEDULE] = {"reschedule", call_reschedule, NULL},
};

/* --- the ways --- */

bool tc_is_watched(PyObject *code)
{
    PyThreadState *state = PyThreadState_Get();
    if (state->c_tracefunc || state->c_profilefunc)
        return true;
#if PY_VERSION_HEX >= 0x030c0000
    if (((PyCodeObject *)code)->_co_monitoring)
        return true;
#else
    (void)code;
#endif
#if PY_VERSION_HEX >= 0x030d0000
    static const uint8_t events[] = {PY_MONITORING_EVENT_PY_START, PY_MONITORING_EVENT_PY_RETURN,
                                     PY_MONITORING_EVENT_LINE};
    static PyMonitoringState states[sizeof events];
    static uint64_t version = UINT64_MAX; /* of what the tools have asked for */
    if (PyMonitoring_EnterScope(states, &version, events, sizeof events) < 0) {
        PyErr_Clear();
        return true;
    }
    for (size_t i = 0; i < sizeof events; i++)
        if (states[i].active)
            return true;
#endif
    return false;
}

/* May the function's code be passed by? */
static bool is_open(int place, PyObject *function)
{
    PyObject *code = PyFunction_GET_CODE(function);
    return code == shortcuts[place].code && !tc_is_watched(code);
}

static PyObject *run_code(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    return tc_core.plain_vectorcall(function, arguments, count, names);
}

/* The default of a keyword, borrowed; NULL without an exception when it has none. */
static PyObject *default_of(PyObject *function, PyObject *name)
{
    PyObject *defaults = PyFunction_GET_KW_DEFAULTS(function);
    PyObject *value = defaults ? PyDict_GetItemWithError(defaults, name) : NULL;
    if (!value)
        PyErr_Clear(); /* the code raises what there is to raise */
    return value;
}

/* Fill in what the scope is called with.  false: the code has to run. */
static bool take_keywords(PyObject *function, PyObject *const *arguments, PyObject *names, PyObject **values)
{
    PyObject *const known[] = {tc_names.relative_deadline, tc_names.deadline, tc_names.shield};
    int first = tc_core.scope.relative_deadline >= 0 ? 0 : 1;
    Py_ssize_t given = names ? PyTuple_GET_SIZE(names) : 0;
    for (int i = first; i < 3; i++) {
        PyObject *value = NULL;
        for (Py_ssize_t j = 0; j < PyTuple_GET_SIZE(names ? names : tc_core.no_arguments); j++)
            if (PyTuple_GET_ITEM(names, j) == known[i]) {
                value = arguments[1 + j];
                given--;
            }
        if (!value && !(value = default_of(function, known[i])))
            return false;
        values[i - first] = value;
    }
    return given == 0; /* a name that is none of these, or not the same string */
}

static PyObject *call_scope_init(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    PyObject *all[4];
    if (PyVectorcall_NARGS(count) != 1 || !is_open(SCOPE_INIT, function) ||
        !take_keywords(function, arguments, names, all + 1))
        return run_code(function, arguments, count, names);
    all[0] = arguments[0];
    PyObject *done = tc_scope_init(NULL, all, 3 + (tc_core.scope.relative_deadline >= 0));
    if (!done)
        return NULL;
    Py_DECREF(done);
    return done == Py_True ? Py_NewRef(Py_None) : run_code(function, arguments, count, names);
}

static PyObject *call_scope_enter(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    int opened = 0;
    if (PyVectorcall_NARGS(count) == 1 && !names && is_open(SCOPE_ENTER, function) && tc_intact(TC_scopes))
        opened = tc_scope_open(arguments[0]);
    if (opened == 0)
        return run_code(function, arguments, count, names);
    return opened < 0 ? NULL : Py_NewRef(arguments[0]);
}

static PyObject *call_scope_exit(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    int closed = 0;
    if (PyVectorcall_NARGS(count) == 4 && !names && is_open(SCOPE_EXIT, function) && tc_intact(TC_scopes))
        closed = tc_scope_close(arguments[0]);
    if (closed == 0)
        return run_code(function, arguments, count, names);
    return closed < 0 ? NULL : PyBool_FromLong(arguments[2] == Py_None);
}

static PyObject *call_task_exited(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    if (PyVectorcall_NARGS(count) != 3 || names || !is_open(TASK_EXITED, function))
        return run_code(function, arguments, count, names);
    PyObject *done = tc_exit(NULL, arguments, 3);
    if (!done)
        return NULL;
    Py_DECREF(done);
    return done == Py_True ? Py_NewRef(Py_None) : run_code(function, arguments, count, names);
}

/* Is what the task is resumed with left to the function, and is that Trio's own default? */
static bool has_no_send(PyObject *function)
{
    PyObject *defaults = PyFunction_GET_DEFAULTS(function);
    return defaults && PyTuple_GET_SIZE(defaults) == 1 && PyTuple_GET_ITEM(defaults, 0) == tc_core.no_send;
}

static PyObject *call_reschedule(PyObject *function, PyObject *const *arguments, size_t count, PyObject *names)
{
    Py_ssize_t given = PyVectorcall_NARGS(count);
    int done = 0;
    if (!names && (given == 3 || (given == 2 && has_no_send(function))) && is_open(RESCHEDULE, function) &&
        tc_intact(TC_step))
        done = tc_reschedule(arguments[0], arguments[1],
                             given == 2 || arguments[2] == tc_core.no_send ? NULL : arguments[2]);
    if (done == 0)
        return run_code(function, arguments, count, names);
    return done < 0 ? NULL : Py_NewRef(Py_None);
}

/* --- putting them in --- */

static void set_vectorcall(PyFunctionObject *function, vectorcallfunc call)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyFunction_SetVectorcall(function, call);
#else
    function->vectorcall = call;
#endif
}

/* set_shortcut(function, name): the function calls this module's function of that name first.  Puts in the shortcut that there
 * is for it, or takes out the one that is in. */
PyObject *tc_set_shortcut(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyFunction_Check(arguments[0]) || !PyUnicode_Check(arguments[1]) || !tc_core.plain_vectorcall) {
        PyErr_SetString(PyExc_TypeError, "set_shortcut() takes a function and a name, when Trio is known");
        return NULL;
    }
    PyFunctionObject *function = (PyFunctionObject *)arguments[0];
    for (int i = 0; i < SHORTCUTS; i++) {
        shortcut *one = &shortcuts[i];
        bool wanted = PyUnicode_CompareWithASCIIString(arguments[1], one->name) == 0;
        if (wanted && (function->vectorcall == tc_core.plain_vectorcall || function->vectorcall == one->call)) {
            Py_XSETREF(one->code, Py_NewRef(PyFunction_GET_CODE(function)));
            set_vectorcall(function, one->call);
        } else if (!wanted && function->vectorcall == one->call) {
            set_vectorcall(function, tc_core.plain_vectorcall);
            Py_CLEAR(one->code);
        }
    }
    Py_RETURN_NONE;
}

PyObject *tc_has_shortcut(PyObject *Py_UNUSED(module), PyObject *function)
{
    if (!PyFunction_Check(function)) {
        PyErr_SetString(PyExc_TypeError, "has_shortcut() takes a function");
        return NULL;
    }
    for (int i = 0; i < SHORTCUTS; i++)
        if (((PyFunctionObject *)function)->vectorcall == shortcuts[i].call)
            Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}
