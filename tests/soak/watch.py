"""What a process has done and what it takes: reports, samples, and whether these have a trend."""

import ctypes
import json
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path

import psutil

#: Share of the time in which a process may still grow: caches fill, libraries are imported when they are first used.
WARM_UP = 0.25
#: The rest is cut into so many pieces, and the least value of each counts: what is in use now and then is no trend.
PIECES = 15
#: Of normal distribution: 95 % are within so many standard deviations.
_95_PERCENT = 1.96


class _MallocInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns, in bytes: see mallinfo(3)."""

    _NAMES = (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )  # fmt: skip
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


def memory_in_use() -> tuple[int, int]:
    """Return what this process has in use: bytes of malloc, and memory blocks of Python's own allocator.

    A leak shows in these. The resident memory grows as well where blocks of different ages get in each other's way.
    """
    mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo.restype = _MallocInfo
    found = mallinfo()
    return found.uordblks + found.hblkhd, sys.getallocatedblocks()


class Report:
    """What a process has done so far and what went wrong, in a file that the test reads, and the memory in use.

    Attributes:
        counts: how often each thing happened; ``operations`` is what memory is compared with.
        problems: what must not happen.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def save(self) -> None:
        """Write the file anew."""
        content = json.dumps({"counts": dict(self.counts), "problems": self.problems[:20], "in use": memory_in_use()})
        (partial := self._file.with_suffix(".new")).write_text(content)
        partial.replace(self._file)

    def save_regularly(self) -> None:
        """Write the file every two seconds, in a thread that ends with the process."""

        def save() -> None:
            while True:
                self.save()
                time.sleep(2)

        threading.Thread(target=save, daemon=True).start()

    @staticmethod
    def read(file: Path) -> tuple[Counter[str], list[str], tuple[int, int]]:
        """Return the counts and the problems that are in the file, and what `memory_in_use` returned."""
        if not file.exists():
            return Counter(), [], (0, 0)
        content = json.loads(file.read_text())
        return Counter(content["counts"]), content["problems"], tuple(content["in use"])


@dataclass(frozen=True)
class Trend:
    """How a quantity changes, by the slopes between all pairs of samples (Theil and Sen).

    Attributes:
        level: the median.
        change: from the end of the warm-up to the end, by the median slope.
        least, most: of *change*, the limits within which it is with a certainty of 95 %.
    """

    level: float
    change: float
    least: float
    most: float

    @property
    def flat(self) -> bool:
        """Whether the samples are no evidence of a growth, or of less than 2 % of the level and less than 1."""
        return self.least <= 0 or self.change < max(0.02 * self.level, 1)


def trend(samples: list[tuple[float, float]]) -> Trend:
    """Return the trend of (time, value) in the order of time, after the warm-up."""
    begin, end = samples[0][0] + WARM_UP * (samples[-1][0] - samples[0][0]), samples[-1][0]
    pieces: dict[int, tuple[float, float]] = {}
    for at, value in samples:
        if at >= begin:
            piece = min(PIECES - 1, int(PIECES * (at - begin) / (end - begin)))
            pieces[piece] = min(pieces.get(piece, (at, value)), (at, value), key=lambda sample: sample[1])
    points = sorted(pieces.values())
    level = statistics.median(value for _, value in points)
    slopes = sorted((b - a) / (t - s) for (s, a), (t, b) in combinations(points, 2) if t > s)
    n = len(points)
    # Of Kendall's statistic, which counts the pairs that rise less those that fall.
    deviation = sqrt(n * (n - 1) * (2 * n + 5) / 18)
    width = _95_PERCENT * deviation
    low = max(0, int((len(slopes) - width) / 2))
    high = min(len(slopes) - 1, int((len(slopes) + width) / 2) + 1)
    span = end - begin
    return Trend(level, statistics.median(slopes) * span, slopes[low] * span, slopes[high] * span)


class Watch:
    """Samples of a process: memory, file descriptors, threads, sockets, and what it has done by then.

    Args:
        name: of the process in the table.
        pid: its number.
        report: its file.
    """

    #: Resident is what the allocators keep as well: where it grows alone, nothing in use has grown.
    QUANTITIES = ("malloc MB", "thousand objects", "resident MB", "files", "threads", "sockets")

    def __init__(self, name: str, pid: int, report: Path) -> None:
        self.name = name
        self._process = psutil.Process(pid)
        self._report = report
        self._samples: list[tuple[float, int, tuple[float, ...]]] = []

    def sample(self) -> None:
        """Take a sample; none of a process that has ended, or has not reported yet."""
        counts, _, (malloc, objects) = Report.read(self._report)
        if not objects:
            return
        try:
            with self._process.oneshot():
                values = (
                    malloc / 2**20,
                    objects / 1000,
                    self._process.memory_info().rss / 2**20,
                    float(self._process.num_fds()),
                    float(self._process.num_threads()),
                    float(len(self._process.net_connections())),
                )
        except psutil.NoSuchProcess:
            return
        self._samples.append((time.monotonic(), counts["operations"], values))

    def trends(self) -> dict[str, Trend]:
        """Return the trend of each quantity."""
        return {
            quantity: trend([(at, values[place]) for at, _, values in self._samples])
            for place, quantity in enumerate(self.QUANTITIES)
        }

    def operations(self) -> tuple[int, int]:
        """Return what the process had done at the end, and what of that after the warm-up."""
        first, last = self._samples[0][0], self._samples[-1]
        at_begin = next(done for at, done, _ in self._samples if at >= first + WARM_UP * (last[0] - first))
        return last[1], last[1] - at_begin
