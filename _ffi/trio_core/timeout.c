/* timeout.c: a scope with a time limit.
 *
 * Stands for, in trio/_timeouts.py:
 *     move_on_after    of a number of seconds that is one, in a Trio with relative deadlines
 */
#include "scope.h"

/* move_on_after(seconds, shield): the scope, or None for Trio to do it. */
PyObject *tc_move_on_after(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !tc_intact(TC_timeouts) || tc_core.scope.relative_deadline < 0 ||
        !(tc_plain_number(arguments[0]) >= 0))
        Py_RETURN_NONE;
    return tc_scope_new(arguments[0], arguments[1]);
}
