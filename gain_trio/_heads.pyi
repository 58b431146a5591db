from collections.abc import Callable
from typing import Any

def split_head(data: bytes, position: int, /) -> tuple[bytes, bytes, bytes, bytes, int] | None: ...
def read_fields(
    lines: bytes,
    known: dict[bytes, tuple[tuple[bytes, bytes], int, bytes]],
    recent: list[tuple[tuple[bytes, bytes], int, bytes]],
    read: Callable[[bytes], tuple[tuple[bytes, bytes], int, bytes]],
    /,
) -> tuple[tuple[tuple[bytes, bytes], ...], tuple[tuple[bytes, bytes], ...], bool]: ...
def repeated(memory: dict[bytes, Any], data: bytes, position: int, most: int, /) -> tuple[list[Any], int]: ...
