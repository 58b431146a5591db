/* message.c: what a message means that an ASGI app sends.
 *
 * An app sends a usual response by two messages.  The first one is checked and kept, and the second one becomes the bytes of
 * the whole response (response.c).  send_in_python() of gain_trio/asgi/_exchange.py does the same, and does everything else: it is the
 * specification, and it gets any message that is not usual.
 *
 * The state of a request is in the slots of Python's classes, which configure() looks up.  An object of another class, as
 * there is one where the package was imported anew, is left to Python.
 */
#include "heads.h"

#include <structmember.h>

#define MOST_DEFAULTS 32

/* Where a slot lies in the objects of a class. */
typedef struct {
    const char *name;
    Py_ssize_t offset;
} slot;

static PyTypeObject *exchange_type, *connection_type, *stamp_type;
static slot http = {"http", 0}, request = {"request", 0}, phase = {"phase", 0}, status = {"status", 0};
static slot headers = {"headers", 0}, size = {"size", 0}, closes = {"closes", 0}, is_usual = {"is_usual", 0};
static slot watching = {"_watching", 0};
static slot connection = {"connection", 0}, stamp = {"stamp", 0}, clock_ = {"clock", 0}, renew_at = {"renew_at", 0};
static slot is_gone = {"is_gone", 0};
static slot until = {"until", 0}, date_line = {"date_line", 0}, server_line = {"server_line", 0};

static struct {
    PyObject *name, *value;
    slot slot;
} defaults[MOST_DEFAULTS];
static int default_count;
static PyObject *status_lines[1000];    /* by status; NULL: Python makes it */
static Py_ssize_t most_joined;          /* bytes of the longest body that is copied behind its head */
static PyObject *nothing, *held, *done; /* the phases that matter here */
static PyObject *no_headers, *no_body;

struct gt_names gt_names;

static PyObject *get(PyObject *object, const slot *which) { return *(PyObject **)((char *)object + which->offset); }

static void set(PyObject *object, const slot *which, PyObject *value)
{
    PyObject **place = (PyObject **)((char *)object + which->offset), *old = *place;
    *place = Py_NewRef(value);
    Py_XDECREF(old);
}

/* --- what a message means --- */

static bool is_text(PyObject *text, PyObject *expected)
{
    return text == expected || (PyUnicode_CheckExact(text) && PyUnicode_Compare(text, expected) == 0);
}

/* The value of a key, or what stands for one that is missing.  NULL with an exception. */
static PyObject *value_of(PyObject *message, PyObject *key, PyObject *otherwise)
{
    PyObject *value = PyDict_GetItemWithError(message, key);
    if (!value && PyErr_Occurred())
        return NULL;
    return Py_NewRef(value ? value : otherwise);
}

static PyObject *status_line_of(PyObject *given_status)
{
    if (!given_status || !PyLong_Check(given_status))
        return NULL;
    int overflow;
    long number = PyLong_AsLongAndOverflow(given_status, &overflow);
    return number >= 0 && number < 1000 ? status_lines[number] : NULL;
}

/* May a response begin, as far as is known? */
static bool may_begin(PyObject *exchange)
{
    PyObject *state = get(exchange, &http);
    return state && Py_IS_TYPE(state, connection_type) && get(state, &is_gone) == Py_False &&
           get(exchange, &phase) == nothing;
}

/* 1: the start is kept; 0: it is for Python; -1 with an exception. */
static int keep_start(PyObject *exchange, PyObject *message)
{
    PyObject *given_status = value_of(message, gt_names.status, Py_None);
    PyObject *given_headers = given_status ? value_of(message, gt_names.headers, no_headers) : NULL;
    PyObject *trailers = given_headers ? value_of(message, gt_names.trailers, Py_False) : NULL;
    PyObject *kept = trailers == Py_False && status_line_of(given_status) ? gt_headers_keep(given_headers) : NULL;
    int result = PyErr_Occurred() ? -1 : kept && may_begin(exchange);
    if (result > 0) {
        set(exchange, &status, given_status);
        set(exchange, &headers, kept);
        set(exchange, &phase, held);
    }
    Py_XDECREF(given_status);
    Py_XDECREF(given_headers);
    Py_XDECREF(trailers);
    Py_XDECREF(kept);
    return result;
}

/* Is the time `now`, or was it before?  1, 0, or -1 with an exception. */
static int has_come(PyObject *time, PyObject *now)
{
    if (PyFloat_CheckExact(time) && PyFloat_CheckExact(now))
        return PyFloat_AS_DOUBLE(now) >= PyFloat_AS_DOUBLE(time);
    return PyObject_RichCompareBool(now, time, Py_GE);
}

/* What has its time in this slot is made anew when that time has come.  -1 with an exception. */
static int keep_in_time(PyObject *object, const slot *due, PyObject *renew, PyObject *now)
{
    PyObject *time = Py_XNewRef(get(object, due));
    if (!time) {
        PyErr_SetString(PyExc_AttributeError, due->name);
        return -1;
    }
    int come = has_come(time, now);
    Py_DECREF(time);
    if (come <= 0)
        return come;
    PyObject *renewed = PyObject_CallMethodOneArg(object, renew, now);
    Py_XDECREF(renewed);
    return renewed ? 0 : -1;
}

/* Look at the time: the Date and the deadlines are right afterwards.  -1 with an exception. */
static int look_at_time(PyObject *state, PyObject *lines)
{
    PyObject *current_time = Py_XNewRef(get(state, &clock_));
    PyObject *now = current_time ? PyObject_CallNoArgs(current_time) : NULL; /* the clock may be the program's */
    int result = -1;
    if (now && keep_in_time(lines, &until, gt_names.refresh, now) == 0)
        result = keep_in_time(state, &renew_at, gt_names.renew, now);
    Py_XDECREF(now);
    Py_XDECREF(current_time);
    return result;
}

/* Does the connection of a usual exchange go on?  1, 0, or -1 with an exception. */
static int goes_on(PyObject *state)
{
    PyObject *below = Py_XNewRef(get(state, &connection));
    if (!below || get(state, &is_gone) != Py_False) {
        Py_XDECREF(below);
        return 0;
    }
    PyObject *drains =
        PyObject_GetAttr(below, gt_names.drains); /* which may be code, of a connection of the program's */
    int result = drains ? drains == Py_False && get(state, &connection) == below : -1;
    Py_XDECREF(drains);
    Py_DECREF(below);
    return result;
}

/* The usual response with this body, or NULL, perhaps with an exception. */
static PyObject *write_whole(PyObject *exchange, PyObject *body)
{
    PyObject *state = get(exchange, &http), *lines = NULL;
    if (state && Py_IS_TYPE(state, connection_type))
        lines = get(state, &stamp);
    if (!lines || !Py_IS_TYPE(lines, stamp_type) || !PyBytes_CheckExact(body) || PyBytes_GET_SIZE(body) > most_joined ||
        get(exchange, &is_usual) != Py_True || get(exchange, &closes) != Py_False ||
        get(exchange, &watching) != Py_None)
        return NULL;
    Py_INCREF(state);
    Py_INCREF(lines);
    PyObject *written = NULL;
    if (look_at_time(state, lines) == 0 && goes_on(state) > 0 && get(exchange, &http) == state &&
        get(exchange, &phase) == held) {
        const gt_response response = {
            .status_line = status_line_of(get(exchange, &status)),
            .date_line = get(lines, &date_line),
            .server_line = get(lines, &server_line),
            .headers = get(exchange, &headers),
            .body = body,
        };
        written = gt_response_write(&response);
    }
    Py_DECREF(lines);
    Py_DECREF(state);
    return written;
}

/* 1: *data is to be sent; 0: the message is for Python; -1 with an exception. */
static int take_body(PyObject *exchange, PyObject *message, PyObject **data)
{
    PyObject *body = value_of(message, gt_names.body, no_body);
    PyObject *more = body ? value_of(message, gt_names.more_body, Py_False) : NULL;
    PyObject *length = NULL;
    if (body && more == Py_False && get(exchange, &phase) == held) {
        *data = write_whole(exchange, body);
        length = *data ? PyLong_FromSsize_t(PyBytes_GET_SIZE(body)) : NULL;
    }
    Py_XDECREF(body);
    Py_XDECREF(more);
    if (!length) {
        Py_CLEAR(*data);
        return PyErr_Occurred() ? -1 : 0;
    }
    set(exchange, &phase, done);
    set(exchange, &size, length);
    Py_DECREF(length);
    return 1;
}

int gt_message_take(PyObject *exchange, PyObject *message, PyObject **data)
{
    *data = NULL;
    if (!PyDict_CheckExact(message) || !Py_IS_TYPE(exchange, exchange_type))
        return 0;
    PyObject *kind = value_of(message, gt_names.type, Py_None);
    if (!kind)
        return -1;
    int taken = 0;
    if (is_text(kind, gt_names.start))
        taken = keep_start(exchange, message);
    else if (is_text(kind, gt_names.whole))
        taken = take_body(exchange, message, data);
    Py_DECREF(kind);
    return taken;
}

PyObject *gt_exchange_connection(PyObject *exchange) { return get(get(exchange, &http), &connection); }

int gt_exchange_fill(PyObject *exchange, PyObject *given_http, PyObject *given_request)
{
    if (Py_IS_TYPE(exchange, exchange_type)) {
        for (int place = 0; place < default_count; place++)
            set(exchange, &defaults[place].slot, defaults[place].value);
        set(exchange, &http, given_http);
        set(exchange, &request, given_request);
        return 0;
    }
    for (int place = 0; place < default_count; place++)
        if (PyObject_SetAttr(exchange, defaults[place].name, defaults[place].value) < 0)
            return -1;
    bool is_set = PyObject_SetAttrString(exchange, http.name, given_http) == 0 &&
                  PyObject_SetAttrString(exchange, request.name, given_request) == 0;
    return is_set ? 0 : -1;
}

/* --- the classes of Python --- */

static int find_slot(slot *which, PyTypeObject *type)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, which->name);
    bool found = descriptor && Py_IS_TYPE(descriptor, &PyMemberDescr_Type) &&
                 ((PyMemberDescrObject *)descriptor)->d_member->type == T_OBJECT_EX;
    if (found)
        which->offset = ((PyMemberDescrObject *)descriptor)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, which->name);
    Py_XDECREF(descriptor);
    return found ? 0 : -1;
}

static int find_slots(PyTypeObject *exchange, PyTypeObject *state, PyTypeObject *lines)
{
    slot *of_exchange[] = {&http, &request, &phase, &status, &headers, &size, &closes, &is_usual, &watching};
    slot *of_state[] = {&connection, &stamp, &clock_, &renew_at, &is_gone};
    slot *of_lines[] = {&until, &date_line, &server_line};
    for (size_t place = 0; place < Py_ARRAY_LENGTH(of_exchange); place++)
        if (find_slot(of_exchange[place], exchange) < 0)
            return -1;
    for (size_t place = 0; place < Py_ARRAY_LENGTH(of_state); place++)
        if (find_slot(of_state[place], state) < 0)
            return -1;
    for (size_t place = 0; place < Py_ARRAY_LENGTH(of_lines); place++)
        if (find_slot(of_lines[place], lines) < 0)
            return -1;
    return 0;
}

static int take_defaults(PyTypeObject *exchange, PyObject *given)
{
    PyObject *name, *value;
    Py_ssize_t position = 0;
    default_count = 0;
    if (PyDict_GET_SIZE(given) > MOST_DEFAULTS) {
        PyErr_SetString(PyExc_ValueError, "an exchange has fewer slots");
        return -1;
    }
    while (PyDict_Next(given, &position, &name, &value)) {
        slot which = {PyUnicode_AsUTF8(name), 0};
        if (!which.name || find_slot(&which, exchange) < 0)
            return -1;
        defaults[default_count].slot = (slot){NULL, which.offset};
        Py_XSETREF(defaults[default_count].name, Py_NewRef(name));
        Py_XSETREF(defaults[default_count].value, Py_NewRef(value));
        default_count++;
    }
    return 0;
}

static int take_status_lines(PyObject *given)
{
    PyObject *number, *line;
    Py_ssize_t position = 0;
    while (PyDict_Next(given, &position, &number, &line)) {
        long which = PyLong_AsLong(number);
        if (which == -1 && PyErr_Occurred())
            return -1;
        if (which < 0 || which >= (long)Py_ARRAY_LENGTH(status_lines) || !PyBytes_CheckExact(line)) {
            PyErr_SetString(PyExc_ValueError, "a status has three digits, and its line is bytes");
            return -1;
        }
        Py_XSETREF(status_lines[which], Py_NewRef(line));
    }
    return 0;
}

static void take_type(PyTypeObject **place, PyTypeObject *type) { Py_XSETREF(*place, (PyTypeObject *)Py_NewRef(type)); }

PyObject *gt_message_configure(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *exchange, *state, *lines;
    PyObject *given_defaults, *given_lines, *phases[3];
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!(OOO)n:configure", &PyType_Type, &exchange, &PyType_Type, &state,
                          &PyType_Type, &lines, &PyDict_Type, &given_defaults, &PyDict_Type, &given_lines, &phases[0],
                          &phases[1], &phases[2], &most))
        return NULL;
    Py_CLEAR(exchange_type); /* no object is taken for one of this class until all slots are known */
    if (find_slots(exchange, state, lines) < 0 || take_defaults(exchange, given_defaults) < 0 ||
        take_status_lines(given_lines) < 0)
        return NULL;
    Py_XSETREF(nothing, Py_NewRef(phases[0]));
    Py_XSETREF(held, Py_NewRef(phases[1]));
    Py_XSETREF(done, Py_NewRef(phases[2]));
    most_joined = most;
    take_type(&connection_type, state);
    take_type(&stamp_type, lines);
    take_type(&exchange_type, exchange);
    Py_RETURN_NONE;
}

static const struct {
    PyObject **place;
    const char *text;
} texts[] = {
    {&gt_names.type, "type"},
    {&gt_names.body, "body"},
    {&gt_names.more_body, "more_body"},
    {&gt_names.status, "status"},
    {&gt_names.headers, "headers"},
    {&gt_names.trailers, "trailers"},
    {&gt_names.start, "http.response.start"},
    {&gt_names.whole, "http.response.body"},
    {&gt_names.send, "send"},
    {&gt_names.message, "message"},
    {&gt_names.drains, "_drains"},
    {&gt_names.in_python, "send_in_python"},
    {&gt_names.failed, "send_failed"},
    {&gt_names.refresh, "refresh"},
    {&gt_names.renew, "renew"},
};

int gt_message_init(void)
{
    for (size_t place = 0; place < Py_ARRAY_LENGTH(texts); place++)
        if (!*texts[place].place && !(*texts[place].place = PyUnicode_InternFromString(texts[place].text)))
            return -1;
    if (!no_headers && !(no_headers = PyTuple_New(0)))
        return -1;
    if (!no_body && !(no_body = PyBytes_FromStringAndSize(NULL, 0)))
        return -1;
    return 0;
}
