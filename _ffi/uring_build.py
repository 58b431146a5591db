"""Builds ``gain_trio._uring``: cffi, in API mode, over ring.h.

It is the door for everything that is not done per message: set-up, probing, registration, single operations.  What is
done per message goes through ``gain_trio._fastpath``, because a cffi call costs several times a call of the C API.
"""

from __future__ import annotations

import os
import sys

import cffi

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from compile_options import COMPILE_ARGUMENTS, LINK_ARGUMENTS, RING_SOURCES  # found by the line above

builder = cffi.FFI()

builder.cdef(
    """
    #define GT_NO_TIMEOUT ...
    #define GT_MAX_SLOTS ...

    enum gt_feature {
        GT_FEATURE_NO_SQARRAY, GT_FEATURE_REGISTERED_FD, GT_FEATURE_BUFFER_RING, GT_FEATURE_BUFFER_INCREMENT,
        GT_FEATURE_TASKRUN_FLAG, GT_FEATURE_SUBMIT_ALL, GT_FEATURE_CQE_SKIP, GT_FEATURE_CANCEL_ANY,
        GT_FEATURE_SINGLE_ISSUER, GT_FEATURE_DEFER_TASKRUN, GT_FEATURE_MULTISHOT_ACCEPT, GT_FEATURE_MULTISHOT_RECEIVE,
        GT_FEATURE_NO_IOWAIT, GT_FEATURE_REGISTERED_FILES, ...
    };

    struct io_uring_cqe {
        uint64_t user_data;
        int32_t res;
        uint32_t flags;
        ...;
    };

    struct gt_ring_options {
        uint32_t entries;
        uint32_t completion_entries;
        uint32_t unwanted;
        uint32_t max_slots;
        ...;
    };

    struct gt_buffers {
        uint32_t count;
        uint32_t size;
        bool incremental;
        ...;
    };

    struct gt_files {
        uint32_t free_count;
        uint32_t count;
        ...;
    };

    struct gt_slot {
        uint32_t generation;
        uint8_t kind;
        bool abandoned;
        ...;
    };

    struct gt_ring {
        int fd;
        uint32_t features;
        uint32_t setup_flags;
        uint32_t kernel_features;
        bool dead;
        uint32_t sq_entries;
        uint32_t cq_entries;
        struct gt_slot *slots;
        uint32_t slot_count;
        uint64_t in_flight;
        struct gt_buffers buffers;
        struct gt_files files;
        uint64_t submissions;
        uint64_t completions;
        uint64_t enters;
        uint64_t overflows;
        uint64_t stale;
        ...;
    };

    int gt_ring_open(struct gt_ring *ring, const struct gt_ring_options *options);
    uint64_t gt_ring_drain(struct gt_ring *ring, int64_t patience_ns, void (*complete)(const struct io_uring_cqe *, void *),
                           void *context);
    void gt_ring_close(struct gt_ring *ring);
    void gt_ring_forget(struct gt_ring *ring);
    int gt_ring_submit(struct gt_ring *ring);
    int gt_ring_enter(struct gt_ring *ring, int64_t timeout_ns);
    void gt_ring_settle(struct gt_ring *ring);
    uint32_t gt_ring_reap(struct gt_ring *ring, struct io_uring_cqe *out, uint32_t max);
    int gt_ring_register(struct gt_ring *ring, unsigned int opcode, void *argument, unsigned int count);

    bool gt_completion_is_nobodys(const struct io_uring_cqe *cqe);
    bool gt_slot_complete(struct gt_ring *ring, const struct io_uring_cqe *cqe, struct gt_slot *slot);
    void gt_completion_discard(const struct gt_slot *slot, const struct io_uring_cqe *cqe);

    int gt_operation_nop(struct gt_ring *ring, uint64_t *key);
    int gt_operation_poll(struct gt_ring *ring, int fd, uint32_t events, bool multishot, uint64_t *key);
    int gt_operation_accept(struct gt_ring *ring, int fd, uint32_t accept_flags, uint64_t *key);
    int gt_operation_recv(struct gt_ring *ring, int fd, uint64_t *key);
    int gt_operation_send(struct gt_ring *ring, int fd, const void *data, uint32_t length, uint32_t msg_flags,
                          uint64_t *key);
    int gt_operation_cancel(struct gt_ring *ring, uint64_t key, bool abandon);

    int gt_buffers_open(struct gt_ring *ring, uint32_t count, uint32_t size, bool incremental);
    int gt_buffers_close(struct gt_ring *ring);
    const char *gt_buffers_data(struct gt_buffers *buffers, const struct io_uring_cqe *cqe);
    void gt_buffers_recycle(struct gt_buffers *buffers, const struct io_uring_cqe *cqe);
    uint32_t gt_buffers_free(struct gt_ring *ring);
    """
)

builder.set_source(
    "gain_trio._uring",
    '#include "ring.h"',
    sources=RING_SOURCES,
    include_dirs=["_ffi"],
    depends=["_ffi/abi.h", "_ffi/ring.h"],
    extra_compile_args=[*COMPILE_ARGUMENTS, "-Wno-missing-prototypes"],  # the one function that cffi exports
    extra_link_args=LINK_ARGUMENTS,
)

if __name__ == "__main__":
    builder.compile(verbose=True)
