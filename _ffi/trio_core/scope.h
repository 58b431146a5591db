/* scope.h: what nursery.c, timeout.c and fail_after.c need of scope.c. */
#ifndef GAIN_TRIO_SCOPE_H
#define GAIN_TRIO_SCOPE_H

#include "core.h"

/* A new CancelScope, with that time from its being entered to its deadline. */
PyObject *tc_scope_new(PyObject *relative, PyObject *shield);
/* The value of a plain float or int; NAN for anything else, which Trio's own code looks at. */
double tc_plain_number(PyObject *number);

#endif
