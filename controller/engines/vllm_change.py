"""One change of width, as vLLM's API servers carry it out.

The same absolute target goes to every old rank's server, and again if an answer is lost: to a group
that has that width it is nothing. How far it is the first rank's server tells. vLLM cannot go back
once it commits: ranks that fail then turn requests away for ever, and the group is lost.
"""

import asyncio
from collections.abc import Sequence

from controller.engines.vllm_api import (
    TURNED_AWAY,
    Answer,
    Phase,
    Progress,
    UnreachableError,
    VllmApi,
)
from controller.migration.commands import Done, Lost, Outcome, Refused
from placer.clock import Clock

LOOK_EVERY_S = 0.5
COMMIT_S = 240.0  # vLLM drains for 120 s at most before it commits: after that 503 is for ever
SILENT_S = 60.0  # a server that does not answer for so long is gone
SETTLE_S = 30.0  # in which all ranks hear that one has failed
OK = 200
AT_WORK = (Phase.PREPARING, Phase.COMMITTING)


class VllmChange:
    """apis: of old ranks, by rank, or the one of all; staying: how many of them there will be;
    target: data-parallel ranks"""

    def __init__(
        self, engine: str, apis: Sequence[VllmApi], staying: int, target: int, clock: Clock
    ) -> None:
        self._engine, self._target, self._clock = engine, target, clock
        self._apis, self._staying = apis, staying
        self._posts: list[asyncio.Task[Answer]] = []
        self._was = ""  # the epoch before
        self._silent_since_s: float | None = None
        self._away_since_s: float | None = None
        self._pause_s = 0.0  # the last

    async def check(self) -> Outcome:
        """Whether it may begin."""
        progress = await self._apis[0].progress()
        if progress.phase in AT_WORK:
            return self._taken(progress)
        self._was = progress.epoch
        return Done() if await self._serves() else self._lost(progress.error)

    def begin(self) -> None:
        """Once more is no harm."""
        if not self._posts:
            self._posts = [asyncio.create_task(self._asked(api)) for api in self._apis]

    @property
    def is_done(self) -> bool:
        """The first rank's server answers after all old ranks have finished."""
        answers = self._answers[: self._staying]
        return bool(answers) and all(one is not None and one.status == OK for one in answers)

    async def prepared(self) -> Outcome:
        """Until the ranks commit; all serve until then."""
        while not self.is_done:
            progress = await self._progress()
            if (failure := await self._failure(progress)) is not None:
                return failure
            if progress is not None and progress.phase is Phase.COMMITTING:
                break
            await self._clock.sleep(LOOK_EVERY_S)
        return Done()

    async def completed(self) -> Outcome:
        """Until the new ranks serve."""
        while not self.is_done:
            if (failure := await self._failure(await self._progress())) is not None:
                return failure
            await self._clock.sleep(LOOK_EVERY_S)
        return Done(pause_s=self._away_s or self._pause_s)

    async def over(self) -> Outcome:
        """Until nothing is at work on these ranks, however it ended: vLLM stops for nobody."""
        while True:
            progress = await self._progress()
            at_work = progress is None or progress.phase in AT_WORK
            if not at_work and all(one.done() for one in self._posts[: self._staying]):
                break
            if self._away_s > COMMIT_S:
                break
            await self._clock.sleep(LOOK_EVERY_S)
        self.end()
        return Done() if await self._serves() else self._lost("")

    def end(self) -> None:
        """Wait for no answer any more, as those of ranks that retired."""
        for one in self._posts:
            one.cancel()

    @property
    def _answers(self) -> list[Answer | None]:
        """Of old ranks; None of those that are not there."""
        return [one.result() if one.done() and not one.cancelled() else None for one in self._posts]

    @property
    def _away_s(self) -> float:
        """For how long requests are turned away by now."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else self._clock.monotonic() - since_s

    async def _asked(self, api: VllmApi) -> Answer:
        """Until it is answered otherwise than by 503."""
        while True:
            try:
                answer = await api.scale(self._target)
                if answer.status != TURNED_AWAY:
                    return answer
            except UnreachableError:
                pass
            await self._clock.sleep(LOOK_EVERY_S)

    async def _progress(self) -> Progress | None:
        """None if there is no answer now. Raises UnreachableError if there was none for long."""
        now_s = self._clock.monotonic()
        try:
            found = await self._apis[0].progress()
        except UnreachableError:
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            if now_s - self._silent_since_s > SILENT_S:
                raise
            return None
        self._silent_since_s = None
        if found.phase is not Phase.COMMITTING:
            self._pause_s = self._away_s or self._pause_s
            self._away_since_s = None
        elif self._away_since_s is None:
            self._away_since_s = now_s
        return found

    async def _failure(self, progress: Progress | None) -> Outcome | None:
        wrong = [one for one in self._answers if one is not None and one.status != OK]
        if progress is not None and progress.epoch != self._was:
            if progress.target not in (0, self._target):
                return self._taken(progress)
            if progress.phase is Phase.FAILED:
                return await self._failed(progress.error)
        if wrong:
            return await self._failed(wrong[0].told)
        if self._away_s > COMMIT_S and not self.is_done:
            return self._lost(f"503 for {self._away_s:.0f} s")
        return None

    async def _failed(self, why: str) -> Outcome:
        """Before the ranks committed, and nothing has changed; or too late for that."""
        until_s = self._clock.monotonic() + SETTLE_S
        while not all(one.done() for one in self._posts[: self._staying]):
            if self._clock.monotonic() > until_s:
                break
            await self._clock.sleep(LOOK_EVERY_S)
        self.end()
        if await self._serves():
            return Refused(f"{self._engine} stays as it is: {why}")
        return self._lost(why)

    async def _serves(self) -> bool:
        return all([await api.serves() for api in self._apis[: self._staying]])

    def _taken(self, progress: Progress) -> Refused:
        to = f" to {progress.target} data-parallel ranks" if progress.target else ""
        of = f" by vLLM's operation {progress.epoch}" if progress.epoch else ""
        return Refused(f"{self._engine} is being resized already{to}{of}: wait for that")

    def _lost(self, why: str) -> Lost:
        said = f" ({why})" if why else ""
        return Lost(
            f"{self._engine} turns all requests away since its ranks failed to commit{said}: vLLM "
            "cannot go back, the group is lost; end all its ranks and start it again, at the "
            "width that it should have"
        )
