"""Another controller's process, and another name, of a ledger."""

import subprocess
import sys
from pathlib import Path

SECOND = """
import sys
from pathlib import Path
from controller.ledger.ledger import Ledger, LedgerError
try:
    Ledger(Path(sys.argv[1]))
except LedgerError as error:
    print(error)
"""


def second(path: Path) -> str:
    """What another controller's process says of this ledger; nothing if it could have it."""
    command = [sys.executable, "-c", SECOND, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def linked(path: Path) -> Path:
    path.with_name("link.db").symlink_to(path)
    return path.with_name("link.db")
