"""Policies that operators put while the controller runs. The ledger has them; a pool without one is
looked after as the controller's file says."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from controller.config import Config, PoolPolicy, PoolSpec
from controller.fleet.workers import NAME, FleetError
from controller.ledger.ledger import Record, Unreadable
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger
from placer import topology
from placer.errors import FileError, PlacerError, TopologyError
from placer.files.documents import of_yaml
from placer.files.faults import first_fault

KIND = "policy"
SEE = "see docs/controller.md"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was put for a pool, written as in the file, whose default says the rest; none if the
    file's is in force again. key: the caller's; the same again is the same version"""

    settings: Mapping[str, Any] | None
    key: str = field(default="")


def _check(record: Record[Kept]) -> None:
    if record.final != (record.value.settings is None):
        raise ValueError("is no policy, but in force; or is one, and not")


FORM = form_of(Kept, _check)


class PoolPolicies:
    """Policies of all pools. config: always as it is in force now"""

    def __init__(self, config: Config, ledger: WatchedLedger) -> None:
        """What cannot be read, or is not valid any more, leaves the file's in force."""
        self._file, self._ledger = config, ledger
        self._pools = dict(config.pools)
        self.config = replace(config, pools=self._pools)
        for record in ledger.records.newest(KIND, final=False):
            try:
                self._pools[record.id] = self._policy(record.value.settings)
            except PlacerError as error:
                ledger.records.leave_out(record, error)

    def put(self, pool: str, text: str, version: int, reason: str, key: str) -> Record[Kept]:
        """All of a pool's policy, in YAML or JSON. version: the newest that was seen, 0 for none.

        Raises FileError for what is no policy, which names the field, and FleetError for another
        version.
        """
        if (known := self._known(pool, key)) is not None:
            return known
        if not pool or len(pool) > NAME:
            raise FileError(
                f"a policy is for one pool: give its name, of {NAME} characters or less"
            )
        settings = _settings(text)
        policy = self._policy(settings)
        kept = Kept(settings, key)
        record = self._write(pool, version, reason or "put by an operator", kept)
        self._pools[pool] = policy
        return record

    def delete(self, pool: str, version: int, reason: str) -> Record[Kept]:
        """Have the pool looked after as the file says. Raises FleetError for another version."""
        if (newest := self.newest(pool)) is None or newest.final:
            raise FleetError(f"no policy was put for {pool[:NAME]!r}: the file's is in force")
        record = self._write(pool, version, reason or "deleted by an operator", Kept(None))
        self._pools.pop(pool, None)
        if pool in self._file.pools:
            self._pools[pool] = self._file.pools[pool]
        return record

    def newest(self, pool: str) -> Record[Kept] | None:
        return self._ledger.records.get(KIND, pool)

    def in_force(self) -> list[Record[Kept]]:
        """By pool."""
        found = self._ledger.records.newest(KIND, final=False)
        return sorted(found, key=lambda record: record.id)

    def version(self, pool: str) -> int:
        """Whether it can be read or not; 0 if none was ever put."""
        return self._ledger.records.version(KIND, pool)

    def _known(self, pool: str, key: str) -> Record[Kept] | None:
        found = self._ledger.records.versions(KIND, pool) if key else ()
        return next((record for record in found if record.value.key == key), None)

    def _write(self, pool: str, version: int, reason: str, kept: Kept) -> Record[Kept]:
        newest, actual = None, self.version(pool)
        with suppress(Unreadable):
            newest = self.newest(pool)
        is_first = version == 0 and newest is not None and newest.final
        if version != actual and not is_first:
            raise FleetError(
                f"the policy of {pool} is at version {actual} and not {version}: somebody was "
                "first, read it again"
            )
        told = (self._ledger.clock.now(), reason, kept, pool, kept.settings is None)
        return self._ledger.put(Record(KIND, pool, actual + 1, *told))

    def _policy(self, settings: Mapping[str, Any] | None) -> PoolPolicy:
        return _spec(settings or {}).on(self._file.default)


def _settings(text: str) -> Mapping[str, Any]:
    data = of_yaml(text, "the policy")
    if data is not None and not isinstance(data, dict):
        raise FileError(f"the policy is a {type(data).__name__}: write keys and values, {SEE}")
    spec = _spec(data or {}, text)
    return spec.model_dump(mode="json", exclude_unset=True)


def _spec(settings: Mapping[str, Any], text: str = "") -> PoolSpec:
    try:
        spec = PoolSpec.model_validate(settings)
    except ValidationError as error:
        raise FileError(f"the policy: {first_fault(error, PoolSpec, text)}: {SEE}") from error
    if isinstance(spec.topology, str):  # nobody's files are read over the network
        try:
            topology.preset(spec.topology)
        except TopologyError as error:
            raise FileError(
                f"the policy: topology: no preset is called {spec.topology!r}: name one, or write "
                "it out as in a topology file, docs/files.md"
            ) from error
    return spec
