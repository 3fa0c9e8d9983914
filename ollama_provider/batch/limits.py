"""When to give up: on a row, on a server, and on the whole batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        max_attempts: attempts for a row, the first included; an outage uses up none.
        max_failed_rows: failed rows that the batch tolerates; None leaves it to the ratio.
        max_failed_ratio: failed rows that the batch tolerates, of all rows (0.05 is 5 %).
        max_outage: seconds without one answer while the server is busy or gone.
        retry_delay: seconds before a row's own failure is tried again, if nothing else is to do.
    """

    max_attempts: int = 3
    max_failed_rows: int | None = None
    max_failed_ratio: float | None = None
    max_outage: float = 1800.0
    retry_delay: float = 1.0

    def too_many(self, failed: int, rows: int) -> bool:
        """Tell whether so many failed rows of so many are more than tolerated. Without a limit, one is too many."""
        if self.max_failed_rows is None and self.max_failed_ratio is None:
            return failed > 0
        by_count = self.max_failed_rows is not None and failed > self.max_failed_rows
        by_ratio = self.max_failed_ratio is not None and failed > self.max_failed_ratio * rows
        return by_count or by_ratio
