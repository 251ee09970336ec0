from pathlib import Path

import pytest
from hypothesis import settings

from store.store import Store

settings.register_profile("store", deadline=None, max_examples=50)  # a busy machine is no failure
settings.load_profile("store")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
