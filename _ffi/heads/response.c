/* response.c: a whole response, head and body, in one pass over the app's fields.
 *
 * The usual response has a body of known length, and no field that decides how it is framed but for its Content-Length.  For
 * such a one the bytes are those that made_head() of gain_trio/asgi/_response_heads.py makes, which is the specification; a
 * test compares the two.  Anything else is left to Python, also a response that is wrong, so that the errors are Python's.
 *
 * The head of a response is written anew each time.  That costs a few instructions a byte, less than to find it in a memory
 * by fields that the app has made anew.
 */
#include "heads.h"

#include <string.h>

#define LENGTH_NAME "content-length"
#define MAX_DIGITS 18       /* of a Content-Length */
#define LONGEST_HEAD 65536  /* bytes of fields; longer ones are left to Python */
#define LENGTH_LINE_SIZE 40 /* bytes that the line of a Content-Length has at most */

/* What the app's fields are beside their lines. */
typedef struct {
    bool has_length, has_date, has_server;
    bool decides_framing;
    Py_ssize_t length;
} given;

/* The name and the value of a field, borrowed.  False: they are not bytes in a pair. */
static bool unpack(PyObject *field, PyObject **name, PyObject **value)
{
    if (PyTuple_CheckExact(field) && PyTuple_GET_SIZE(field) == 2) {
        *name = PyTuple_GET_ITEM(field, 0);
        *value = PyTuple_GET_ITEM(field, 1);
    } else if (PyList_CheckExact(field) && PyList_GET_SIZE(field) == 2) {
        *name = PyList_GET_ITEM(field, 0);
        *value = PyList_GET_ITEM(field, 1);
    } else {
        return false;
    }
    return PyBytes_CheckExact(*name) && PyBytes_CheckExact(*value);
}

/* The bytes that the lines of the fields have at most; -1 if they are not the usual ones. */
static Py_ssize_t measure(PyObject *const *fields, Py_ssize_t count)
{
    Py_ssize_t size = 0;
    for (Py_ssize_t place = 0; place < count; place++) {
        PyObject *name, *value;
        if (!unpack(fields[place], &name, &value))
            return -1;
        Py_ssize_t name_size = PyBytes_GET_SIZE(name), value_size = PyBytes_GET_SIZE(value);
        if (name_size > LONGEST_HEAD || value_size > LONGEST_HEAD)
            return -1;
        size += name_size + value_size + 4; /* ": " and the end of the line */
        if (size > LONGEST_HEAD)
            return -1;
    }
    return size;
}

static bool is_name(const char *name, Py_ssize_t size, const char *expected)
{
    return memcmp(name, expected, (size_t)size) == 0;
}

/* -1: it is no number of at most MAX_DIGITS digits. */
static Py_ssize_t read_length(const char *at, const char *end)
{
    Py_ssize_t length = 0;
    if (at == end || end - at > MAX_DIGITS)
        return -1;
    for (; at < end; at++) {
        if (*at < '0' || *at > '9')
            return -1;
        length = length * 10 + (*at - '0');
    }
    return length;
}

/* Note what a field means beside its line; its name is in lower case.  False: it is wrong. */
static bool note_meaning(const char *name, Py_ssize_t size, const char *value, const char *value_end, given *found)
{
    switch (size) {
    case 4:
        found->has_date |= is_name(name, size, "date");
        return true;
    case 6:
        found->has_server |= is_name(name, size, "server");
        return true;
    case 7:
        found->decides_framing |= is_name(name, size, "upgrade"); /* of which the field Connection speaks, too */
        return true;
    case 10:
        found->decides_framing |= is_name(name, size, "connection");
        return true;
    case 14:
        if (!is_name(name, size, LENGTH_NAME))
            return true;
        if (found->has_length)
            return false;
        found->has_length = true;
        found->length = read_length(value, value_end);
        return found->length >= 0;
    case 17:
        found->decides_framing |= is_name(name, size, "transfer-encoding");
        return true;
    default:
        return true;
    }
}

static char *put(char *to, const char *from, Py_ssize_t size)
{
    memcpy(to, from, (size_t)size);
    return to + size;
}

static char *put_bytes(char *to, PyObject *bytes) { return put(to, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes)); }

/* The value without white space around it. */
static void strip(const char **at, const char **end)
{
    while (*at < *end && (**at == ' ' || **at == '\t'))
        (*at)++;
    while (*at < *end && ((*end)[-1] == ' ' || (*end)[-1] == '\t'))
        (*end)--;
}

/* Write the line of a field; NULL if it is no right one. */
static char *put_field(char *to, PyObject *field, given *found)
{
    PyObject *name, *value;
    if (!unpack(field, &name, &value))
        return NULL;
    const char *from = PyBytes_AS_STRING(name), *line = to;
    Py_ssize_t size = PyBytes_GET_SIZE(name);
    if (size == 0)
        return NULL;
    for (Py_ssize_t place = 0; place < size; place++) {
        unsigned char byte = (unsigned char)from[place];
        if (!(gt_byte_classes[byte] & GT_TOKEN))
            return NULL;
        *to++ = (char)(byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte);
    }
    const char *at = PyBytes_AS_STRING(value), *end = at + PyBytes_GET_SIZE(value);
    strip(&at, &end);
    if (gt_skip(at, end, GT_VALUE) != end || !note_meaning(line, size, at, end, found))
        return NULL;
    to = put(to, ": ", 2);
    to = put(to, at, end - at);
    return put(to, "\r\n", 2);
}

static char *put_length(char *to, Py_ssize_t length)
{
    char digits[MAX_DIGITS + 2];
    int count = 0;
    do {
        digits[count++] = (char)('0' + length % 10);
        length /= 10;
    } while (length);
    to = put(to, LENGTH_NAME ": ", sizeof LENGTH_NAME + 1);
    while (count)
        *to++ = digits[--count];
    return put(to, "\r\n", 2);
}

/* Write all of it; NULL if it is not the usual response, or no right one. */
static char *put_all(char *to, const gt_response *response, PyObject *const *fields, Py_ssize_t count)
{
    given found = {.length = PyBytes_GET_SIZE(response->body)};
    to = put_bytes(to, response->status_line);
    for (Py_ssize_t place = 0; place < count; place++)
        if (!(to = put_field(to, fields[place], &found)))
            return NULL;
    if (found.decides_framing || found.length != PyBytes_GET_SIZE(response->body))
        return NULL;
    if (!found.has_length)
        to = put_length(to, found.length);
    if (!found.has_date)
        to = put_bytes(to, response->date_line);
    if (!found.has_server)
        to = put_bytes(to, response->server_line);
    to = put(to, "\r\n", 2);
    return put_bytes(to, response->body);
}

/* --- the start, which is checked before there is a body --- */

/* The fields in a new tuple, pairs that are lists as tuples, too.  Making it may collect garbage, and so run code that changes
 * a list.  NULL with an exception. */
static PyObject *freeze(PyObject *headers)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(headers);
    PyObject *kept = PyTuple_New(count);
    for (Py_ssize_t place = 0; kept && place < count; place++) {
        PyObject *field =
            place < PySequence_Fast_GET_SIZE(headers) ? PySequence_Fast_GET_ITEM(headers, place) : Py_None;
        Py_INCREF(field);
        if (PyList_CheckExact(field))
            Py_SETREF(field, PyList_AsTuple(field));
        if (field)
            PyTuple_SET_ITEM(kept, place, field);
        else
            Py_CLEAR(kept);
    }
    return kept;
}

/* Is it a right field, of the usual types? */
static bool is_right(PyObject *field, given *found)
{
    PyObject *name, *value;
    char lower[sizeof LENGTH_NAME]; /* the only name whose value has a meaning here */
    if (!unpack(field, &name, &value) || PyBytes_GET_SIZE(name) == 0)
        return false;
    const char *from = PyBytes_AS_STRING(name), *name_end = from + PyBytes_GET_SIZE(name);
    const char *at = PyBytes_AS_STRING(value), *end = at + PyBytes_GET_SIZE(value);
    strip(&at, &end);
    if (gt_skip(from, name_end, GT_TOKEN) != name_end || gt_skip(at, end, GT_VALUE) != end)
        return false;
    if (name_end - from != sizeof LENGTH_NAME - 1)
        return true;
    for (Py_ssize_t place = 0; place < name_end - from; place++)
        lower[place] = (char)(from[place] >= 'A' && from[place] <= 'Z' ? from[place] | 0x20 : from[place]);
    return note_meaning(lower, name_end - from, at, end, found);
}

PyObject *gt_headers_keep(PyObject *headers)
{
    if (!PyList_CheckExact(headers) && !PyTuple_CheckExact(headers))
        return NULL;
    PyObject *kept = freeze(headers);
    if (!kept)
        return NULL;
    given found = {.length = 0};
    Py_ssize_t count = PyTuple_GET_SIZE(kept);
    bool right = measure(PySequence_Fast_ITEMS(kept), count) >= 0;
    for (Py_ssize_t place = 0; right && place < count; place++)
        right = is_right(PyTuple_GET_ITEM(kept, place), &found);
    if (!right)
        Py_CLEAR(kept);
    return kept;
}

/* --- the whole --- */

static bool is_bytes(PyObject *object) { return object && PyBytes_CheckExact(object); }

static bool is_usual(const gt_response *response)
{
    PyObject *headers = response->headers;
    return headers && (PyList_CheckExact(headers) || PyTuple_CheckExact(headers)) && is_bytes(response->status_line) &&
           is_bytes(response->date_line) && is_bytes(response->server_line) && is_bytes(response->body);
}

PyObject *gt_response_write(const gt_response *response)
{
    if (!is_usual(response))
        return NULL;
    PyObject *const *fields = PySequence_Fast_ITEMS(response->headers);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(response->headers), size = measure(fields, count);
    if (size < 0)
        return NULL;
    size += PyBytes_GET_SIZE(response->status_line) + LENGTH_LINE_SIZE + PyBytes_GET_SIZE(response->date_line) +
            PyBytes_GET_SIZE(response->server_line) + 2 + PyBytes_GET_SIZE(response->body);
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (!data)
        return NULL;
    char *end = put_all(PyBytes_AS_STRING(data), response, fields, count);
    if (!end)
        Py_CLEAR(data);
    else
        (void)_PyBytes_Resize(&data, end - PyBytes_AS_STRING(data)); /* NULL with an exception where it fails */
    return data;
}
