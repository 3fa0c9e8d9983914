"""The script: rules for which requests get a scripted answer, delay or fault."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ollama_provider.testing.go.encoding import Json
from ollama_provider.testing.scripting.faults import CutUpload, Fault
from ollama_provider.testing.state.model_names import parse

INFERENCE = frozenset({"/api/generate", "/api/chat", "/api/embed", "/api/embeddings"})
"""The endpoints that a script is about unless it names a path."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A scripted output of the model.

    Attributes:
        text: The answer. A dict or list is sent as JSON text.
        thinking: The thinking before it.
        tool_calls: Name and arguments of each call.
        vectors: Sent by the embedding endpoints as they are: neither counted nor normalised.
        done_reason: By default `stop` or `length`, as it happened.
        prompt_eval_count: By default the count of the prompt's tokens. 2050 looks like a cut prompt.
        eval_count: By default the count of the answer's tokens.
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
    """Scripted delays, in seconds.

    Attributes:
        load: Duration of a load. If it is set, the model is unloaded first.
        first_token: From getting a slot to the first token.
        between_tokens: Before each token.
    """

    load: float | None = None
    first_token: float = 0.0
    between_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The usual answer. Lets a request through between two faults, or in a strict stand-in."""


ReplyPart = str | dict[str, Json] | list[Json] | Answer | Pace | Ordinary | Fault
ScriptedReply = ReplyPart | tuple[ReplyPart, ...]


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """What the script has for one request.

    Attributes:
        answer: The output of the model, None for the usual answer.
        pace: The delays, None for those of the stand-in.
        faults: The faults, applied in this order.
    """

    answer: Answer | None = None
    pace: Pace | None = None
    faults: tuple[Fault, ...] = ()


def _plan(reply: ScriptedReply) -> ReplyPlan:
    answer, pace, faults = None, None, list[Fault]()
    for part in reply if isinstance(reply, tuple) else (reply,):
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
    return ReplyPlan(answer, pace, tuple(faults))


@dataclass(slots=True)
class Rule:
    """Replies for the requests that match.

    Attributes:
        replies: One for each request; with *always* the only one, for every request.
        paths: The paths of the requests; `*` is any path.
        model: If not None, only requests for this model.
        where: If not None, only requests whose JSON body it accepts.
        always: The reply is not used up.
    """

    replies: list[ScriptedReply]
    paths: frozenset[str]
    model: str | None
    where: Callable[[dict[str, Json]], bool] | None
    always: bool

    def __str__(self) -> str:
        """Describe the rule in one line, for a test report."""
        scope = (
            "any path"
            if "*" in self.paths
            else "generate, chat, embed"
            if self.paths == INFERENCE
            else ", ".join(self.paths)
        )
        of_model = f" of {self.model}" if self.model else ""
        return f"{scope}{of_model}: " + ", ".join(map(repr, self.replies))

    def matches(self, path: str, model: str, body: dict[str, Json]) -> bool:
        """Whether this rule is about this request."""
        if path not in self.paths and "*" not in self.paths:
            return False
        if self.model is not None:
            wanted, found = parse(self.model), parse(model)
            if wanted is None or found is None or wanted.key != found.key:
                return False
        return self.where is None or self.where(body)


@dataclass
class Script:
    """The rules in the order in which they were added. Safe to use from the threads of test and server.

    Attributes:
        strict: Refuse inference requests that no rule is about.
        unscripted: The requests refused for that.
    """

    strict: bool = False
    unscripted: list[str] = field(default_factory=list)
    _rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rule: Rule) -> None:
        """Add a rule."""
        with self._lock:
            self._rules.append(rule)

    def next_plan(self, path: str, model: str, body: dict[str, Json]) -> ReplyPlan | None:
        """Take the next reply for this request. None: the stand-in is strict and must refuse the request.

        Rules with a limited number of replies are used before those with *always*.
        """
        if not self._rules and not self.strict:
            return ReplyPlan()
        with self._lock:
            for rule in sorted(self._rules, key=lambda rule: rule.always):
                if not rule.matches(path, model, body):
                    continue
                if rule.always:
                    return _plan(rule.replies[0])
                reply = rule.replies.pop(0)
                if not rule.replies:
                    self._rules.remove(rule)
                return _plan(reply)
            if self.strict and path in INFERENCE:
                self.unscripted.append(f"{path} of {model or 'no model'}")
                return None
        return ReplyPlan()

    def body_limit(self, path: str) -> int | None:
        """Bytes after which the next upload to *path* is cut; None if no `CutUpload` is scripted for it."""
        with self._lock:
            for rule in self._rules:
                if path in rule.paths and isinstance(rule.replies[0], CutUpload):
                    return rule.replies[0].after
        return None

    @property
    def unused(self) -> list[str]:
        """Descriptions of the rules that still have replies."""
        with self._lock:
            return [str(rule) for rule in self._rules if not rule.always]

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()


def rule(
    replies: tuple[ScriptedReply, ...],
    *,
    path: str | None,
    model: str | None,
    where: Callable[[dict[str, Json]], bool] | None,
    times: int,
    always: bool,
) -> Rule:
    """Build a rule from the arguments of `StandIn.script`.

    Raises:
        ValueError: There is no reply, or more than one with *always*.
    """
    if not replies or (always and len(replies) > 1):
        raise ValueError("script() needs a reply, and exactly one with always=True")
    paths = INFERENCE if path is None else frozenset({path if path.startswith("/") or path == "*" else f"/api/{path}"})
    return Rule([reply for reply in replies for _ in range(times)], paths, model, where, always)
