/* abi.h: the part of the kernel's io_uring ABI that the build machine's <linux/io_uring.h> may be too old to name.
 *
 * The kernel's own header is used wherever it knows a thing.  Distribution headers lag years behind the kernels that run
 * on them, though, and the ABI only ever grows, so what came later is spelled out here, each with the release that brought
 * it.  Constants that the header has as macros are guarded; what it has as enumerators cannot be tested for by the
 * preprocessor and gets a name of our own (GT_...).
 *
 * Source: include/uapi/linux/io_uring.h; io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
 */
#ifndef GAIN_TRIO_ABI_H
#define GAIN_TRIO_ABI_H

#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <stdint.h>

/* io_uring_setup(2) flags */
#ifndef IORING_SETUP_SUBMIT_ALL
#define IORING_SETUP_SUBMIT_ALL (1U << 7) /* 5.18 */
#endif
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8) /* 5.19 */
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9) /* 5.19 */
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12) /* 6.0 */
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13) /* 6.1 */
#endif
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16) /* 6.6 */
#endif

/* what io_uring_setup(2) says the kernel can do */
#ifndef IORING_FEAT_CQE_SKIP
#define IORING_FEAT_CQE_SKIP (1U << 11) /* 5.17 */
#endif

#ifndef IORING_FEAT_RW_ATTR
#define IORING_FEAT_RW_ATTR (1U << 16) /* 6.14 */
#endif

#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17) /* 6.15 */
#endif

/* sqe->flags */
#ifndef IOSQE_CQE_SKIP_SUCCESS
#define IOSQE_CQE_SKIP_SUCCESS (1U << 6) /* 5.17 */
#endif

/* flags in the submission queue ring, written by the kernel */
#ifndef IORING_SQ_CQ_OVERFLOW
#define IORING_SQ_CQ_OVERFLOW (1U << 1) /* 5.8 */
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2) /* 5.19 */
#endif

/* io_uring_enter(2) flags */
#ifndef IORING_ENTER_REGISTERED_RING
#define IORING_ENTER_REGISTERED_RING (1U << 4) /* 5.18 */
#endif

#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7) /* 6.15 */
#endif

#ifndef IORING_POLL_ADD_MULTI
#define IORING_POLL_ADD_MULTI (1U << 0) /* 5.13, in sqe->len */
#endif

/* per-operation flags, in sqe->ioprio unless said otherwise */
#ifndef IORING_RECV_MULTISHOT
#define IORING_RECV_MULTISHOT (1U << 1) /* 6.0 */
#endif
#ifndef IORING_ACCEPT_MULTISHOT
#define IORING_ACCEPT_MULTISHOT (1U << 0) /* 5.19 */
#endif
#ifndef IORING_ASYNC_CANCEL_ALL
#define IORING_ASYNC_CANCEL_ALL (1U << 0) /* 5.19, in sqe->rw_flags */
#endif
#ifndef IORING_ASYNC_CANCEL_ANY
#define IORING_ASYNC_CANCEL_ANY (1U << 2) /* 5.19, in sqe->rw_flags */
#endif

/* completion flags */
#ifndef IORING_CQE_F_BUF_MORE
#define IORING_CQE_F_BUF_MORE (1U << 4) /* 6.12 */
#endif

/* io_uring_register(2) opcodes: enumerators in the kernel's header */
#define GT_REGISTER_FILES2 13U      /* 5.13 */
#define GT_REGISTER_RING_FDS 20U    /* 5.18 */
#define GT_UNREGISTER_RING_FDS 21U  /* 5.18 */
#define GT_REGISTER_PBUF_RING 22U   /* 5.19 */
#define GT_UNREGISTER_PBUF_RING 23U /* 5.19 */
#define GT_REGISTER_PBUF_STATUS 26U /* 6.8 */
#define GT_PBUF_RING_INC 2U         /* 6.12: IOU_PBUF_RING_INC */

/* flag of GT_REGISTER_FILES2: the table is empty */
#ifndef IORING_RSRC_REGISTER_SPARSE
#define IORING_RSRC_REGISTER_SPARSE (1U << 0) /* 5.19 */
#endif

/* argument of GT_REGISTER_FILES2: struct io_uring_rsrc_register; `flags` was padding before 5.19 */
struct gt_file_table_registration {
    uint32_t count;
    uint32_t flags;
    uint64_t reserved[3];
};

/* A provided buffer ring is an array of these; the tail lives in the last two bytes of its first entry (5.19). */
struct gt_provided_buffer {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t tail;
};

/* argument of GT_(UN)REGISTER_PBUF_RING; `flags` was padding before 6.4 */
struct gt_buffer_ring_registration {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags;
    uint64_t reserved[3];
};

/* argument of GT_REGISTER_PBUF_STATUS */
struct gt_buffer_ring_status {
    uint32_t bgid;
    uint32_t head;
    uint32_t reserved[8];
};

/* What a multishot RECVMSG puts before a datagram: struct io_uring_recvmsg_out (6.0) */
struct gt_received_message {
    uint32_t name_length; /* of the source address, which may be more than there is room for */
    uint32_t control_length;
    uint32_t payload_length; /* of the whole datagram */
    uint32_t flags;          /* MSG_TRUNC, ... */
};

/* argument of GT_(UN)REGISTER_RING_FDS: struct io_uring_rsrc_update */
struct gt_ring_fd_registration {
    uint32_t offset;
    uint32_t reserved;
    uint64_t data;
};

#endif
