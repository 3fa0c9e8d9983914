"""Chats and images in a batch, over real HTTP against a stand-in."""

import base64

import pytest

from ollama_provider.api.errors import UnsupportedError
from ollama_provider.batch.errors import InputError
from ollama_provider.testing import Model

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MESSAGES = [
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
        return batch.run(rows, **({"messages": MESSAGES} | spec))

    def test_messages_are_rendered_for_each_row(self, batch, ollama):
        """Each message is a template. Quotes and line breaks in a row do not change the structure of the messages."""
        text = 'a "b"\n{{ c }}'
        summary = self.run(batch, [{"topic": "tea", "text": text}])

        (body,) = chats(ollama)
        assert [(message["role"], message["content"]) for message in body["messages"]] == [
            ("system", "You know tea."),
            ("user", "Hello."),
            ("assistant", "Hello, what about tea?"),
            ("user", text),
        ]
        assert (body["truncate"], body["think"]) == (False, False)
        assert summary.ok == 1
        assert batch.results[0]["tokens"] > 0

    def test_messages_are_part_of_the_key(self, batch, ollama):
        """With another first message the row is asked, with the same messages it is not."""
        rows = [{"topic": "tea", "text": "a"}]
        self.run(batch, rows)
        assert self.run(batch, rows).requests == 0

        assert self.run(batch, [{"topic": "milk", "text": "a"}]).requests == 1
        assert batch.run([{"text": "a"}], messages=MESSAGES[3:]).requests == 1

    def test_a_wrong_answer_becomes_a_message(self, batch, ollama):
        """What was wrong with it is in the next message."""
        ollama.stand_in.script("prose", {"n": 1}, path="chat", where=lambda body: body.get("messages"))

        self.run(batch, [{"topic": "tea", "text": "a"}], output_type={"type": "object", "required": ["n"]})

        assert [message["role"] for message in chats(ollama)[1]["messages"][-3:]] == ["user", "assistant", "user"]
        assert chats(ollama)[1]["messages"][-2]["content"] == "prose"
        assert batch.results[0]["output"] == {"n": 1}

    @pytest.mark.parametrize(
        "messages",
        [
            [],
            [{"role": "tool", "content": "a"}],
            [{"role": "assistant", "content": "a"}],
            [{"role": "user", "content": "a", "name": "b"}],
        ],
    )
    def test_invalid_messages_are_refused(self, batch, ollama, messages):
        """This happens before the first request."""
        with pytest.raises(InputError, match="messages"):
            batch.run(["a"], messages=messages)
        assert ollama.stand_in.requests == []

    def test_a_missing_column_of_any_message_is_named(self, batch, ollama):
        """The error is the same as for a prompt."""
        with pytest.raises(InputError, match="'topic'"):
            self.run(batch, [{"text": "a"}])


@pytest.mark.ollama(models=[Model("eyes", ("completion", "vision")), Model("blind")])
class TestImages:
    @pytest.fixture
    def image(self, tmp_path):
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

    def test_the_images_of_a_row_are_sent(self, batch, ollama, image):
        """There may be several, one path or URL a line."""
        self.run(batch, [{"path": f"{image}\n{image.as_uri()}\n"}])

        (body,) = [seen.json for seen in ollama.stand_in.requests if seen.json and seen.json.get("prompt")]
        assert body["images"] == [base64.b64encode(PNG).decode()] * 2

    def test_images_go_with_the_last_message_of_a_chat(self, batch, ollama, image):
        """That is the message that asks about them."""
        messages = [{"role": "user", "content": "What is it?"}]
        self.run(batch, [{"path": str(image)}], messages=messages, prompt="{{ row.text }}")

        assert chats(ollama)[0]["messages"][0]["images"] == [base64.b64encode(PNG).decode()]

    def test_the_content_is_part_of_the_key_and_the_path_is_not(self, batch, image, tmp_path):
        """A copy of an image is not asked again, a changed file is."""
        self.run(batch, [{"path": str(image)}])
        (tmp_path / "copy.png").write_bytes(PNG)
        assert self.run(batch, [{"path": str(tmp_path / "copy.png")}]).requests == 0

        image.write_bytes(PNG + b"\0")
        assert self.run(batch, [{"path": str(image)}]).requests == 1

    def test_a_file_that_is_no_image_fails_its_row_unsent(self, batch, ollama, image, tmp_path):
        """Missing files, folders and other kinds of files fail without a request."""
        (tmp_path / "secret.txt").write_text("secret")
        rows = [{"path": str(path)} for path in (image, tmp_path / "none.png", tmp_path / "secret.txt", tmp_path)]

        summary = self.run(batch, rows)

        assert (summary.ok, summary.failed, summary.errors) == (1, 3, {"ImageError": 3})
        assert ["no such file" in row["error"]["text"] for row in batch.failed] == [True, False, False]
        assert "secret.txt" in batch.failed[1]["error"]["text"]

    def test_a_model_without_vision_is_refused_before_the_first_row(self, batch, image):
        """Its capabilities tell."""
        with pytest.raises(UnsupportedError, match="vision"):
            self.run(batch, [{"path": str(image)}], model="blind")
