"""Scripts that need Triton's interpreter, which is chosen for a whole process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripts import Scripts


@pytest.fixture(scope="session")
def scripts() -> Iterator[Scripts]:
    started = Scripts()
    yield started
    started.close()
