"""Directories of both kinds, for the tests of the store."""

import pytest
from upath import UPath


@pytest.fixture(params=["local", "object store"])
def root(request, tmp_path):
    """A directory of either kind."""
    return tmp_path / "out" if request.param == "local" else UPath(f"memory://{tmp_path.name}/out")
