"""All benchmarks on one commit, as one table, beside the last run that was kept.

    python tests/benchmarks [--keep] [name …]

Kept are ratios, in `history/`, one file a run: how many times better ours is than what it was compared with in the same
run. A line whose ratio is a tenth below the last one's is marked. Half an hour as a whole; names are those of modules.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HISTORY = HERE / "history"
#: In the order of the table.
SCRIPTS = (
    "saturation", "overhead", "streaming", "transport", "startup", "memory", "resume", "mapped", "embed", "shards",
    "servers", "sql", "vectors", "triggerer", "rehearse", "report",
)  # fmt: skip
#: A ratio below this share of the last one's is worse; less is noise.
WORSE = 0.9


def git(*arguments: str) -> str:
    """Return what git says about this checkout."""
    return subprocess.run(["git", *arguments], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()


def run(script: str, results: Path) -> list[dict[str, Any]]:
    """Run a benchmark in a process of its own; return its lines. What it prints itself is passed on."""
    results.unlink(missing_ok=True)
    environment = os.environ | {"BENCHMARK_RESULTS": str(results)}
    done = subprocess.run([sys.executable, str(HERE / f"{script}.py")], env=environment, check=False)
    lines = results.read_text().splitlines() if results.exists() else []
    if done.returncode or not lines:
        print(f"{script} FAILED", flush=True)
    return [json.loads(line) for line in lines] if not done.returncode else []


def last_ratios() -> dict[str, float]:
    """Return the last kept ratio of each line."""
    found: dict[str, float] = {}
    for file in sorted(HISTORY.glob("*.json")):
        found |= json.loads(file.read_text())["ratios"]
    return found


def table(lines: list[dict[str, Any]], last: dict[str, float]) -> str:
    """Return the table as Markdown."""
    rows = ["| | ours | compared with | wanted | ratio | last |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        before = last.get(line["key"])
        worse = before is not None and line["ratio"] < WORSE * before
        told = "new" if before is None else f"{before:.3g}{' **worse**' if worse else ''}"
        cells = (line["what"], line["value"], line["beside"], line["wanted"], f"{line['ratio']:.3g}", told)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def keep(lines: list[dict[str, Any]]) -> Path:
    """Write the ratios into the history."""
    now = datetime.now(UTC)
    commit = git("rev-parse", "--short=12", "HEAD")
    about = {"commit": commit, "date": now.date().isoformat(), "python": platform.python_version()}
    HISTORY.mkdir(exist_ok=True)
    file = HISTORY / f"{now:%Y%m%dT%H%M}-{commit}.json"
    ratios = {line["key"]: float(f"{line['ratio']:.3g}") for line in lines}
    file.write_text(json.dumps(about | {"ratios": ratios}, indent=1) + "\n")
    return file


def main() -> int:
    """Run, print, and keep; return the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks")
    parser.add_argument("--keep", action="store_true", help="write the ratios into the history, for a clean checkout")
    parser.add_argument("name", nargs="*", help=", ".join(SCRIPTS))
    given = parser.parse_args()
    names = given.name or SCRIPTS
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if given.keep and git("status", "--porcelain", "--", ".", "../../ollama_provider"):
        parser.error("something is not committed, so the results would be those of no commit")
    with tempfile.TemporaryDirectory() as folder:
        found = {script: run(script, Path(folder, "results")) for script in names}
    lines = [line for results in found.values() for line in results]
    print("\n" + table(lines, last_ratios()))
    if given.keep:
        print(f"\nkept in {keep(lines).relative_to(HERE.parents[1])}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
