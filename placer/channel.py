"""How agents and the command line reach a controller: plainly on this host, else through TLS.

    PLACER_TOKEN or PLACER_TOKEN_FILE    who one is; a file may be replaced at any time
    PLACER_TLS_CA                        whom to trust; the public authorities if it is not set
    PLACER_TLS_CERT, PLACER_TLS_KEY      for controllers that ask for a client's certificate
    PLACER_INSECURE=1                    send the token over a network that others may read

TLS is used if there is a PLACER_TLS_CA or a PLACER_TLS_CERT.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from logging import Logger
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from placer.certificates import Credentials
from placer.errors import PlacerError
from placer.files.atomic import read_text
from placer.files.fresh import Fresh

LIMIT = 2**20  # bytes of a token file
Options: TypeAlias = Sequence[tuple[str, Any]]
_TOKEN = re.compile("[!-~]+")  # what fits into a header


class ChannelError(PlacerError):
    """Settings that no connection can be made with, or that would give a token away."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a controller is to know about whoever calls, and the other way round."""

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False

    @classmethod
    def of_environment(cls) -> "Settings":
        def path(name: str) -> Path | None:
            value = os.environ.get(name)
            return Path(value) if value else None

        return cls(
            token=os.environ.get("PLACER_TOKEN", ""),
            token_file=path("PLACER_TOKEN_FILE"),
            ca=path("PLACER_TLS_CA"),
            certificate=path("PLACER_TLS_CERT"),
            key=path("PLACER_TLS_KEY"),
            insecure=os.environ.get("PLACER_INSECURE", "") not in ("", "0"),
        )

    @property
    def has_token(self) -> bool:
        return bool(self.token) or self.token_file is not None

    @property
    def has_tls(self) -> bool:
        return self.ca is not None or self.certificate is not None

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.certificate, self.key, self.ca)

    def check(self, address: str) -> None:
        if self.token and self.token_file:
            raise ChannelError("PLACER_TOKEN and PLACER_TOKEN_FILE are both set: unset one of them")
        if (self.certificate is None) != (self.key is None):
            raise ChannelError(
                "a certificate needs its key: set PLACER_TLS_CERT and PLACER_TLS_KEY"
            )
        if self.has_token and not self.has_tls and not is_loopback(address) and not self.insecure:
            raise ChannelError(
                f"a token for {address} could be read on the way: set PLACER_TLS_CA to the"
                " controller's authority, or PLACER_INSECURE=1"
            )

    def authorization(self) -> tuple[str, str]:
        """The header that shows the token, which is read anew from its file."""
        if self.token_file is None:
            token, source = self.token.strip(), "PLACER_TOKEN"
        else:
            token, source = read_text(self.token_file, LIMIT).strip(), str(self.token_file)
        if not _TOKEN.fullmatch(token):
            raise ChannelError(f"{source} holds no token: it must be one line without spaces")
        return "authorization", f"Bearer {token}"


def open_channel(address: str, settings: Settings, options: Options = ()) -> grpc.Channel:
    credentials, options = _prepared(address, settings, options)
    if credentials is not None:
        return grpc.secure_channel(address, credentials, options=options)
    channel = grpc.insecure_channel(address, options=options)
    return grpc.intercept_channel(channel, _Plain(settings)) if settings.has_token else channel


def open_aio_channel(address: str, settings: Settings, options: Options = ()) -> grpc.aio.Channel:
    credentials, options = _prepared(address, settings, options)
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=options)
    shows = [kind(settings) for kind in _AIO] if settings.has_token else None
    return grpc.aio.insecure_channel(address, options=options, interceptors=shows)


class Channels:
    """The channel to an address, opened anew once a file of certificates changes. What began on the
    one before goes on there; of earlier ones nothing is left."""

    def __init__(
        self, address: str, settings: Settings, log: Logger, options: Options = ()
    ) -> None:
        of = settings.credentials
        paths = [path for path in (of.certificate, of.key, of.ca) if path]
        self._opened: list[grpc.Channel] = []

        def opened() -> grpc.Channel:
            """By one thread at a time, as Fresh has it read."""
            self._opened.append(open_channel(address, settings, options))
            for old in self._opened[:-2]:
                old.close()
            del self._opened[:-2]
            return self._opened[-1]

        self._fresh = Fresh(paths, opened, log)

    def get(self) -> grpc.Channel:
        return self._fresh.get()

    def close(self) -> None:
        for channel in self._opened:
            channel.close()


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` never leaves this host. Names are not looked up, but for localhost."""
    host = address.rpartition(":")[0]
    try:
        if host.startswith("["):  # IPv6, whose colons are else anybody's guess
            return ipaddress.IPv6Address(host[1:].removesuffix("]")).is_loopback
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def _prepared(
    address: str, settings: Settings, options: Options
) -> tuple[grpc.ChannelCredentials | None, Options]:
    settings.check(address)
    if settings.has_tls:
        certificate, key, ca = settings.credentials.read()
        found = grpc.ssl_channel_credentials(ca, key, certificate)
        if settings.has_token:
            shown = grpc.metadata_call_credentials(_Secure(settings), name="placer")
            found = grpc.composite_channel_credentials(found, shown)
        return found, options
    # A proxy would get the token, and have a loopback of its own.
    direct = [("grpc.enable_http_proxy", 0)] if is_loopback(address) else []
    return None, [*direct, *options]


class _Secure(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, _: grpc.AuthMetadataContext, callback: Callable[..., None]) -> None:
        try:
            shown = (self._settings.authorization(),)
        except PlacerError as error:  # the call fails with it
            callback((), error)
        else:
            callback(shown, None)


class _Plain(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """gRPC keeps call credentials from plain connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _call(self, proceed: Callable[..., Any], details: Any, request: Any) -> Any:
        shown = [*(details.metadata or ()), self._settings.authorization()]
        return proceed(details._replace(metadata=shown), request)

    intercept_unary_unary = intercept_unary_stream = _call
    intercept_stream_unary = intercept_stream_stream = _call


class _PlainAio:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def _call(self, proceed: Callable[..., Any], details: Any, request: Any) -> Any:
        shown = grpc.aio.Metadata(*(details.metadata or ()), self._settings.authorization())
        return await proceed(details._replace(metadata=shown), request)

    intercept_unary_unary = intercept_unary_stream = _call
    intercept_stream_unary = intercept_stream_stream = _call


# grpc.aio takes an interceptor for the first of the four that it is.
_AIO = [
    type("_PlainAioOne", (_PlainAio, kind), {})
    for kind in (
        grpc.aio.UnaryUnaryClientInterceptor,
        grpc.aio.UnaryStreamClientInterceptor,
        grpc.aio.StreamUnaryClientInterceptor,
        grpc.aio.StreamStreamClientInterceptor,
    )
]
