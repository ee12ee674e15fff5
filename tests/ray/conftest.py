"""One local cluster for all tests of this folder."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def ray():
    """Ray on this machine with two cores; nothing else is ever joined."""
    from orchestration.cluster import ensure_ray

    module = ensure_ray(2)
    yield module
    module.shutdown()
