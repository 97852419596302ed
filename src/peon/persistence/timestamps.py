"""Times as the tables hold them: ISO 8601 in UTC with microseconds and a `Z`, so that they sort as text."""

from datetime import UTC, datetime


def format_timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_timestamp(text: str) -> datetime:
    """Raises `ValueError` for what `format_timestamp` did not write."""
    moment = datetime.fromisoformat(text)
    if format_timestamp(moment) != text:
        raise ValueError(f"not a timestamp of the log: {text}")
    return moment
