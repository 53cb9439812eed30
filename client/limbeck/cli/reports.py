"""A student's report for people: the table of arms, what it proves, and what it cost."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from limbeck.cli.output import console, seconds, show_table, size

_ARMS = ("teacher", "distilled", "control", "untrained")
METRICS = {
    "accuracy": "accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "f1": "F1",
    "exact_match": "exact match",
    "exact": "exact match",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
SHARES = {"accuracy", "exact_match", "exact", "agreement"}
"""Shares of the test rows, which are shown in percent; their differences in points."""
_COUNTERS = (
    ("teacher_training_steps", "teacher training steps"),
    ("teacher_forward_rows", "rows through the teacher"),
    ("cached_signal_rows", "rows of its signals taken from the cache"),
    ("student_training_steps", "student training steps"),
    ("control_training_steps", "control training steps"),
)


def show_report(report: Mapping[str, Any]) -> None:
    """Arms side by side, then the comparisons, the gate, warnings and the verdict."""
    arms = report.get("arms") or {}
    main = str(report.get("metric") or "accuracy")
    beside = _beside(main, arms)
    shown = {name: arms[name] for name in _ARMS if arms.get(name)} | (report.get("others") or {})
    if report.get("constant"):
        shown["constant answer"] = report["constant"]
    rows = [_row(name, one, report, (main, *beside)) for name, one in shown.items()]
    drop = "drop, points" if main in SHARES else "drop"
    words = [METRICS.get(name, name) for name in (main, *beside)]
    show_table(("", words[0], drop, *words[1:], "agreement", "parameters", "served file", "p50"), rows)
    if arms.get("control") is None and report.get("control_reason"):
        console.print(f"[dim]no control arm: {escape(str(report['control_reason']))}[/]")
    comparisons = report.get("comparisons") or {}
    unit = " points" if main in SHARES else ""
    gain = comparisons.get("gain_over_control")
    if gain:
        console.print(f"gain over control: {difference(main, gain)}{unit}")
    for name, interval in (comparisons.get("others") or {}).items():
        console.print(f"distilled against {escape(str(name))}: {difference(main, interval)}{unit}")
    gate = report.get("gate") or {}
    for check in gate.get("checks") or []:
        mark = "[green]holds[/]" if check.get("passed") else "[red]does not hold[/]"
        console.print(f"gate {escape(str(check.get('gate')))} {mark}: {escape(str(check.get('reason', '')))}")
    for warning in report.get("warnings") or []:
        console.print(f"[yellow]warning:[/] {escape(str(warning.get('message')))}")
    console.print(f"[bold]{escape(str(report.get('verdict', '')))}[/]")


def show_counters(report: Mapping[str, Any]) -> None:
    """What was computed for it, and where the time went."""
    counters = report.get("counters") or {}
    for name, words in _COUNTERS:
        if name in counters:
            console.print(f"  {counters[name]:>9,}  {words}")
    spent = report.get("seconds") or {}
    if spent:
        console.print(
            "  " + ", ".join(f"{escape(str(phase))} {seconds(float(value))}" for phase, value in spent.items())
        )


def _beside(main: str, arms: Mapping[str, Any]) -> tuple[str, ...]:
    """The metric that is shown next to the main one, where the task has another."""
    known = [name for name in METRICS if name != main and any(name in (arm or {}) for arm in arms.values())]
    return tuple(known[:1])


def _row(name: str, arm: Mapping[str, Any], report: Mapping[str, Any], metrics: tuple[str, ...]) -> tuple[str, ...]:
    drop = (report.get("comparisons") or {}).get("drop") if name == "distilled" else None
    served = (arm.get("precisions") or {}).get(arm.get("served") or "", {})
    main, *beside = metrics
    return (
        name,
        shown_value(main, arm.get(main)),
        difference(main, drop) if drop else "",
        *(shown_value(metric, arm.get(metric)) for metric in beside),
        shown_value("agreement", arm.get("agreement")),
        millions(arm.get("parameters")),
        f"{size(arm['bytes'])} {arm.get('served') or ''}".strip() if arm.get("bytes") else "",
        f"{served['p50_ms']:.2f} ms" if served.get("p50_ms") is not None else "",
    )


def shown_value(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 100:.2f} %" if metric in SHARES else f"{value:.4f}"


def difference(metric: str, interval: Mapping[str, Any]) -> str:
    """A difference of two values of a metric with its interval, that of two shares in percentage points."""
    value, low, high = (interval.get(name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    scale, digits = (100, 2) if metric in SHARES else (1, 4)
    words = f"{value * scale:+.{digits}f}"
    if low is None or high is None:
        return words
    return f"{words} [{low * scale:+.{digits}f}, {high * scale:+.{digits}f}]"


def millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"
