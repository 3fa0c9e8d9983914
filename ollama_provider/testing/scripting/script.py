"""What the next requests get instead of the ordinary answer: scripted answers, delays and faults."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.go.encoding import Json
from ollama_provider.testing.scripting.faults import CutUpload, Fault
from ollama_provider.testing.state.model_names import parse

INFERENCE = frozenset({"/api/generate", "/api/chat", "/api/embed", "/api/embeddings"})
"""The endpoints a script speaks of when it names none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says.

    Attributes:
        text: The answer. A dict or list is sent as JSON text.
        thinking: The thoughts before it.
        tool_calls: Name and arguments of each call.
        vectors: For the embedding endpoints, in place of computed ones. As they are: neither counted nor normalised.
        done_reason: `stop` or `length` by what happened if empty.
        prompt_eval_count: As counted if None; say 2050 to look like a cut prompt.
        eval_count: As counted if None.
    """

    text: Json = ""
    thinking: str = ""
    tool_calls: tuple[tuple[str, Mapping[str, Json]], ...] = ()
    vectors: list[list[float | None]] | None = None
    done_reason: str = ""
    prompt_eval_count: int | None = None
    eval_count: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the model takes, in seconds.

    Attributes:
        load: Loading the model, which this makes cold.
        first_token: From the slot to the first token.
        between_tokens: From one token to the next.
    """

    load: float | None = None
    first_token: float = 0.0
    between_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The ordinary answer; to let a request through between two faults, or in a strict stand-in."""


Part = str | dict[str, Json] | list[Json] | Answer | Pace | Ordinary | Fault
Turn = Part | tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request gets.

    Attributes:
        answer: What the model says, None for the ordinary answer.
        pace: How long it takes, None for the stand-in's own pace.
        faults: What goes wrong, applied in this order.
    """

    answer: Answer | None = None
    pace: Pace | None = None
    faults: tuple[Fault, ...] = ()


def _plan(turn: Turn) -> Plan:
    answer, pace, faults = None, None, list[Fault]()
    for part in turn if isinstance(turn, tuple) else (turn,):
        match part:
            case Answer():
                answer = part
            case str() | dict() | list():
                answer = Answer(part)
            case Pace():
                pace = part
            case Ordinary():
                pass
            case _:
                faults.append(part)
    return Plan(answer, pace, tuple(faults))


@dataclass(slots=True)
class Rule:
    """Turns for the requests that match."""

    turns: list[Turn]
    paths: frozenset[str]
    model: str | None
    where: Callable[[dict[str, Json]], bool] | None
    always: bool

    def __str__(self) -> str:
        """One line for a test report."""
        scope = (
            "any path"
            if "*" in self.paths
            else "generate, chat, embed"
            if self.paths == INFERENCE
            else ", ".join(self.paths)
        )
        asked = f" of {self.model}" if self.model else ""
        return f"{scope}{asked}: " + ", ".join(map(repr, self.turns))

    def matches(self, path: str, model: str, body: dict[str, Json]) -> bool:
        """Whether this rule is about a request."""
        if path not in self.paths and "*" not in self.paths:
            return False
        if self.model is not None:
            wanted, found = parse(self.model), parse(model)
            if wanted is None or found is None or wanted.key != found.key:
                return False
        return self.where is None or self.where(body)


@dataclass
class Script:
    """The rules, in the order they were given. Used by the test's thread and the server's."""

    strict: bool = False
    unscripted: list[str] = field(default_factory=list)
    _rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rule: Rule) -> None:
        """Add a rule."""
        with self._lock:
            self._rules.append(rule)

    def take(self, path: str, model: str, body: dict[str, Json]) -> Plan | None:
        """What this request gets; None if it must not be answered, because the stand-in is strict.

        Turns that are used up go before those that hold always.
        """
        if not self._rules and not self.strict:
            return Plan()
        with self._lock:
            for rule in sorted(self._rules, key=lambda rule: rule.always):
                if not rule.matches(path, model, body):
                    continue
                if rule.always:
                    return _plan(rule.turns[0])
                turn = rule.turns.pop(0)
                if not rule.turns:
                    self._rules.remove(rule)
                return _plan(turn)
            if self.strict and path in INFERENCE:
                self.unscripted.append(f"{path} of {model or 'no model'}")
                return None
        return Plan()

    def body_limit(self, path: str) -> int | None:
        """Bytes of its body the next request may send; None if no `CutUpload` is scripted for *path*."""
        with self._lock:
            for rule in self._rules:
                if path in rule.paths and isinstance(rule.turns[0], CutUpload):
                    return rule.turns[0].after
        return None

    @property
    def unused(self) -> list[str]:
        """The rules with turns nobody asked for."""
        with self._lock:
            return [str(rule) for rule in self._rules if not rule.always]

    def clear(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()


def rule(
    turns: tuple[Turn, ...],
    *,
    path: str | None,
    model: str | None,
    where: Callable[[dict[str, Json]], bool] | None,
    times: int,
    always: bool,
) -> Rule:
    """Build a rule from what `StandIn.script` was given.

    Raises:
        ValueError: No turn, or several that should each hold always.
    """
    if not turns or (always and len(turns) > 1):
        raise ValueError("script() needs a turn, and exactly one with always=True")
    paths = INFERENCE if path is None else frozenset({path if path.startswith("/") or path == "*" else f"/api/{path}"})
    return Rule([turn for turn in turns for _ in range(times)], paths, model, where, always)
