"""Events: what was decided about an object and why, for `kubectl describe`."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from controller.kube.cluster.api import Api, ApiError
from controller.kube.objects import Event, Kind, Object
from placer.clock import Clock

EVENTS = Kind("Event", "events")
COMPONENT = "placer-operator"
MOST = 1000  # characters of a message


class EventRecorder:
    """The same about the same object is one event, whose last time moves on; also after a
    restart."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api, self._clock = api, clock

    async def record(self, of: Object, event: Event) -> None:
        meta, message = of["metadata"], event.message[:MOST]
        said = json.dumps([meta["uid"], event.reason, message]).encode()
        name = f"{meta['name'][:200]}.{hashlib.sha256(said).hexdigest()[:16]}"
        now = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": of["apiVersion"], "kind": of["kind"], "name": meta["name"],
                "namespace": meta["namespace"], "uid": meta["uid"],
            },
            "reason": event.reason, "message": message,
            "type": "Warning" if event.is_warning else "Normal",
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT,
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        try:
            await self._api.create(EVENTS, meta["namespace"], body)
        except ApiError as error:
            if error.status != 409:
                raise
            again = {"lastTimestamp": now}
            await self._api.patch(EVENTS, meta["namespace"], name, again)
