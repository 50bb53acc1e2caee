"""What placer raises. Every message names the offending value and the remedy, on one line.

    PlacerError
    ├── FileError        a file that is not what it should be, or cannot be read or written
    ├── RoutingError     a trace or a profile that contradicts itself or another one
    ├── ModelError       an unknown model, or one that does not fit the data
    ├── TopologyError    unknown or impossible hardware
    └── PlacementError   slots, ids or limits that no placement can have

"No" is not an error: a plan that does not pay is a ``Hold``, limits that clash are
``Infeasible`` (see plan.py).
"""


class PlacerError(Exception):
    """Anything that the user can put right; the command line ends with code 2."""


class FileError(PlacerError):
    """A file that is not what it should be, or cannot be read or written."""


class RoutingError(PlacerError):
    """A trace or a profile that contradicts itself or another one."""


class ModelError(PlacerError):
    """An unknown model, or one that does not fit the data."""


class TopologyError(PlacerError):
    """Unknown or impossible hardware."""


class PlacementError(PlacerError):
    """Slots, ids or limits that no placement can have."""
