"""Keep the server's disk clean."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import timezone

from ollama_provider.api.errors import InvalidRequestError, ModelNotFoundError
from ollama_provider.observability import describe_size
from ollama_provider.operators._base import OllamaOperator
from ollama_provider.operators._model_diff import blob_digests
from ollama_provider.operators._prune_rules import Installed, Rules, disk_size, judge, read_names, read_size, table
from ollama_provider.operators._server_models import in_memory, show_if_there

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class OllamaPruneModelsOperator(OllamaOperator):
    """Delete models by age, name and total size; by default only say which.

    What goes must satisfy all rules that are given, and is never in memory and never on the keep list. The log shows a
    table of all models with what happens to each and why. Give at least one of *older_than*, *match* and
    *max_total_size*. Sizes count what models share (a model made of another, a copy) once.

    Ollama does not note when a model was used: its age is the time since it was pulled, created or copied.

    XCom gets ``models`` (names that went or, in a dry run, would go), ``kept`` (the reason for each other name),
    ``freed`` and ``left`` (bytes) and ``dry_run``.

    Args:
        older_than: only models that were pulled, created or copied longer ago than this.
        match: only models of these names or patterns (``llama3*``, ``hf.co/ours/*``); a name without a tag means
            ``:latest``, a pattern may leave the tag out.
        max_total_size: only as many as needed to bring all models together down to this size, the oldest first: bytes,
            or a text such as ``"200 GB"``.
        keep: never models of these names or patterns.
        dry_run: only say what would go.
    """

    template_fields: Sequence[str] = ("conn_id", "match", "keep", "max_total_size", "dry_run")

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
        """Judge all models, and delete those that go."""
        dry_run, rules, now = _read_switch(self.dry_run), self._rules(), timezone.utcnow()
        models = list(self._installed())
        verdicts = judge(models, rules, now)
        for line in table(verdicts, now):
            self.log.info("%s", line)
        going = [verdict for verdict in verdicts if verdict.goes]
        gone = going if dry_run else [verdict for verdict in going if self._delete(verdict.model.name)]
        names = [verdict.model.name for verdict in gone]
        left = disk_size(model for model in models if model.name not in names)
        freed = disk_size(models) - left
        self._conclude(names, freed, left, rules, dry_run=dry_run)
        kept = {verdict.model.name: verdict.reason for verdict in verdicts if not verdict.goes}
        kept |= {verdict.model.name: "in memory" for verdict in going if verdict not in gone}
        return {"models": names, "kept": kept, "freed": freed, "left": left, "dry_run": dry_run}

    def _rules(self) -> Rules:
        return Rules(
            older_than=self.older_than,
            match=read_names("match", self.match),
            max_total_size=None if self.max_total_size is None else read_size(self.max_total_size),
            keep=read_names("keep", self.keep),
        )

    def _installed(self) -> Iterator[Installed]:
        running = self.hook.ps()
        loaded = {entry.digest for entry in running} | {entry.tag for entry in running}
        for entry in self.hook.list_models():
            shown = show_if_there(self.hook, entry.tag)
            yield Installed(
                name=entry.tag,
                size=entry.size,
                modified=entry.modified_at,
                weights=" ".join(blob_digests(shown, "FROM") if shown else ()) or entry.digest,
                loaded=entry.tag in loaded or entry.digest in loaded,
            )

    def _delete(self, name: str) -> bool:
        # Somebody may have loaded it since.
        if in_memory(self.hook, name) is not None:
            self.log.warning("Model %s was loaded meanwhile, and stays", name)
            return False
        try:
            self.hook.delete(name)
        except ModelNotFoundError:
            self.log.info("Model %s was deleted by somebody else", name)
        return True

    def _conclude(self, names: list[str], freed: int, left: int, rules: Rules, *, dry_run: bool) -> None:
        count = f"{len(names)} model{'s' * (len(names) != 1)}"
        if not names:
            self.log.info("Nothing goes; the models take %s", describe_size(left))
        elif dry_run:
            self.log.info("Dry run: %s would go and free %s; dry_run=False deletes", count, describe_size(freed))
        else:
            self.log.info("%s deleted, %s free; the others take %s", count, describe_size(freed), describe_size(left))
        if rules.max_total_size is not None and left > rules.max_total_size:
            bound = describe_size(rules.max_total_size)
            self.log.warning(
                "%s are left, more than max_total_size (%s): nothing else may go", describe_size(left), bound
            )


def _read_switch(value: Any) -> bool:
    """Read *dry_run*, which a template renders as text: never take "False" for a yes, or anything unknown for a no."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in {"true", "false"}:
        raise InvalidRequestError(f"dry_run: {text[:50]!r} is neither true nor false")
    return text == "true"
