"""Search for inputs that break a promise of the package: coverage-guided fuzzing with atheris, for `make fuzz`.

    python tests/fuzz/run.py reply_path -max_total_time=60

Arguments behind the name go to libFuzzer. An input that breaks something is written to ``.cache/fuzz``, and belongs
into the tests once its cause is mended.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import atheris  # noqa: E402  # instruments what is imported from here on

with atheris.instrument_imports(include=["ollama_provider", "tests.fuzz.targets", "json", "csv", "email"]):
    from tests.fuzz.seeds import seeds, words
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target; the process ends with 0 if nothing was found."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: run.py TARGET [options of libFuzzer]; targets are {', '.join(TARGETS)}")
    name, *options = sys.argv[1:]
    corpus = ROOT / ".cache" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number:03}").write_bytes(data)
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text("".join(f"{json.dumps(word)}\n" for word in words()))
    bounds = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1"]
    found = f"-artifact_prefix={corpus.parent}/{name}-"
    atheris.Setup([sys.argv[0], f"-dict={dictionary}", *bounds, found, *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
