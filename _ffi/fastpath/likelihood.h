/* likelihood.h: what the compiler knows of the way of the usual message.
 *
 * A small message takes about two thousand instructions here, a few from each of fifty functions.  What it does not do lies
 * apart from them, or the processor would have to fetch that, too.
 */
#ifndef GAIN_TRIO_LIKELIHOOD_H
#define GAIN_TRIO_LIKELIHOOD_H

/* A condition that holds for no usual message, and one that holds for all of them. */
#define GT_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

#define GT_LIKELY(condition) __builtin_expect(!!(condition), 1)

/* A function that no usual message calls. */
#define GT_COLD __attribute__((noinline, cold))

/* A function that some messages call, and that the way of the others has no room for. */
#define GT_APART __attribute__((noinline))

/* A function that is a part of each that calls it. */
#define GT_INLINED static inline __attribute__((always_inline))

#endif
