/* guard.c: whether Trio's functions still call what this C does in their place.
 *
 * Stands for no code of Trio's, but for its way of finding each function by name, each time.  A program may set another one in
 * the place of a method, or of a name in a module, at any time.  _guards.py reads from Trio's code which names these are;
 * a piece in which one of them is not what it was is left to Trio's code, until it is again.
 *
 * Looking at all of them takes too long for each call.  A class has a version that changes with its attributes and with those
 * of its bases; so has a dict before Python 3.12, and from there on it reports that it is changed.  So a call compares
 * versions, and the names only when a version is another one.
 *
 * In Python 3.10 sys._clear_type_cache() takes all versions of classes away and counts from the beginning again, so that a
 * class may get the version that it had before it was changed.  A class of this file that has lost its version shows that.
 */
#include "core.h"

#include <limits.h>

/* A class or the dict of a module, and what some of its names stand for. */
typedef struct {
    PyObject *space;
    PyObject *names, *values; /* tuples */
} guard;

#define NEVER UINT_MAX /* no class comes so far */

/* Where a class has its version, and the one that it had when all was as it should be; NEVER: it is to be looked at. */
typedef struct {
    const unsigned int *place;
    unsigned int version;
} class_version;

#if PY_VERSION_HEX < 0x030c0000
typedef struct {
    const uint64_t *place;
    uint64_t version; /* 0: it is to be looked at */
} dict_version;
#endif

typedef struct {
    guard *classes, *dicts;
    class_version *class_versions;
    Py_ssize_t class_count, dict_count;
#if PY_VERSION_HEX < 0x030c0000
    dict_version *dict_versions;
#else
    uint64_t seen; /* `changes` when all was as it should be, or 0 */
#endif
} guards;

static guards of_pieces[TC_PIECES];

static const char *const names_of_pieces[TC_PIECES] = {
#define X(name) [TC_##name] = #name,
    TC_PIECE_NAMES(X)
#undef X
};

/* --- looking --- */

/* Is everything what it was?  Borrows only, and runs no code: the names are plain strings.  Sets no exception. */
static bool is_same(const guard *one)
{
    bool is_dict = PyDict_CheckExact(one->space), same = true;
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(one->names); i++) {
        PyObject *name = PyTuple_GET_ITEM(one->names, i);
        PyObject *found = is_dict ? PyDict_GetItemWithError(one->space, name)
                                  : _PyType_Lookup((PyTypeObject *)one->space, name); /* gives the class a version */
        same = found == PyTuple_GET_ITEM(one->values, i);
    }
    PyErr_Clear();
    return same;
}

static bool look_at_class(const guard *one, class_version *known)
{
    bool same = is_same(one);
    known->version = same && *known->place != 0 ? *known->place : NEVER; /* 0 is none */
    return same;
}

#if PY_VERSION_HEX < 0x030c0000
static bool are_dicts_intact(guards *of)
{
    for (Py_ssize_t i = 0; i < of->dict_count; i++) {
        dict_version *known = &of->dict_versions[i];
        if (*known->place == known->version)
            continue;
        known->version = 0;
        if (!is_same(&of->dicts[i]))
            return false;
        known->version = *known->place;
    }
    return true;
}

static int watch(PyObject *Py_UNUSED(dict)) { return 0; }
#else
static uint64_t changes = 1; /* of any dict that is watched */

static int note_change(PyDict_WatchEvent Py_UNUSED(event), PyObject *Py_UNUSED(dict), PyObject *Py_UNUSED(key),
                       PyObject *Py_UNUSED(value))
{
    changes++; /* it is reported before it is done, by a thread that has the GIL */
    return 0;
}

static bool are_dicts_intact(guards *of)
{
    if (of->seen == changes)
        return true;
    of->seen = 0;
    for (Py_ssize_t i = 0; i < of->dict_count; i++)
        if (!is_same(&of->dicts[i]))
            return false;
    of->seen = changes;
    return true;
}

static int watch(PyObject *dict)
{
    static int watcher = -1;
    if (watcher < 0)
        watcher = PyDict_AddWatcher(note_change);
    return watcher < 0 ? -1 : PyDict_Watch(watcher, dict);
}
#endif

#if PY_VERSION_HEX < 0x030b0000
/* No attribute of it is ever looked up but here, so it has no version from the clearing of the cache until here. */
static PyTypeObject canary = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.Canary",
    .tp_flags = Py_TPFLAGS_DEFAULT,
};

static void forget_versions(void)
{
    _PyType_Lookup(&canary, tc_names.task); /* gives it a version */
    for (int i = 0; i < TC_PIECES; i++)
        for (Py_ssize_t j = 0; j < of_pieces[i].class_count; j++)
            of_pieces[i].class_versions[j].version = NEVER;
}

static void notice_clearing(void)
{
    if (canary.tp_version_tag == 0)
        forget_versions();
}

int tc_guards_init(void) { return PyType_Ready(&canary); }
#else
static void notice_clearing(void) {}

int tc_guards_init(void) { return 0; }
#endif

/* What nearly every call comes to: nothing has another version than when it was looked at. */
static inline bool are_versions_the_same(const guards *of)
{
    for (const class_version *known = of->class_versions, *end = known + of->class_count; known != end; known++)
        if (*known->place != known->version)
            return false;
#if PY_VERSION_HEX < 0x030c0000
    for (const dict_version *known = of->dict_versions, *end = known + of->dict_count; known != end; known++)
        if (*known->place != known->version)
            return false;
    return true;
#else
    return of->seen == changes;
#endif
}

/* Not part of tc_intact(), which would have to make room for it at each call. */
__attribute__((noinline)) static bool look(guards *of)
{
    for (Py_ssize_t i = 0; i < of->class_count; i++) {
        class_version *known = &of->class_versions[i];
        if (*known->place != known->version && !look_at_class(&of->classes[i], known))
            return false;
    }
    return are_dicts_intact(of);
}

bool tc_intact(enum tc_piece piece)
{
    guards *of = &of_pieces[piece];
    notice_clearing();
    return are_versions_the_same(of) || look(of);
}

/* --- what there is to look at --- */

static void release_all(guard *old, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_XDECREF(old[i].space);
        Py_XDECREF(old[i].names);
        Py_XDECREF(old[i].values);
    }
    PyMem_Free(old);
}

static void release(guards *old)
{
    release_all(old->classes, old->class_count);
    release_all(old->dicts, old->dict_count);
    PyMem_Free(old->class_versions);
#if PY_VERSION_HEX < 0x030c0000
    PyMem_Free(old->dict_versions);
#endif
}

static bool are_names(PyObject *names)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++)
        if (!PyUnicode_CheckExact(PyTuple_GET_ITEM(names, i)))
            return false;
    return true;
}

/* (a class or a dict, names, values).  0 or -1 */
static int add_guard(guards *made, PyObject *row)
{
    PyObject *space, *names, *values;
    if (!PyTuple_Check(row)) {
        PyErr_SetString(PyExc_TypeError, "a guard is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(row, "OO!O!", &space, &PyTuple_Type, &names, &PyTuple_Type, &values))
        return -1;
    bool is_dict = PyDict_CheckExact(space);
    if ((!is_dict && !PyType_Check(space)) || PyTuple_GET_SIZE(names) != PyTuple_GET_SIZE(values) ||
        !are_names(names)) {
        PyErr_SetString(PyExc_TypeError, "a guard is a class or a dict, names, and as many values");
        return -1;
    }
    if (is_dict && watch(space) < 0)
        return -1;
    guard one = {Py_NewRef(space), Py_NewRef(names), Py_NewRef(values)};
    if (!is_dict) {
        made->class_versions[made->class_count] = (class_version){&((PyTypeObject *)space)->tp_version_tag, NEVER};
        made->classes[made->class_count++] = one;
        return 0;
    }
#if PY_VERSION_HEX < 0x030c0000
    made->dict_versions[made->dict_count] = (dict_version){&((PyDictObject *)space)->ma_version_tag, 0};
#endif
    made->dicts[made->dict_count++] = one;
    return 0;
}

/* Room for `count` of either.  0 or -1 */
static int make_room(guards *made, size_t count)
{
    memset(made, 0, sizeof *made);
    made->classes = PyMem_Calloc(count, sizeof(guard));
    made->dicts = PyMem_Calloc(count, sizeof(guard));
    made->class_versions = PyMem_Calloc(count, sizeof(class_version));
    bool all = made->classes && made->dicts && made->class_versions;
#if PY_VERSION_HEX < 0x030c0000
    made->dict_versions = PyMem_Calloc(count, sizeof(dict_version));
    all = all && made->dict_versions;
#endif
    if (all)
        return 0;
    release(made);
    PyErr_NoMemory();
    return -1;
}

static int find_piece(PyObject *name)
{
    for (int i = 0; i < TC_PIECES; i++)
        if (PyUnicode_CompareWithASCIIString(name, names_of_pieces[i]) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "there is no piece %R", name);
    return -1;
}

/* set_guards(piece, rows): in the place of those that it had. */
PyObject *tc_set_guards(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyUnicode_CheckExact(arguments[0]) || !PyTuple_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "set_guards() takes the name of a piece, and a tuple");
        return NULL;
    }
    int piece = find_piece(arguments[0]);
    if (piece < 0)
        return NULL;
    PyObject *rows = arguments[1];
    guards made;
    if (make_room(&made, (size_t)PyTuple_GET_SIZE(rows) + 1) < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(rows); i++)
        if (add_guard(&made, PyTuple_GET_ITEM(rows, i)) < 0) {
            release(&made);
            return NULL;
        }
    guards old = of_pieces[piece];
    of_pieces[piece] = made;
    release(&old);
    Py_RETURN_NONE;
}

PyObject *tc_is_intact(PyObject *Py_UNUSED(module), PyObject *name)
{
    int piece = PyUnicode_CheckExact(name) ? find_piece(name) : -1;
    if (piece < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "is_intact() takes the name of a piece");
    return piece < 0 ? NULL : PyBool_FromLong(tc_intact((enum tc_piece)piece));
}
