"""The tables of faults in docs/reference/errors.md: `make reference` writes them."""

import re
from collections.abc import Iterable

from tests.api.faults.connections import CONNECTIONS
from tests.api.faults.cuts import CUTS
from tests.api.faults.fault import Fault, Outcome
from tests.api.faults.framing import FRAMING
from tests.api.faults.objects import BODIES, ERRORS
from tests.api.faults.operations import OPERATIONS, Group
from tests.api.faults.statuses import RETRY_AFTER, STATUSES
from tests.api.faults.waits import ENDLESS, SILENCE

SECTIONS: dict[str, list[Fault]] = {
    "No connection, no TLS, no HTTP": CONNECTIONS,
    "A status that says no": [*STATUSES, *RETRY_AFTER],
    "An answer that is cut": CUTS,
    "Silence, and answers without end": [*SILENCE, *ENDLESS],
    "Damaged or unusual HTTP": FRAMING,
    "Damaged or unusual JSON": BODIES,
    "An error in an answer of status 200": ERRORS,
}
FAULTS = [fault for faults in SECTIONS.values() for fault in faults]
_CLIENTS = 2
_TABLES = re.compile(r"(<!-- faults -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """Return the page with its tables of faults made anew."""
    return _TABLES.sub(lambda found: found[1] + _tables() + found[2], text)


def cases(faults: Iterable[Fault]) -> int:
    """Return how many requests meet a fault in the tests, retries not counted."""
    return _CLIENTS * sum(
        fault.has(variant, operation)
        for fault in faults
        for variant in (*fault.scripts, *fault.places)
        for operation in OPERATIONS
    )


def _tables() -> str:
    variants = sum(len(fault.scripts) + len(fault.places) for fault in FAULTS)
    lines = [f"{cases(FAULTS):,} cases: {variants} variants, {len(OPERATIONS)} operations, {_CLIENTS} clients.", ""]
    for title, faults in SECTIONS.items():
        # An error may be the first object of an answer or a later one, with the same outcome.
        rows = {fault.what: fault for fault in reversed(faults)}
        lines += [f"### {title}", "", "| what comes | outcome | again? | a batch |", "| --- | --- | --- | --- |"]
        lines += [*map(_row, reversed(rows.values())), ""]
    return "\n".join(lines)


def _row(fault: Fault) -> str:
    outcomes = _outcomes(fault)
    (usual, _), *others = sorted(outcomes.items(), key=lambda found: -len(found[1]))
    exceptions = "".join(f"; {', '.join(groups)}: {_name(outcome)}" for outcome, groups in others)
    row = next((outcome for outcome, groups in outcomes.items() if {Group.TEXT, Group.VECTORS} & set(groups)), None)
    again = {outcome.again for outcome in outcomes if outcome.error}
    said = "" if not again else "yes" if again == {True} else "no" if again == {False} else "by its class"
    return f"| {fault.what} | {_name(usual)}{exceptions} | {said} | {_batch(row)} |"


def _outcomes(fault: Fault) -> dict[Outcome, list[Group]]:
    """Return which operations have which outcome."""
    found: dict[Outcome, list[Group]] = {}
    for group in Group:
        members = [operation for operation in OPERATIONS if operation.group is group]
        variants = (*fault.scripts, *fault.places)
        if any(fault.has(variant, member) for variant in variants for member in members):
            found.setdefault(fault.outcome[group], []).append(group)
    return found


def _name(outcome: Outcome) -> str:
    return " or ".join(f"`{kind.__name__}`" for kind in outcome.error) or "the answer is read"


def _batch(outcome: Outcome | None) -> str:
    return "" if outcome is None else outcome.batch.value
