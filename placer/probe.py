"""Why a controller cannot be reached: gRPC says that something is closed, TLS says why.

Asked after a call has failed only. Nothing is said but a handshake.
"""

import socket
import ssl
import time
from datetime import UTC, datetime
from typing import Any

from placer.channel import Settings
from placer.errors import PlacerError
from placer.names import few

PATIENCE_S = 2.0
OTHER_NAMES = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, and of an IP address
NOT_NOW = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED


def tls_fault(address: str, settings: Settings) -> str:
    """What keeps this side and whoever listens at ``host:port`` from TLS with each other, and what
    to do; empty if nothing does, or nobody is there."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not settings.has_tls:
            _shake(host, port, _unverified())
            return "it wants TLS: set PLACER_TLS_CA to its authority's certificate"
        # Twice, since it may just have been killed.
        heard = any(_shake(host, port, _context(settings))[1] for _ in range(2))
        return "" if heard else _turned_away(settings)
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, host, port, settings)
    except ssl.SSLError as error:
        if not settings.has_tls:
            return ""
        if error.reason == "WRONG_VERSION_NUMBER":
            return "it has no TLS: unset PLACER_TLS_CA and PLACER_TLS_CERT, or start it with TLS"
        return _turned_away(settings)
    except (OSError, ValueError, PlacerError):
        return ""


def _shake(host: str, port: str, context: ssl.SSLContext) -> tuple[Any, bool]:
    """The other side's certificate, and whether it says anything after the handshake: gRPC does, at
    once, unless it turns this client away."""
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert()
        try:
            return certificate, bool(secured.recv(1))
        except TimeoutError:
            return certificate, True
        except ConnectionError:
            return certificate, False


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca)
    if settings.certificate is not None:
        context.load_cert_chain(settings.certificate, settings.key, password="")
    return context


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _distrust(error: ssl.SSLCertVerificationError, host: str, port: str, settings: Settings) -> str:
    if error.verify_code in OTHER_NAMES:
        return f"its certificate is not for {host!r}{_names(host, port, settings)}"
    if error.verify_code in NOT_NOW:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"its {error.verify_message}, at {now} here: renew it, or put this clock right"
    whom = f"PLACER_TLS_CA ({settings.ca})" if settings.ca else "any public authority"
    return f"its certificate is not signed by {whom} ({error.verify_message}): set PLACER_TLS_CA"


def _names(host: str, port: str, settings: Settings) -> str:
    """What the certificate is for."""
    context = _context(settings)
    context.check_hostname = False
    try:
        certificate, _ = _shake(host, port, context)
    except OSError:
        return ": use a name that is in it"
    names = [name for _, name in certificate.get("subjectAltName", ())]
    return f" but for {few(names)}: use such a name" if names else ": it has no names at all"


def _turned_away(settings: Settings) -> str:
    if settings.certificate is None:
        return "it wants a client's certificate: set PLACER_TLS_CERT and PLACER_TLS_KEY"
    why = "; ".join(settings.credentials.faults(time.time()))
    return f"it does not take the certificate of PLACER_TLS_CERT ({settings.certificate}): " + (
        why or "is it signed by the authority that the controller asks for?"
    )
