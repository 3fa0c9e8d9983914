"""Images whose path comes out of data: what may be read, and how much of it."""

import os
import socket
import subprocess
import sys
import threading
import tracemalloc

import pytest
from upath import UPath

from ollama_provider.api.errors import InvalidRequestError
from ollama_provider.api.images import LIMIT
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows.image_folder import ImageFolder
from ollama_provider.testing import Model

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def root(tmp_path):
    """A folder with an image, beside another that is nobody's business."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(PNG + b"a")
    (tmp_path / "images" / "more" / "b.png").write_bytes(PNG + b"b")
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "secret.png").write_bytes(PNG + b"secret")
    return tmp_path / "images"


def refusal(root, name):
    with pytest.raises(InvalidRequestError) as raised:
        ImageFolder(root).read(str(name), "images.0")
    return str(raised.value)


class TestLocal:
    def test_what_lies_in_the_folder_is_read(self, root):
        """By its path, by a URL, or by a path that begins there."""
        for folder in (root, str(root), root.as_uri(), UPath(root.as_uri())):
            for name in ("a.png", str(root / "a.png"), (root / "a.png").as_uri(), "more/../a.png", "./a.png"):
                assert ImageFolder(folder).read(name, "images.0") == PNG + b"a"

    @pytest.mark.parametrize(
        "name",
        [
            "../images-2/secret.png", "more/../../images-2/secret.png", "{parent}/images-2/secret.png",
            "file://{parent}/images-2/secret.png", "file://{parent}/images/%2e%2e/images-2/secret.png", "/etc/passwd",
            "http://127.0.0.1/a.png", "s3://bucket/a.png", "memory://a.png", "simplecache::file://{parent}/images-2/secret.png",
            "", ".", "..", "a\0.png", "x" * 5000, "/dev/zero", "/proc/self/environ", "\ud83d.png",
        ],
    )  # fmt: skip
    def test_nothing_else(self, root, name):
        told = refusal(root, name.format(parent=root.parent))

        assert told.startswith("images.0")
        assert "secret" not in told.replace("(secret.png)", "")
        told.encode()

    def test_links_do_not_lead_out(self, root):
        """Neither one in the place of the file nor one on the way; those within the folder are followed."""
        (root / "out.png").symlink_to(root.parent / "images-2" / "secret.png")
        (root / "way").symlink_to(root.parent / "images-2")
        (root / "circle").symlink_to("circle")
        (root / "in.png").symlink_to("more/b.png")

        for name in ("out.png", "way/secret.png", root / "out.png"):
            assert "is not in" in refusal(root, name)
        assert refusal(root, "circle")
        assert ImageFolder(root).read("in.png", "images.0") == PNG + b"b"

    def test_a_folder_that_is_a_link_is_meant_itself(self, root):
        (root.parent / "link").symlink_to(root)

        assert ImageFolder(root.parent / "link").read("a.png", "images.0") == PNG + b"a"
        assert ImageFolder(root.parent / "link").read(str(root.parent / "link" / "a.png"), "images.0") == PNG + b"a"

    def test_only_regular_files(self, root):
        """A pipe that nobody writes to holds up nobody, a device does not fill the memory."""
        os.mkfifo(root / "pipe.png")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "socket.png"))

            for folder, name in (
                (root, "pipe.png"),
                (root, "socket.png"),
                (root, "more"),
                ("/dev", "zero"),
                ("/dev", "null"),
            ):
                assert "cannot be read" in refusal(folder, name)

    def test_the_size_is_counted_while_reading(self, root):
        """What the file system says of a size may be wrong: of files in /proc it says 0."""
        with (root / "large.png").open("wb") as file:
            file.write(PNG)
            file.truncate(LIMIT + 1)

        assert "20 MB is the most" in refusal(root, "large.png")


class Stored:
    """An object of a store whose library does as it likes."""

    def __init__(self, url, opened):
        self.url = url
        self.opened = opened

    def __str__(self):
        return self.url

    def joinpath(self, *parts):
        return Stored("/".join((self.url, *parts)), self.opened)

    def open(self, _mode):
        return self.opened()


class TestStores:
    @pytest.fixture
    def folder(self, root):
        """The same in a store."""
        base = UPath(f"memory://images-{root.parent.name}")
        (base / "in" / "a.png").write_bytes(PNG + b"a")
        (base / "in" / "large.png").write_bytes(PNG + bytes(LIMIT))
        (base / "in-2" / "secret.png").write_bytes(PNG + b"secret")
        return base / "in"

    def test_what_lies_in_the_folder_is_read(self, folder):
        for made in (folder, str(folder)):
            for name in ("a.png", "./a.png", "/".join((str(folder), "a.png"))):
                assert ImageFolder(made).read(name, "images.0") == PNG + b"a"

    @pytest.mark.parametrize(
        "name",
        [
            "../in-2/secret.png", "{}/../in-2/secret.png", "{}-2/secret.png", "/etc/passwd", "file:///etc/passwd",
            "%2e%2e/in-2/secret.png", "x/%2E./../in-2/secret.png", "http://127.0.0.1/a.png", "{}/x::http://127.0.0.1/a",
            "s3://bucket/a.png", "..\\in-2\\secret.png", "", "{}",
        ],
    )  # fmt: skip
    def test_nothing_else(self, folder, name):
        assert "is not in" in refusal(folder, name.format(folder))

    def test_a_url_within_the_path_is_a_name(self, folder):
        """And no other address."""
        assert "no such file" in refusal(folder, f"{folder}/http://127.0.0.1/a.png")

    def test_no_more_than_the_limit_is_read(self, folder):
        assert "20 MB is the most" in refusal(folder, "large.png")

    def test_an_endless_object(self):
        """The memory is bounded, whatever the store says of its size."""

        tracemalloc.start()
        told = refusal(Stored("x://bucket", lambda: open("/dev/zero", "rb")), "a.png")  # noqa: PTH123, SIM115
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert "more than 20 MB" in told
        assert peak < 5 * LIMIT

    def test_errors_of_a_stores_library_are_ours(self):
        """Its texts may hold a signed address."""

        def fail():
            raise RuntimeError("https://store/?signature=secret")

        with pytest.raises(OSError, match="RuntimeError") as raised:
            ImageFolder(Stored("x://bucket", fail)).read("a.png", "images.0")
        assert "secret" not in str(raised.value)


@pytest.mark.ollama(models=[Model("eyes", ("completion", "vision"))])
class TestBatch:
    def run(self, batch, rows, **spec):
        return batch.run(rows, **({"model": "eyes", "prompt": "What?", "images": "{{ row.path }}"} | spec))

    def test_a_row_reaches_no_address(self, batch, root):
        """Not even one that would answer with an image."""
        visits = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=lambda: visits.append(server.accept()), daemon=True).start()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
            summary = self.run(batch, [{"path": url}, {"path": "a.png"}], images_from=root)

        assert (summary.ok, summary.failed, visits) == (1, 1, [])
        assert batch.failed[0]["error"]["class"] == "ImageError"
        assert "images_from" in batch.failed[0]["error"]["text"]

    def test_the_folder_of_the_input_is_where_images_lie(self, batch, root):
        """Where nothing else is said, and the rows are files."""
        (root / "rows.jsonl").write_text(
            '{"path": "a.png"}\n{"path": "more/b.png"}\n{"path": "../images-2/secret.png"}\n'
        )

        for rows in (str(root / "rows.jsonl"), root / "*.jsonl", [root / "rows.jsonl"]):
            self.run(batch, rows)
            assert [row["status"] for row in batch.results] == ["ok", "ok", "failed"]

    @pytest.mark.parametrize("make", [lambda root: [{"path": f"{root}/a.png"}], lambda root: iter([{"path": "a.png"}])])
    def test_where_the_rows_are_no_files_the_folder_is_named(self, batch, root, make):
        with pytest.raises(InputError, match=r"^images_from: .*name the folder"):
            self.run(batch, make(root))
        (root / "rows.jsonl").write_text("")
        (root / "more" / "rows.jsonl").write_text("")
        with pytest.raises(InputError, match=r"^images_from"):
            self.run(batch, [root / "rows.jsonl", root / "more" / "rows.jsonl"])

    def test_the_command(self, ollama, root, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"path": "a.png"}\n{"path": "/dev/zero"}\n')
        command = [
            sys.executable,
            "-m",
            "ollama_provider.batch",
            "--host",
            ollama.url,
            "--model",
            "eyes",
            "--prompt",
            "?",
        ]
        where = [
            "--rows",
            str(tmp_path / "rows.jsonl"),
            "--images",
            "{{ row.path }}",
            "--output",
            str(tmp_path / "out"),
        ]
        ran = subprocess.run(
            [*command, *where, "--images-from", str(root)], capture_output=True, text=True, timeout=60, check=False
        )

        assert ran.returncode == 1, ran.stderr
        assert '"status":"ok"' in (tmp_path / "out" / "results.jsonl").read_text().splitlines()[0].replace(" ", "")
        assert "ImageError" in (tmp_path / "out" / "failed.jsonl").read_text()
