/* asyncgen.c: what a run notes of each async generator that its tasks begin, to close at the end those that are left.
 *
 * Stands for, in trio/_core/_asyncgens.py:
 *     AsyncGenerators.install_hooks: firstiter     of a generator that a task begins
 * and in Python's _weakrefset.py:
 *     WeakSet.add, and the function in WeakSet.__init__ that takes out what is gone
 *
 * The set is Trio's own, and has in it what it would have.  After the tasks' end it is a plain set, which is Trio's to fill.
 */
#include "core.h"

/* What a hook has: Trio's AsyncGenerators, the function that Trio made for the hook, the set, and what takes out of it. */
enum { GENERATORS, ORIGINAL, ALIVE, FORGET, FIELDS };

/* Is this attribute of the set empty?  A WeakSet that is iterated over while something of it goes notes that in two of them, but
 * not in each version of Python.  -1: exception set */
static int is_empty(PyObject *alive, PyObject *name)
{
    if (tc_core.weak_set_defers != Py_True)
        return 1;
    PyObject *value = PyObject_GetAttr(alive, name);
    Py_ssize_t size = value ? PyObject_Size(value) : -1;
    Py_XDECREF(value);
    return size < 0 ? -1 : size == 0;
}

/* The set in it, as a new reference; NULL without an exception: the set's own functions have to look at it. */
static PyObject *data_of(PyObject *alive)
{
    PyObject *data = PyObject_GetAttr(alive, tc_names.data);
    if (data && !PySet_CheckExact(data))
        Py_CLEAR(data);
    return data;
}

/* --- an async generator is gone --- */

/* 1; 0: the set's own function has to do it; -1: exception set */
static int forget(PyObject *alive, PyObject *reference)
{
    int result = tc_intact(TC_generators) ? is_empty(alive, tc_names._iterating) : 0;
    if (result <= 0)
        return result;
    PyObject *data = data_of(alive);
    result = data ? 1 : PyErr_Occurred() ? -1 : 0;
    if (data && PySet_Discard(data, reference) < 0)
        result = -1;
    Py_XDECREF(data);
    return result;
}

/* What a weak reference refers to, as a new reference; NULL without an exception when that is gone. */
static PyObject *referent(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030d0000
    PyObject *object = NULL;
    return PyWeakref_GetRef(reference, &object) > 0 ? object : NULL;
#else
    PyObject *object = PyWeakref_GetObject(reference);
    return object && object != Py_None ? Py_NewRef(object) : NULL;
#endif
}

/* The callback of a weak reference; `self` is one to the set. */
static PyObject *callback(PyObject *self, PyObject *reference)
{
    PyObject *alive = referent(self), *result = NULL;
    int done = alive ? forget(alive, reference) : PyErr_Occurred() ? -1 : 1;
    if (done == 0)
        result = PyObject_CallMethodOneArg(alive, tc_names._remove, reference);
    else if (done > 0)
        result = Py_NewRef(Py_None);
    Py_XDECREF(alive);
    return result;
}

static PyMethodDef forget_method = {"_remove", callback, METH_O, NULL};

/* --- an async generator begins --- */

/* Is this a task's, or that of a guest run's host?  Sets no exception. */
static bool is_in_task(void)
{
    PyObject *context = tc_context();
    bool in_task = context && PyDict_GetItemWithError(context, tc_names.task);
    PyErr_Clear(); /* Trio's own function, which comes next, raises what there is to raise */
    return in_task;
}

/* alive.add(generator), with this module's callback.  0 or -1 */
static int add(PyObject *data, PyObject *generator, PyObject *gone)
{
    PyObject *reference = PyWeakref_NewRef(generator, gone);
    int result = reference ? PySet_Add(data, reference) : -1;
    Py_XDECREF(reference);
    return result;
}

/* 1; 0: Trio has to do it; -1: exception set */
static int note(PyObject *of, PyObject *generator)
{
    PyObject *alive = PyTuple_GET_ITEM(of, ALIVE);
    if (tc_get(tc_core.generators.alive, PyTuple_GET_ITEM(of, GENERATORS)) != alive || !tc_intact(TC_generators) ||
        !is_in_task())
        return 0;
    int result = is_empty(alive, tc_names._pending_removals);
    if (result <= 0)
        return result;
    PyObject *data = data_of(alive);
    result = data ? 1 : PyErr_Occurred() ? -1 : 0;
    if (data && add(data, generator, PyTuple_GET_ITEM(of, FORGET)) < 0)
        result = -1;
    Py_XDECREF(data);
    return result;
}

static PyObject *begin(PyObject *of, PyObject *generator)
{
    int noted = note(of, generator);
    if (noted == 0)
        return PyObject_CallOneArg(PyTuple_GET_ITEM(of, ORIGINAL), generator);
    return noted < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef begin_method = {"firstiter", begin, METH_O, NULL};

/* first_iteration(generators, function): the hook to set in the place of the function, or None to set the function. */
PyObject *tc_first_iteration(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !Py_IS_TYPE(arguments[0], tc_core.generators_type) || !tc_intact(TC_generators))
        Py_RETURN_NONE;
    PyObject *alive = tc_get(tc_core.generators.alive, arguments[0]);
    if (!Py_IS_TYPE(alive, tc_core.weak_set_type))
        Py_RETURN_NONE;
    PyObject *reference = PyWeakref_NewRef(alive, NULL);
    PyObject *gone = reference ? PyCFunction_New(&forget_method, reference) : NULL;
    PyObject *of = gone ? PyTuple_Pack(FIELDS, arguments[0], arguments[1], alive, gone) : NULL;
    PyObject *hook = of ? PyCFunction_New(&begin_method, of) : NULL;
    Py_XDECREF(reference);
    Py_XDECREF(gone);
    Py_XDECREF(of);
    return hook;
}
