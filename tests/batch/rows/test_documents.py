"""Documents: text, Markdown, HTML, PDF and Word, good ones and those that are meant to do harm."""

import io
import sys
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.rows import documents
from ollama_provider.batch.rows.sources import count_rows, read_rows

DATA = Path(__file__).parents[2] / "data/inputs/documents"
TEXTS = {
    "deep/note.md": "# Note\n\nMarkdown *stays* as it is.\n",
    "page.html": "A page\n\nGröße & weight\n\nOne sentence.\nAnother.\n\nname\tn\n\na\t1\n\n  kept\n    as is",
    "plain.txt": "Größe in text.\n",
    "report.docx": "A report\nFirst paragraph.\nname\tn\na\t1\nAfter the table.",
    "two-pages.pdf": "The first page.\n\nThe second page.",
}


def text_of(path, options=InputOptions()):  # noqa: B008
    (row,) = read_rows(path, options)
    assert row.fault is None
    return row.columns["text"]


def fault_of(path):
    (row,) = read_rows(path)
    return row.fault or ""


@pytest.mark.parametrize("name", TEXTS)
def test_each_file_is_a_row(name):
    (row,) = read_rows(DATA / name)

    assert row.columns == {
        "path": str(DATA / name),
        "name": Path(name).name,
        "text": TEXTS[name],
        "modified": datetime.fromtimestamp((DATA / name).stat().st_mtime, UTC),
    }
    assert row.place == str(DATA / name)


def test_a_folder_with_all_that_is_below_it():
    """In the order of the paths; documents are counted by their names."""
    rows = list(read_rows(DATA / "**/*.*"))

    assert [Path(row.columns["path"]).relative_to(DATA).as_posix() for row in rows] == sorted(TEXTS)
    assert count_rows(DATA / "**/*.*") == len(TEXTS)
    assert count_rows(DATA / "**/*.*", options=InputOptions(split_text=100)) is None


def test_documents_in_an_object_store():
    """With the time that the store tells, if it tells one."""
    for name in TEXTS:
        UPath(f"memory://documents/{name}").write_bytes((DATA / name).read_bytes())

    rows = list(read_rows(UPath("memory://documents/**/*")))

    assert {row.columns["text"] for row in rows} == set(TEXTS.values())
    assert rows[0].columns["path"] == "memory://documents/deep/note.md"
    assert all(row.columns["modified"] is None or row.columns["modified"].tzinfo is UTC for row in rows)


def test_texts_choose_no_documents():
    """They may come from anybody: what is one of the two is refused, and a sentence is a sentence."""
    with pytest.raises(InputError, match=r"^rows: they may be texts, or names of documents"):
        read_rows([str(DATA / "plain.txt"), str(DATA / "deep/note.md")])

    rows = list(read_rows(["Sum up README.md", "x.txt"]))
    assert [row.columns["text"] for row in rows] == ["Sum up README.md", "x.txt"]
    assert len(list(read_rows([DATA / "plain.txt", DATA / "deep/note.md"]))) == 2


class TestPieces:
    """Long texts, in overlapping pieces."""

    @given(st.text(alphabet="ab. \n", max_size=2000), st.integers(100, 300))
    def test_they_overlap_and_cover_the_text(self, text, size):
        pieces = list(documents.split(text, size))

        assert all(len(piece) <= size for piece in pieces)
        place = 0
        for piece in pieces:
            found = text.find(piece, max(0, place - size // 10))
            assert 0 <= found <= place
            place = max(place, found + len(piece))
        assert place == len(text)

    def test_the_best_break_is_taken(self):
        """Between paragraphs rather than between words; the overlap begins at a word."""
        text = "word " * 15 + "end.\n\n" + "more " * 30

        first, second, *_ = documents.split(text, 100)

        assert first.endswith("end.\n\n")
        assert second.startswith("end.\n\nmore more")

    def test_each_is_a_row(self, tmp_path):
        (tmp_path / "a.txt").write_text("word " * 100)
        (tmp_path / "b.txt").write_text("short")

        rows = list(read_rows(tmp_path / "*.txt", InputOptions(split_text=200)))

        assert [(row.columns["name"], row.columns["chunk"]) for row in rows] == [
            ("a.txt", 0),
            ("a.txt", 1),
            ("a.txt", 2),
            ("b.txt", 0),
        ]
        assert rows[1].place.endswith("a.txt, chunk 1")


class TestHtml:
    """As far as a person would read it."""

    @pytest.mark.parametrize(
        ("html", "text"),
        [
            ("a<!-- no -->b<script>no</script><STYLE>no</STYLE>c", "abc"),
            ("<template>no<template>no</template>no</template>yes", "yes"),
            ("<p>a &lt;b&gt; &euro; &#x41;", "a <b> € A"),
            ("<b>bold</b>\n  <i>next</i>", "bold next"),
            ("<script>never closed <p>a", ""),
            ("1 < 2 & 3 <", "1 < 2 & 3 <"),
            ("", ""),
        ],
    )
    def test_text(self, tmp_path, html, text):
        (tmp_path / "a.htm").write_text(html, encoding="utf-8")

        assert text_of(tmp_path / "a.htm") == text

    def test_an_entity_and_a_word_across_pieces(self, tmp_path):
        """The parser is given 64 kB at a time."""
        for before in range(65_530, 65_538):
            (tmp_path / "a.html").write_text("x" * before + "&euro;uro <b>word</b>")

            assert text_of(tmp_path / "a.html") == "x" * before + "€uro word"

    def test_an_encoding_that_is_none_of_pages(self, tmp_path):
        (tmp_path / "a.html").write_text('<meta charset="punycode">größe', encoding="utf-8")

        assert text_of(tmp_path / "a.html") == "größe"

    def test_time(self, tmp_path, monkeypatch):
        """A page that takes its parser the square of its length fails alone."""
        monkeypatch.setattr(documents, "_MAX_SECONDS", 0.0)
        (tmp_path / "a.html").write_text("<!--" * 100_000)

        assert "not found within" in fault_of(tmp_path / "a.html")


class TestBadFiles:
    """Each is a broken row."""

    @pytest.mark.parametrize("suffix", [".pdf", ".docx"])
    @pytest.mark.parametrize("content", [b"", b"no such thing", b"%PDF-1.4\n%%EOF", b"PK\3\4" + bytes(100)])
    def test_no_such_format(self, tmp_path, suffix, content):
        (tmp_path / f"a{suffix}").write_bytes(content)

        assert "cannot be read as" in fault_of(tmp_path / f"a{suffix}")

    def test_another_encoding(self, tmp_path):
        (tmp_path / "a.txt").write_bytes("größe".encode("latin-1"))

        assert 'not UTF-8. Say what it is, such as input_options={"encoding": "latin-1"}' in fault_of(
            tmp_path / "a.txt"
        )
        assert text_of(tmp_path / "a.txt", InputOptions(encoding="latin-1")) == "größe"

    def test_a_large_file(self, tmp_path):
        """No more of it is read than the limit."""
        with (tmp_path / "a.txt").open("wb") as file:
            file.truncate(10 << 30)

        tracemalloc.start()
        fault = fault_of(tmp_path / "a.txt")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert fault == "it is larger than 128 MB"
        assert peak < 2 * documents.MAX_SIZE

    def test_a_zip_bomb(self, tmp_path):
        """It is refused by what it says of itself, before anything is decompressed."""
        bomb = io.BytesIO((DATA / "report.docx").read_bytes())
        with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as parts:
            parts.writestr("word/more.xml", bytes((1 << 25) + 1))
        (tmp_path / "a.docx").write_bytes(bomb.getvalue())
        assert len(bomb.getvalue()) < 1 << 20

        assert "decompresses to more" in fault_of(tmp_path / "a.docx")

    def test_a_pdf_of_many_pages(self, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "MAX_PAGES", 1)

        assert fault_of(DATA / "two-pages.pdf") == "it has more than 1 pages"

    def test_the_log_does_not_quote_a_pdf(self, tmp_path, caplog):
        """Its library warns of what it gets over, in words of the file."""
        broken = (DATA / "two-pages.pdf").read_bytes().replace(b"startxref\n", b"startxref\n1")
        (tmp_path / "a.pdf").write_bytes(broken.replace(b"/Resources", b"Secrets ["))

        list(read_rows(tmp_path / "a.pdf"))

        assert not caplog.text

    def test_a_pdf_of_pictures(self, tmp_path):
        """An empty text would be asked about, or fail with less of a reason."""
        empty = (DATA / "two-pages.pdf").read_bytes().replace(b"(The first page.)", b"(               )")
        (tmp_path / "a.pdf").write_bytes(empty.replace(b"(The second page.)", b"(                )"))

        assert fault_of(tmp_path / "a.pdf") == "there is no text on its 2 pages, which may be pictures of text"

    def test_a_file_that_goes_away_while_others_are_read(self, tmp_path):
        for name in ("a.txt", "b.txt", "c.txt"):
            (tmp_path / name).write_text(name)
        rows = read_rows(tmp_path / "*.txt")

        first = next(rows)
        (tmp_path / "b.txt").unlink()
        second, third = rows

        assert (first.columns["text"], third.columns["text"]) == ("a.txt", "c.txt")
        assert "There is no file" in second.fault


@pytest.mark.parametrize(
    ("name", "module", "package"), [("two-pages.pdf", "pypdf", "pypdf"), ("report.docx", "docx", "python-docx")]
)
def test_a_missing_library_is_named(monkeypatch, name, module, package):
    """All documents of the kind would fail alike, so the batch does."""
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(InputError, match=rf"need {package}, .* pip install 'airflow-provider-ollama\[documents\]'"):
        list(read_rows(DATA / name))
