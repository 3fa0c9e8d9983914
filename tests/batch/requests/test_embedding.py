"""Embeddings: packs, bad texts in them, and texts over the context, over real HTTP against a stand-in."""

import itertools
import json
import math

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.api.errors import UnsupportedError
from ollama_provider.api.schemas import Options
from ollama_provider.batch.arguments import Embedding
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.requests.embedding import PackRequest, split
from ollama_provider.batch.store.lines import decode_vector, encode_vector
from ollama_provider.testing import Answer, Fail, Model

pytestmark = pytest.mark.ollama(models=[Model("emb", ("embedding",), context_length=64, embedding_length=8)])


@pytest.fixture
def embed(batch):
    def run(rows, **spec):
        return batch.run(rows, **({"model": "emb", "embedding": Embedding()} | spec))

    return run


def packs(ollama):
    seen = [seen.json["input"] for seen in ollama.stand_in.requests if seen.path == "/api/embed"]
    return [texts for texts in seen if texts]


def table(batch):
    return parquet.read_table(batch.directory / "results.parquet")


def texts(count):
    return [f"text {number}" for number in range(count)]


def test_many_texts_are_few_requests_and_one_table(batch, ollama, embed):
    """The table is in the order of the input and has vectors of one length as float32, with their provenance."""
    summary = embed([{"id": number, "text": f"text {number}"} for number in range(100)], id_column="id", pack=32)

    assert [len(pack) for pack in packs(ollama)] == [32, 32, 32, 4]
    assert (summary.ok, summary.requests, summary.prompt_tokens) == (100, 4, 400)
    found = table(batch)
    assert found.schema.field("output").type == pa.list_(pa.float32(), 8)
    assert found.schema.field("id").type == pa.int64()
    assert found["id"].to_pylist() == found["index"].to_pylist() == list(range(100))
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in found["output"].to_pylist())
    assert set(found["digest"].to_pylist()) == {ollama.stand_in.model("emb").digest}
    assert not (batch.directory / "results.jsonl").exists()


def test_a_vector_is_that_of_its_text(batch, ollama, embed):
    """It is the same as when the text is sent alone."""
    embed(texts(20), pack=7)
    together = table(batch)["output"].to_pylist()
    embed(texts(20), pack=1, results="jsonl", directory=batch.directory / "alone")

    lines = [json.loads(line) for line in (batch.directory / "alone/results.jsonl").read_text().splitlines()]
    assert len({tuple(vector) for vector in together}) == 20
    for vector, row in zip(together, lines, strict=True):
        assert row["output"] == pytest.approx(vector, abs=1e-9)


def test_dimensions(batch, ollama, embed):
    """They are sent, they are part of the key, and the table has vectors of that length."""
    embed(texts(3))
    summary = embed(texts(3), dimensions=4)

    assert summary.requests == 1
    assert table(batch).schema.field("output").type.list_size == 4


def test_equal_texts_and_reruns_cost_nothing(batch, embed):
    """Vectors are found by their key. Results in the other format need no request and replace the first ones."""
    summary = embed([*texts(5), *texts(5)])
    assert (summary.ok, summary.reused, summary.rows) == (10, 5, 10)

    summary = embed([*texts(5), *texts(5)], results="jsonl")

    assert summary.requests == 0
    assert len(batch.results) == 10
    assert not (batch.directory / "results.parquet").exists()


def test_one_text_that_kills_the_runner_costs_only_itself(batch, ollama, embed):
    """It is found by halving, tried alone, and a dead letter. No other text fails or loses an attempt."""
    killed = Fail("llama runner process has terminated: signal: killed")
    ollama.stand_in.script(killed, where=lambda body: "text 13" in body.get("input", ()), always=True)

    summary = embed(texts(64), pack=64, concurrency=1)

    assert (summary.ok, summary.failed) == (63, 1)
    assert [len(pack) for pack in packs(ollama) if "text 13" in pack] == [64, 32, 16, 8, 4, 2, 1, 1, 1]
    assert len(packs(ollama)) == 9 + 6
    (failed,) = batch.failed
    assert (failed["index"], failed["error"]["class"], failed["attempts"]) == (13, "RunnerError", 3)
    vectors = table(batch)["output"].to_pylist()
    assert [number for number, vector in enumerate(vectors) if vector is None] == [13]
    assert set(table(batch)["attempts"].to_pylist()) == {1, 3}


@pytest.mark.parametrize(
    "nan",
    [
        Fail("embedding contains NaN or Inf values", 400),
        Fail("failed to encode response: json: unsupported value: NaN", 500),
    ],
)
def test_nan_in_a_vector_fails_its_text(batch, ollama, embed, nan):
    """New and old servers report it in different ways."""
    ollama.stand_in.script(nan, where=lambda body: "text 3" in body.get("input", ()), always=True)

    summary = embed(texts(8), pack=8)

    assert (summary.ok, summary.failed) == (7, 1)
    assert batch.failed[0]["index"] == 3


def test_a_null_in_a_vector_fails_its_text(batch, ollama, embed):
    """A server may answer 200 with it."""
    broken = Answer(vectors=[[0.5, None, 0.5, 0, 0, 0, 0, 0]])
    ollama.stand_in.script(broken, where=lambda body: body.get("input") == ["bad"], always=True)

    summary = embed(["good", "bad"], pack=1)

    assert (summary.ok, summary.failed) == (1, 1)
    assert batch.failed[0]["error"]["class"] == "RejectedReplyError"


def test_an_empty_text_has_no_vector_and_is_not_sent(batch, ollama, embed):
    """In a pack it would fail all others. Alone it would be a request to load the model."""
    summary = embed(["a", "", " \n", "b"])

    assert packs(ollama) == [["a", "b"]]
    assert (summary.ok, summary.failed, summary.errors) == (2, 2, {"EmptyText": 2})


def test_an_outage_costs_a_pack_no_attempt(batch, ollama, embed):
    """The same pack is sent again when the server is back."""
    busy = Fail("server busy, please try again.  maximum pending requests exceeded", status=503)
    ollama.stand_in.script(busy, path="embed", where=lambda body: body.get("input"))

    embed(texts(10), pack=10)

    assert [len(pack) for pack in packs(ollama)] == [10, 10]
    assert set(table(batch)["attempts"].to_pylist()) == {1}


class TestLongTexts:
    LONG = " ".join(f"word{number}" for number in range(150))

    def test_a_dead_letter_is_the_default(self, batch, ollama, embed):
        """The others of its pack have their vectors, and the server was told not to cut."""
        summary = embed(["a", "b " * 80, "c"], pack=3)

        assert (summary.ok, summary.failed) == (2, 1)
        assert batch.failed[0]["error"]["class"] == "ContextLengthError"
        sent = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/embed" and seen.json["input"]]
        assert all(body["truncate"] is False for body in sent)

    def test_truncated_is_marked(self, batch, embed):
        """The server cuts only this text, and its row shows that."""
        embed(["a", self.LONG, "c"], on_long_text="truncate")

        assert table(batch)["prompt_cut"].to_pylist() == [False, True, False]

    def test_pieces_of_a_split_text_are_rows(self, batch, ollama, embed):
        """They overlap and cover the text. Each has its place in the text and a vector."""
        summary = embed(["a", self.LONG, "c"], on_long_text="split")

        rows = table(batch).to_pylist()
        pieces = [row for row in rows if row["index"] == 1]
        assert (summary.rows, summary.ok) == (3, 3)
        assert len(pieces) > 2
        assert [row["chunk"] for row in pieces] == list(range(len(pieces)))
        assert [row["chunk"] for row in rows if row["index"] != 1] == [None, None]
        assert (pieces[0]["start"], pieces[-1]["end"]) == (0, len(self.LONG))
        assert all(after["start"] < before["end"] for before, after in itertools.pairwise(pieces))
        sent = packs(ollama)[-1] if len(packs(ollama)[-1]) == len(pieces) else packs(ollama)[-2]
        assert sent == [self.LONG[row["start"] : row["end"]] for row in pieces]
        assert embed(["a", self.LONG, "c"], on_long_text="split").requests == 0

    def test_dead_letters_can_be_split_later(self, batch, embed):
        """Another setting repairs the failed texts, and asks no other."""
        embed(["a", self.LONG], pack=1)

        summary = embed(["a", self.LONG], on_long_text="split")

        assert (summary.reused, summary.ok, summary.failed) == (1, 2, 0)

    def test_splitting_ends(self, batch, ollama, embed):
        """A text that is refused in pieces of any size fails."""
        refused = Fail("the input length exceeds the context length", 400)
        ollama.stand_in.script(refused, path="embed", where=lambda body: body.get("input"), always=True)

        summary = embed(["x" * 500], on_long_text="split")

        assert summary.failed == 1
        assert batch.failed[0]["error"]["class"] == "ContextLengthError"


def test_a_model_that_does_not_embed_is_refused_before_the_first_row(batch, ollama, embed):
    """Its capabilities tell, without a failed load."""
    ollama.stand_in.install(Model("talker"))

    with pytest.raises(UnsupportedError, match="embedding"):
        embed(["a"], model="talker")
    assert packs(ollama) == []


def test_settings_that_embeddings_do_not_have_are_refused(batch):
    """These are system message, schema, thinking, fallback model and messages."""
    for wrong in ({"system": "s"}, {"output_type": "json"}, {"think": True}, {"fallback_model": "large"}):
        with pytest.raises(InputError, match="vector"):
            batch.run(["a"], embedding=Embedding(), **wrong)
    with pytest.raises(InputError, match=r"^messages, embedding: "):
        batch.run(["a"], embedding=Embedding(), messages=[{"role": "user", "content": "a"}])


def test_nothing_but_failures_is_a_table_too(batch, embed):
    """The length of the vectors is not known then."""
    embed(["", " "])

    assert table(batch)["output"].to_pylist() == [None, None]


def test_options_are_sent(ollama, embed):
    """They have the context of the run, as with every other task."""
    embed(["a"], options=Options(num_thread=1))

    seen = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/embed"]
    assert {json.dumps(body["options"], sort_keys=True) for body in seen} == {'{"num_ctx": 64, "num_thread": 1}'}


def test_split_covers_the_text():
    """Each character is in a piece, pieces overlap, and are cut at a blank where there is one."""
    text = "lorem ipsum dolor sit amet " * 40

    for pieces in (2, 3, 7, 20):
        spans = split(text, pieces)
        assert (spans[0][0], spans[-1][1]) == (0, len(text))
        assert all(begin < end for begin, end in spans)
        assert all(after[0] < before[1] for before, after in itertools.pairwise(spans))
        assert all(text[end - 1] == " " for _, end in spans)
    assert split("short", 2) == ()


def test_vectors_keep_every_bit_of_a_float32():
    """They are the same after writing and reading a part."""
    assert list(decode_vector(encode_vector([0.5, -1.25, 1e-30]))) == pytest.approx([0.5, -1.25, 1e-30], rel=1e-7)


def test_the_decoder_raises_only_for_invalid_json():
    """It turns lists into arrays. The validator decides what they are worth."""
    found = PackRequest.decode(b'{"embeddings":[[1,2],null,[null]]}')

    assert list(found["embeddings"][0]) == [1, 2]
    assert all(math.isnan(found["embeddings"][place][0]) for place in (1, 2))
    with pytest.raises(ValueError):
        PackRequest.decode(b'{"embeddings":[[1,')
