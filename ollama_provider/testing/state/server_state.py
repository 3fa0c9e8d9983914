"""What a stand-in knows: its version and settings, its models, what it has been asked."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ollama_provider.testing.state import model_names
from ollama_provider.testing.state.catalogue import Model
from ollama_provider.testing.state.scheduler import Scheduler


@dataclass(slots=True)
class Download:
    """Bytes of one layer that are already here.

    Attributes:
        total: Bytes of the layer.
        completed: Bytes that have come.
        pullers: Who waits for it; the first one moves it on.
    """

    total: int
    completed: int = 0
    pullers: list[object] = field(default_factory=list)


@lru_cache(maxsize=256)
def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


@dataclass
class State:
    """See `StandIn` for the meaning of the settings."""

    version: str
    num_ctx: int
    keep_alive: float
    load_seconds: float
    pull_seconds: float
    tokens_per_second: float | None
    loopback: bool
    clock: Callable[[], float]
    scheduler: Scheduler
    models: dict[tuple[str, str, str, str], Model] = field(default_factory=dict)
    modified: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    registry: dict[tuple[str, str, str, str], Model] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    not_gguf: set[str] = field(default_factory=set)
    partial: dict[str, Download] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)

    def since(self, version: str) -> bool:
        """Whether the server is of this version or later. `0.0.0`, a source build, is the latest."""
        return self.version == "0.0.0" or _numbers(self.version) >= _numbers(version)

    def install(self, model: Model) -> None:
        """Write a manifest."""
        key = model.parsed.key
        self.models[key] = model
        self.modified[key] = self.clock()
        self.blobs.update(model.layers)

    def uninstall(self, model: Model) -> None:
        """Remove a manifest and the layers that no other model has; a loaded copy stays loaded."""
        del self.models[model.parsed.key]
        del self.modified[model.parsed.key]
        kept = {digest for other in self.models.values() for digest, _ in other.layers}
        for digest, _ in model.layers:
            if digest not in kept:
                self.blobs.pop(digest, None)

    def retag(self, model: Model) -> Model:
        """Replace the weights of an installed model, as a pull of a moved tag does."""
        moved = replace(model, revision=model.revision + 1, weights="")
        self.install(moved)
        return moved

    def find(self, text: str) -> Model | None:
        """The installed model of this name."""
        name = model_names.parse(text)
        return self.models.get(name.key) if name else None

    def offer(self, models: Iterable[Model]) -> None:
        """Make models pullable."""
        self.registry.update((model.parsed.key, model) for model in models)


def wall_clock() -> float:
    """Unix time."""
    return time.time()
