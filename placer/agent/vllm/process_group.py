"""The ranks of one process group."""

from typing import Any

import torch
from torch.distributed import ProcessGroup

from placer.agent.vllm.applying import Vote


class GroupRanks:
    """The ranks of a group whose collectives run on the host."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()

    @property
    def store(self) -> Any:
        """With which the group was made, and only it."""
        return self.group.get_group_store()

    def votes(self, mine: Vote) -> list[Vote]:
        vote = torch.tensor(mine, dtype=torch.int64)
        votes = [torch.empty_like(vote) for _ in range(self.size)]
        torch.distributed.all_gather(votes, vote, group=self.group)
        return [(int(epoch), int(digest)) for epoch, digest in votes]
