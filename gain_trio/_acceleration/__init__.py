"""Beside floor 3: Trio's own hot path in C, on every I/O manager.  Nothing above needs it.

Trio's function objects stay what they are; their code is replaced (``_switch.py``) by Trio's own with a call of the C module
in it (``_rewrite.py``), piece by piece (``_pieces.py``), where the piece was tested with this Trio (``_fingerprints.py`` and
``_tested.py``).
"""

from ._piece_choice import Acceleration, PieceInfo, PieceSetting, describe, resolve
from ._pieces import NAMES, PIECES
from ._switch import switch

__all__ = ["NAMES", "PIECES", "Acceleration", "PieceInfo", "PieceSetting", "describe", "resolve", "switch"]
