/* spares.c: buffers that queues of connections have emptied, for the next queue that needs one.
 *
 * An idle connection keeps no buffer.  A busy one needs one for each message, from the program's send to the end of the
 * kernel's, or while pieces of a message arrive: it takes the one that was given back last, which the processor's cache still has.
 * There are no more of them than connections, and than MOST.
 */
#include "fastpath.h"

#define LARGEST 4096U
#define MOST 128U /* buffers, which is half a MiB at most */

struct gt_spare {
    gt_spare *next;
    size_t capacity; /* of the buffer that it lies in */
};
_Static_assert(GT_LEAST_SPARE >= sizeof(gt_spare), "it lies in any buffer");

char *gt_spares_take(gt_spares *spares, size_t *capacity)
{
    gt_spare *spare = spares->first;
    *capacity = 0;
    if (GT_UNLIKELY(!spare))
        return NULL;
    spares->first = spare->next;
    spares->count--;
    *capacity = spare->capacity;
    return (char *)spare;
}

bool gt_spares_give(gt_spares *spares, char *buffer, size_t capacity)
{
    if (GT_UNLIKELY(!buffer || capacity > LARGEST || spares->count >= spares->most))
        return false;
    gt_spare *spare = (gt_spare *)(void *)buffer;
    *spare = (gt_spare){spares->first, capacity};
    spares->first = spare;
    spares->count++;
    return true;
}

void gt_spares_limit(gt_spares *spares, uint64_t connections)
{
    spares->most = connections < MOST ? (uint32_t)connections : MOST;
    while (GT_UNLIKELY(spares->count > spares->most)) {
        size_t capacity;
        PyMem_Free(gt_spares_take(spares, &capacity));
    }
}
