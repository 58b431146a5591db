"""Floor 6: what :mod:`gain_trio.callbacks` and :mod:`gain_trio.asyncio_bridge` share.

====================  ==========================================================================================
``_changes``          what to call back, out of what has changed on a connection
``_delivering``       the loop of the plain case, which a connection on the ring has in C
``_paced_delivery``   how many bytes a callback is given at once
``_idle_wait``        the wait that is left when a connection's end has been reported
====================  ==========================================================================================
"""

from ._changes import END, STALLED, WRITTEN, Changes
from ._delivering import deliver_by, delivery_of
from ._idle_wait import sleep_until_idle
from ._paced_delivery import Pace, PacedDelivery

__all__ = [
    "END",
    "STALLED",
    "WRITTEN",
    "Changes",
    "Pace",
    "PacedDelivery",
    "deliver_by",
    "delivery_of",
    "sleep_until_idle",
]
