"""Who may connect to the controller, and what they may then do; docs/controller.md."""

import hmac
import logging
import re
import stat
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import grpc
import grpc.aio
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from controller.server.callers import CALLER, Caller, Names, Role
from controller.server.strangers import Strangers
from placer.certificates import Credentials
from placer.channel import is_loopback
from placer.clock import Clock
from placer.errors import FileError, PlacerError
from placer.files.atomic import read_text
from placer.files.documents import of_yaml

__all__ = ["Guard", "Listening", "Role", "SecurityError", "Tokens"]

LIMIT = 2**20
SHORTEST = 16  # characters of a token
OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")  # to whoever has a token, whichever

T = TypeVar("T")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
log = logging.getLogger("placer.controller")


class SecurityError(PlacerError):
    """An address that anybody could reach, or that nobody can listen on."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the controller listens and to whom.

    address:   ``host:port``
    client_ca: whose certificates clients must show (mutual TLS)
    tokens:    a file, see ``Tokens``; without it everyone is an operator
    insecure:  the operator says that the network is theirs alone
    """

    address: str
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if found is None or int(found["port"]) > 65535:
            raise SecurityError(
                f"cannot listen on {self.address!r}: write it as host:port or [IPv6]:port"
            )
        if (self.certificate is None) != (self.key is None):
            raise SecurityError("a certificate needs its key: give both, or neither")
        if self.client_ca is not None and self.certificate is None:
            raise SecurityError(
                f"clients are to show certificates of {self.client_ca}, which they do over TLS only"
                ": give the server's certificate and key"
            )
        if self.insecure or is_loopback(self.address):
            return
        if self.certificate is None:
            raise SecurityError(
                f"{self.address} can be reached from other hosts, and all could be read on the way"
                ": give a certificate and its key, listen on 127.0.0.1, or say --insecure"
            )
        if self.tokens is None and self.client_ca is None:
            raise SecurityError(
                f"{self.address} can be reached from other hosts, and everybody could move experts"
                ": give tokens or a client CA, listen on 127.0.0.1, or say --insecure"
            )

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.certificate, self.key, self.client_ca)

    def open_port(self, server: grpc.aio.Server) -> int:
        """The port, which gRPC chose if it was 0."""
        self.check()
        try:
            if self.certificate is None:
                return int(server.add_insecure_port(self.address))
            return int(server.add_secure_port(self.address, self._credentials()))
        except RuntimeError as error:
            raise SecurityError(
                f"cannot listen on {self.address}: is the port taken, or another host's address?"
            ) from error

    def _credentials(self) -> grpc.ServerCredentials:
        paths = [self.certificate, self.key, self.client_ca]
        fresh = Fresh([path for path in paths if path], self._configuration)
        first = fresh.get()
        served = [first]

        def changed() -> Any:
            """Asked before every handshake. None: go on with what there is."""
            newest = fresh.get()
            if newest is served[0]:
                return None
            served[0] = newest
            return newest

        mutual = self.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(first, changed, mutual)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, ca = self.credentials.read()
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)


class Fresh(Generic[T]):
    """What was read from files, read again when one of them changes. Broken ones change nothing."""

    def __init__(self, paths: list[Path], read: Callable[[], T]) -> None:
        self._paths, self._read = paths, read
        self._guard = threading.Lock()  # gRPC asks from threads of its own
        self._stamps = self._stamp()
        self._value = read()

    def get(self) -> T:
        with self._guard:
            stamps = self._stamp()
            if stamps != self._stamps:
                self._stamps = stamps  # before reading: what changes meanwhile is read next time
                try:
                    self._value = self._read()
                    log.info("read %s again", _all(self._paths))
                except PlacerError as error:
                    log.warning("%s; going on with what stood there before", error)
            return self._value

    def _stamp(self) -> list[tuple[int, ...]]:
        return [_stat(path) for path in self._paths]


class Tokens:
    """Who shows which role's token. They are kept as digests and are in no message.

    The file is YAML: ``agent`` and ``operator``, each a list. An agent's token may be one of some
    names only. Tokens may come and go at any time; one that is in both is an operator's.
    """

    def __init__(self, path: Path) -> None:
        self._digests = Fresh([path], lambda: _read_tokens(path))

    def role(self, token: str) -> Role | None:
        return max((role for role, _ in self._entries(token)), default=None)

    def names(self, token: str) -> tuple[Names, ...]:
        """That an agent may have who shows it."""
        return tuple(names for _, names in self._entries(token))

    def _entries(self, token: str) -> list[tuple[Role, Names]]:
        """Takes as long whatever is shown."""
        shown = sha256(token.encode(errors="replace")).digest()
        return [
            (role, names)
            for digest, role, names in self._digests.get()
            if hmac.compare_digest(digest, shown)
        ]


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns away whoever may not call a method.

    needed: the role for each ``/package.Service/Method``; what is not listed is for operators
    """

    def __init__(self, needed: Mapping[str, Role], tokens: Tokens | None, clock: Clock) -> None:
        self._needed, self._tokens = dict(needed), tokens
        self._strangers = Strangers(clock)

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        refusal = self._refusal(details.method, dict(details.invocation_metadata))
        return await continuation(details) if refusal is None else self._refuse(*refusal)

    def _refuse(self, code: grpc.StatusCode, reason: str) -> grpc.RpcMethodHandler:
        """For methods of every kind: as a stream it waits for no request."""

        async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
            if code is grpc.StatusCode.UNAUTHENTICATED:
                await self._strangers.wait(context.peer())
            await context.abort(code, reason)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _refusal(
        self, method: str, headers: Mapping[str, Any]
    ) -> tuple[grpc.StatusCode, str] | None:
        if self._tokens is None:
            CALLER.set(Caller(Role.OPERATOR))
            return None
        scheme, _, token = str(headers.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            return (
                grpc.StatusCode.UNAUTHENTICATED,
                "no token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's",
            )
        role = self._tokens.role(token.strip())
        if role is None:
            return (
                grpc.StatusCode.UNAUTHENTICATED,
                "unknown token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's",
            )
        least = Role.AGENT if method.startswith(OPEN) else self._needed.get(method, Role.OPERATOR)
        CALLER.set(Caller(role, self._tokens.names(token.strip())))
        if role < least:
            return (
                grpc.StatusCode.PERMISSION_DENIED,
                f"{method} is for operators, and this is an agent's token: use an operator's",
            )
        return None


_Token = Annotated[str, StringConstraints(min_length=SHORTEST, pattern="^[!-~]+$")]


_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Bound(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: _Token
    pool: _Name | None = None
    engine: _Name | None = None
    worker: _Name | None = None


class _TokensFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    agent: list[_Token | _Bound] = []
    operator: list[_Token] = []


def _read_tokens(path: Path) -> list[tuple[bytes, Role, Names]]:
    """Their digests. Errors say where, never what: parsers quote what they stumble over."""
    remedy = f"write agent and operator as lists of tokens, {SHORTEST} characters or more each"
    try:  # plain strings, also of what looks like a number or a date
        data = of_yaml(read_text(path, LIMIT), str(path), as_text=True)
        found = _TokensFile.model_validate(data)
    except ValidationError as error:
        name, *place = error.errors()[0]["loc"] or ("",)
        where = f"{name}.{place[0]}" if place else name if name in _TokensFile.model_fields else ""
        raise FileError(f"{path}: {where or 'it'} is not as it should be: {remedy}") from None
    if any(stat.S_IROTH & mode for mode in _stat(path)[:1]):
        log.warning("%s can be read by everybody on this host: chmod 600 it", path)
    told = [(token, Role.OPERATOR, Names()) for token in found.operator]
    for one in found.agent:
        bound = one if isinstance(one, _Bound) else _Bound(token=one)
        names = Names(bound.pool or "", bound.engine or "", bound.worker or "")
        told.append((bound.token, Role.AGENT, names))
    if not told:
        raise FileError(f"{path} holds no token, so that nobody could connect: {remedy}")
    return [(sha256(token.encode()).digest(), role, names) for token, role, names in told]


def _stat(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mode, found.st_mtime_ns, found.st_size, found.st_ino


def _all(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))
