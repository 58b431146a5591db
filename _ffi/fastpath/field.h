/* field.h: attributes of Trio's classes, read and written where they lie.
 *
 * Trio's Task and CancelStatus are attrs classes with __slots__, so their fields lie at fixed offsets, which are looked up
 * once per run.  Where an attribute should not be such a slot, it is read by name, and Trio's loop makes the steps of tasks.
 */
#ifndef GAIN_TRIO_FIELD_H
#define GAIN_TRIO_FIELD_H

#include "likelihood.h"

#include <Python.h>

#include <stdbool.h>
#include <structmember.h>

typedef struct {
    PyObject *name;
    PyObject *type;    /* borrowed: that the offset is valid for */
    Py_ssize_t offset; /* -1: by name */
} gt_field;

static inline int gt_field_resolve(gt_field *field, PyObject *type, const char *name)
{
    field->offset = -1;
    field->type = type;
    field->name = PyUnicode_InternFromString(name);
    if (!field->name)
        return -1;
    PyObject *descriptor = PyObject_GetAttr(type, field->name);
    if (!descriptor) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear(); /* not a slot: instances may still have it */
        return 0;
    }
    if (Py_IS_TYPE(descriptor, &PyMemberDescr_Type)) {
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        /* Of this class, or of one that it is made of: there it lies at the same place. */
        if (member->type == T_OBJECT_EX &&
            PyType_IsSubtype((PyTypeObject *)type, ((PyDescrObject *)descriptor)->d_type))
            field->offset = member->offset;
    }
    Py_DECREF(descriptor);
    return 0;
}

static inline PyObject *gt_field_get(const gt_field *field, PyObject *object)
{
    if (field->offset >= 0 && (PyObject *)Py_TYPE(object) == field->type) {
        PyObject *value = *(PyObject **)((char *)object + field->offset);
        if (value)
            return Py_NewRef(value);
    }
    return PyObject_GetAttr(object, field->name);
}

/* The same, borrowed; NULL without an exception where it is not read at its offset. */
static inline PyObject *gt_field_peek(const gt_field *field, PyObject *object)
{
    if (field->offset < 0 || (PyObject *)Py_TYPE(object) != field->type)
        return NULL;
    return *(PyObject **)((char *)object + field->offset);
}

static inline int gt_field_set(const gt_field *field, PyObject *object, PyObject *value)
{
    if (field->offset < 0 || (PyObject *)Py_TYPE(object) != field->type)
        return PyObject_SetAttr(object, field->name, value);
    PyObject **place = (PyObject **)((char *)object + field->offset);
    PyObject *old = *place;
    *place = Py_NewRef(value);
    Py_XDECREF(old);
    return 0;
}

/* Where the field lies in an object of the type that it was resolved for.  It has an offset: who calls this has looked. */
static inline PyObject **gt_field_place(const gt_field *field, PyObject *object)
{
    return (PyObject **)((char *)object + field->offset);
}

/* 1 when the field is `expected`, 0 when not, -1 on error */
static inline int gt_field_is(const gt_field *field, PyObject *object, PyObject *expected)
{
    PyObject *value = gt_field_peek(field, object);
    if (value)
        return value == expected;
    value = gt_field_get(field, object);
    if (!value)
        return -1;
    int same = value == expected;
    Py_DECREF(value);
    return same;
}

/* The same as PyLong_AsSsize_t(), which costs three times as much for the number of bytes of a message. */
static inline Py_ssize_t gt_ssize_of(PyObject *value)
{
#if PY_VERSION_HEX >= 0x030c0000
    if (PyLong_CheckExact(value) && PyUnstable_Long_IsCompact((PyLongObject *)value))
        return PyUnstable_Long_CompactValue((PyLongObject *)value);
#else
    if (PyLong_CheckExact(value) && Py_SIZE(value) == 1) /* one digit, and positive */
        return (Py_ssize_t)((PyLongObject *)value)->ob_digit[0];
#endif
    return PyLong_AsSsize_t(value);
}

/* Where a field holds the one reference to its int, no other code can see that object, and none can notice that it changes: so
 * the digit is counted up, and no new int is made for every step of a task.  An int of more than one digit, a small one (which
 * Python itself holds) and one that is being looked at are left alone; so are all of them where the layout of an int is not
 * known, or the count of references is split. */
static inline bool gt_increment_in_place(PyObject *value)
{
#if PY_VERSION_HEX < 0x030f0000 && !defined(Py_GIL_DISABLED)
    if (GT_UNLIKELY(!value || Py_REFCNT(value) != 1 || !PyLong_CheckExact(value)))
        return false;
#if PY_VERSION_HEX >= 0x030c0000
    _PyLongValue *number = &((PyLongObject *)value)->long_value;
    const bool has_one_digit = number->lv_tag == (uintptr_t)1 << _PyLong_NON_SIZE_BITS; /* and is positive */
#else
    PyLongObject *number = (PyLongObject *)value;
    const bool has_one_digit = Py_SIZE(value) == 1;
#endif
    if (GT_UNLIKELY(!has_one_digit || number->ob_digit[0] >= PyLong_MASK))
        return false;
    number->ob_digit[0]++;
    return true;
#else
    (void)value;
    return false;
#endif
}

/* -1: exception set. */
static inline int gt_field_increment(const gt_field *field, PyObject *object)
{
    if (!GT_UNLIKELY(!gt_increment_in_place(gt_field_peek(field, object))))
        return 0;
    PyObject *value = gt_field_get(field, object);
    if (!value)
        return -1;
    long long count = PyLong_AsLongLong(value);
    Py_DECREF(value);
    if (count == -1 && PyErr_Occurred())
        return -1;
    PyObject *incremented = PyLong_FromLongLong(count + 1);
    if (!incremented)
        return -1;
    int result = gt_field_set(field, object, incremented);
    Py_DECREF(incremented);
    return result;
}

#endif
