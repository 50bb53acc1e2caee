"""A Lease: one of several operators is active, and another takes over when it falls silent."""

import logging
from datetime import UTC, datetime
from typing import Any

from controller.kube.cluster.api import Api, ApiError
from controller.kube.objects import Kind, Object
from placer.clock import Clock
from placer.errors import PlacerError

LEASES = Kind("Lease", "leases", "coordination.k8s.io")
DURATION_S = 15  # of silence, after which another takes over
RENEW_S = 5.0
RETRY_S = 1.0
CONFLICTS = (404, 409)

log = logging.getLogger("placer.kube")


class LeaseLostError(PlacerError):
    """Another operator is active, or may be by now."""


class Lease:
    """Silence is measured by this clock alone, from the last change that was seen: clocks of two
    hosts need not agree."""

    def __init__(self, api: Api, namespace: str, name: str, holder: str, clock: Clock) -> None:
        self._api, self._namespace, self._name, self._clock = api, namespace, name, clock
        self.holder = holder
        self._kept: Object = {}
        self._seen_s = self._renewed_s = float("-inf")

    @property
    def is_held(self) -> bool:
        """Whether nobody else can be active: asked before each write. One that was paused for too
        long knows it at once."""
        return self._clock.monotonic() - self._renewed_s < DURATION_S

    def check(self) -> None:
        if not self.is_held:
            raise LeaseLostError(
                f"the Lease {self._namespace}/{self._name} was not renewed for {DURATION_S} s, and "
                "another operator may be active: this one ends, to be started again"
            )

    async def acquire(self) -> None:
        """Returns once this one is active."""
        told = ""
        while not await self._try():
            other = self._kept.get("spec", {}).get("holderIdentity", "")
            if other != told:
                log.warning("placer: %s is active: this one waits", other)
                told = other
            await self._clock.sleep(RETRY_S)
        log.warning("placer: %s is active", self.holder)

    async def renew(self) -> None:
        """Until it is lost. Raises LeaseLostError."""
        while True:
            await self._clock.sleep(RENEW_S)
            while not await self._try():
                self.check()
                other = self._kept["spec"].get("holderIdentity")
                if other and other != self.holder:
                    self._renewed_s = float("-inf")
                    raise LeaseLostError(f"{other} took the Lease over: this operator ends")
                await self._clock.sleep(RETRY_S)

    async def release(self) -> None:
        """Another may begin at once. Also after silence: if another did, the server refuses this,
        since it is not what it has."""
        if self._kept.get("spec", {}).get("holderIdentity") == self.holder:
            self._renewed_s = float("-inf")
            spec = {**self._kept["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            try:
                await self._api.replace(
                    LEASES, self._namespace, self._name, {**self._kept, "spec": spec}
                )
            except ApiError as error:
                log.warning("placer: %s: the Lease ends by itself", error)

    async def _try(self) -> bool:
        begun_s = self._clock.monotonic()
        try:
            mine = self._kept.get("spec", {}).get("holderIdentity") == self.holder
            if not mine and not await self._look(begun_s):
                return False
            self._keep(await self._write(), begun_s)
        except ApiError as error:
            if error.status in CONFLICTS:
                self._kept = {}
            else:
                log.warning("placer: %s: the Lease is not renewed yet", error)
            if not self._kept:
                self._kept = {"spec": {}}
            return False
        self._renewed_s = begun_s
        return True

    async def _look(self, now_s: float) -> bool:
        """Whether it is free."""
        try:
            found = await self._api.get(LEASES, self._namespace, self._name)
        except ApiError as error:
            if error.status != 404:
                raise
            self._kept = {}
            return True
        if found != self._kept:
            self._keep(found, now_s)
        spec: dict[str, Any] = found["spec"]
        if spec.get("holderIdentity") in ("", None, self.holder):
            return True
        return now_s - self._seen_s > float(spec.get("leaseDurationSeconds", DURATION_S))

    def _keep(self, found: Object, now_s: float) -> None:
        self._kept, self._seen_s = found, now_s

    async def _write(self) -> Object:
        now = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = self._kept.get("spec", {})
        mine = before.get("holderIdentity") == self.holder
        spec = {
            "holderIdentity": self.holder, "leaseDurationSeconds": DURATION_S, "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if mine else 1),
        }  # fmt: skip
        if "metadata" in self._kept:
            body = {**self._kept, "spec": spec}
            return await self._api.replace(LEASES, self._namespace, self._name, body)
        body = {
            "apiVersion": LEASES.api_version, "kind": LEASES.name,
            "metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec,
        }  # fmt: skip
        return await self._api.create(LEASES, self._namespace, body)
