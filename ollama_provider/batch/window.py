"""When the night is over: from what a person writes to a moment. No clock: `now` is an argument."""

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ollama_provider.batch.errors import InputError

StopAt = str | datetime | timedelta


def closing_time(stop_at: StopAt, timezone: str | None, *, now: datetime, due: datetime | None = None) -> datetime:
    """Return the moment from which no row is sent any more. It may be past: then the run came too late.

    Args:
        stop_at: a time of day (``"06:00"``): the first one after the run was due; a moment (a `datetime`, or ISO 8601
            text); or how long the run may last.
        timezone: IANA name (``Europe/Berlin``) for what names none itself; None is the machine's own.
        now: with a timezone.
        due: when the run was due, so that a late retry does not take the next night's end for its own; None is now.

    Raises:
        InputError: it is none of these, or a duration that is not above zero; or there is no such timezone.
    """
    if isinstance(stop_at, timedelta):
        if stop_at <= timedelta(0):
            raise InputError(f"stop_at: a run cannot last {stop_at}; give a duration above zero.")
        return now + stop_at
    if isinstance(stop_at, datetime):
        return _placed(stop_at, timezone)
    try:
        of_day = time.fromisoformat(stop_at)
    except ValueError:
        return _placed(_moment(stop_at), timezone)
    begin = due or now
    local = begin.astimezone(_zone(timezone)) if timezone else begin.astimezone()
    closing = _placed(datetime.combine(local.date(), of_day), timezone)
    return closing if closing > begin else _placed(datetime.combine(local.date() + timedelta(1), of_day), timezone)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"stop_at: {text!r} is no time of day ('06:00') and no moment in ISO 8601 ('2026-11-23T06:00+01:00')."
        ) from None


def _placed(moment: datetime, timezone: str | None) -> datetime:
    if moment.tzinfo is not None:
        return moment
    # Without a name the machine's own rules hold, summer time included.
    return moment.replace(tzinfo=_zone(timezone)) if timezone else moment.astimezone()


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise InputError(f"timezone: there is no {timezone!r}; use a name such as 'Europe/Berlin' or 'UTC'.") from None
