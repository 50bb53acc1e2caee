import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.router.scheduling import prefixes
from controller.router.scheduling.prefixes import Prefixes

chains = st.lists(st.integers(0, 3), max_size=4).map(
    lambda digits: tuple(hash(tuple(digits[: at + 1])) for at in range(len(digits)))
)


@given(st.lists(st.tuples(chains, st.integers(0, 2)), max_size=12), chains, st.integers(0, 40))
def test_cached_is_the_longest_common_prefix_with_what_a_rank_got(
    sent: list[tuple[tuple[int, ...], int]], asked: tuple[int, ...], length: int
) -> None:
    memory = Prefixes(block_tokens=10)
    for chain, rank in sent:
        memory.remember(chain, rank)
    for rank, tokens in enumerate(memory.cached(asked, length, 3)):
        common = [
            sum(1 for mine, theirs in zip(asked, chain, strict=False) if mine == theirs)
            for chain, to in sent
            if to == rank
        ]
        assert tokens == min(10 * max(common, default=0), max(length - 1, 0))


def test_the_least_recently_used_blocks_are_forgotten(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(prefixes, "MOST_BLOCKS", 2)
    memory = Prefixes(1)
    memory.remember((1,), 0)
    memory.remember((2,), 0)
    memory.remember((1,), 1)
    memory.remember((3,), 0)
    assert memory.cached((1,), 9, 2).tolist() == [1, 1]
    assert memory.cached((2,), 9, 2).tolist() == [0, 0]


def test_ranks_may_be_renumbered() -> None:
    """Rank 0 goes, rank 1 becomes 0, and 1 is new."""
    memory = Prefixes(1)
    memory.remember((1,), 0)
    memory.remember((2,), 1)
    memory.renumber(np.array([1, -1]))
    assert memory.cached((1,), 9, 2).tolist() == [0, 0]
    assert memory.cached((2,), 9, 2).tolist() == [1, 0]
