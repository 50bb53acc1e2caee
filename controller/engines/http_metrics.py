"""Engines' metrics over HTTP, from where they registered that they answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from controller.fleet.workers import Fleet
from controller.ports import EngineLostError
from controller.samples import Sample, parse
from placer.errors import PlacerError

DEADLINE_S = 2.0
LIMIT = 2**22  # bytes of an answer
THREADS = 16
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}


class HttpMetrics:
    """Reads on threads of its own. Whoever may register as an engine says what is read: nothing is
    sent but GET, no redirection is followed, and nobody is shown an answer."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._beside = ThreadPoolExecutor(THREADS, "metrics")

    async def sample(self, pool: str, engine: str) -> Sample:
        try:
            members = self.fleet.engine(pool, engine)
            told = (one.registration.metrics for one in members)
            if not (address := next(filter(None, told), "")):
                raise EngineLostError(f"{engine} of {pool} said no PLACER_METRICS: set it there")
            running = asyncio.get_running_loop()
            return parse(await running.run_in_executor(self._beside, _read, address))
        except EngineLostError:
            raise
        except PlacerError as error:
            raise EngineLostError(f"{engine} of {pool}: {error}") from error


def _read(address: str) -> str:
    """Raises EngineLostError."""
    try:
        parts = urlsplit(address)
        kind, host = CONNECTIONS[parts.scheme], parts.hostname or ""
        connection = kind(host, parts.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"{parts.path or '/metrics'}")
            answer = connection.getresponse()
            text = answer.read(LIMIT + 1)
        finally:
            connection.close()
    except KeyError as error:
        raise EngineLostError(
            f"{address:.200} is no address: write http://host:port/metrics"
        ) from error
    except (OSError, ValueError, HTTPException) as error:
        raise EngineLostError(
            f"{address:.200} does not answer ({error or type(error).__name__})"
        ) from error
    if answer.status != 200 or len(text) > LIMIT:
        raise EngineLostError(
            f"{address:.200} answers {answer.status} with {len(text):,} bytes: is it /metrics?"
        )
    return text.decode(errors="replace")
