"""The end of a batch's time window: makes a moment of ``stop_at`` and ``timezone``. The clock is an argument."""

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from datetime import timezone as fixed_offset
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ollama_provider.api.errors import InvalidRequestError

StopAt = str | time | datetime | timedelta

_FORMS = (
    "write a time of day ('06:00'), a moment ('2026-11-23T06:00+01:00'), or how long the run may last (a timedelta, "
    "or 'PT6H')"
)
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\s*(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE)
_DURATION = re.compile(r"P(?=.)(?:(\d{1,5})D)?(?:T(?=\d)(?:(\d{1,5})H)?(?:(\d{1,5})M)?(?:(\d{1,9})S)?)?", re.IGNORECASE)
_OFFSET = re.compile(r"(?:UTC)?([+-])(\d\d?)(?::?(\d\d))?", re.IGNORECASE)


def closing_time(stop_at: Any, timezone: Any, *, now: datetime, due: datetime | None = None) -> datetime:
    """Return the moment after which no row is sent. It is in the past if the run began too late.

    Args:
        stop_at: see `read_stop_at`. A time of day is the first one after *due*; a duration counts from *due*.
        timezone: see `read_timezone`. It is used where *stop_at* has no timezone; None is the machine's own.
        now: the present, with a timezone.
        due: when the run was due; None is *now*. With it, a late retry still ends with its own night and not with the
            next one.

    Raises:
        InvalidRequestError: *stop_at* is wrong or ambiguous, or there is no such timezone.
    """
    end, zone = read_stop_at(stop_at), read_timezone(timezone)
    # In UTC, because moments of the same timezone are compared by wall clock, which shows an hour twice in autumn.
    begin = (due or now).astimezone(UTC)
    try:
        if isinstance(end, timedelta):
            return begin + end
        if isinstance(end, datetime):
            return _placed(end, zone)
    except (OverflowError, ValueError):
        raise InvalidRequestError(f"stop_at: {stop_at!r} is beyond what a calendar can say") from None
    first = begin.astimezone(end.tzinfo or zone).date()
    closing = _placed(datetime.combine(first, end), zone)
    return closing if closing.astimezone(UTC) > begin else _placed(datetime.combine(first + timedelta(1), end), zone)


def read_stop_at(value: Any) -> time | datetime | timedelta:
    """Return the end of a window as a `time`, `datetime` or `timedelta`.

    Args:
        value: a `time` or ``"06:00"``, a `datetime` or ISO 8601 text, a `timedelta` or ``"PT6H"``.

    Raises:
        InvalidRequestError: it is none of these, or is ambiguous; the text says what to write instead.
    """
    if isinstance(value, timedelta):
        return _lasting(value)
    if isinstance(value, time | datetime):
        return value
    if isinstance(value, date):
        raise InvalidRequestError(f"stop_at: {value} is a whole day; add the time: '{value}T06:00'")
    if not isinstance(value, str):
        raise InvalidRequestError(f"stop_at: {value!r} is {_of_yaml(value)}; {_FORMS}")
    text = value.strip()
    if not text:
        raise InvalidRequestError(f"stop_at: it is empty; check the template, or {_FORMS}")
    if text.isdecimal():
        # A template makes this text of a number. ISO 8601 would read four digits as another time than YAML meant.
        raise InvalidRequestError(f"stop_at: {value!r} is {_of_yaml(int(text[:9]))}; {_FORMS}")
    if found := _TIME_OF_DAY.fullmatch(text):
        return _time_of_day(value, *found.groups())
    if found := _DURATION.fullmatch(text):
        days, hours, minutes, seconds = (int(number or 0) for number in found.groups())
        return _lasting(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))
    return _moment(text)


def read_timezone(value: Any) -> tzinfo | None:
    """Return a timezone. None stays None, which is the machine's own.

    Args:
        value: an IANA name (``"Europe/Berlin"``), an offset (``"+02:00"``), or a `tzinfo` such as a DAG's.

    Raises:
        InvalidRequestError: there is no such timezone.
    """
    if value is None or isinstance(value, tzinfo):
        return value
    if isinstance(value, str):
        name = value.strip()
        if (found := _OFFSET.fullmatch(name)) and int(found[2]) < 24 and int(found[3] or 0) < 60:
            away = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
            return fixed_offset(-away if found[1] == "-" else away)
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise InvalidRequestError(
        f"timezone: there is no {value!r}; use a name such as 'Europe/Berlin' or 'UTC', or an offset such as '+02:00'"
    )


def timezone_name(zone: tzinfo) -> str:
    """Return a name from which `read_timezone` makes the same timezone.

    Raises:
        InvalidRequestError: it has no name and no fixed offset.
    """
    if isinstance(name := getattr(zone, "key", None), str):
        return name
    away = zone.utcoffset(None)
    if away is None:
        raise InvalidRequestError(f"timezone: {zone!r} has no name; use a name such as 'Europe/Berlin', or '+02:00'")
    minutes = round(away.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _of_yaml(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 60 <= value < 1440:
        return f"a number, as YAML makes of {value // 60}:{value % 60:02} without quotes"
    return "a number" if isinstance(value, int | float) else f"of type {type(value).__name__}"


def _lasting(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise InvalidRequestError(f"stop_at: a run cannot last {duration}; give a duration above zero")
    return duration


def _time_of_day(value: str, hours: str, minutes: str, seconds: str | None, offset: str | None) -> time:
    if len(hours) == 1 and seconds:
        # Python writes the hours of a time with two digits, and those of a duration with one.
        raise InvalidRequestError(
            f"stop_at: {value!r} may be a time of day or a timedelta that a template has turned into text; "
            f"write '0{hours}:{minutes}:{seconds}' or 'PT{hours}H{int(minutes)}M'"
        )
    # 24:00 is the same moment as 00:00 of the next day.
    hours = "0" if (hours, minutes, seconds or "00") == ("24", "00", "00") else hours
    try:
        return time(int(hours), int(minutes), int(seconds or 0), tzinfo=read_timezone(_plain_offset(offset)))
    except (ValueError, InvalidRequestError):
        raise InvalidRequestError(f"stop_at: there is no time {value!r}; {_FORMS}") from None


def _plain_offset(offset: str | None) -> str | None:
    return "+00:00" if offset in {"Z", "z"} else offset


def _moment(text: str) -> datetime:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return read_stop_at(day)  # type: ignore[return-value]  # it raises
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError(
            f"stop_at: {text!r} is no time of day, no moment in ISO 8601 and no duration; {_FORMS}"
        ) from None


def _placed(moment: datetime, zone: tzinfo | None) -> datetime:
    if moment.tzinfo is not None:
        return moment
    # Without a timezone, the machine's own rules apply, daylight saving time included.
    return moment.replace(tzinfo=zone) if zone else moment.astimezone()
