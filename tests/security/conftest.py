"""Logs at their lowest level, with nothing masked: what must not be there is not written in the first place."""

import logging
import sys

import pytest
from airflow.providers.common.compat import sdk as compat

from ollama_provider.api.retry import without_waiting


@pytest.fixture
def debug_log(caplog, monkeypatch):
    """All that any library logs; Airflow's mask, which would hide what was logged, is off."""
    compat.redact("")  # loads the mask, which is elsewhere in each Airflow, and twice in some
    masks = [module for name, module in sys.modules.items() if name.endswith("secrets_masker")]
    kinds = {module.SecretsMasker for module in masks if hasattr(module, "SecretsMasker")}
    assert kinds
    for kind in kinds:
        monkeypatch.setattr(kind, "add_mask", lambda *_: None)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "aiohttp", "asyncio", "ollama_provider", "airflow"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.fixture
def no_waits():
    """No waits before new attempts."""
    with without_waiting():
        yield
