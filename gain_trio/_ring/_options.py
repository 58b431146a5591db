"""The options of a ring."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable

import attrs

from gain_trio._kernel import Feature, documented_fields

_LARGEST_ENTRIES = 32768  # IORING_MAX_ENTRIES; twice that for completions
_LARGEST_BUFFER_COUNT = 32768
_LARGEST_BUFFER_SIZE = 1 << 20
_MOST_SLOTS = 1 << 20
_UNWANTED_VARIABLE = "GAIN_TRIO_UNWANTED"


def unwanted_default() -> Feature:
    """The features that the operator excludes by the environment variable ``GAIN_TRIO_UNWANTED``.

    The variable has names of :class:`Feature` in lower case, separated by commas, or ``all``.

    Raises:
      ValueError: the variable has a name that no feature has; the message lists the known ones.
    """
    known = {str(feature.name).lower(): feature for feature in Feature}
    unwanted = Feature(0)
    for name in os.environ.get(_UNWANTED_VARIABLE, "").replace(" ", "").split(","):
        if name == "all":
            unwanted |= Feature(sum(known.values()))
        elif name in known:
            unwanted |= known[name]
        elif name:
            raise ValueError(f"{_UNWANTED_VARIABLE} has {name!r}; it may have: all, {', '.join(known)}")
    return unwanted


def _features(value: object) -> Feature:
    """``value`` as a set of features."""
    every = functools.reduce(operator.or_, Feature)
    if not isinstance(value, int) or isinstance(value, bool) or value & ~int(every):
        raise ValueError(
            "RingOptions.unwanted has members of gain_trio.Feature, such as Feature.BUFFER_RING | Feature.CQE_SKIP, not "
            f"{value!r}"
        )
    return Feature(value)


def whole_number(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    """Validate that a field is an int.

    ``attrs.validators.instance_of`` would put the whole attribute, with all its validators, into the message.

    Raises:
      TypeError: the value is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{type(instance).__name__}.{attribute.name} must be a whole number, not {value!r}")


def _up_to(most: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
        whole_number(instance, attribute, value)
        if not 1 <= value <= most:
            raise ValueError(f"RingOptions.{attribute.name} must be between 1 and {most}, not {value}")

    return check


def _power_of_two(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value & (value - 1):
        raise ValueError(f"RingOptions.{attribute.name} must be a power of two, not {value}")


@documented_fields
@attrs.frozen(kw_only=True)
class RingOptions:
    """The options of a run's ring.  The defaults serve thousands of connections; a test may want a tiny ring.

    Raises:
      ValueError: a number is out of range, or ``GAIN_TRIO_UNWANTED`` has a name that no feature has.
      TypeError: a value that must be a whole number is something else.
    """

    entries: int = attrs.field(
        default=1024,
        validator=_up_to(_LARGEST_ENTRIES),
    )
    """Places of the submission queue (1 to 32768; the kernel rounds up to a power of two).  A full queue is submitted and
    filled again, so this bounds the size of a batch, not of the program."""

    completion_entries: int = attrs.field(
        default=8192,
        validator=_up_to(2 * _LARGEST_ENTRIES),
    )
    """Places of the completion queue (at least ``entries``, up to 65536).  The kernel keeps completions that do not fit,
    and the ring counts them as an overflow; nothing is lost."""

    buffer_count: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([_up_to(_LARGEST_BUFFER_COUNT), _power_of_two]),
    )
    """Buffers that all connections share for receiving (a power of two up to 32768).  None: 32 where the kernel consumes
    buffers incrementally (6.12), else 256."""

    buffer_size: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(_up_to(_LARGEST_BUFFER_SIZE)),
    )
    """Bytes of each buffer (1 to 1 MiB), the most that one receive brings.  None: 65536 where the kernel consumes buffers
    incrementally (6.12), else 16384.  With at most 65536, a connection that gets pieces of 15360 bytes or more goes on to
    receive into bytes objects of 20480, which are not copied."""

    datagram_buffer_count: int = attrs.field(
        default=32,
        validator=[_up_to(_LARGEST_BUFFER_COUNT), _power_of_two],
    )
    """Buffers that all datagram endpoints share for receiving (a power of two up to 32768), of 64 KiB each, so that
    every datagram fits.  The run allocates them with its first endpoint.  A buffer costs memory as far as the kernel has
    used it: a page or two where datagrams are small."""

    max_slots: int = attrs.field(
        default=_MOST_SLOTS,
        validator=_up_to(_MOST_SLOTS),
    )
    """The most connections at once, closing ones included (1 to 1048576).  One more raises an :exc:`OSError`
    (``ENOSPC``).  Operations that the run itself waits with do not count: a full table of connections does not stop it."""

    unwanted: Feature = attrs.field(factory=unwanted_default, converter=_features)
    """Kernel features that the ring leaves unused even where the kernel has them.  Default: those that the environment
    variable ``GAIN_TRIO_UNWANTED`` names, in lower case and separated by commas, or ``all``; none where it is not set."""

    def __attrs_post_init__(self) -> None:
        if self.completion_entries < self.entries:
            raise ValueError(
                f"RingOptions.completion_entries ({self.completion_entries}) must be at least entries ({self.entries})"
            )
