"""Logs at their lowest level, with nothing masked: what must not be there is not written in the first place."""

import logging

import pytest

from ollama_provider.api.retry import without_waiting


@pytest.fixture
def debug_log(caplog, monkeypatch):
    """All that any library logs; Airflow's mask, which would hide what was logged, is off."""
    try:
        from airflow.sdk._shared.secrets_masker import SecretsMasker
    except ImportError:  # before 3.2
        try:
            from airflow.sdk.execution_time.secrets_masker import SecretsMasker
        except ImportError:  # Airflow 2
            from airflow.utils.log.secrets_masker import SecretsMasker
    monkeypatch.setattr(SecretsMasker, "add_mask", lambda *_: None)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "aiohttp", "asyncio", "ollama_provider", "airflow"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.fixture
def no_waits():
    """No waits before new attempts."""
    with without_waiting():
        yield
