"""Stories of operators and faults, added up."""

from collections.abc import Sequence

from simulations.results.section import Section
from simulations.stories.batches import Batch

COLUMNS = ("stories", "operations", "commands", "kills of a controller", "failed", "how")
ABOUT = (
    "Each story is a tiny fleet under the controller that ships, with operators and faults drawn "
    "by its seed; every rule is looked at with every record and command, and every operation "
    "must end."
)


def of_stories(batches: Sequence[Batch]) -> Section:
    stories, operations, commands, kills = (
        sum(getattr(batch, of) for batch in batches)
        for of in ("stories", "operations", "commands", "kills")
    )
    failed = [str(story.seed) for batch in batches for story, _ in batch.failed]
    row = (
        f"{stories:,}", f"{operations:,}", f"{commands:,}", f"{kills:,}", f"{len(failed)}",
        "measured",
    )  # fmt: skip
    notes = [f"Seeds that failed: {', '.join(failed)}."] if failed else []
    command = f"python -m simulations.stories --seeds 0:{stories}"
    return Section("Faults", ABOUT, command, "measured", COLUMNS, [row], notes=notes)
