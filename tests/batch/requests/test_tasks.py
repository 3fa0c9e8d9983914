"""Chats and pictures in a batch, over real HTTP against a stand-in; and results as a table."""

import base64

import pyarrow as pa
import pytest
from pyarrow import parquet

from ollama_provider.api.errors import UnsupportedError
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.results.parquet import arrow_type
from ollama_provider.testing import Fail, Model

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TURNS = [
    {"role": "system", "content": "You know {{ row.topic }}."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello, what about {{ row.topic }}?"},
    {"role": "user", "content": "{{ row.text }}"},
]


def chats(ollama):
    seen = [seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat"]
    return [body for body in seen if body.get("messages")]


class TestChat:
    def run(self, batch, rows, **spec):
        return batch.run(rows, **({"messages": TURNS} | spec))

    def test_turns_are_rendered_for_each_row(self, batch, ollama):
        """Every turn is a template; quotes and line breaks in a row change nothing of the turns."""
        text = 'a "b"\n{{ c }}'
        summary = self.run(batch, [{"topic": "tea", "text": text}])

        (body,) = chats(ollama)
        assert [(turn["role"], turn["content"]) for turn in body["messages"]] == [
            ("system", "You know tea."),
            ("user", "Hello."),
            ("assistant", "Hello, what about tea?"),
            ("user", text),
        ]
        assert (body["truncate"], body["think"]) == (False, False)
        assert summary.ok == 1
        assert batch.results[0]["tokens"] > 0

    def test_turns_are_part_of_the_work(self, batch, ollama):
        """Another first turn is another question; the same ones are none."""
        rows = [{"topic": "tea", "text": "a"}]
        self.run(batch, rows)
        assert self.run(batch, rows).requests == 0

        assert self.run(batch, [{"topic": "milk", "text": "a"}]).requests == 1
        assert batch.run([{"text": "a"}], messages=TURNS[3:]).requests == 1

    def test_a_wrong_answer_is_a_turn_of_the_conversation(self, batch, ollama):
        """And what was wrong with it the next one."""
        ollama.stand_in.script("prose", {"n": 1}, path="chat", where=lambda body: body.get("messages"))

        self.run(batch, [{"topic": "tea", "text": "a"}], output_type={"type": "object", "required": ["n"]})

        assert [turn["role"] for turn in chats(ollama)[1]["messages"][-3:]] == ["user", "assistant", "user"]
        assert chats(ollama)[1]["messages"][-2]["content"] == "prose"
        assert batch.results[0]["output"] == {"n": 1}

    @pytest.mark.parametrize(
        "turns",
        [
            [],
            [{"role": "tool", "content": "a"}],
            [{"role": "assistant", "content": "a"}],
            [{"role": "user", "content": "a", "name": "b"}],
        ],
    )
    def test_turns_that_are_none_are_refused(self, batch, ollama, turns):
        """Before anything is sent."""
        with pytest.raises(InputError, match="messages"):
            batch.run(["a"], messages=turns)
        assert ollama.stand_in.requests == []

    def test_a_missing_column_of_any_turn_is_named(self, batch, ollama):
        """As of a prompt."""
        with pytest.raises(InputError, match="'topic'"):
            self.run(batch, [{"text": "a"}])


@pytest.mark.ollama(models=[Model("eyes", ("completion", "vision")), Model("blind")])
class TestImages:
    @pytest.fixture
    def picture(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        return tmp_path / "a.png"

    def run(self, batch, rows, **spec):
        given = {
            "model": "eyes",
            "prompt": "What is it?",
            "images": "{{ row.path }}",
            "images_from": batch.directory.parent,
        }
        return batch.run(rows, **(given | spec))

    def test_the_picture_of_a_row_goes_with_it(self, batch, ollama, picture):
        """Several, one a line; by path or by URL."""
        self.run(batch, [{"path": f"{picture}\n{picture.as_uri()}\n"}])

        (body,) = [seen.json for seen in ollama.stand_in.requests if seen.json and seen.json.get("prompt")]
        assert body["images"] == [base64.b64encode(PNG).decode()] * 2

    def test_it_goes_with_the_last_turn_of_a_chat(self, batch, ollama, picture):
        """The one that asks for it."""
        turns = [{"role": "user", "content": "What is it?"}]
        self.run(batch, [{"path": str(picture)}], messages=turns, prompt="{{ row.text }}")

        assert chats(ollama)[0]["messages"][0]["images"] == [base64.b64encode(PNG).decode()]

    def test_its_content_is_part_of_the_work_and_its_place_is_not(self, batch, picture, tmp_path):
        """A copy is the same picture; a changed file is another."""
        self.run(batch, [{"path": str(picture)}])
        (tmp_path / "copy.png").write_bytes(PNG)
        assert self.run(batch, [{"path": str(tmp_path / "copy.png")}]).requests == 0

        picture.write_bytes(PNG + b"\0")
        assert self.run(batch, [{"path": str(picture)}]).requests == 1

    def test_what_is_no_picture_fails_its_row_unsent(self, batch, ollama, picture, tmp_path):
        """A file that is missing, or that no row should make us read."""
        (tmp_path / "secret.txt").write_text("secret")
        rows = [{"path": str(path)} for path in (picture, tmp_path / "none.png", tmp_path / "secret.txt", tmp_path)]

        summary = self.run(batch, rows)

        assert (summary.ok, summary.failed, summary.errors) == (1, 3, {"ImageError": 3})
        assert ["no such file" in row["error"]["text"] for row in batch.failed] == [True, False, False]
        assert "secret.txt" in batch.failed[1]["error"]["text"]

    def test_a_model_that_does_not_see_is_refused_before_the_first_row(self, batch, picture):
        """By its capabilities."""
        with pytest.raises(UnsupportedError, match="vision"):
            self.run(batch, [{"path": str(picture)}], model="blind")


class TestParquet:
    def table(self, batch):
        return parquet.read_table(batch.directory / "results.parquet")

    def test_text(self, batch, ollama):
        """The same rows as JSON lines, the failed ones among them and in failed.jsonl."""
        ollama.stand_in.script(Fail("no", 400), where=lambda body: body.get("prompt") == "b")
        rows = [{"id": name, "text": name} for name in "abc"]

        batch.run(rows, id_column="id", results="parquet")

        found = self.table(batch).to_pylist()
        assert [(row["index"], row["id"], row["status"]) for row in found] == [
            (0, "a", "ok"),
            (1, "b", "failed"),
            (2, "c", "ok"),
        ]
        assert (found[1]["output"], found[1]["error_class"]) == (None, "BadRequestError")
        assert [row["index"] for row in batch.failed] == [1]
        again = batch.run(rows[::2], id_column="id")
        assert again.requests == 0
        lines = batch.results
        assert [row["output"] for row in lines] == [found[0]["output"], found[2]["output"]]
        assert not (batch.directory / "results.parquet").exists()

    def test_typed_by_the_schema(self, batch, ollama):
        """A field that may be null is null; a type that Arrow does not have is JSON text."""
        schema = {
            "type": "object",
            "properties": {
                "label": {"$ref": "#/$defs/Label"},
                "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "any": {},
            },
            "$defs": {"Label": {"type": "string", "enum": ["x", "y"]}},
        }
        answer = {"label": "x", "score": None, "tags": ["a"], "any": {"b": 1}}
        ollama.stand_in.script(answer, where=lambda body: body.get("prompt"))

        batch.run(["a"], output_type=schema, results="parquet")

        assert self.table(batch).schema.field("output").type == pa.struct(
            {"label": pa.string(), "score": pa.float64(), "tags": pa.list_(pa.string()), "any": pa.string()}
        )
        assert self.table(batch)["output"].to_pylist() == [answer | {"any": '{"b": 1}'}]

    def test_a_schema_that_refers_to_itself_is_text(self):
        """A tree has no type of its own in a table."""
        schema = {
            "$ref": "#/$defs/T",
            "$defs": {"T": {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}, "n": {"type": "integer"}}}},
        }

        found = arrow_type(schema, schema)

        assert str(found).endswith("n: int64>")
        assert "t: string" in str(found)

    def test_ids(self, batch):
        """Integers stay integers; a mixture is text."""
        batch.run([{"id": 1, "text": "a"}, {"id": None, "text": "b"}], id_column="id", results="parquet")
        assert self.table(batch)["id"].to_pylist() == [1, None]

        batch.run([{"id": 1, "text": "a"}, {"id": "x", "text": "b"}], id_column="id", results="parquet")
        assert self.table(batch)["id"].to_pylist() == ["1", "x"]

    def test_an_empty_batch_is_an_empty_table(self, batch):
        """With its columns."""
        batch.run([], results="parquet")

        assert self.table(batch).num_rows == 0
        assert "output" in self.table(batch).column_names
