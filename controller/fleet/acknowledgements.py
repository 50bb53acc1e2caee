"""What workers applied and refused, written down once."""

from contextlib import suppress
from dataclasses import dataclass

from controller.fleet.pools import Registration
from controller.ledger.ledger import Record, Unreadable
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a worker applied or refused last; nothing of it is needed."""

    epoch: int = 0
    digest: str = ""
    refused_epoch: int = 0
    refused: str = ""


FORM = form_of(Acknowledgement)


class Acknowledgements:
    """What all workers acknowledged, as the ledger has it."""

    def __init__(self, ledger: WatchedLedger) -> None:
        self.ledger = ledger
        self._newest: dict[str, Acknowledgement] = {}

    def hear(self, now: Registration) -> bool:
        """Write down what is new. Whether it was; raises LedgerError if that cannot be."""
        worker = now.id
        news = Acknowledgement(now.epoch, now.digest, now.refused_epoch, now.refused)
        names = (worker.pool, worker.engine, worker.worker)
        id = "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)
        if news in (Acknowledgement(), self._newest.get(id)):
            return False
        reason = now.refused if now.refused_epoch > now.epoch else ""
        reason = reason or f"epoch {now.epoch} is applied"
        last = None
        with suppress(Unreadable):
            last = self.ledger.records.get("acknowledgement", id)
        if last is None or last.value != news:
            version = self.ledger.records.version("acknowledgement", id) + 1
            told = (self.ledger.clock.now(), reason, news, worker.pool)
            self.ledger.put(Record("acknowledgement", id, version, *told))
        self._newest[id] = news
        return True
