"""The operator that deletes models which are not needed any more."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import timezone

from ollama_provider.api.arguments import read_flag
from ollama_provider.api.errors import ModelNotFoundError
from ollama_provider.observability import describe_size
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._model_diff import blob_digests
from ollama_provider.operators._prune_rules import Installed, Rules, decide, disk_size, read_names, read_size, table
from ollama_provider.operators._server_models import Loaded, show_if_there

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.hooks import OllamaHook
    from ollama_provider.observability import Logger


class OllamaPruneModelsOperator(OllamaOperator):
    """Delete models by age, name and total size, on every server of the connection.

    By default it is a dry run, which deletes nothing.

    A model is deleted only if it satisfies all rules that are set, is not in memory and is not on the keep list. The
    log shows a table of all models with the decision for each and its reason. Set at least one of *older_than*, *match*
    and *max_total_size*. Files that several models share (a model created from another one, a copy) are counted once.

    Ollama does not record when a model was used; its age is the time since it was pulled, created or copied.

    XCom gets ``models`` (names that were deleted or, in a dry run, would be), ``kept`` (the reason for each other
    name), ``freed`` and ``left`` (bytes) and ``dry_run``. If the connection has several servers, the rules
    hold for each of them by itself, and XCom gets the result of each, by its base URL.

    Args:
        older_than: delete only models that were pulled, created or copied longer ago than this.
        match: delete only models with these names or patterns (``llama3*``, ``hf.co/ours/*``): a list, or a text with
            commas or spaces between them. A name without a tag means ``:latest``; a pattern may leave the tag out.
        max_total_size: delete only as many models as needed to reduce the total to this size, the oldest first. A
            number of bytes, or a text such as ``"200 GB"``.
        keep: never delete models with these names or patterns.
        dry_run: only log what would be deleted.
    """

    template_fields: Sequence[str] = ("conn_id", "match", "keep", "max_total_size", "dry_run")
    list_fields = ("match", "keep")

    def __init__(
        self,
        *,
        older_than: timedelta | None = None,
        match: str | Sequence[str] = (),
        max_total_size: int | float | str | None = None,
        keep: str | Sequence[str] = (),
        dry_run: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than = older_than
        self.match = match
        self.max_total_size = max_total_size
        self.keep = keep
        self.dry_run = dry_run

    def perform(self, context: "Context") -> dict[str, Any]:  # noqa: ARG002  # needs nothing of it
        """Decide about all models of every server, and delete those that the rules select."""
        dry_run, rules = read_flag("dry_run", self.dry_run), self._rules()
        return self.on_servers(lambda hook, log: _prune(hook, log, rules, dry_run=dry_run))

    def _rules(self) -> Rules:
        return Rules(
            older_than=self.older_than,
            match=read_names("match", self.match),
            max_total_size=None if self.max_total_size is None else read_size(self.max_total_size),
            keep=read_names("keep", self.keep),
        )


def _prune(hook: "OllamaHook", log: "Logger", rules: Rules, *, dry_run: bool) -> dict[str, Any]:
    now = timezone.utcnow()
    models = list(_installed(hook))
    decisions = decide(models, rules, now)
    for line in table(decisions, now):
        log.info("%s", line)
    selected = [decision for decision in decisions if decision.delete]
    loaded = Loaded(hook)
    deleted = [decision for decision in selected if dry_run or _delete(hook, log, loaded, decision.model.name)]
    names = [decision.model.name for decision in deleted]
    left = disk_size(model for model in models if model.name not in names)
    freed = disk_size(models) - left
    _log_result(log, names, freed, left, rules, dry_run=dry_run)
    kept = {decision.model.name: decision.reason for decision in decisions if not decision.delete}
    kept |= {decision.model.name: "in memory" for decision in selected if decision not in deleted}
    return {"models": names, "kept": kept, "freed": freed, "left": left, "dry_run": dry_run}


def _installed(hook: "OllamaHook") -> Iterator[Installed]:
    running = hook.ps()
    loaded = {entry.digest for entry in running} | {entry.tag for entry in running}
    for entry in hook.list_models():
        shown = show_if_there(hook, entry.tag)
        yield Installed(
            name=entry.tag,
            size=entry.size,
            modified=entry.modified_at,
            weights=" ".join(blob_digests(shown, "FROM") if shown else ()) or entry.digest,
            loaded=entry.tag in loaded or entry.digest in loaded,
        )


def _delete(hook: "OllamaHook", log: "Logger", loaded: Loaded, name: str) -> bool:
    # A request may have loaded it since the decision.
    if loaded.has(name):
        log.warning("Model %s was loaded in the meantime and is kept", name)
        return False
    try:
        hook.delete(name)
    except ModelNotFoundError:
        log.info("Model %s had been deleted already", name)
    return True


def _log_result(log: "Logger", names: list[str], freed: int, left: int, rules: Rules, *, dry_run: bool) -> None:
    count = f"{len(names)} model{'s' * (len(names) != 1)}"
    if not names:
        log.info("Nothing to delete; the models take %s", describe_size(left))
    elif dry_run:
        log.info(
            "Dry run: %s would be deleted, freeing %s; set dry_run=False to delete %s",
            count,
            describe_size(freed),
            "it" if len(names) == 1 else "them",
        )
    else:
        log.info("%s deleted, %s freed; the others take %s", count, describe_size(freed), describe_size(left))
    if rules.max_total_size is not None and left > rules.max_total_size:
        limit = describe_size(rules.max_total_size)
        log.warning(
            "%s are left, more than max_total_size (%s): no other model may be deleted", describe_size(left), limit
        )
