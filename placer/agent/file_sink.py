"""Recordings to files, in a directory that `placer plan` reads; plans from there."""

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from placer.agent import folder
from placer.agent.recording import Recording
from placer.agent.sampling import ALL, Sampling
from placer.errors import PlacerError
from placer.files.atomic import make_folder
from placer.files.plans import read_plan
from placer.files.routing import write_profile, write_trace
from placer.model import ModelShape
from placer.pace import Pace, merged
from placer.plan import Plan
from placer.profile import Profile, merge
from placer.trace import Trace, concatenate
from placer.worker import Status, Worker

TRACE_BYTES = 2**20  # of expert ids in one file, before the next is begun
TRACES_KEPT = 64


class FileSink:
    """A worker's directory. Files are replaced whole: a reader never sees half of one."""

    def __init__(self, directory: Path, worker: Worker, model: ModelShape | None) -> None:
        self.directory, self.model = directory, model
        self.sampling: Sampling | None = ALL
        self._own = directory / worker.name
        self._totals: dict[str, Profile] = {}
        self._paces: dict[str, Pace | None] = {}
        self._window_s = 0.0
        self._trace: Trace | None = None
        # Behind those of a worker that was here before.
        before = [int(path.stem) for path in self._own.glob("traces/*.npz")]
        self._number = max(before, default=0) + 1

    def push(self, sequence: int, recording: Recording) -> None:
        make_folder(self._own / "traces")
        # Of all phases: one that had no tokens goes on to be idle.
        window_s = self._window_s + recording.window_s
        paces = self._paces | {
            phase: merged([(phase, self._paces.get(phase)), (phase, pace)])
            for phase, pace in recording.paces.items()
        }
        trace, number = self._grown(recording.trace())
        if trace is not self._trace and trace is not None:
            whole = merged(paces.items())
            told = {} if whole is None else {"pace": asdict(whole)}
            trace = replace(trace, meta={**trace.meta, **told})
            write_trace(self._own / "traces" / f"{number:06}.npz", trace, self.model)
        totals = dict(self._totals)
        for profile in recording.profiles():
            known = totals.get(profile.phase)
            totals[profile.phase] = merge([known, profile]) if known else profile
        for phase, profile in totals.items():
            so_far = replace(profile, window_s=window_s, pace=paces.get(phase))
            write_profile(self._own / f"{phase}.npz", so_far, self.model)
        # Only now that all is written: what failed is tried again from here.
        self._totals, self._paces, self._window_s = totals, paces, window_s
        self._trace, self._number = trace, number
        with suppress(OSError):
            (self._own / "traces" / f"{number - TRACES_KEPT:06}.npz").unlink()

    def plan(self, after: int) -> tuple[int, Plan | PlacerError] | None:
        found = folder.newest_plan(self.directory)
        if found is None or found[0] <= after:
            return None
        epoch, path = found
        try:
            return epoch, read_plan(path)
        except PlacerError as error:
            return epoch, error

    def report(self, status: Status) -> None:
        make_folder(self._own)
        folder.write_status(self.directory, status)

    def _grown(self, more: Trace | None) -> tuple[Trace | None, int]:
        """The trace file's content with ``more``, and its number."""
        if more is None or self._trace is None:
            return more or self._trace, self._number
        if self._trace.expert_ids.nbytes > TRACE_BYTES:
            return more, self._number + 1
        return concatenate([self._trace, more]), self._number
