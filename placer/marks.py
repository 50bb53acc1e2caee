"""How a front chose a request's rank, written into the request's id: engines keep that, so that
their agents can tell."""

import re
from enum import IntEnum

_MARK = re.compile(r"placer([tl])(?![0-9a-z])")


class Mark(IntEnum):
    """TABLES: by what its tokens say; LOAD: by load alone, to compare with"""

    NONE = 0
    TABLES = 1
    LOAD = 2


def marked(request: str, mark: Mark) -> str:
    """The id, which says so from now on."""
    return f"{request}-placer{'tl'[mark - 1]}" if mark else request


def mark_of(request: str) -> Mark:
    """Of an id; the last, as fronts append theirs to what clients say."""
    found = _MARK.findall(request)
    return Mark("tl".index(found[-1]) + 1) if found else Mark.NONE
