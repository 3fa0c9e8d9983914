"""Options of a model, and the small types that requests share.

Types follow the server's ``Options`` and ``Runner`` (0.33): it ignores a misspelt option and answers 500 to one of the
wrong type, so both are found here. Templates give strings, so ``"0.2"`` is read as 0.2.
"""

import base64
import binascii
import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator

from ollama_provider.api.arguments import read_list
from ollama_provider.api.schemas.base import Int64, Part
from ollama_provider.api.strict_json import is_finite, read_json

_GO_DURATION = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+")
_GO_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
#: Seconds. The server counts nanoseconds in 64 bits, and takes what is above for any number.
_LONGEST_KEEP_ALIVE = 2**63 / 1e9


def _read_keep_alive(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, int | float):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if _NUMBER.fullmatch(text):  # the server refuses "300": missing unit in duration
        # Of more digits int() makes an error that tells about Python.
        return float(text) if "." in text or len(text) > 20 else int(text)
    if _GO_DURATION.fullmatch(text):
        return text
    raise ValueError("use seconds (300), a duration with a unit ('5m', '1h30m'), 0 to unload, or -1 for ever")


def _check_keep_alive(value: Any) -> Any:
    if isinstance(value, int | float) and not abs(value) < _LONGEST_KEEP_ALIVE:
        raise ValueError("it is longer than the server can count; use -1 for ever")
    return value


#: How long the model stays in memory afterwards: seconds, a Go duration, a timedelta; 0 unloads, negative: no limit.
KeepAlive = Annotated[int | float | str, BeforeValidator(lambda value: _check_keep_alive(_read_keep_alive(value)))]


def keep_alive_seconds(value: int | float | str) -> float:
    """Return a valid ``keep_alive`` in seconds, negative for no limit."""
    if not isinstance(value, str):
        return value
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _GO_DURATION_PART.findall(value))
    return -seconds if value.startswith("-") else seconds


#: Reasoning on or off, or how much of it (levels since 0.11.0, "max" since 0.22.0).
Think = bool | Literal["low", "medium", "high", "max"]


def _read_format(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return read_json(value)
        except ValueError:
            raise ValueError("this is not valid JSON") from None
    if value is None or value == "json":
        return value
    if isinstance(value, dict):
        try:
            finite = is_finite(value)
        except RecursionError:
            raise ValueError("it nests too deeply") from None
        if not finite:  # pydantic would send null in its place
            raise ValueError("JSON has no infinite number and no NaN")
        return value
    raise ValueError('use "json", a JSON schema as a dict, or a pydantic class')


#: What the answer must look like: "json", a JSON schema (servers since 0.5.0) or a pydantic class.
Format = Annotated[Literal["json"] | dict[str, Any], BeforeValidator(_read_format)]


def _read_image(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if not isinstance(value, str):
        return value
    text = re.sub(r"^data:[^,]*;base64,", "", value)
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("an image is bytes or standard base64, never a path") from None
    return text


#: A picture (or sound) as bytes or padded base64; a ``data:`` prefix is taken off, since the server refuses it.
Image = Annotated[str, BeforeValidator(_read_image)]


def _one_or_many(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A template makes text of a list.
    many = read_list(value)
    return many if many and all(isinstance(text, str) for text in many) else [value]


class Options(Part):
    """Options of one request; what is None is left to the model's own parameters, then to the server.

    A change of the first group makes the server load the model again, so keep it the same over a run.
    """

    num_ctx: Int64 | None = None
    num_batch: Int64 | None = None
    num_gpu: Int64 | None = None
    main_gpu: Int64 | None = None
    use_mmap: bool | None = None
    num_thread: Int64 | None = None
    draft_num_predict: Int64 | None = None

    num_keep: Int64 | None = None
    seed: Int64 | None = None
    num_predict: Int64 | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: Int64 | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # A bare string is a 500 on every server.
    stop: Annotated[list[str], BeforeValidator(_one_or_many)] | None = None

    # Old servers obey these; newer ones accept and ignore them (0.3.4 to 0.7.0 and later).
    mirostat: Int64 | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mlock: bool | None = None
