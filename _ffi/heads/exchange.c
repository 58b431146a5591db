/* exchange.c: the base of the class of exchanges, which fills its slots and has its `send`. */
#include "heads.h"

typedef struct {
    PyObject_HEAD
} gt_exchange;

static int exchange_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    if ((kwargs && PyDict_GET_SIZE(kwargs)) || PyTuple_GET_SIZE(args) != 2) {
        PyErr_SetString(PyExc_TypeError, "an exchange is made of a connection and a request");
        return -1;
    }
    return gt_exchange_fill(self, PyTuple_GET_ITEM(args, 0), PyTuple_GET_ITEM(args, 1));
}

/* As an `async def send(self, message)` takes it: by its place, or by its name. */
static PyObject *exchange_send(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (count + named != 1) {
        PyErr_Format(PyExc_TypeError, "send() takes one argument, message, and %zd were given", count + named);
        return NULL;
    }
    if (named && PyUnicode_Compare(PyTuple_GET_ITEM(names, 0), gt_names.message) != 0) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "send() takes the argument message, and not %R", PyTuple_GET_ITEM(names, 0));
        return NULL;
    }
    return gt_send_new(self, arguments[0]);
}

static PyMethodDef exchange_methods[] = {
    {"send", (PyCFunction)(void (*)(void))exchange_send, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("send($self, message)\n--\n\nASGI's ``send``: see ``send_in_python()``.")},
    {NULL, NULL, 0, NULL},
};

PyTypeObject gt_exchange_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._heads.Exchange",
    .tp_basicsize = sizeof(gt_exchange),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = PyDoc_STR("The base of the class of exchanges, whose slots it fills."),
    .tp_new = PyType_GenericNew,
    .tp_init = exchange_init,
    .tp_methods = exchange_methods,
};
