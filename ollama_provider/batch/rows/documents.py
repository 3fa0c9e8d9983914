"""Documents: files of text, Markdown, HTML, PDF or Word, each of which is a row, or a row for each piece of it.

What is in such a file was written by anybody. So its size, its pages and what it decompresses to are limited, and
whatever goes wrong with it is a fault of its row.
"""

import codecs
import io
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

from ollama_provider.batch.arguments import InputOptions
from ollama_provider.batch.errors import InputError
from ollama_provider.batch.records import RAW, TEXT, Row
from ollama_provider.batch.rows import text_files

#: Maximum bytes of a file, of HTML (whose parser may need time by the square of it), and pages.
MAX_SIZE, MAX_HTML, MAX_PAGES = 1 << 27, 1 << 24, 10_000
#: Maximum bytes of all that a Word file holds, and of the XML of one of its parts, which needs many times as much.
_MAX_UNPACKED, _MAX_XML = 1 << 28, 1 << 25
#: Seconds after which no further page, or piece of HTML, is read.
_MAX_SECONDS = 60.0
#: Bytes of HTML that are searched for its encoding, as browsers do.
_HTML_HEAD = 1024


class _UnreadableError(Exception):
    """What is wrong with a document."""


def document_rows(
    data: bytes, path: str, suffix: str, modified: datetime | None, options: InputOptions
) -> Iterator[Row]:
    """Return the row of a document, or the rows of its pieces.

    Args:
        data: content of the file, or its beginning if it has more than `MAX_SIZE` bytes.
        path: of the file.
        suffix: says the format.
        modified: when the file was written; None if that is unknown.
        options: encoding, and the size of the pieces.

    Raises:
        InputError: the library for the format is not installed.
    """
    columns = {"path": path, "name": re.split(r"[/\\]", path)[-1], TEXT: "", "modified": modified}
    try:
        if len(data) > MAX_SIZE:
            raise _UnreadableError(f"it is larger than {MAX_SIZE >> 20} MB")
        text = _READERS[suffix](data, options)
        if len(text) > text_files.MAX_LINE:
            raise _UnreadableError(f"its text is longer than {text_files.MAX_LINE >> 20} MB")
    except _UnreadableError as error:
        yield Row({RAW: ""}, path, str(error))
        return
    if options.split_text is None:
        yield Row(columns | {TEXT: text}, path)
        return
    for chunk, piece in enumerate(split(text, options.split_text)):
        yield Row(columns | {TEXT: piece, "chunk": chunk}, f"{path}, chunk {chunk}")


def split(text: str, size: int) -> Iterator[str]:
    """Return overlapping pieces of a text.

    A piece ends between two paragraphs, lines, sentences or words, whichever is found first in its last quarter; the
    next one begins a tenth of *size* before that, at a word.

    Args:
        text: to be split; one piece if it is short enough.
        size: maximum characters of a piece.
    """
    start = 0
    while len(text) - start > size:
        end = _break(text, start + size - size // 4, start + size)
        yield text[start:end]
        begin = end - size // 10
        space = _SPACE.search(text, begin, end)
        start = space.end() if space is not None and space.end() < end else begin
    yield text[start:]


_SPACE = re.compile(r"\s+")
_ENDS = ("\n\n", "\n", ". ", " ")


def _break(text: str, first: int, last: int) -> int:
    """Return the best place between *first* and *last* to end a piece."""
    for end in _ENDS:
        if (found := text.rfind(end, first, last)) >= 0:
            return found + len(end)
    return last


def _read_text(data: bytes, options: InputOptions) -> str:
    try:
        return data.decode(options.encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        name = options.encoding or "UTF-8"
        raise _UnreadableError(
            f'it is not {name}. Say what it is, such as input_options={{"encoding": "latin-1"}}'
        ) from None


def _read_html(data: bytes, options: InputOptions) -> str:
    if len(data) > MAX_HTML:
        raise _UnreadableError(f"it is larger than {MAX_HTML >> 20} MB, the limit for HTML")
    if options.encoding is None and (named := _CHARSET.search(data[:_HTML_HEAD])):
        try:
            html = data.decode(codecs.lookup(named[1].decode()).name)
        except (LookupError, ValueError):
            html = _read_text(data, options)
    else:
        html = _read_text(data, options)
    parser, deadline = _HtmlText(), _deadline()
    for start in range(0, len(html), 1 << 16):
        deadline()
        parser.feed(html[start : start + (1 << 16)])
    parser.close()
    return parser.text()


#: Only encodings of web pages: Python has others, such as punycode, that take the square of a text's length.
_CHARSET = re.compile(
    rb"""<meta[^>]+charset\s*=\s*["']?((?:utf|windows|cp|iso|latin|koi8|gb|big5|euc|shift|ascii|us-)[\w.:-]*)""",
    re.IGNORECASE,
)
#: Elements without text for people, and those that stand on lines of their own.
_SILENT = frozenset({"script", "style", "template", "noscript", "svg"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header"}
    | {"hr", "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "title", "tr", "ul"}
)


class _HtmlText(HTMLParser):
    """Collects what a reader sees: a line for each block, nothing of scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces = [""]
        self._silent: str | None = None
        self._depth = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002  # the interface
        if self._silent is not None:
            self._depth += tag == self._silent
        elif tag in _SILENT:
            self._silent, self._depth = tag, 1
        elif tag in _BLOCKS:
            self._pieces.append("\n")
            self._pre += tag == "pre"
        elif tag in {"td", "th"} and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\t")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        if tag not in _SILENT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._silent is not None:
            self._depth -= tag == self._silent
            if not self._depth:
                self._silent = None
        elif tag in _BLOCKS:
            self._pieces.append("\n")
            self._pre -= tag == "pre" and self._pre > 0

    def handle_data(self, data: str) -> None:
        if self._silent is not None:
            return
        if not self._pre:
            data = re.sub(r"\s+", " ", data)
            if self._pieces[-1].endswith(("\n", "\t", " ")):
                data = data.lstrip(" ")
        if data:
            self._pieces.append(data)

    def text(self) -> str:
        """Return the text so far, with one blank line between blocks at most."""
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(self._pieces))).strip()


def _deadline() -> Callable[[], None]:
    end = time.monotonic() + _MAX_SECONDS

    def check() -> None:
        if time.monotonic() > end:
            raise _UnreadableError(f"its text was not found within {_MAX_SECONDS:g} s")

    return check


def _read_pdf(data: bytes, options: InputOptions) -> str:  # noqa: ARG001  # it has encodings of its own
    try:
        from pypdf import PdfReader  # an extra
    except ImportError:
        raise _missing("pypdf") from None
    # It warns of every fault that it gets over, and quotes the file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    deadline = _deadline()
    texts: list[str] = []
    size = 0
    try:
        for page in PdfReader(io.BytesIO(data)).pages:
            deadline()
            if len(texts) >= MAX_PAGES:
                raise _UnreadableError(f"it has more than {MAX_PAGES} pages")
            texts.append(page.extract_text())
            size += len(texts[-1])
            if size > text_files.MAX_LINE:
                break
    except _UnreadableError:
        raise
    except Exception as error:  # of pypdf, of Python, of what decrypts: a file from anybody
        raise _UnreadableError(f"it cannot be read as PDF ({type(error).__name__})") from error
    text = "\n\n".join(texts)
    if texts and not text.strip():
        raise _UnreadableError(f"there is no text on its {len(texts)} pages, which may be pictures of text")
    return text


def _read_docx(data: bytes, options: InputOptions) -> str:  # noqa: ARG001  # it has an encoding of its own
    try:
        from docx import Document  # an extra
        from docx.table import Table
    except ImportError:
        raise _missing("python-docx") from None
    deadline = _deadline()
    lines: list[str] = []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            sizes = {part.filename: part.file_size for part in parts.infolist()}
        # Python reads no more of a part than this, so the sizes cannot be understated.
        xml = max((size for name, size in sizes.items() if name.endswith((".xml", ".rels"))), default=0)
        if sum(sizes.values()) > _MAX_UNPACKED or xml > _MAX_XML:
            raise _UnreadableError("it decompresses to more than a document has")
        for block in Document(io.BytesIO(data)).iter_inner_content():
            deadline()
            if isinstance(block, Table):
                lines += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
            else:
                lines.append(block.text)
    except _UnreadableError:
        raise
    except Exception as error:  # of zipfile, lxml, python-docx: a file from anybody
        raise _UnreadableError(f"it cannot be read as a Word file ({type(error).__name__})") from error
    return "\n".join(lines)


def _missing(package: str) -> InputError:
    return InputError(
        f"Documents of this kind need {package}, which is not installed: pip install "
        "'airflow-provider-ollama[documents]'."
    )


_READERS: dict[str, Callable[[bytes, InputOptions], str]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}
