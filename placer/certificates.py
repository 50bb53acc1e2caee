"""What is wrong with files of certificates and keys that can be used all the same, or could."""

import os
import re
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from placer.errors import FileError, PlacerError
from placer.files.atomic import read_text

LIMIT = 2**20  # bytes of a file with certificates
SOON_S = 7 * 86_400.0  # before a certificate expires it is said that it will
_PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17  # tags of DER


class CertificateError(PlacerError):
    """Files that are no certificate, or not the key of one."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files in PEM, as far as there are any.

    certificate, key: one's own; ca: of the authorities that the other side's is signed by
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The three as gRPC wants them, which itself says nothing of files that it cannot use.

        Raises FileError or CertificateError.
        """
        certificate, key, ca = (
            None if path is None else read_text(path, LIMIT).encode()
            for path in (self.certificate, self.key, self.ca)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            if self.certificate is not None:  # with a password, so that nobody is asked for one
                context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                raise CertificateError(
                    f"{self.key} is not the key of {self.certificate}: give the two that belong "
                    "together"
                ) from error
            raise CertificateError(
                f"{self.certificate} and {self.key} are no certificate and its key: give both in "
                "PEM, unencrypted"
            ) from error
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{self.ca} holds no certificate: give the authority's in PEM"
            ) from error
        return certificate, key, ca

    def faults(self, now_s: float) -> list[str]:
        """A sentence each: what has expired or will soon, is not valid yet, or lets everybody read
        the key. Raises FileError or CertificateError."""
        self.read()
        found = []
        if self.certificate is not None:  # with those between it and the authority
            found += [_fault(self.certificate, one, now_s) for one in _validities(self.certificate)]
        if self.ca is not None:  # of several authorities those that are valid will do
            last = max(_validities(self.ca), key=lambda one: (one[0] <= now_s, one[1]))
            found.append(_fault(self.ca, last, now_s))
        if self.key is not None and os.stat(self.key).st_mode & stat.S_IROTH:
            found.append(f"{self.key} can be read by everybody on this host: chmod 600 it")
        return list(dict.fromkeys(filter(None, found)))


def _fault(path: Path, validity: tuple[float, float], now_s: float) -> str:
    begin_s, end_s = validity
    if now_s < begin_s:
        return f"{path} is not valid before {_moment(begin_s)}: is this host's clock right?"
    if now_s >= end_s:
        return f"{path} has expired on {_moment(end_s)}: renew it"
    if end_s - now_s < SOON_S:
        return f"{path} expires on {_moment(end_s)}: renew it before"
    return ""


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _validities(path: Path) -> list[tuple[float, float]]:
    """Since when and until when each certificate in a file is valid, in unix seconds."""
    text = read_text(path, LIMIT)
    try:
        found = [_validity(ssl.PEM_cert_to_DER_cert(pem)) for pem in _PEM.findall(text)]
    except (ValueError, IndexError, OverflowError):
        found = []
    if not found:
        raise FileError(f"{path} holds a certificate that cannot be read: give it in PEM")
    return found


def _validity(der: bytes) -> tuple[float, float]:
    """RFC 5280: Certificate = {{[0] version, serial, algorithm, issuer, {begin, end}, ...}, ...}"""
    (_, certificate), *_ = _parts(der)
    (_, content), *_ = _parts(certificate)
    _, _, _, validity, *_ = (body for tag, body in _parts(content) if tag != _VERSION)
    begin, end = _parts(validity)
    return _unix_s(*begin), _unix_s(*end)


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value, one after another."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:
            width = size & 0x7F
            size, at = int.from_bytes(der[at : at + width], "big"), at + width
        yield tag, der[at : at + size]
        at += size


def _unix_s(tag: int, time: bytes) -> float:
    text = time.decode()
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
