"""Rows a page at a time: every row on one page, of files that are never read whole, whatever stands in them."""

import io
import json
from hashlib import md5
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from ollama_provider.batch import Embedding, Outcome, Summary
from ollama_provider.batch.errors import StorageError
from ollama_provider.batch.report import row_pages
from ollama_provider.batch.report.row_pages import read_rows
from ollama_provider.batch.results.files import json_lines_format, write_results
from ollama_provider.batch.results.order import RowOrder
from ollama_provider.batch.results.parquet import parquet_format
from ollama_provider.batch.spec import BatchSpec, Names
from ollama_provider.batch.store import manifest
from ollama_provider.batch.store.journal import Journal
from ollama_provider.batch.store.lines import encode_vector, shared_fields
from ollama_provider.batch.store.storage import open_existing, open_storage, write

ROWS = 120_000
SHARED = shared_fields({"model": "m", "digest": None})
HOSTILE = '</td><script>alert(1)</script>\x1b[2J\0\u202e\u2028\r\n\\u0000 "ok" {{ 7 * 7 }}'
NO_LIMIT = 3600.0


def key(number):
    return md5(str(number).encode(), usedforsecurity=False).hexdigest()


def outcome(number, **given):
    found = {"output": f"Answer {number} of many words", "tokens": number % 90, "seconds": 0.5, "attempts": 1}
    if number % 50 == 7:
        kind = ("CutAnswerError", "BadRequestError", "BrokenRow")[number % 3]
        error = {"class": kind, "text": f"line {number} is bad"}
        found |= {"status": "failed", "output": None, "error": error, "reply": f"Reply {number}", "attempts": 3}
    return Outcome(**({"key": key(number), "status": "ok"} | found | given))


def store(storage, outcomes, *, pass_number=1, per_part=40_000, **how):
    """Append outcomes in parts, and return the journal, whose last part is still open."""
    journal = Journal(storage, pass_number, **how)
    for place, each in enumerate(outcomes, 1):
        journal.add(journal.find(bytes.fromhex(each.key))[0], each, SHARED)
        if place % per_part == 0:
            journal.end_part()
            journal.seal_parts()
    return journal


def complete(storage, outcomes, results=None, **how):
    """Write the results of a complete batch, with an id for each row."""
    journal, order = store(storage, outcomes, **how), RowOrder(with_fields=True)
    if journal.end_part():
        journal.seal_parts()
    for number, each in enumerate(outcomes):
        order.add(journal.find(bytes.fromhex(each.key))[0], f"order-{number:06d}")
    write_results(storage, journal, order, results or json_lines_format(vectors=False))
    order.close()
    rows = len(outcomes)
    summary = Summary(complete=True, reason="complete", directory=storage.location, rows=rows, ok=rows, failed=0)
    write(storage, "summary.json", summary.as_json())


def walk(storage, status, **how):
    """Read all pages."""
    cursor, pages = "", []
    while cursor or not pages:
        pages.append(read_rows(storage, status, cursor=cursor, **{"seconds": NO_LIMIT, "rows": 5000} | how))
        assert not pages[-1].next or pages[-1].next != cursor, "a page that comes no further"
        cursor = pages[-1].next
    assert [page.share for page in pages] == sorted(page.share for page in pages)
    assert pages[-1].share == 1.0
    return pages


def rows_of(pages):
    return [row for page in pages for row in page.rows]


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A complete batch of 120,000 rows, answered in another order than that of the input."""
    storage = open_storage(tmp_path_factory.mktemp("night"))
    complete(storage, [outcome(number) for number in range(ROWS)])
    return storage


class TestComplete:
    @pytest.mark.parametrize("status", ["ok", "failed"])
    def test_every_row_is_on_one_page(self, night, status):
        """In the order of the input, with what its line says."""
        pages = walk(night, status)

        failed = range(7, ROWS, 50)
        expected = [number for number in range(ROWS) if (number in failed) == (status == "failed")]
        rows = rows_of(pages)
        assert [row.index for row in rows] == expected
        assert [row.id.shown for row in rows] == [f"order-{number:06d}" for number in expected]
        assert {len(page.rows) for page in pages[:-1]} <= {5000}
        assert all(page.in_order and not page.restarted and not page.damaged for page in pages)
        first = rows[0]
        if status == "ok":
            assert (first.text, first.reason, first.reply) == (("Answer 0 of many words", 22), "", None)
        else:
            assert (first.text, first.reason) == (("line 7 is bad", 13), "BadRequestError")
            assert (first.reply, first.attempts, first.key) == (("Reply 7", 7), 3, key(7))

    @pytest.mark.parametrize(
        ("status", "search", "reason", "expected"),
        [
            ("ok", "ANSWER 11999 ", "", [11999]),
            ("ok", "order-0119", "", [n for n in range(11900, 12000) if n % 50 != 7]),
            ("ok", "is bad", "", []),
            ("ok", "]['; -", "", []),
            ("failed", "", "BrokenRow", [n for n in range(7, ROWS, 50) if n % 3 == 2]),
            ("failed", "reply 10", "CutAnswerError", None),
            ("failed", "badrequest", "", [n for n in range(7, ROWS, 50) if n % 3 == 1]),
            ("failed", "", "Broken", []),
            ("failed", "", 'x","status":"', []),
        ],
        ids=["case", "id", "other-status", "punctuation", "reason", "both", "class", "part-of-reason", "quotes"],
    )
    def test_search_and_reason(self, night, status, search, reason, expected):
        """Found in id, error, answer and reply; a reason is the whole name."""
        if expected is None:
            failed = [n for n in range(7, ROWS, 50) if n % 3 == 0]
            expected = [n for n in failed if f"Reply {n}".startswith("Reply 10")]
            assert len(expected) > 10

        found = rows_of(walk(night, status, search=search, reason=reason))

        assert [row.index for row in found] == expected

    def test_a_search_that_takes_long_says_how_far_it_came(self, night):
        """And goes on from there."""
        first = read_rows(night, "ok", search="answer 3 ", seconds=0)
        assert (first.rows, first.next != "") == ((), True)
        assert 0 < first.share < 0.001

        found = rows_of(walk(night, "ok", search="answer 3 "))
        later = read_rows(night, "ok", search="answer 3 ", cursor=first.next, seconds=NO_LIMIT)

        assert [row.index for row in found] == [row.index for row in later.rows] == [3]

    def test_a_page_reads_a_range(self, night):
        """In the middle of a file of 60 MB as at its beginning."""
        read = []

        class Counted(io.FileIO):
            def readinto(self, buffer):
                count = super().readinto(buffer)
                read.append(count)
                return count

        class Counting:
            location = night.location
            names, read = night.names, night.read

            def open(self, name):
                return io.BufferedReader(Counted(night.local(name)), 1 << 18)

        size = night.local("results.jsonl").stat().st_size
        page = read_rows(Counting(), "ok", cursor=f"{size}:{size // 2}")

        assert size > 30e6
        assert sum(read) < 2e6
        assert (len(page.rows), page.restarted) == (50, False)
        assert 0.5 < page.share < 0.51
        assert page.rows[0].index > ROWS / 3

    @pytest.mark.parametrize("cursor", ["1:0", "x", "0001-0001-000001-0123abcd:5", "../batch:0", "9" * 400, "\0", ":"])
    def test_a_cursor_of_other_rows_begins_anew(self, night, cursor):
        page = read_rows(night, "failed", cursor=cursor)

        assert page.restarted
        assert page.rows[0].index == 7

    def test_a_cursor_beyond_the_end(self, night):
        """Finds nothing."""
        size = night.local("failed.jsonl").stat().st_size

        page = read_rows(night, "failed", cursor=f"{size}:{10**18 - 1}")

        assert (page.rows, page.next, page.restarted) == ((), "", False)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=12),
    search=st.text(st.sampled_from('aB1 "\\\n\0é<'), max_size=3),
    data=st.data(),
)
def test_pages_of_any_size_have_the_same_rows(kind, texts, search, data, tmp_path_factory):
    """With any texts, and wherever a page ends."""
    storage = open_storage(tmp_path_factory.mktemp("any"))
    outcomes = [outcome(number, output=f"{text}{search if number % 2 else ''}") for number, text in enumerate(texts)]
    complete(storage, outcomes, parquet_format(None, vectors=False) if kind == "parquet" else None)
    cursor, found = "", []
    while cursor or not found:
        how = {"seconds": data.draw(st.sampled_from([0, NO_LIMIT])), "rows": data.draw(st.integers(1, 3))}
        found.append(read_rows(storage, "ok", cursor=cursor, search=search, **how))
        assert not found[-1].next or found[-1].next != cursor, "a page that comes no further"
        cursor = found[-1].next

    expected = [
        number for number, each in enumerate(outcomes)
        if each.status == "ok" and (search.lower() in each.output.lower() or search.lower() in f"order-{number:06d}")
    ]  # fmt: skip
    assert [row.index for row in rows_of(found)] == expected
    assert not any(page.damaged or page.restarted for page in found)


class TestRunning:
    def test_rows_come_out_of_the_parts(self, tmp_path):
        """Also out of an open one, up to the line that is being written."""
        storage = open_storage(tmp_path)
        journal = store(storage, [outcome(number) for number in range(100)], per_part=60)
        open_part = tmp_path / f"{journal._current.name}"
        whole = open_part.read_bytes()
        open_part.write_bytes(whole[:-30])

        good, failed = walk(storage, "ok", rows=7), walk(storage, "failed")

        assert [row.key for row in rows_of(good)] == [key(number) for number in range(99) if number % 50 != 7]
        assert [row.key for row in rows_of(failed)] == [key(7), key(57)]
        assert not any(page.in_order or page.damaged or page.restarted for page in (*good, *failed))
        assert {row.index for row in rows_of(good)} == {None}

        # A cursor goes on when its part is sealed.
        open_part.write_bytes(whole)
        page = read_rows(storage, "ok", rows=70, seconds=NO_LIMIT)
        journal.end_part()
        journal.seal_parts()
        rest = read_rows(storage, "ok", cursor=page.next)
        assert [row.key for row in rest.rows] == [*[row.key for row in rows_of(good)][70:], key(99)]

    def test_what_failed_in_an_earlier_pass_is_asked_again(self, tmp_path):
        """So it counts no more when the next pass has begun; good rows stay."""
        storage = open_storage(tmp_path)
        store(storage, [outcome(number) for number in range(10)], per_part=1)
        store(storage, [outcome(7, status="ok", error=None, output="good now"), outcome(57)], pass_number=2, per_part=1)

        assert [row.key for row in rows_of(walk(storage, "failed"))] == [key(57)]
        good = rows_of(walk(storage, "ok"))
        assert sorted(row.key for row in good) == sorted(map(key, range(10)))
        assert good[-1].text.shown == "good now"

    def test_shards_are_each_in_a_pass_of_their_own(self, tmp_path):
        storage = open_storage(tmp_path)
        store(storage, [outcome(7), outcome(57)], per_part=1, shard="0of2")
        store(storage, [outcome(107)], per_part=1, shard="1of2", pass_number=4)

        assert [row.key for row in rows_of(walk(storage, "failed"))] == [key(7), key(57), key(107)]

    def test_nothing_is_there_yet(self, tmp_path):
        page = read_rows(open_storage(tmp_path), "ok")

        assert (page.rows, page.next, page.share, page.in_order) == ((), "", 1.0, False)

    def test_a_damaged_line_is_counted(self, tmp_path):
        """By its checksum."""
        storage = open_storage(tmp_path)
        store(storage, [outcome(number) for number in range(5)], per_part=5)
        (part,) = (tmp_path / "parts").iterdir()
        part.write_bytes(part.read_bytes().replace(b"Answer 2", b"Answer 9"))

        page = read_rows(storage, "ok")

        assert [row.text.shown[:8] for row in page.rows] == ["Answer 0", "Answer 1", "Answer 3", "Answer 4"]
        assert page.damaged == 1


def line(number, **given):
    found = {"key": key(number), "index": number, "id": number, "status": "ok", "output": "a", "error": None}
    return json.dumps(found | given).encode() + b"\n"


def results(storage, *lines):
    write(storage, "results.jsonl", b"".join(lines))
    write(storage, "summary.json", b"{}")


class TestWhatStandsInALine:
    def test_it_is_data(self, tmp_path):
        storage = open_storage(tmp_path)
        complete(storage, [outcome(0, output=HOSTILE), outcome(1, output={"a": [HOSTILE, 1]})])

        first, second = read_rows(storage, "ok").rows

        assert first.text == (HOSTILE, len(HOSTILE))
        assert json.loads(second.text.shown) == {"a": [HOSTILE, 1]}
        assert len(read_rows(storage, "ok", search=HOSTILE[:30]).rows) == 2

    def test_a_long_text_is_cut(self, tmp_path):
        storage = open_storage(tmp_path)
        complete(storage, [outcome(0, output="é" * 5000)])

        (row,) = read_rows(storage, "ok").rows

        assert row.text == ("é" * 1000, 5000)
        assert not row.is_cut

    def test_of_a_very_long_line_the_beginning_is_read(self, tmp_path):
        """What comes after it is found, also from a cursor in the midst of it."""
        storage = open_storage(tmp_path)
        results(storage, line(0), line(1, output="b" * 5_000_000), line(2), line(3, output="c" * 1_500_000))

        for how in ({"seconds": NO_LIMIT}, {"seconds": 0}):
            rows = rows_of(walk(storage, "ok", **how))
            assert [(row.index, row.text.shown[:1], row.is_cut) for row in rows] == [
                (0, "a", False), (1, "b", True), (2, "a", False), (3, "c", True),
            ]  # fmt: skip

    @pytest.mark.parametrize(
        "odd",
        [
            b'{"key":"1","status":"ok"\n', b'["ok"]\n', b'"ok"\n', b'{"status":"ok"}\n', b"\xff\"ok\"\n",
            b'"ok"' * 9 + b"\n", b"[" * 5000 + b'"ok"\n', line(9, id="ok", output=1)[:-20], line(9, key="k" * 99),
            line(9, index=-1), line(9, index=1 << 70), line(9, index="x"), line(9, seconds="1e999"),
            line(9, status=["ok"]), line(9, error="ok"), line(9, error={"class": ["ok"]}), line(9, tokens=1.5),
            line(9, id="ok").replace(b'"a"', b"NaN").replace(b'"error": null', b'"seconds": NaN'),
        ],
        ids=range(18),
    )  # fmt: skip
    def test_what_is_no_line_is_counted_and_passed_over(self, odd, tmp_path):
        storage = open_storage(tmp_path)
        results(storage, line(0), odd, line(2) if odd.endswith(b"\n") else b"")

        page = read_rows(storage, "ok")

        assert [row.index for row in page.rows] == ([0, 2] if odd.endswith(b"\n") else [0])
        assert page.damaged == odd.endswith(b"\n")

    @pytest.mark.parametrize(
        "odd", [None, 1.5, True, ["a"], {"b": None}, "", "\ud83d".encode("utf-8", "replace").decode()]
    )
    def test_any_id_and_answer_becomes_text(self, odd, tmp_path):
        storage = open_storage(tmp_path)
        results(storage, line(0, id=odd, output=odd))

        (row,) = read_rows(storage, "ok").rows

        text = odd if isinstance(odd, str) else json.dumps(odd)
        assert row.id == (None if odd is None else (text, len(text)))
        assert row.text == (text, len(text))


class TestParquet:
    def test_pages_are_those_of_json_lines(self, tmp_path):
        """Across groups of rows, and with an answer of which the column leaves something out."""
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        outcomes = [outcome(n, output={"a": n} | ({"more": "x"} if n == 5 else {})) for n in range(2500)]
        outcomes = [outcome(n) if n % 50 == 7 else each for n, each in enumerate(outcomes)]
        storage, other = open_storage(tmp_path / "parquet"), open_storage(tmp_path / "jsonl")
        complete(storage, outcomes, parquet_format(schema, vectors=False))
        complete(other, outcomes)

        found = walk(storage, "ok", rows=333)

        assert len(found) == 8
        assert rows_of(found) == rows_of(walk(other, "ok"))
        assert rows_of(walk(storage, "failed")) == rows_of(walk(other, "failed"))
        assert [row.index for row in rows_of(walk(storage, "ok", search='"a": 123'))] == [123, *range(1230, 1240)]
        assert found[0].rows[5].text.shown == '{"a": 5, "more": "x"}'

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_vectors_are_not_shown(self, kind, tmp_path):
        """Neither while the batch runs nor when it is complete."""
        storage, vector = open_storage(tmp_path), encode_vector([0.5, 0.25])
        spec = BatchSpec(model="m", rows="x.jsonl", embedding=Embedding())
        manifest.save(storage, manifest.Manifest(settings=spec.settings()), Names())
        outcomes = [outcome(0, output=vector), outcome(1, output=[vector, vector], spans=[[0, 9], [7, 20]])]
        store(storage, outcomes)
        assert [row.text.shown for row in read_rows(storage, "ok").rows] == ["a vector", "2 vectors"]

        format_ = parquet_format(None, vectors=True) if kind == "parquet" else json_lines_format(vectors=True)
        complete(open_storage(tmp_path), outcomes, format_)

        texts = ["a vector of the characters 0 to 9", "a vector of the characters 7 to 20"]
        assert [row.text.shown for row in read_rows(storage, "ok").rows] == ["a vector", *texts]
        assert read_rows(storage, "ok", search=vector).rows == ()

    def test_a_damaged_file_is_told(self, tmp_path):
        storage = open_storage(tmp_path)
        complete(storage, [outcome(0)], parquet_format(None, vectors=False))
        file = tmp_path / "results.parquet"
        for content in (file.read_bytes()[:-9], b"", b"PAR1" * 9):
            file.write_bytes(content)
            with pytest.raises(StorageError, match=r"results\.parquet cannot be read"):
                read_rows(storage, "ok")

    def test_without_pyarrow_rows_come_out_of_the_parts(self, tmp_path, monkeypatch):
        """An API server may not have it."""
        storage = open_storage(tmp_path)
        complete(storage, [outcome(number) for number in range(9)], parquet_format(None, vectors=False))
        monkeypatch.setattr(row_pages, "can_be_read", lambda: False)

        page = read_rows(storage, "ok")

        assert [row.key for row in page.rows] == [key(number) for number in range(9) if number != 7]
        assert not page.in_order


class TestDirectory:
    def test_an_object_store(self, tmp_path):
        """Is read by range, without a copy."""
        location = f"memory://{tmp_path.name}/out"
        outcomes = [outcome(number) for number in range(300)]
        complete(open_storage(UPath(location)), outcomes)
        storage = open_existing(location)

        pages = walk(storage, "ok", rows=100)

        assert [row.index for row in rows_of(pages)] == [n for n in range(300) if n % 50 != 7]
        assert len(read_rows(storage, "failed").rows) == 6
        assert [path.name for path in Path(storage._cache.name).iterdir()] == [".lock"]
        storage.close()

    def test_nothing_is_created(self, tmp_path):
        (tmp_path / "out").mkdir()

        page = read_rows(open_existing(tmp_path / "out"), "ok")

        assert page.rows == ()
        assert list((tmp_path / "out").iterdir()) == []

    def test_one_that_is_not_there(self, tmp_path):
        (tmp_path / "file").write_text("")
        for name in ("absent", "file", "file/inside"):
            with pytest.raises(StorageError, match=f"{name} cannot be read"):
                open_existing(tmp_path / name)

    def test_shuffled_parts(self, tmp_path):
        """A batch answers rows in any order; its results are in that of the input."""
        storage = open_storage(tmp_path)
        numbers = list(range(200))
        Random(3).shuffle(numbers)
        store(storage, [outcome(number) for number in numbers], per_part=30).end_part()
        before = [row.key for row in rows_of(walk(storage, "ok", rows=9))]
        complete(open_storage(tmp_path), [outcome(number) for number in range(200)])

        assert before == [key(number) for number in numbers if number % 50 != 7]
        assert [row.index for row in rows_of(walk(storage, "ok"))] == [n for n in range(200) if n % 50 != 7]
