/* tls_changes.c: what a wait for a change of a TLS connection finds and leaves behind, in the plain case: bytes have arrived.
 *
 * Python's class (gain_trio/_transports/_tls/_tls_changes.py) has the wait in full.  Its task waits for a change of the connection
 * below, which reports encrypted bytes, has them decrypted, and answers with how many bytes of data came of it.  Where anything
 * else is to be reported, its own wait begins anew and finds it in the same slots.
 */
#include "tls.h"

static PyObject *changes_of(PyObject *self) { return gt_field_peek(&gt_tls.changes, self); }

static bool is_false(const gt_field *field, PyObject *object) { return gt_slot_is(field, object, Py_False); }

/* The program has not asked for an answer, and bytes that the kernel has taken are none. */
static bool nothing_is_noted(PyObject *changes, long watched)
{
    return is_false(&gt_tls.is_noted, changes) && (!(watched & GT_WATCH_SENT) || is_false(&gt_tls.sent, changes));
}

bool gt_tls_is_quiet(PyObject *self, long watched)
{
    PyObject *changes = changes_of(self);
    return changes && nothing_is_noted(changes, watched) && gt_slot_number(&gt_tls.unseen, changes) == 0 &&
           gt_slot_number(&gt_tls.unseen_below, changes) == 0 && is_false(&gt_tls.is_full, changes) &&
           gt_slot_is(&gt_tls.send_error, self, Py_None) && gt_tls_can_receive(self);
}

int gt_tls_begin_watching(PyObject *self, PyObject *watched, gt_connection *below)
{
    PyObject *changes = gt_field_get(&gt_tls.changes, self);
    int result = changes ? gt_field_set(&gt_tls.watched, changes, watched) : -1;
    if (result == 0)
        result = gt_field_set(&gt_tls.waited_for, changes, (PyObject *)below);
    Py_XDECREF(changes);
    return result;
}

static int set_number(const gt_field *field, PyObject *object, Py_ssize_t number)
{
    PyObject *value = PyLong_FromSsize_t(number);
    const int result = value ? gt_field_set(field, object, value) : -1;
    Py_XDECREF(value);
    return result;
}

int gt_tls_end_watching(PyObject *self)
{
    PyObject *changes = gt_field_get(&gt_tls.changes, self);
    int result = changes ? gt_field_set(&gt_tls.waited_for, changes, Py_None) : -1;
    if (result == 0)
        result = set_number(&gt_tls.watched, changes, 0);
    Py_XDECREF(changes);
    return result;
}

/* The bytes that have arrived and are to be reported, if that is the next answer and all of them fit in it; or 0. */
static Py_ssize_t count_unseen(PyObject *self, PyObject *changes, long watched)
{
    const long unseen = gt_slot_number(&gt_tls.unseen, changes);
    PyObject *inbound = gt_field_peek(&gt_tls.inbound, self);
    if (!is_false(&gt_tls.is_closed, self) || !nothing_is_noted(changes, watched) || !inbound)
        return 0;
    const Py_ssize_t queued = PyObject_Size(inbound);
    if (queued < 0)
        return -1;
    const Py_ssize_t seen = (Py_ssize_t)unseen < queued ? (Py_ssize_t)unseen : queued;
    return seen > 0 && (size_t)seen <= gt_tls.chunk ? seen : 0;
}

/* The bytes are out of the queue below only when they are decrypted, so until then they count as there. */
static int decrypt(PyObject *self, PyObject *changes, PyObject *count)
{
    if (gt_field_set(&gt_tls.unseen_below, changes, count) < 0)
        return -1;
    PyObject *decrypted = gt_tls_decrypt_below(self, count);
    Py_XDECREF(decrypted);
    return decrypted ? set_number(&gt_tls.unseen_below, changes, 0) : -1;
}

Py_ssize_t gt_tls_see(PyObject *self, PyObject *change, long watched)
{
    const Py_ssize_t below = PyLong_AsSsize_t(change); /* made by the call of the connection below */
    PyObject *changes = gt_field_get(&gt_tls.changes, self);
    Py_ssize_t seen = changes && (below != -1 || !PyErr_Occurred()) ? 0 : -1;
    if (seen == 0 && below == GT_CHANGED)
        seen = gt_field_set(&gt_tls.sent, changes, Py_True);
    if (seen == 0 && below > 0) {
        seen = decrypt(self, changes, change);
        if (seen == 0)
            seen = count_unseen(self, changes, watched);
    }
    if (seen > 0 && set_number(&gt_tls.unseen, changes, 0) < 0)
        seen = -1;
    Py_XDECREF(changes);
    return seen;
}
