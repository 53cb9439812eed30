"""Numbers, sizes and times as people read them. Pure functions; the templates' filters."""

from datetime import UTC, datetime

from markupsafe import Markup

NOTHING = "–"
_NOTHING = Markup("–")


def size(value: float | None) -> str:
    """Bytes: 18.2 MB."""
    if value is None:
        return NOTHING
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def count(value: float | None) -> str:
    """A whole number with thin groups: 22,713,986."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant ones: 0.124, 7.25, 1,240."""
    if value is None:
        return NOTHING
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage: 0.7412 is 74.1 %."""
    return NOTHING if value is None else f"{value * 100:.{digits}f} %"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign: +0.3, −3.1."""
    if value is None:
        return NOTHING
    text = f"{value * 100:+.{digits}f}"
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """8 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def when(value: str | datetime | None) -> Markup:
    """A `<time>`; the page's script shows it in the reader's own zone, and the exact time on hover."""
    if value is None:
        return _NOTHING
    at = moment(value)
    text = at.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), text, text)


def ago(value: str | datetime | None) -> Markup:
    """A `<time>` whose text is the distance from now: 3 min 20 s ago."""
    if value is None:
        return _NOTHING
    at = moment(value)
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    shown = at.strftime("%Y-%m-%d %H:%M UTC")
    text = "just now" if seconds < 5 else f"{_roughly(seconds)} ago"
    return Markup('<time datetime="{}" title="{}" data-ago>{}</time>').format(at.isoformat(), shown, text)


def clock(value: str | datetime | None) -> Markup:
    """A `<time>` of the day, to the second."""
    if value is None:
        return _NOTHING
    at = moment(value)
    title = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}" data-clock>{}</time>').format(
        at.isoformat(), title, at.strftime("%H:%M:%S")
    )


def sentence(text: str) -> str:
    """With a capital at its beginning; the rest stays as it is: macro F1 is Macro F1."""
    return text[:1].upper() + text[1:]


def status(value: str) -> Markup:
    """A status as a badge: its colour never says alone what it is."""
    return Markup('<span class="badge" data-status="{}">{}</span>').format(value, value)


def moment(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _roughly(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86400:.0f} d"
