/* tls_state.c: what the object of a TLS connection says of itself, and the names by which its functions are called.
 *
 * Its slots are read where they lie.  Nothing here runs the program's code but gt_tls_call_python().
 */
#include "tls.h"

gt_tls_python gt_tls;

bool gt_tls_is_taken(const gt_field *field, PyObject *connection)
{
    PyObject *exclusive = gt_field_peek(field, connection);
    return !exclusive || !gt_slot_is(&gt_tls.is_taken, exclusive, Py_False);
}

gt_connection *gt_tls_below(PyObject *self)
{
    PyObject *below = gt_field_peek(&gt_tls.below, self);
    if (!below || !PyObject_TypeCheck(below, &gt_connection_type))
        return NULL;
    gt_connection *connection = (gt_connection *)below;
    const gt_proactor *proactor = connection->proactor;
    return proactor && !proactor->closed && gt_proactor_is_in_thread(proactor) ? connection : NULL;
}

/* What neither direction can do without. */
static bool is_whole(PyObject *self)
{
    PyObject *unencrypted = gt_field_peek(&gt_tls.unencrypted, self);
    return gt_slot_is(&gt_tls.is_closed, self, Py_False) && gt_slot_is(&gt_tls.error, self, Py_None) && unencrypted &&
           PyObject_Size(unencrypted) == 0 && gt_tls_is_engine(gt_field_peek(&gt_tls.engine, self));
}

bool gt_tls_answers_may_wait(PyObject *self)
{
    const long answered = gt_slot_number(&gt_tls.answered, self);
    return answered < 0 || answered >= gt_tls.most_answered;
}

bool gt_tls_can_receive(PyObject *self)
{
    PyObject *inbound = gt_field_peek(&gt_tls.inbound, self);
    return is_whole(self) && gt_slot_is(&gt_tls.ended, self, Py_False) && inbound && PyBytes_CheckExact(inbound) &&
           PyBytes_GET_SIZE(inbound) == 0 && !gt_tls_answers_may_wait(self);
}

/* A wait for a change that watches what is sent looks at each send, and that is Python's. */
static bool is_watched(PyObject *self)
{
    PyObject *changes = gt_field_peek(&gt_tls.changes, self);
    const long watched = changes ? gt_slot_number(&gt_tls.watched, changes) : -1;
    return watched < 0 || (watched & GT_WATCH_SENT) || !gt_slot_is(&gt_tls.pieces, self, Py_None);
}

bool gt_tls_needs_only_room(PyObject *self, const gt_connection *below)
{
    const gt_stream *stream = below->closed ? NULL : below->stream;
    return stream && !stream->closing && !gt_connection_cannot_send_now(below) && is_whole(self) &&
           gt_slot_is(&gt_tls.send_error, self, Py_None) && gt_slot_is(&gt_tls.is_send_incomplete, self, Py_False) &&
           !gt_tls_is_taken(&gt_tls.making_room, self) && !is_watched(self);
}

bool gt_tls_can_send(PyObject *self, const gt_connection *below)
{
    return gt_tls_needs_only_room(self, below) && below->stream->outbound.size < below->stream->send_high;
}

int gt_tls_call_python(PyObject *self, PyObject *name, PyObject *first, PyObject *second)
{
    PyObject *returned = PyObject_CallMethodObjArgs(self, name, first, second, NULL);
    Py_XDECREF(second);
    Py_XDECREF(returned);
    return returned ? 0 : -1;
}

int gt_tls_lose(PyObject *self, const gt_field *error)
{
    PyObject *lost = PyErr_ExceptionMatches(PyExc_MemoryError) ? gt_tls.out_of_memory : gt_tls.interrupted;
    if (gt_slot_is(error, self, Py_None))
        gt_field_set(error, self, lost); /* where it lies: that allocates nothing */
    return -1;
}

/* --- how all that is found --- */

static int find_names(void)
{
    const struct {
        PyObject **place;
        const char *name;
    } names[] = {
        {&gt_tls.finish_send, "_finish_send"},
        {&gt_tls.send_failed, "_send_failed"},
        {&gt_tls.decrypted, "_decrypted"},
        {&gt_tls.decrypt_received, "_decrypt_received"},
        {&gt_tls.encrypted, "_encrypted"},
        {&gt_tls.send_below, "_send_below"},
        {&gt_tls.arrived, "_arrived"},
        {&gt_tls.taken, "_taken"},
        {&gt_tls.check_open, "_check_open"},
        {&gt_tls.end, "end"},
        {&gt_tls.outbound_after_send, "_outbound_after_send"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!(*names[i].place = PyUnicode_InternFromString(names[i].name)))
            return -1;
    return 0;
}

static int find_slots(PyTypeObject *type, PyTypeObject *exclusive, PyTypeObject *changes)
{
    const struct {
        gt_field *field;
        const char *name;
    } slots[] = {
        {&gt_tls.is_closed, "_is_closed"},
        {&gt_tls.below, "_below"},
        {&gt_tls.engine, "_engine"},
        {&gt_tls.error, "_error"},
        {&gt_tls.send_error, "_send_error"},
        {&gt_tls.receiving, "_receiving"},
        {&gt_tls.inbound, "_inbound"},
        {&gt_tls.ended, "_ended"},
        {&gt_tls.answered, "_answered"},
        {&gt_tls.feeding, "_feeding"},
        {&gt_tls.has_received_nothing, "_has_received_nothing"},
        {&gt_tls.sending, "_sending"},
        {&gt_tls.unencrypted, "_unencrypted"},
        {&gt_tls.making_room, "_making_room"},
        {&gt_tls.is_send_incomplete, "_is_send_incomplete"},
        {&gt_tls.piece, "_piece"},
        {&gt_tls.pieces, "_pieces"},
        {&gt_tls.changes, "_changes"},
        {&gt_tls.room_inbound, "_room_inbound"},
    };
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (gt_slot_resolve(slots[i].field, type, slots[i].name) < 0)
            return -1;
    if (gt_slot_resolve(&gt_tls.is_taken, exclusive, "is_taken") < 0 ||
        gt_slot_resolve(&gt_tls.over, exclusive, "_over") < 0)
        return -1;
    const struct {
        gt_field *field;
        const char *name;
    } changed[] = {
        {&gt_tls.watched, "_watched"},       {&gt_tls.unseen, "unseen"},      {&gt_tls.unseen_below, "_unseen_below"},
        {&gt_tls.is_full, "_is_full"},       {&gt_tls.is_noted, "_is_noted"}, {&gt_tls.sent, "sent"},
        {&gt_tls.waited_for, "_waited_for"},
    };
    for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++)
        if (gt_slot_resolve(changed[i].field, changes, changed[i].name) < 0)
            return -1;
    return 0;
}

int gt_tls_configure(const gt_tls_classes *classes)
{
    gt_tls.out_of_memory = Py_NewRef(classes->out_of_memory);
    gt_tls.interrupted = Py_NewRef(classes->interrupted);
    gt_tls.broken_error = Py_NewRef(classes->broken_error);
    gt_tls.chunk = (size_t)classes->chunk;
    gt_tls.most_answered = classes->most_answered;
    return find_names() < 0 ? -1 : find_slots(classes->connection, classes->exclusive, classes->changes);
}

PyObject *gt_tls_replace(PyTypeObject *type, PyMethodDef *method)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)type, method->ml_name);
    PyObject *descriptor = function ? PyDescr_NewMethod(type, method) : NULL;
    if (!descriptor || PyObject_SetAttrString((PyObject *)type, method->ml_name, descriptor) < 0)
        Py_CLEAR(function);
    Py_XDECREF(descriptor);
    return function;
}
