/* files.c: sockets that the ring holds by itself.
 *
 * An operation names its file by a descriptor.  The kernel looks that up in the table of the process for every operation, and
 * counts itself in as a user of the file until the operation is over: two writes to memory that nothing else of a send
 * touches.  A *registered file* is in a table of the ring's own, and is used there without any of this.
 *
 * The price is that the ring uses the file, too.  close(2) on the descriptor is not the end of the socket then, and its peer
 * would hear of none: so a file has to be unregistered before its descriptor is closed, or given to other code that may close
 * it.  Registering and unregistering are a system call each, and cost many times what one operation saves.  So only what is busy
 * is worth it.
 *
 * A kernel before 6.13 lets go of an unregistered file when all operations on any registered file have ended that were
 * submitted before.  From then on each file of the table counts its own operations.  (IORING_FEAT_RW_ATTR, which came one
 * release later, is a sign of that.)
 *
 * Source: io_uring_register(2); io_uring/rsrc.c and io_uring/filetable.c of the kernel.
 */
#include "ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define MOST_FILES 4096U /* the table has 8 bytes for each, in the kernel */

/* The kernel allows a table as large as the limit of descriptors. */
static uint32_t table_size(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 0;
    return limit.rlim_cur < MOST_FILES ? (uint32_t)limit.rlim_cur : MOST_FILES;
}

void gt_files_open(struct gt_ring *ring)
{
    struct gt_file_table_registration table = {.count = table_size(), .flags = IORING_RSRC_REGISTER_SPARSE};
    if (!(ring->kernel_features & IORING_FEAT_RW_ATTR) || table.count == 0)
        return;
    uint16_t *free_places = malloc(table.count * sizeof *free_places);
    if (!free_places || gt_ring_register(ring, GT_REGISTER_FILES2, &table, sizeof table) < 0) {
        free(free_places);
        return;
    }
    for (uint32_t i = 0; i < table.count; i++)
        free_places[i] = (uint16_t)(table.count - 1 - i);
    ring->files = (struct gt_files){.free = free_places, .free_count = table.count, .count = table.count};
    ring->features |= GT_FEATURE_REGISTERED_FILES;
}

void gt_files_close(struct gt_ring *ring)
{
    if (ring->files.free_count < ring->files.count) /* else the table is empty, and goes with the ring */
        gt_ring_register(ring, IORING_UNREGISTER_FILES, NULL, 0);
    free(ring->files.free);
    ring->files = (struct gt_files){.free = NULL};
}

static bool update(struct gt_ring *ring, uint32_t place, int fd)
{
    struct io_uring_files_update change = {.offset = place, .fds = (uint64_t)(uintptr_t)&fd};
    return gt_ring_register(ring, IORING_REGISTER_FILES_UPDATE, &change, 1) == 1;
}

uint16_t gt_file_register(struct gt_ring *ring, int fd)
{
    struct gt_files *files = &ring->files;
    if (files->free_count == 0 || !update(ring, files->free[files->free_count - 1], fd))
        return 0;
    return (uint16_t)(files->free[--files->free_count] + 1);
}

void gt_file_unregister(struct gt_ring *ring, uint16_t number)
{
    struct gt_files *files = &ring->files;
    if (number && update(ring, number - 1U, -1)) /* else the ring is dead */
        files->free[files->free_count++] = (uint16_t)(number - 1);
}
