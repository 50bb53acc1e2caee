"""Where engines answer."""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from placer.errors import PlacerError


class AddressError(PlacerError):
    """What no request can be sent to."""


class Address(NamedTuple):
    """url: ``http://host:port``, in one way of writing it"""

    url: str
    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> bytes:
        return self.url.partition("://")[2].encode()


def address(text: str) -> Address:
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
        fine = bare and port != 0 and re.fullmatch(r"[A-Za-z0-9._:%-]+", host)
    except ValueError:
        fine = None
    if not fine or parts.scheme not in ("http", "https"):
        raise AddressError(f"{text[:100]!r} is no engine's address: write it as http://host:port")
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    name = f"[{host}]" if ":" in host else host
    return Address(f"{parts.scheme}://{name}:{port}", host, port, tls)
