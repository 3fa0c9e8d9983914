"""The operator that computes embedding vectors of texts."""

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

#: Largest XCom value, in bytes of JSON. XCom is stored in Airflow's database and passes through its API server.
XCOM_LIMIT = 1_000_000


class OllamaEmbedOperator(DeferrableOperator):
    """Compute an embedding vector of length 1 for each text.

    XCom gets the vectors, a list of numbers for each text in their order, up to 1 MB of JSON (some 60 texts with 768
    numbers each). For more, set *output_path*; XCom then gets ``path``, ``rows``, ``dimensions``, ``model`` and
    ``digest``. If one text fails, the task fails and there is no file.

    A second XCom value, ``usage``, holds server, model, digest, tokens, seconds and the number of texts that were cut.

    Args:
        texts: a text or a list of texts, none of them empty. May be a template that renders to a list.
        dimensions: cut the vectors to this many numbers and scale them to length 1 again (server 0.11.11).
        output_path: a file on any ``ObjectStoragePath`` (``s3://aws_default@bucket/vectors.parquet``), with a row for
            each text: ``index``, ``text``, ``embedding``, ``prompt_cut``. Parquet if the name ends in ``.parquet``
            (extra *parquet*), JSON lines if it ends in ``.jsonl``.
        options: model options. They are merged with the connection's, key by key, and win.
        keep_alive: how long the model stays in memory afterwards: seconds, ``"5m"``, 0 to unload, -1 for no limit.
        on_truncation: what happens with a text that is longer than the context: ``"warn"`` logs a warning and embeds
            the beginning, ``"fail"`` fails the task.
        auto_pull: pull the model if the server lacks it; None means the connection's setting.
        first_token_timeout: seconds for queue, loading and up to 32 texts; None means the connection's setting.
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
        """Whether the server may cut a text that is longer than the context."""
        return self.on_truncation == "warn"

    def payload_folder(self) -> str | None:
        """Return the directory for large payloads: by default the folder of *output_path*."""
        return super().payload_folder() or (str(storage_path(self.output_path).parent) if self.output_path else None)

    def answer_limit(self) -> int | None:
        """Return the limit of XCom, if the vectors go there."""
        return None if self.output_path else XCOM_LIMIT

    def perform(self, context: "Context") -> Any:
        """Check the arguments, then send the request."""
        from ollama_provider.api.schemas import EmbedRequest

        one_of("on_truncation", self.on_truncation, "warn", "fail")
        if self.output_path is not None:
            # Check the format of the file before a request is sent.
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

    def writes(self) -> list[tuple[Any, int | None]]:
        """Return the file of the vectors, if there is one."""
        return [] if self.output_path is None else [(storage_path(self.output_path), (self.work or {}).get("texts"))]

    def finish(self, context: "Context", request: Any, send: "Send", **_: Any) -> Any:
        """Return the vectors, or write them to the file and return where it is."""
        embedding = Embedding(send, request, may_cut=self.may_cut)
        if self.output_path is None:
            result: Any = within_limit(embedding, len(request.input))
        else:
            path = storage_path(self.output_path)
            write_vectors(path, embedding)
            result = {"path": str(path), "rows": len(request.input), "dimensions": embedding.dimensions}
        if embedding.cut:
            self.log.warning(
                "%d of %d texts were longer than the context and were cut", embedding.cut, len(request.input)
            )
        usage = self.report(context, request.model, embedding.numbers(), servers=embedding.servers)
        return result if self.output_path is None else result | {"model": usage["model"], "digest": usage["digest"]}


class Embedding:
    """Sends the texts of a request in several smaller ones. Iterating over it yields the vectors.

    Args:
        send: sends a request and returns its reply.
        request: the request with all texts.
        may_cut: whether the server may cut a text that is longer than the context.

    Attributes:
        cut: number of texts that were cut so far.
        dimensions: length of the vectors; None before the first one.

    Raises:
        ContextLengthError: a text is too long and may not be cut; its index is named.
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
                yield from self._rows(embedded)

    @property
    def servers(self) -> list[str]:
        """Base URL of the server of each reply."""
        return [reply.server for reply in self._replies]

    def numbers(self) -> dict[str, Any]:
        """Return the sums of tokens and seconds over all requests."""
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

    def _rows(self, embedded: "EmbeddedTexts") -> Iterator[Vector]:
        reply, texts = embedded.reply, embedded.texts
        self._check(reply, len(texts))
        self.cut += embedded.cut
        # Without the vectors: `numbers` needs the counts only.
        self._replies.append(reply.model_copy(update={"embeddings": []}))
        for index, (text, vector) in enumerate(zip(texts, reply.embeddings, strict=True), embedded.start):
            yield Vector(index=index, text=text, embedding=vector, prompt_cut=embedded.cut)

    def _check(self, reply: "EmbedReply", texts: int) -> None:
        widths = {len(vector) for vector in reply.embeddings}
        if self.dimensions is None and len(widths) == 1:
            self.dimensions = max(widths)
        if len(reply.embeddings) != texts or widths != {self.dimensions} or not self.dimensions:
            raise IncompleteReplyError(
                f"{texts} texts were answered by {len(reply.embeddings)} vectors with {sorted(widths)} numbers",
                model=self._request.model,
            )


def within_limit(rows: Iterable[Vector], total: int) -> list[list[float]]:
    """Return the vectors for XCom.

    Raises:
        InvalidRequestError: they are too large for XCom. The size is estimated from the first vector.
    """
    vectors: list[list[float]] = []
    for row in rows:
        size = total * len(json.dumps(row["embedding"]))
        if not vectors and size > XCOM_LIMIT:
            raise InvalidRequestError(
                f"{total} vectors of {len(row['embedding'])} numbers are about {size / 1e6:.1f} MB of JSON, and the "
                f"limit for XCom is {XCOM_LIMIT / 1e6:.0f} MB: set output_path to a .jsonl or .parquet file on any "
                "ObjectStoragePath"
            )
        vectors.append(row["embedding"])
    return vectors


def read_texts(value: Any) -> list[str]:
    """Return the texts as a list.

    Raises:
        InvalidRequestError: one is empty or not a text; its index is named.
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
            raise InvalidRequestError(f"texts.{index}: it is empty")
    return list(texts)


def _why(value: Any) -> str:
    if value is None:
        return "; check the task or the template that it comes from"
    return "; if the DAG renders templates natively, '7' becomes a number: {{ … | tojson }} keeps it a text"
