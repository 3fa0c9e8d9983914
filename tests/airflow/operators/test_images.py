"""Pictures for generate and chat: what is taken, what is refused, and who may name a file."""

import base64
import io
import wave
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import LIMIT, capabilities_for
from ollama_provider.operators._images import read_images

#: One grey pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)
TEXT = base64.b64encode(PNG).decode()
JPEG, WEBP = b"\xff\xd8\xff\xe0\0\x10JFIF", b"RIFF\0\0\0\0WEBPVP8 "


def sound() -> bytes:
    """A WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(8000)
        wav.writeframes(b"\0\0" * 80)
    return file.getvalue()


def refusal(images, *, images_from=None) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read_images(images, images_from=images_from)
    return str(caught.value)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize("image", [PNG, bytearray(PNG), TEXT, f"data:image/png;base64,{TEXT}", f" {TEXT}\n"], ids=type)
def test_bytes_and_base64_are_taken(image):
    """As they come out of a file, a database or a web page."""
    assert read_images([image]) == [PNG]
    assert read_images(image) == [PNG]


def test_paths_of_the_dag_are_taken(picture):
    """A path object was made by code, not by data."""
    assert read_images([picture, ObjectStoragePath(str(picture))]) == [PNG, PNG]


def test_a_text_is_a_path_only_if_that_was_asked_for(picture):
    """Else whoever writes the text would choose what the worker reads."""
    for images in (str(picture), picture.as_uri(), picture.name, TEXT):
        assert read_images(images, images_from=str(picture.parent)) == [PNG]
    assert read_images(str([str(picture), TEXT]), images_from=ObjectStoragePath(str(picture.parent))) == [PNG] * 2

    told = refusal(str(picture))
    assert "set images_from" in told
    assert str(picture) not in told


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"GIF89a", "a GIF"),
        (b"BM\0\0", "a BMP"),
        (b"II*\0", "a TIFF"),
        (b"\0\0\0\x20ftypheic", "a HEIC or AVIF"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"PK\3\4", "a ZIP or Office file"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'<?xml version="1.0"?>\n<!-- a logo -->\n<svg>', "an SVG"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"root:x:0:0:", "something else"),
        (b"", "empty"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, data, what):
    """The text says what it is instead, and in which file."""
    path = tmp_path / "page.png"
    path.write_bytes(data)

    told = refusal([PNG, path])

    assert told.startswith(f"images.1 (page.png): this is {what}, and a model takes PNG, JPEG or WebP")


def test_a_huge_picture_is_not_read(tmp_path):
    """50 MB are refused by what the file system says, and the text names the limit."""
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(50_000_000)

    assert refusal(path).startswith("images.0 (huge.png): it has 50.0 MB, and 20 MB is the most that is sent")
    assert "it has 20.0 MB" in refusal(PNG + bytes(LIMIT))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("/nowhere/cat.png", "images.0 (cat.png): there is no such file"),
        ("/etc", "images.0 (etc): it cannot be read"),
        ("nowhere://bucket/cat.png", "images.0: it is not in /, and only images in that folder are read; images_from"),
        ({"a": 1}, "images: a list is needed, not dict"),
        ([7], "images.0: bytes, base64 or a path is needed, not int"),
        ([None], "images.0: bytes, base64 or a path is needed, not NoneType"),
    ],
)
def test_what_cannot_be_read_is_refused(images, told):
    """With its place in the list."""
    assert refusal(images, images_from="/").startswith(told)


def test_the_needed_capability_follows_from_the_bytes():
    """Pictures want vision, sounds audio."""
    assert capabilities_for([PNG, JPEG, WEBP]) == {"vision"}
    assert capabilities_for([sound(), b"ID3\4"]) == {"audio"}
    assert capabilities_for([]) == set()


#: Reading is the same for both ways to wait.
WORKER = pytest.mark.parametrize("run_task", [False], ids=["blocking"], indirect=True)
IMPORTS = "from airflow.providers.common.compat.sdk import ObjectStoragePath"
CAPTION = "OllamaGenerateOperator(task_id='t', model='{model}', prompt='Caption', retries=3, images={images})"


@WORKER
def test_a_picture_is_sent_as_base64(run_task, ollama, picture):
    """To a model with vision, out of a file that the DAG names."""
    ran = run_task(CAPTION.format(model="llava", images=f"[ObjectStoragePath('{picture}')]"), above=IMPORTS)

    assert ran.state == "success"
    sent = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/generate")
    assert sent["images"] == [TEXT]


@WORKER
def test_a_path_from_another_task_is_read_only_if_allowed(run_task, ollama, picture):
    """The other task gives a text."""
    above = f"{IMPORTS}\n@task\ndef find() -> list[str]:\n    return ['{picture}']"

    refused = run_task(f"found = find()\n{CAPTION.format(model='llava', images='found')}", above=above)
    named = CAPTION.format(model="llava", images="found, images_from='{{ params.folder }}'")
    allowed = run_task(f"found = find()\n{named}", above=above, params={"folder": str(picture.parent)})

    assert (refused.state, refused.tries) == ("failed", 1)
    assert "images.0: this text is not base64" in refused.log
    assert allowed.state == "success"


@WORKER
def test_pictures_in_a_chat(run_task, ollama, picture):
    """Each message has its own, and a fault names the message."""
    message = "{{'role': 'user', 'content': 'What?', 'images': [{}]}}"
    chat = f"OllamaChatOperator(task_id='t', model='llava', messages=[{message}])"

    good = run_task(chat.format(f"ObjectStoragePath('{picture}')"), above=IMPORTS)
    bad = run_task(chat.format("b'%PDF-1.7'"), above=IMPORTS)

    assert good.state == "success"
    sent = next(seen.json for seen in ollama.stand_in.requests if seen.path == "/api/chat")
    assert sent["messages"][0]["images"] == [TEXT]
    assert "messages.0.images.0: this is a PDF" in bad.log


@WORKER
def test_a_model_without_vision_is_refused_before_it_is_loaded(run_task, ollama):
    """A server up to 0.24 would answer as if there were no picture; the error names models that can see."""
    ran = run_task(CAPTION.format(model="llama3.2", images=f"['{TEXT}']"))

    assert (ran.state, ran.tries) == ("failed", 1)
    assert "the model lacks vision; its capabilities are completion, tools" in ran.log
    assert "Suitable models on this server: llava:latest" in ran.log
    assert ollama.stand_in.loads == []


@WORKER
def test_where_no_model_can_that_is_said(run_task, ollama):
    """Rather than an empty list."""
    ran = run_task(CAPTION.format(model="llava", images=[base64.b64encode(sound()).decode()]))

    assert "the model lacks audio" in ran.log
    assert "No model on this server is suitable" in ran.log


@WORKER
def test_a_missing_model_is_pulled_before_it_is_asked_what_it_can(run_task, ollama):
    """As by any other request."""
    ollama.stand_in.remove("llava")

    ran = run_task(CAPTION.format(model="llava", images=f"['{TEXT}']"))

    assert ran.state == "success"
    assert ollama.stand_in.downloads == {"llava:latest": 1}


@pytest.mark.ollama(version="0.5.7")
@WORKER
def test_an_old_server_does_not_say_what_a_model_can(run_task, ollama):
    """Then it is left to find out."""
    assert run_task(CAPTION.format(model="llama3.2", images=f"['{TEXT}']")).state == "success"


@WORKER
def test_an_error_does_not_quote_what_it_was_given(run_task, ollama):
    """It may be an image, or a confidential text."""
    ran = run_task(CAPTION.format(model="llava", images=f"['{TEXT}', 'my diary']"))

    assert ran.state == "failed"
    assert "images.1: this text is not base64" in ran.log
    assert "diary" not in ran.log
