"""What processes on this host do, as Linux tells it."""

import ipaddress
import re
from collections.abc import Collection, Iterator
from pathlib import Path

LISTENS = "0A"


def children(pid: int) -> set[int]:
    """All that descend from it and are still there."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found, more = {pid}, True
    while more:
        grown = found | {child for child, parent in parents.items() if parent in found}
        found, more = grown, grown != found
    return found - {pid}


def listening(pids: Collection[int]) -> set[tuple[int, str]]:
    """Port and address of each TCP socket that one of them listens on."""
    sockets = {path[len("socket:[") : -1] for path in _open(pids) if path.startswith("socket:")}
    found: set[tuple[int, str]] = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in sockets:
                host, port = fields[1].split(":")
                found.add((int(port, 16), _address(host)))
    return found


def folders_of(pids: Collection[int]) -> set[Path]:
    """That the Ray which they belong to writes to."""
    paths = (re.match(r"/tmp/placer-ray-[^/]+", path) for path in _open(pids))
    return {Path(found[0]) for found in paths if found}


def _open(pids: Collection[int]) -> Iterator[str]:
    for pid in pids:
        try:
            for file in Path(f"/proc/{pid}/fd").iterdir():
                yield str(file.readlink())
        except OSError:
            continue


def _address(words: str) -> str:
    """The kernel writes words of 32 bits, each with its last byte first."""
    raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(address)
