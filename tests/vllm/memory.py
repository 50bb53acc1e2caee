"""What memory processes have, as Linux tells it, and the HMM that they share weights of."""

import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vllm.engines import ROOT

ARENA = "memfd:placer-arena"


@dataclass(frozen=True)
class Memory:
    """Bytes. private: of these processes alone; mapped: of weights that are in their page tables;
    share: the same, each page divided by the number of processes that map it (PSS)"""

    private: int
    mapped: int
    share: int


def memory_of(pids: Collection[int]) -> Memory:
    private = mapped = share = 0
    for pid in pids:
        of_arena = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                of_arena = ARENA in line
            elif name.startswith("Private_") and name != "Private_Hugetlb:":
                private += 1024 * int(values[0])
            elif of_arena and name == "Rss:":
                mapped += 1024 * int(values[0])
            elif of_arena and name == "Pss:":
                share += 1024 * int(values[0])
    return Memory(private, mapped, share)


@contextmanager
def an_hmm(socket: Path) -> Iterator[subprocess.Popen[str]]:
    """`placer hmm`, once it listens."""
    command = [sys.executable, "-m", "placer.cli.main", "hmm", "--socket", str(socket)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            while not socket.is_socket():
                assert process.poll() is None, "the HMM ended"
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
