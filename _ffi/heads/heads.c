/* heads.c: gain_trio._heads: the heads of HTTP/1.1 requests, split and recognised.
 *
 * These functions do in C what gain_trio/_http/_head_splitting.py does in Python, and nothing else: that file is the
 * specification.  What a head means, what is remembered and what is answered is decided in Python.  A test compares the two on
 * any bytes, and the fuzzer does.
 *
 *     split_head()    is one regular expression there: the grammar of RFC 9112, 2 to 5, without any leniency.  No two
 *                     neighbouring parts of it can match the same byte, so each part ends at the first byte that is not its
 *                     own, and nothing is looked at twice.
 *     repeated()      is a search for the end of each head and a look-up of the bytes up to there.  A client that sends
 *                     several requests in one go mostly repeats one.  So a head is compared with the last one first, which is
 *                     a tenth of the price of a hash.  That is the same as a look-up: the end of a head is in it once, so no
 *                     head is the beginning of another one.
 *     begins()        compares a head that is known with the bytes at a place.
 *     read_fields()   looks each line of a head up, and has Python read one that is new.  A client mostly repeats all lines but
 *                     one, so a line is compared with the one that another head had at its place, for the same reason.
 */
#include "heads.h"

#include <string.h>

#define MAX_METHOD 32 /* bytes of a method's name: _http_heads.py */

/* What a field is to the reader: _request_fields.py. */
enum { PLAIN, FRAMING, SECRET };
#define MOST_RECENT 32 /* lines that are compared before they are looked up */

/* Behind `text`, or NULL if it does not stand at `at`. */
static const char *behind(const char *at, const char *end, const char *text, size_t length)
{
    return (size_t)(end - at) >= length && memcmp(at, text, length) == 0 ? at + length : NULL;
}

struct head {
    const char *method, *method_end, *target, *target_end, *minor, *lines, *lines_end, *end;
};

static bool split(const char *at, const char *end, struct head *head)
{
    head->method = at;
    head->method_end = at = gt_skip(at, end, GT_TOKEN);
    if (at == head->method || at - head->method > MAX_METHOD || !(at = behind(at, end, " ", 1)))
        return false;
    head->target = at;
    head->target_end = at = gt_skip(at, end, GT_TARGET);
    if (at == head->target || !(at = behind(at, end, " HTTP/1.", 8)) || at == end || (*at != '0' && *at != '1'))
        return false;
    head->minor = at;
    if (!(at = behind(at + 1, end, "\r\n", 2)))
        return false;
    head->lines = at;
    while (at < end && *at != '\r') {
        const char *name = at;
        at = gt_skip(at, end, GT_TOKEN);
        if (at == name || !(at = behind(at, end, ":", 1)) || !(at = behind(gt_skip(at, end, GT_VALUE), end, "\r\n", 2)))
            return false;
    }
    head->lines_end = at;
    head->end = behind(at, end, "\r\n", 2);
    return head->end != NULL;
}

static PyObject *bytes_of(const char *start, const char *end) { return PyBytes_FromStringAndSize(start, end - start); }

/* Bytes, and a place in them.  False with an exception. */
static bool parse_place(const char *name, PyObject *data, PyObject *place, Py_ssize_t *position)
{
    if (!PyBytes_Check(data)) {
        PyErr_Format(PyExc_TypeError, "%s() takes bytes, not %s", name, Py_TYPE(data)->tp_name);
        return false;
    }
    *position = PyNumber_AsSsize_t(place, PyExc_OverflowError);
    if (*position == -1 && PyErr_Occurred())
        return false;
    if (*position >= 0 && *position <= PyBytes_GET_SIZE(data))
        return true;
    PyErr_Format(PyExc_ValueError, "%s() begins within the bytes", name);
    return false;
}

static PyObject *split_head(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_ssize_t position;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "split_head() takes bytes and where to begin");
        return NULL;
    }
    if (!parse_place("split_head", arguments[0], arguments[1], &position))
        return NULL;
    const char *data = PyBytes_AS_STRING(arguments[0]);
    struct head head;
    if (!split(data + position, data + PyBytes_GET_SIZE(arguments[0]), &head))
        Py_RETURN_NONE;
    return Py_BuildValue("(NNNNn)", bytes_of(head.method, head.method_end), bytes_of(head.target, head.target_end),
                         bytes_of(head.minor, head.minor + 1), bytes_of(head.lines, head.lines_end),
                         (Py_ssize_t)(head.end - data));
}

/* Behind the empty line that ends the head at `at`, or NULL if it does not end before `end`. */
static const char *behind_head(const char *at, const char *end)
{
    while (end - at >= 4 && (at = memchr(at, '\r', (size_t)(end - at) - 3))) {
        if (memcmp(at, "\r\n\r\n", 4) == 0)
            return at + 4;
        at++;
    }
    return NULL;
}

/* What the memory has for the head at `at`, borrowed; NULL: nothing, perhaps with an exception. */
static PyObject *look_up(PyObject *memory, PyObject *data, const char *at, Py_ssize_t left, Py_ssize_t most,
                         Py_ssize_t *length)
{
    const char *end = behind_head(at, at + (left < most ? left : most));
    if (!end)
        return NULL;
    *length = end - at;
    if (*length == PyBytes_GET_SIZE(data)) /* one head, and nothing else */
        return PyDict_GetItemWithError(memory, data);
    PyObject *key = PyBytes_FromStringAndSize(at, *length);
    if (!key)
        return NULL;
    PyObject *found = PyDict_GetItemWithError(memory, key);
    Py_DECREF(key);
    return found;
}

/* The list, which it takes, and where it ends. */
static PyObject *list_and_place(PyObject *found, Py_ssize_t position)
{
    PyObject *place = PyErr_Occurred() ? NULL : PyLong_FromSsize_t(position);
    PyObject *pair = place ? PyTuple_Pack(2, found, place) : NULL;
    Py_XDECREF(place);
    Py_DECREF(found);
    return pair;
}

static PyObject *repeated(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_ssize_t position, most;
    if (count != 4 || !PyDict_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "repeated() takes a dict, bytes, where to begin, and the longest head");
        return NULL;
    }
    if (!parse_place("repeated", arguments[1], arguments[2], &position))
        return NULL;
    most = PyNumber_AsSsize_t(arguments[3], PyExc_OverflowError);
    if (most < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "repeated() takes a length of at least 0");
        return NULL;
    }
    PyObject *found = PyList_New(0);
    if (!found)
        return NULL;
    const char *data = PyBytes_AS_STRING(arguments[1]), *last = NULL;
    Py_ssize_t size = PyBytes_GET_SIZE(arguments[1]), length = 0;
    PyObject *request = NULL; /* borrowed from the list */
    while (position < size) {
        const char *at = data + position;
        Py_ssize_t left = size - position;
        if (!last || left < length || memcmp(at, last, (size_t)length) != 0) {
            request = look_up(arguments[0], arguments[1], at, left, most, &length);
            if (!request)
                break;
            last = at;
        }
        if (PyList_Append(found, request) < 0)
            break;
        position += length;
    }
    return list_and_place(found, position);
}

static PyObject *begins(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_ssize_t position;
    if (count != 3 || !PyBytes_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "begins() takes bytes, a place in them, and what may stand there");
        return NULL;
    }
    if (!parse_place("begins", arguments[0], arguments[1], &position))
        return NULL;
    const char *data = PyBytes_AS_STRING(arguments[0]), *whole = PyBytes_AS_STRING(arguments[2]);
    size_t length = (size_t)PyBytes_GET_SIZE(arguments[2]);
    return PyBool_FromLong(behind(data + position, data + PyBytes_GET_SIZE(arguments[0]), whole, length) != NULL);
}

/* The line of an entry of the memory, borrowed; NULL with an exception if it is none. */
static PyObject *line_of(PyObject *entry)
{
    if (PyTuple_CheckExact(entry) && PyTuple_GET_SIZE(entry) == 3 && PyBytes_Check(PyTuple_GET_ITEM(entry, 2)))
        return PyTuple_GET_ITEM(entry, 2);
    PyErr_SetString(PyExc_TypeError, "read_fields() finds and reads tuples of a pair, what it is, and its line");
    return NULL;
}

/* The entry of the line that stood at this place lately if it is the same; NULL if not, perhaps with an exception. */
static PyObject *same_as_recent(PyObject *recent, Py_ssize_t place, const char *at, Py_ssize_t length)
{
    if (place >= PyList_GET_SIZE(recent))
        return NULL;
    PyObject *entry = PyList_GET_ITEM(recent, place);
    PyObject *line = line_of(entry);
    if (!line || PyBytes_GET_SIZE(line) != length || memcmp(PyBytes_AS_STRING(line), at, (size_t)length) != 0)
        return NULL;
    return Py_NewRef(entry);
}

static int keep_recent(PyObject *recent, Py_ssize_t place, PyObject *entry)
{
    if (place < PyList_GET_SIZE(recent))
        return PyList_SetItem(recent, place, Py_NewRef(entry));
    return place < MOST_RECENT && place == PyList_GET_SIZE(recent) ? PyList_Append(recent, entry) : 0;
}

/* What the memory has for a line, or what Python reads there. */
static PyObject *entry_of(PyObject *const *arguments, Py_ssize_t place, const char *at, Py_ssize_t length)
{
    PyObject *entry = same_as_recent(arguments[2], place, at, length);
    if (entry || PyErr_Occurred())
        return entry;
    PyObject *line = PyBytes_FromStringAndSize(at, length);
    if (!line)
        return NULL;
    entry = Py_XNewRef(PyDict_GetItemWithError(arguments[1], line));
    if (!entry && !PyErr_Occurred())
        entry = PyObject_CallOneArg(arguments[3], line);
    else if (entry && (!line_of(entry) || keep_recent(arguments[2], place, entry) < 0))
        Py_CLEAR(entry);
    Py_DECREF(line);
    return entry;
}

/* Add what an entry says. */
static int add_entry(PyObject *entry, PyObject *pairs, PyObject *framing, bool *has_secret)
{
    if (!line_of(entry))
        return -1;
    PyObject *pair = PyTuple_GET_ITEM(entry, 0);
    long kind = PyLong_AsLong(PyTuple_GET_ITEM(entry, 1));
    if (kind == -1 && PyErr_Occurred())
        return -1;
    *has_secret |= kind == SECRET;
    if (kind == FRAMING && PyList_Append(framing, pair) < 0)
        return -1;
    return PyList_Append(pairs, pair);
}

/* The end of the line at `at`: a CR LF, or the end. */
static const char *line_end(const char *at, const char *end)
{
    const char *found;
    while ((found = memchr(at, '\r', (size_t)(end - at)))) {
        if (found + 1 < end && found[1] == '\n')
            return found;
        at = found + 1;
    }
    return end;
}

static int add_lines(PyObject *const *arguments, PyObject *pairs, PyObject *framing, bool *has_secret)
{
    const char *at = PyBytes_AS_STRING(arguments[0]), *end = at + PyBytes_GET_SIZE(arguments[0]);
    for (Py_ssize_t place = 0; at < end; place++) {
        const char *behind_line = line_end(at, end);
        if (behind_line == at)
            return 0;
        PyObject *entry = entry_of(arguments, place, at, behind_line - at);
        int status = entry ? add_entry(entry, pairs, framing, has_secret) : -1;
        Py_XDECREF(entry);
        if (status < 0)
            return -1;
        at = behind_line == end ? end : behind_line + 2;
    }
    return 0;
}

static PyObject *read_fields(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_Check(arguments[0]) || !PyDict_Check(arguments[1]) || !PyList_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "read_fields() takes bytes, a dict, a list, and what reads a line");
        return NULL;
    }
    bool has_secret = false;
    PyObject *pairs = PyList_New(0), *framing = PyList_New(0), *result = NULL;
    if (pairs && framing && add_lines(arguments, pairs, framing, &has_secret) == 0) {
        PyObject *pair_tuple = PyList_AsTuple(pairs), *framing_tuple = PyList_AsTuple(framing);
        if (pair_tuple && framing_tuple)
            result = PyTuple_Pack(3, pair_tuple, framing_tuple, has_secret ? Py_True : Py_False);
        Py_XDECREF(pair_tuple);
        Py_XDECREF(framing_tuple);
    }
    Py_XDECREF(pairs);
    Py_XDECREF(framing);
    return result;
}

static PyMethodDef methods[] = {
    {"split_head", (PyCFunction)(void (*)(void))split_head, METH_FASTCALL,
     PyDoc_STR("split_head($module, data, position, /)\n--\n\n"
               "The method, target, minor version and fields of the head at a place, and where it ends; or None.")},
    {"repeated", (PyCFunction)(void (*)(void))repeated, METH_FASTCALL,
     PyDoc_STR("repeated($module, memory, data, position, most, /)\n--\n\n"
               "What a memory has for the heads from a place on, and where the first other head begins.")},
    {"begins", (PyCFunction)(void (*)(void))begins, METH_FASTCALL,
     PyDoc_STR("begins($module, data, position, whole, /)\n--\n\n"
               "Whether a whole head begins at a place.")},
    {"read_fields", (PyCFunction)(void (*)(void))read_fields, METH_FASTCALL,
     PyDoc_STR("read_fields($module, lines, known, recent, read, /)\n--\n\n"
               "The pairs of a head's lines, those of them that matter to the framing, and whether any is a secret.")},
    {"configure", gt_message_configure, METH_VARARGS,
     PyDoc_STR("configure($module, exchange, connection, stamp, defaults, status_lines, phases, most, /)\n--\n\n"
               "The classes of an ASGI server whose slots send() uses, and what it needs beside them.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gain_trio._heads",
    .m_doc = PyDoc_STR("The heads of HTTP/1.1 requests, and the responses of ASGI apps."),
    .m_size = -1,
    .m_methods = methods,
};

static int add_type(PyObject *module, const char *name, PyTypeObject *type)
{
    return PyType_Ready(type) < 0 ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)type);
}

PyMODINIT_FUNC PyInit__heads(void); /* the prototype that Python.h has no way to give */

PyMODINIT_FUNC PyInit__heads(void)
{
    gt_fill_byte_classes();
    if (gt_message_init() < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && (add_type(module, "Exchange", &gt_exchange_type) < 0 || add_type(module, "Send", &gt_send_type) < 0))
        Py_CLEAR(module);
    return module;
}
