"""The manifest ``batch.json``: what a directory is for, and which pass over the input it is in."""

import json
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from ollama_provider.batch.errors import InputError, StorageError
from ollama_provider.batch.records import Mode, Provenance
from ollama_provider.batch.spec import REHEARSAL_NAMES, Names
from ollama_provider.batch.store import shards
from ollama_provider.batch.store.journal import list_parts
from ollama_provider.batch.store.storage import Storage, write

#: Since 2, the names of parts have a token, and their lines a checksum. Since 3, there are open parts. Earlier formats
#: are read as well; versions that know only these would not see an open part, and ask its rows again.
_FORMAT = 3


@dataclass(frozen=True)
class Manifest:
    """What a directory is for, and which pass over the input it is in.

    Attributes:
        pass_number: counts from 1. A new pass begins when the last one is complete; it asks again what failed.
            Rehearsals have 0, so that every pass asks again what failed in them.
        mode: what the pass asks.
        num_ctx: the context size that the batch chose, in tokens, kept for later runs; None where the user gave one.
        settings: of the last run, for people.
        common: the settings that all shards of a batch must agree on; only in the manifest of a shard.
        provenance: of the last run, so that a merge needs no server.
    """

    pass_number: int = 1
    mode: Mode = "all"
    num_ctx: int | None = None
    settings: dict[str, Any] | None = None
    common: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None

    def next_pass(self) -> "Manifest":
        """Return the manifest of the pass after this one."""
        return replace(self, pass_number=self.pass_number + 1)


class _Format(BaseModel):
    format: int


class _Saved(_Format):
    round: Annotated[int, Field(ge=0)]
    mode: Mode
    num_ctx: int | None
    settings: dict[str, Any] | None
    common: dict[str, Any] | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _check_pass(self) -> Self:
        if not self.round and self.mode != "rehearse":
            raise ValueError("the round is 0, which only a rehearsal has")
        return self


def for_run(storage: Storage, mode: Mode, names: Names) -> Manifest:
    """Return the manifest of a run with *mode*: of the open pass, or of a new one.

    Raises:
        StorageError: ``batch.json`` is damaged, or was written by a later version of this package.
    """
    last = read(storage, names.batch)
    rehearsed = read(storage, REHEARSAL_NAMES.batch)
    if mode == "rehearse":
        whole = read(storage, Names().batch)
        sizes = [each.num_ctx for each in (whole, last) if each is not None and each.num_ctx is not None]
        return Manifest(0, mode, max(sizes, default=None))
    latest = max((part.pass_number for part in list_parts(storage)), default=0)
    if last is None:
        # A merge removes the manifests of the shards. The new pass asks again what failed in their parts.
        return Manifest(1 + latest, mode, None if rehearsed is None else rehearsed.num_ctx)
    complete = storage.read(names.summary) is not None
    if mode == "merge":  # it belongs to the newest pass
        return replace(last, pass_number=max(last.pass_number, latest))
    # A run with mode="failed_only" begins a pass of its own, which asks again what failed in the open pass.
    if complete or (mode == "failed_only" and last.mode != mode):
        last = last.next_pass()
    return replace(last, mode=mode)


def read(storage: Storage, name: str) -> Manifest | None:
    """Return the manifest in the file *name*; None if there is none.

    Raises:
        StorageError: it is damaged, or was written by a later version of this package.
    """
    content = storage.read(name)
    if content is None:
        return None
    try:
        if _Format.model_validate_json(content).format > _FORMAT:
            raise StorageError(
                f"{storage.location}/{name} was written by a later version of airflow-provider-ollama. "
                "Update the package here."
            )
        saved = _Saved.model_validate_json(content, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "at the top"
        raise StorageError(
            f"{storage.location}/{name} is damaged ({place}: {fault['msg']}). The parts beside it are good: remove it."
        ) from None
    provenance = None if saved.provenance is None else vars(saved.provenance)
    return Manifest(saved.round, saved.mode, saved.num_ctx, saved.settings, saved.common, provenance)


def earlier_digest(storage: Storage, current: Manifest) -> str | None:
    """Return the digest of the model in the last run, or else in a run of another shard; None if none is known."""
    if current.provenance is not None:
        return Provenance(**current.provenance).digest
    others = (read(storage, name) for name in shards.manifest_names(storage))
    return next(
        (each.provenance["digest"] for each in others if each is not None and each.provenance is not None), None
    )


def merged_provenance(storage: Storage, whole: Manifest, common: dict[str, Any]) -> Provenance:
    """Return the provenance of the shards' results, or that of the whole batch if no shard has run since.

    Args:
        storage: the directory.
        whole: the manifest of the whole batch.
        common: the settings that the shards must agree on, as the merge has them.

    Raises:
        InputError: there is nothing to merge, or the shards were run with other settings.
    """
    found = None
    for name in shards.manifest_names(storage):
        shard = read(storage, name)
        if shard is not None and shard.common is not None:
            shards.require_same_settings(
                common | {"shards": shard.common.get("shards")}, shard.common, name, storage.location
            )
            found = shard.provenance or found
    found = found or whole.provenance
    if found is None:
        raise InputError(f"There is nothing to merge in {storage.location}: no shard has run there.")
    return Provenance(**found)


def _compare_with_shards(storage: Storage, current: Manifest) -> None:
    for name in shards.manifest_names(storage):
        other = read(storage, name)
        if other is not None and other.common is not None:
            shards.require_same_settings(current.common or {}, other.common, name, storage.location)


def begin(storage: Storage, current: Manifest, names: Names) -> None:
    """Write the manifest at the beginning of a run, and remove the summary of an earlier run.

    Args:
        storage: the directory.
        current: the manifest of the run.
        names: of the files of the run.

    Raises:
        InputError: the run is that of a shard, and other shards in the directory have other settings.
    """
    is_shard = names not in {Names(), REHEARSAL_NAMES}
    if is_shard:
        _compare_with_shards(storage, current)
    # In this order: after a crash in between, the new pass begins again. The other order would continue the pass that
    # was complete.
    save(storage, current, names)
    storage.delete(names.summary)
    if is_shard:
        try:
            # Compare again: of two shards that begin at the same moment, one sees what the other wrote.
            _compare_with_shards(storage, current)
        except InputError:
            storage.delete(names.batch)
            raise


def save(storage: Storage, current: Manifest, names: Names) -> None:
    """Write the manifest."""
    content = {
        "format": _FORMAT,
        "round": current.pass_number,
        "mode": current.mode,
        "num_ctx": current.num_ctx,
        "settings": current.settings,
        "common": current.common,
        "provenance": current.provenance,
    }
    write(storage, names.batch, (json.dumps(content, indent=2) + "\n").encode())
