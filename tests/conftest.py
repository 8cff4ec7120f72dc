"""One Ray instance for the whole session, and small real data for every room."""

from collections.abc import Iterator

import pytest

from beamclip.cluster import ray_session


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray, started once; commands that run in this process join it."""
    with ray_session():
        yield
