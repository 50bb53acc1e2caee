"""A scheduler's state: what it sent where, and what it learnt from it."""

from collections.abc import Sequence

from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Decision, Request


class Scheduler:
    """Chooses an engine and a rank for each request, one after another; see docs/prescheduling.md.

    The caller tells what comes of them: no thread may call while another one does.
    """

    def see(self, engines: Sequence[Engine]) -> None:
        """The engines from now on, with what is known of their ranks."""
        raise NotImplementedError

    def choose(self, request: Request) -> Decision:
        """Where it goes; from then on it counts as the rank's. Raises NoRankError if none is open."""
        raise NotImplementedError

    def began(self, decision: Decision) -> None:
        """Its first token came: its prompt is computed."""
        raise NotImplementedError

    def generated(self, decision: Decision, tokens: int) -> None:
        """So many more tokens came."""
        raise NotImplementedError

    def ended(self, decision: Decision, generated: int | None = None) -> None:
        """It finished, or was given up, after so many tokens in all; None: as many as were told of."""
        raise NotImplementedError
