/* scope.h: what nursery.c and timeout.c need of scope.c. */
#ifndef GAIN_TRIO_SCOPE_H
#define GAIN_TRIO_SCOPE_H

#include "core.h"

/* A new CancelScope, with that time from its being entered to its deadline. */
PyObject *tc_scope_new(PyObject *relative, PyObject *shield);
/* Enter it, or leave it without an exception.  1; 0: Trio has to do it; -1: exception set */
int tc_scope_open(PyObject *scope);
int tc_scope_close(PyObject *scope);
/* The value of a plain float or int; NAN for anything else, which Trio's own code looks at. */
double tc_plain_number(PyObject *number);

#endif
