"""How a ring is set up."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from gain_trio._kernel import Feature

_LARGEST_ENTRIES = 32768  # IORING_MAX_ENTRIES; twice that for completions
_LARGEST_BUFFER_COUNT = 32768
_LARGEST_BUFFER_SIZE = 1 << 20
_MOST_SLOTS = 1 << 20
_UNWANTED_VARIABLE = "GAIN_TRIO_UNWANTED"


def unwanted_default() -> Feature:
    """What the operator says: ``GAIN_TRIO_UNWANTED`` has names of :class:`Feature` in lower case, with commas, or ``all``.

    Raises:
      ValueError: a name in it is none; lists the known ones.
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


def whole_number(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    """For a field that is an int.

    ``attrs.validators.instance_of`` would put the whole attribute, with all its validators, into the message.

    Raises:
      TypeError: it is something else.
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


@attrs.frozen(kw_only=True)
class RingOptions:
    """How a run's ring is set up.  The defaults serve thousands of connections; a test may want a tiny one.

    Raises:
      ValueError: a number is out of range, or ``GAIN_TRIO_UNWANTED`` has a name that no feature has.
      TypeError: a number is none.
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
    """Places of the completion queue (at least ``entries``, up to 65536).  What does not fit is kept by the kernel and
    counted as an overflow; nothing is lost."""

    buffer_count: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([_up_to(_LARGEST_BUFFER_COUNT), _power_of_two]),
    )
    """Buffers that all connections together receive into (a power of two up to 32768).  None: 32 where the kernel consumes
    them bit by bit (6.12), else 256."""

    buffer_size: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(_up_to(_LARGEST_BUFFER_SIZE)),
    )
    """Bytes of each buffer (1 to 1 MiB), the most that one receive brings.  None: 65536 where the kernel consumes them bit
    by bit (6.12), else 16384."""

    datagram_buffer_count: int = attrs.field(
        default=32,
        validator=[_up_to(_LARGEST_BUFFER_COUNT), _power_of_two],
    )
    """Buffers that all datagram endpoints together receive into (a power of two up to 32768), of 64 KiB each, so that
    every datagram fits.  They come with the first endpoint, and cost memory as far as they have been used: a page or
    two each where datagrams are small."""

    max_slots: int = attrs.field(
        default=_MOST_SLOTS,
        validator=_up_to(_MOST_SLOTS),
    )
    """How many connections there may be at once, closing ones included (1 to 1048576).  One more is an :exc:`OSError`
    (``ENOSPC``).  What a run itself waits with does not count: a full table of connections does not stop a run."""

    unwanted: Feature = attrs.field(factory=unwanted_default, converter=Feature)
    """Kernel features not to use even where they are there.  Default: what the environment variable
    ``GAIN_TRIO_UNWANTED`` names, in lower case and separated by commas, or ``all``; none where it is not set."""

    def __attrs_post_init__(self) -> None:
        if self.completion_entries < self.entries:
            raise ValueError(
                f"RingOptions.completion_entries ({self.completion_entries}) must be at least entries ({self.entries})"
            )
