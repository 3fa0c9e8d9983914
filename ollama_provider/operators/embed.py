"""Turn texts into vectors."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ollama_provider.api.arguments import one_of
from ollama_provider.api.errors import IncompleteReplyError, InvalidRequestError
from ollama_provider.operators._deferrable import DeferrableOperator
from ollama_provider.operators._storage_paths import storage_path
from ollama_provider.operators._vector_files import Vector, write_vectors, writer_for

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from ollama_provider.api.request_flow import EmbeddedTexts, Send
    from ollama_provider.api.schemas import EmbedReply, EmbedRequest

#: Bytes of JSON that go to XCom at most: it lives in Airflow's database and passes through its API server.
XCOM_LIMIT = 1_000_000


class OllamaEmbedOperator(DeferrableOperator):
    """Turn texts into vectors of length 1.

    XCom gets the vectors, a list of numbers for each text in their order, up to 1 MB of JSON (some 60 texts of 768
    numbers). For more, give an *output_path*; XCom then gets ``path``, ``rows``, ``dimensions``, ``model`` and
    ``digest``. Either all texts succeed, or there is no result and no file.

    A second XCom value, ``usage``, holds server, model, digest, tokens, seconds and how many texts were cut.

    Args:
        texts: a text or a list of texts, none of them empty; a template that gives a list stands for that list.
        dimensions: cut the vectors to this many numbers and scale them to length 1 again (server 0.11.11).
        output_path: a file on any ``ObjectStoragePath`` (``s3://aws_default@bucket/vectors.parquet``), with a row for
            each text: ``index``, ``text``, ``embedding``, ``prompt_cut``. Parquet if the name ends in ``.parquet``
            (extra *parquet*), JSON lines if it ends in ``.jsonl``.
        options: the model's options, laid over the connection's.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for ever.
        on_truncation: when a text is longer than the context: ``"warn"`` and embed what fits, or ``"fail"``.
        auto_pull: pull the model if the server lacks it; None is the connection's setting.
        first_token_timeout: seconds for queue, load and up to 32 texts; None is the connection's setting.
    """

    template_fields: Sequence[str] = (
        *DeferrableOperator.template_fields,
        "texts",
        "output_path",
        "options",
        "keep_alive",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"options": "json", "texts": "json"}
    hook_overrides = ("auto_pull", "first_token_timeout")
    list_fields = ("texts",)

    def __init__(
        self,
        *,
        texts: str | list[str],
        dimensions: int | None = None,
        output_path: str | None = None,
        options: dict[str, Any] | None = None,
        keep_alive: float | str | None = None,
        on_truncation: Literal["warn", "fail"] = "warn",
        auto_pull: bool | None = None,
        first_token_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.texts = texts
        self.dimensions = dimensions
        self.output_path = output_path
        self.options = options
        self.keep_alive = keep_alive
        self.on_truncation = on_truncation
        self.auto_pull = auto_pull
        self.first_token_timeout = first_token_timeout

    @property
    def may_cut(self) -> bool:
        """Whether the beginning of a text will do."""
        return self.on_truncation == "warn"

    def payload_folder(self) -> str | None:
        """Return where vectors may go on their way: where they go in the end, if nothing else is set."""
        return super().payload_folder() or (str(storage_path(self.output_path).parent) if self.output_path else None)

    def answer_limit(self) -> int | None:
        """Return what XCom takes, where the vectors go there."""
        return None if self.output_path else XCOM_LIMIT

    def perform(self, context: "Context") -> Any:
        """Embed all texts; return the vectors, or where they are."""
        from ollama_provider.api.schemas import EmbedRequest

        one_of("on_truncation", self.on_truncation, "warn", "fail")
        if self.output_path is not None:
            # Before anything is sent, for nothing.
            writer_for(storage_path(self.output_path))
        request = self.hook.request(
            EmbedRequest,
            model=self.model,
            input=read_texts(self.texts),
            dimensions=self.dimensions,
            options=self.options,
            keep_alive=self.keep_alive,
            truncate=False,
        )
        return self.send_and_finish(context, request)

    def finish(self, context: "Context", request: Any, send: "Send", **_: Any) -> Any:
        """Take the vectors; return them, or where they are."""
        work = Embedding(send, request, may_cut=self.may_cut)
        if self.output_path is None:
            result: Any = within_limit(work, len(request.input))
        else:
            path = storage_path(self.output_path)
            write_vectors(path, work)
            result = {"path": str(path), "rows": len(request.input), "dimensions": work.dimensions}
        if work.cut:
            self.log.warning("%d of %d texts were longer than the context and were cut", work.cut, len(request.input))
        usage = self.report(context, request.model, work.numbers())
        return result if self.output_path is None else result | {"model": usage["model"], "digest": usage["digest"]}


class Embedding:
    """Texts on their way to vectors: iterate for the rows, then read the sums.

    Args:
        send: sends a request.
        request: with all texts.
        may_cut: embed the beginning of a text that is longer than the context.

    Attributes:
        cut: texts that were cut.
        dimensions: numbers a vector; None before the first one.

    Raises:
        ContextLengthError: a text is too long and may not be cut; its place is named.
        IncompleteReplyError: the server did not send one vector for each text.
    """

    def __init__(self, send: "Send", request: "EmbedRequest", *, may_cut: bool) -> None:
        self._send = send
        self._request = request
        self._may_cut = may_cut
        self._replies: list[EmbedReply] = []
        self.cut = 0
        self.dimensions: int | None = None

    def __iter__(self) -> Iterator[Vector]:
        from ollama_provider.api.request_flow import embedding_flows, run_flow

        for flow in embedding_flows(self._request, may_cut=self._may_cut):
            for embedded in run_flow(flow, self._send):
                yield from self._take(embedded)

    def numbers(self) -> dict[str, Any]:
        """Return tokens and seconds of all requests."""
        tokens = sum(reply.prompt_eval_count for reply in self._replies)
        seconds = sum(reply.seconds for reply in self._replies)
        return {
            "prompt_tokens": tokens,
            "seconds": round(seconds, 3),
            "load_seconds": round(sum(reply.load_seconds for reply in self._replies), 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "texts": len(self._request.input),
            "texts_cut": self.cut,
        }

    def _take(self, embedded: "EmbeddedTexts") -> Iterator[Vector]:
        reply, texts = embedded.reply, embedded.texts
        self._check(reply, len(texts))
        self.cut += embedded.cut
        # The sums need the counts, not the vectors.
        self._replies.append(reply.model_copy(update={"embeddings": []}))
        for index, (text, vector) in enumerate(zip(texts, reply.embeddings, strict=True), embedded.start):
            yield Vector(index=index, text=text, embedding=vector, prompt_cut=embedded.cut)

    def _check(self, reply: "EmbedReply", texts: int) -> None:
        widths = {len(vector) for vector in reply.embeddings}
        if self.dimensions is None and len(widths) == 1:
            self.dimensions = max(widths)
        if len(reply.embeddings) != texts or widths != {self.dimensions} or not self.dimensions:
            raise IncompleteReplyError(
                f"{texts} texts gave {len(reply.embeddings)} vectors with {sorted(widths)} numbers",
                model=self._request.model,
            )


def within_limit(rows: Iterable[Vector], total: int) -> list[list[float]]:
    """Return the vectors for XCom.

    Raises:
        InvalidRequestError: all of them will be too much, as the first one already shows.
    """
    vectors: list[list[float]] = []
    for row in rows:
        size = total * len(json.dumps(row["embedding"]))
        if not vectors and size > XCOM_LIMIT:
            raise InvalidRequestError(
                f"{total} vectors of {len(row['embedding'])} numbers are about {size / 1e6:.1f} MB of JSON, and XCom "
                f"gets {XCOM_LIMIT / 1e6:.0f} MB at most: set output_path to a .jsonl or .parquet file on any "
                "ObjectStoragePath"
            )
        vectors.append(row["embedding"])
    return vectors


def read_texts(value: Any) -> list[str]:
    """Return the texts as a list.

    Raises:
        InvalidRequestError: one is empty or no text; its place is named.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise InvalidRequestError(
            f"texts: a text or a list of texts is needed, not {type(value).__name__}{_why(value)}"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(f"texts.{index}: a text is needed, not {type(text).__name__}{_why(text)}")
        if not text.strip():
            raise InvalidRequestError(f"texts.{index}: it is empty, and nothing has no vector")
    return list(texts)


def _why(value: Any) -> str:
    if value is None:
        return "; check the task or the template that it comes from"
    return "; where the DAG renders templates natively, '7' becomes a number: {{ … | tojson }} keeps a text"
