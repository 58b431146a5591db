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

static PyMethodDef exchange_methods[] = {
    {"send", gt_send_new, METH_O,
     PyDoc_STR("send($self, message, /)\n--\n\nASGI's ``send``: see ``send_in_python()``.")},
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
