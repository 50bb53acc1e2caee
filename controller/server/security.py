"""Who may connect to the controller, and what they may then do; docs/controller.md."""

import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from controller.server.callers import CALLER, Caller, Role
from controller.server.strangers import Strangers
from controller.server.tokens import Tokens
from placer.certificates import Credentials
from placer.channel import is_loopback
from placer.clock import Clock
from placer.errors import PlacerError
from placer.files.fresh import Fresh

__all__ = ["Guard", "Listening", "Role", "SecurityError", "Tokens"]

OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")  # to whoever has a token, whichever

# Many of them, and whose a token is; the one that may do more first.
_WORDS = {
    Role.OPERATOR: ("operators", "an operator's"),
    Role.AGENT: ("agents", "an agent's"),
    Role.FRONT: ("fronts", "a front's"),
    Role.SEE: ("operators and fronts", "an operator's or a front's"),
    Role.TRACE_READER: ("trace readers", "a trace reader's"),
    Role.TABLES: ("fronts and trace readers", "a front's"),
    Role.CLIENT: ("clients of a front", "a client's"),
}

log = logging.getLogger("placer.controller")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


class SecurityError(PlacerError):
    """An address that anybody could reach, or that nobody can listen on."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the controller listens and to whom.

    address:   ``host:port``
    client_ca: whose certificates clients must show (mutual TLS)
    tokens:    a file, see ``Tokens``; without it everyone is an operator
    insecure:  the operator says that the network is theirs alone
    harm:      what everybody could do who reaches it
    """

    address: str
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    harm: str = "move experts"

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
                f"{self.address} can be reached from other hosts, and everybody could {self.harm}"
                ": give tokens or a client CA, listen on 127.0.0.1, or say --insecure"
            )

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.certificate, self.key, self.client_ca)

    def tls(self) -> ssl.SSLContext | None:
        """For HTTP. Files that changed are read again at the next handshake. Raises PlacerError."""
        if self.certificate is None:
            return None
        fresh = Fresh(self._paths, self._context, log)

        def choose(connection: ssl.SSLObject, *_: object) -> None:
            connection.context = fresh.get()

        found = fresh.get()
        found.sni_callback = choose
        return found

    def _context(self) -> ssl.SSLContext:
        """A new one, since what a context was given once it trusts for ever."""
        assert self.certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        self.credentials.read()
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                # Who was let in once is not to come in by that: before TLS 1.3 nothing forbids it.
                context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
                context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise SecurityError(f"{self.certificate} changes while it is read ({error})") from error
        return context

    @property
    def _paths(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.client_ca) if path]

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
        fresh = Fresh(self._paths, self._configuration, log)
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


ANYBODY = Caller(Role.OPERATOR)  # where no tokens are asked for


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns away whoever may not call a method.

    needed: the role for each ``/package.Service/Method``; what is not listed is for operators
    """

    def __init__(self, needed: Mapping[str, Role], tokens: Tokens | None, clock: Clock) -> None:
        self._needed, self._tokens = dict(needed), tokens
        self.strangers = Strangers(clock)

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        refusal = self.refusal(details.method, dict(details.invocation_metadata))
        return await continuation(details) if refusal is None else self._refuse(*refusal)

    def _refuse(self, code: grpc.StatusCode, reason: str) -> grpc.RpcMethodHandler:
        """For methods of every kind: as a stream it waits for no request."""

        async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
            if code is grpc.StatusCode.UNAUTHENTICATED:
                await self.strangers.wait(context.peer())
            await context.abort(code, reason)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def refusal(
        self, method: str, headers: Mapping[str, Any]
    ) -> tuple[grpc.StatusCode, str] | None:
        """Why this call is turned away; else its caller is known. headers: names in lower case"""
        needed = Role.NONE if method.startswith(OPEN) else self._needed.get(method, Role.OPERATOR)
        many, whose = _WORDS.get(needed, ("", ""))
        if self._tokens is None:
            CALLER.set(ANYBODY)
            if needed in Role.OPERATOR:
                return None
            return (
                grpc.StatusCode.PERMISSION_DENIED,
                f"{method} is for {many}, whom the controller knows by {whose} token: start it "
                "with --tokens, and show one",
            )
        scheme, _, token = str(headers.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            return (
                grpc.StatusCode.UNAUTHENTICATED,
                "no token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's",
            )
        token = token.strip()
        role = self._tokens.role(token)
        if role is None:
            return (
                grpc.StatusCode.UNAUTHENTICATED,
                "unknown token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's",
            )
        CALLER.set(Caller(role, self._tokens.names(token), self._tokens.reader(token)))
        if needed in role:
            return None
        own = next(words[1] for one, words in _WORDS.items() if one in role)
        return (
            grpc.StatusCode.PERMISSION_DENIED,
            f"{method} is for {many}, and this is {own} token: use {whose}",
        )
