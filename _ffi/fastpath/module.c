/* module.c: gain_trio._fastpath.  The types are static and hold no state of their own: all of it hangs on a Proactor. */
#include "endpoint.h"
#include "tls.h"

/* The interpreter takes a shorter way to a method in C that belongs to the object's own class, and not to a base: it checks the
 * class by one comparison then.  So the classes in Python that are made of those here get descriptors of their own. */
static PyObject *adopt_methods(PyObject *Py_UNUSED(module), PyObject *type)
{
    PyTypeObject *base = PyType_Check(type) ? ((PyTypeObject *)type)->tp_base : NULL;
    if (!base || (base != &gt_connection_type && base != &gt_endpoint_type)) {
        PyErr_SetString(PyExc_TypeError, "adopt_methods() takes a class made of this module's Connection or Endpoint");
        return NULL;
    }
    for (PyMethodDef *method = base->tp_methods; method->ml_name; method++) {
        PyObject *found = PyObject_GetAttrString(type, method->ml_name);
        if (!found)
            return NULL;
        const bool is_inherited =
            Py_IS_TYPE(found, &PyMethodDescr_Type) && ((PyMethodDescrObject *)found)->d_method == method;
        Py_DECREF(found);
        if (!is_inherited)
            continue;
        PyObject *own = PyDescr_NewMethod((PyTypeObject *)type, method);
        const int result = own ? PyObject_SetAttrString(type, method->ml_name, own) : -1;
        Py_XDECREF(own);
        if (result < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"adopt_methods", adopt_methods, METH_O,
     PyDoc_STR("adopt_methods($module, cls, /)\n--\n\nMake what a class inherits of Connection or Endpoint its own.")},
    {"hasten", gt_hasten, METH_O,
     PyDoc_STR("hasten($module, cls, /)\n--\n\nMake next() and write() of a class of conns fast, of the first one.")},
    {"copied", gt_copied, METH_O,
     PyDoc_STR("copied($module, thing, /)\n--\n\nAn object of the same class that has the same in all its slots.")},
    {"hasten_tls", gt_hasten_tls, METH_VARARGS,
     PyDoc_STR("hasten_tls($module, connection, engine, exclusive, changes, out_of_memory, interrupted, broken_error, "
               "chunk, answers, /)\n--\n\nMake receive() and send() of the first class of TLS connections fast.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gain_trio._fastpath",
    .m_doc = PyDoc_STR("The path of a message between io_uring and a Trio task."),
    .m_size = -1,
    .m_methods = functions,
};

static int add_type(PyObject *module, const char *name, PyTypeObject *type)
{
    return PyType_Ready(type) < 0 ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)type);
}

PyMODINIT_FUNC PyInit__fastpath(void); /* the prototype that Python.h has no way to give */

PyMODINIT_FUNC PyInit__fastpath(void)
{
    if (gt_task_module_init() < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (add_type(module, "Proactor", &gt_proactor_type) < 0 ||
        add_type(module, "Connection", &gt_connection_type) < 0 ||
        add_type(module, "Messages", &gt_messages_type) < 0 || add_type(module, "Endpoint", &gt_endpoint_type) < 0 ||
        add_type(module, "Call", &gt_call_type) < 0 || add_type(module, "Waiter", &gt_waiter_type) < 0 ||
        add_type(module, "TlsCall", &gt_tls_call_type) < 0 || add_type(module, "Handler", &gt_handler_type) < 0 ||
        PyModule_AddIntConstant(module, "RING_LAYOUT", (long)(sizeof(struct gt_ring))) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
