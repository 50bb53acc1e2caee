"""Who shows which token: the file that says so, read again whenever it changes."""

import hmac
import logging
import stat
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from operator import or_
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from controller.server.callers import Names, Role
from placer.errors import FileError
from placer.files.atomic import read_text
from placer.files.documents import of_yaml
from placer.files.fresh import Fresh, stamp

LIMIT = 2**20
SHORTEST = 16  # characters of a token

log = logging.getLogger("placer.controller")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A token of the file. names: that an agent may have; reader: who reads traces with it"""

    digest: bytes
    role: Role
    names: Names
    reader: str


class Tokens:
    """Who shows which role's token. They are kept as digests and are in no message.

    The file is YAML: ``agent``, ``operator``, ``front``, ``trace_reader`` and ``client``, each a
    list. An agent's token may be one of some names only; a trace reader's has a name, which is
    written down with what it reads; a client's is an API key of a front. Tokens may come and go at
    any time; one that is in several has all these roles.
    """

    def __init__(self, path: Path) -> None:
        self._entries = Fresh([path], lambda: _read_tokens(path), log)

    def role(self, token: str) -> Role | None:
        """All that its entries allow."""
        return reduce(or_, (one.role for one in self._of(token)), Role.NONE) or None

    def names(self, token: str) -> tuple[Names, ...]:
        """That an agent may have who shows it."""
        return tuple(one.names for one in self._of(token) if Role.AGENT in one.role)

    def reader(self, token: str) -> str:
        """Who reads traces with it."""
        return " and ".join(one.reader for one in self._of(token) if one.reader)

    def _of(self, token: str) -> list[_Entry]:
        """Takes as long whatever is shown."""
        shown = sha256(token.encode(errors="replace")).digest()
        return [one for one in self._entries.get() if hmac.compare_digest(one.digest, shown)]


_Token = Annotated[str, StringConstraints(min_length=SHORTEST, pattern="^[!-~]+$")]


_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Bound(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: _Token
    pool: _Name | None = None
    engine: _Name | None = None
    worker: _Name | None = None


class _Reader(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: _Token
    name: _Name


class _TokensFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: list[_Token | _Bound] = []
    operator: list[_Token] = []
    trace_reader: list[_Reader] = []
    client: list[_Token] = []
    front: list[_Token] = []


def _read_tokens(path: Path) -> list[_Entry]:
    """Errors say where, never what: parsers quote what they stumble over."""
    remedy = (
        f"write agent, operator, front and client as lists of tokens, {SHORTEST} characters or "
        "more each, and trace_reader as one of {token, name}"
    )
    try:  # plain strings, also of what looks like a number or a date
        data = of_yaml(read_text(path, LIMIT), str(path), as_text=True)
        found = _TokensFile.model_validate(data)
    except ValidationError as error:
        name, *place = error.errors()[0]["loc"] or ("",)
        where = f"{name}.{place[0]}" if place else name if name in _TokensFile.model_fields else ""
        raise FileError(f"{path}: {where or 'it'} is not as it should be: {remedy}") from None
    if any(stat.S_IROTH & mode for mode in stamp(path)[:1]):
        log.warning("%s can be read by everybody on this host: chmod 600 it", path)
    told = [(token, Role.OPERATOR, Names(), "") for token in found.operator]
    told += [(token, Role.CLIENT, Names(), "") for token in found.client]
    told += [(token, Role.FRONT, Names(), "") for token in found.front]
    told += [(one.token, Role.TRACE_READER, Names(), one.name) for one in found.trace_reader]
    for one in found.agent:
        bound = one if isinstance(one, _Bound) else _Bound(token=one)
        names = Names(bound.pool or "", bound.engine or "", bound.worker or "")
        told.append((bound.token, Role.AGENT, names, ""))
    if not told:
        raise FileError(f"{path} holds no token, so that nobody could connect: {remedy}")
    return [
        _Entry(sha256(token.encode()).digest(), role, names, reader)
        for token, role, names, reader in told
    ]
