"""One engine's story, for all tests that ask about it."""

import pytest

from tests.vllm.story import Story, tell


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tell(tmp_path_factory.mktemp("engine"))
