"""Models and prompts compared, over real HTTP against a stand-in."""

import json
import subprocess
import sys

import pytest

from ollama_provider.api.errors import OllamaError
from ollama_provider.batch import BatchSpec, InputError, StopSignal, compare_batches, comparison_as_text
from ollama_provider.batch.compare import candidates
from ollama_provider.batch.rehearsal.comparison import comparison_as_dict
from ollama_provider.testing import Answer, Model

ROWS = [{"id": f"r{number}", "text": f"text {number}."} for number in range(100)]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def compare(batch):
    """Compare in the directory of the batch."""

    def run(models=(), prompts=(), sample=6, *, stop=None, **spec):
        given = {"model": "llama3.2", "rows": ROWS, "id_column": "id"} | spec
        specs = candidates(BatchSpec(**given), models, dict.fromkeys(prompts) | {name: name for name in prompts})
        return compare_batches(specs, batch.settings, batch.directory, sample, stop=stop)

    return run


def test_models_are_asked_for_the_same_rows(compare, batch):
    """Each for all of them, and the night of either does not ask these again."""
    found = compare(["llama3.2", "qwen3"])

    assert list(found) == ["llama3.2", "qwen3"]
    assert [row.id for row in found["llama3.2"].rows] == [row.id for row in found["qwen3"].rows]
    assert [result.model for result in found.values()] == ["llama3.2", "qwen3"]
    assert len(batch.asked) == 12
    assert batch.run(ROWS, model="qwen3", id_column="id").reused == 6


def test_prompts_and_both(compare):
    """A name tells what differs."""
    prompts = ["Say {{ row.text }}", "Shout {{ row.text }}"]

    assert list(compare(prompts=prompts)) == prompts
    assert list(compare(["llama3.2", "qwen3"], prompts)) == [
        "llama3.2, Say {{ row.text }}",
        "llama3.2, Shout {{ row.text }}",
        "qwen3, Say {{ row.text }}",
        "qwen3, Shout {{ row.text }}",
    ]


def test_what_is_told(compare, ollama):
    """Row by row, and how good and how fast each was; answers that had to be repaired are counted."""
    ollama.stand_in.script(
        Answer('{"n": "none"}'),
        model="qwen3",
        always=True,
        where=lambda body: "{}" not in body.get("prompt", "{}") and "earlier answer" not in body["prompt"],
    )
    ollama.stand_in.script(Answer('{"n": 7}'), always=True, where=lambda body: bool(body.get("prompt")))

    found = compare(["llama3.2", "qwen3"], output_type=SCHEMA)
    text = comparison_as_text(found, texts=True)

    first, second = [line.split() for line in text.splitlines() if line.startswith(("llama3.2 ", "qwen3 "))]
    assert first[1:4] == ["6", "0", "0"]
    assert second[1:5] == ["6", "0", "6", "(6)"]
    row = next(line for line in text.splitlines() if line.startswith("r0 "))
    assert row.count('{"n": 7}') == 2
    assert '"n"' not in comparison_as_text(found, texts=False)
    plain = json.loads(json.dumps(comparison_as_dict(found, texts=False)))
    assert plain["compared"]["qwen3"]["sample"][0]["output"] is None
    assert plain["compared"]["qwen3"]["sample"][0]["repairs"] == 1


def test_a_missing_model_is_known_before_the_first_row(compare, batch):
    """Nothing is asked of the other one."""
    with pytest.raises(OllamaError, match="nope"):
        compare(["llama3.2", "nope"])

    assert batch.asked == []


@pytest.mark.ollama(models=[Model("llama3.2"), Model("emb", ("embedding",))])
def test_nor_one_that_cannot_answer(compare, batch):
    """The same."""
    with pytest.raises(OllamaError, match="completion"):
        compare(["llama3.2", "emb"])

    assert batch.asked == []


def test_what_makes_no_sense(compare):
    """Is refused by its name."""
    with pytest.raises(InputError, match="models: one is given twice"):
        compare(["llama3.2", "llama3.2"])
    with pytest.raises(InputError, match="prompts, messages"):
        compare(prompts=["a", "b"], messages=[{"role": "user", "content": "{{ row.text }}"}])
    with pytest.raises(InputError, match="shard: "):
        compare(["llama3.2", "qwen3"], shard=(0, 2))


@pytest.mark.parametrize("models", [["llama3.2"], ["llama3.2", "qwen3"]])
def test_an_iterator_is_read_once(compare, models):
    """As a function of TaskFlow gives one."""
    for found in compare(models, rows=iter(ROWS)).values():
        assert (found.total, found.failed, len(found.rows)) == (100, 0, 6)


@pytest.mark.parametrize("more", [1, 50])
def test_rows_that_come_while_it_runs(compare, ollama, tmp_path, more):
    """All are asked for the rows that were there at its beginning, fewer than it wanted; the first, too."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))

    def grow(body):
        if body.get("prompt") and body["model"] == "llama3.2":
            rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[-more:] + ROWS[:3]))
        return False

    ollama.stand_in.script("never", where=grow, always=True)

    found = compare(["llama3.2", "qwen3"], sample=20, rows=rows)

    assert [[row.id for row in each.rows] for each in found.values()] == [["r0", "r1", "r2"]] * 2
    assert "\nr2 " in comparison_as_text(found, texts=True)


def test_the_same_again(compare, batch):
    """Nothing is asked, and of each model it is known how many requests its server works on at a time."""
    first = compare(["llama3.2", "qwen3"])
    asked = len(batch.asked)

    second = compare(["llama3.2", "qwen3"])

    assert len(batch.asked) == asked
    assert [each.night.requests_at_a_time for each in second.values()] == [
        each.night.requests_at_a_time for each in first.values()
    ]


def test_the_report_has_it(compare, batch, ollama):
    """Each row with the answers side by side, as text, until another rehearsal."""
    ollama.stand_in.script("<b>good</b>", model="qwen3", always=True, where=lambda body: bool(body.get("prompt")))
    compare(["llama3.2", "qwen3"])
    page = (batch.directory / "report.html").read_text()

    assert '<h2 id="comparison">Comparison</h2>' in page
    assert page.count("&lt;b&gt;good&lt;/b&gt;") >= 6
    assert "<b>good</b>" not in page

    compare(["llama3.2"])
    assert '<h2 id="comparison">' not in (batch.directory / "report.html").read_text()


def test_a_stop_returns_what_is_there(compare, ollama):
    """Of those that were not reached, nothing."""
    stop = StopSignal()

    def end(body):
        if body.get("prompt"):
            stop.set("enough")
        return False

    ollama.stand_in.script("never", where=end, always=True)

    found = compare(["llama3.2", "qwen3"], stop=stop)

    assert list(found) == ["llama3.2"]


class TestCommand:
    @pytest.fixture
    def command(self, ollama, tmp_path):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (tmp_path / "v1.txt").write_text("Say {{ row.text }}")
        (tmp_path / "v2.txt").write_text("Shout {{ row.text }}")

        def run(*arguments):
            command = [sys.executable, "-m", "ollama_provider.batch", "--host", ollama.url, "--rows", "rows.jsonl"]
            command += ["--output", "out", "--id-column", "id", *arguments]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

        return run

    def test_prompts_and_models(self, command):
        """Each --model with each --prompt-file."""
        done = command(
            "--model", "llama3.2", "--model", "qwen3", "--prompt-file", "v1.txt", "--prompt-file", "v2.txt",
            "--rehearse", "3",
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        for name in ("llama3.2, v1.txt", "llama3.2, v2.txt", "qwen3, v1.txt", "qwen3, v2.txt"):
            assert f"\n{name} " in done.stdout
        assert "100 rows take" in done.stdout

    def test_several_are_for_a_rehearsal(self, command):
        """A batch has one of each."""
        models = command("--model", "llama3.2", "--model", "qwen3", "--prompt-file", "v1.txt")
        prompts = command("--model", "llama3.2", "--prompt-file", "v1.txt", "--prompt-file", "v2.txt")

        assert (models.returncode, prompts.returncode) == (1, 1)
        assert "--model: several are for a comparison; add --rehearse" in models.stderr
        assert "--prompt-file: several are for a comparison" in prompts.stderr
