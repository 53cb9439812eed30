"""A student's report for people: the table of arms, what it proves, and what it cost."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from limbeck.cli.output import console, seconds, show_table, size

_ARMS = ("teacher", "distilled", "control", "untrained")
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
    rows = [_row(name, arms[name], report) for name in _ARMS if arms.get(name)]
    show_table(("", "accuracy", "drop, points", "macro F1", "agreement", "parameters", "served file", "p50"), rows)
    if arms.get("control") is None and report.get("control_reason"):
        console.print(f"[dim]no control arm: {escape(str(report['control_reason']))}[/]")
    comparisons = report.get("comparisons") or {}
    gain = comparisons.get("gain_over_control")
    if gain:
        console.print(f"gain over control: {_points(gain)} points")
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


def _row(name: str, arm: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, ...]:
    drop = (report.get("comparisons") or {}).get("drop") if name == "distilled" else None
    served = (arm.get("precisions") or {}).get(arm.get("served") or "", {})
    return (
        name,
        _percent(arm.get("accuracy")),
        _points(drop) if drop else "",
        _percent(arm.get("macro_f1")),
        _percent(arm.get("agreement")),
        _millions(arm.get("parameters")),
        f"{size(arm['bytes'])} {arm.get('served') or ''}".strip() if arm.get("bytes") else "",
        f"{served['p50_ms']:.2f} ms" if served.get("p50_ms") is not None else "",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.2f} %"


def _points(interval: Mapping[str, Any]) -> str:
    """A difference of two shares in percentage points, with its interval."""
    value, low, high = (interval.get(name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    words = f"{value * 100:+.2f}"
    return words if low is None or high is None else f"{words} [{low * 100:+.2f}, {high * 100:+.2f}]"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"
