"""Settings and data of the server: installed models, the registry, blobs, downloads."""

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
    """The download of one layer, shared by all pulls that need it.

    Attributes:
        total: Size of the layer in bytes.
        completed: Bytes downloaded so far.
        pullers: The pulls that wait for it. The first one advances `completed`.
    """

    total: int
    completed: int = 0
    pullers: list[object] = field(default_factory=list)


@lru_cache(maxsize=256)
def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


@dataclass
class ServerState:
    """Settings, which are described at `StandIn`, and the data that handlers read and change.

    Attributes:
        scheduler: The loaded models and their queues.
        models: The installed models by the keys of their names.
        modified: When each was installed, Unix time.
        registry: The models that can be pulled.
        blobs: Size in bytes of each blob, by its digest.
        not_gguf: Digests of uploaded blobs that are no GGUF files.
        partial_downloads: Layers that are being downloaded, by digest.
        downloads: How often the weights of each model were downloaded.
    """

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
    partial_downloads: dict[str, Download] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)

    def since(self, version: str) -> bool:
        """Whether the server has this version or a later one. `0.0.0`, a source build, counts as the latest."""
        return self.version == "0.0.0" or _version_numbers(self.version) >= _version_numbers(version)

    def install(self, model: Model) -> None:
        """Install a model, in place of one of the same name."""
        key = model.parsed.key
        self.models[key] = model
        self.modified[key] = self.clock()
        self.blobs.update(model.layers)

    def uninstall(self, model: Model) -> None:
        """Remove a model and the layers that no other model has. If it is loaded, it stays loaded."""
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
        """The installed model of this name; None if there is none."""
        name = model_names.parse(text)
        return self.models.get(name.key) if name else None

    def offer(self, models: Iterable[Model]) -> None:
        """Add models to the registry."""
        self.registry.update((model.parsed.key, model) for model in models)


def wall_clock() -> float:
    """Unix time."""
    return time.time()
