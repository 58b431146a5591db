"""The parts of a scope that requests share.  An app cannot change them, because the other requests would see that."""

from __future__ import annotations

import copy
from typing import Any, Final, NoReturn, final

_REASON: Final = "requests share this part of the scope, so it cannot be changed: change a copy"


@final
class ReadOnly(dict[str, Any]):
    """A dict that raises a :exc:`TypeError` for each attempt to change it.  Its copies are ordinary ones."""

    __slots__ = ()

    def _refuse(self, *_arguments: object, **_named: object) -> NoReturn:
        raise TypeError(_REASON)

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self.copy(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.copy(), memo)
