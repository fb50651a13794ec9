"""The report as one table on the terminal, at most 100 columns wide."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report import wording
from pipeline.report.course_words import course_words, step_words
from pipeline.report.fields import ReportFields
from pipeline.tools.printing import plain

LONGEST_LIST = 5
"""Float layers named in the table at most; the page names all."""

LABEL_COLUMNS = 17
"""Width of the first column, which the parts share so that they read as one table, characters."""

_NO_GAIN = "no gain"

STYLES = {
    "validated": "bold green",
    "gate-failed": "bold red",
    "not-validated-on-target": "bold yellow",
    "undecided": "bold yellow",
}


def render_report(report: ReportFields) -> RenderableType:
    """Return what rich prints for a report: title, accuracies, facts, gates, status."""
    title = Text(
        plain(
            f"{report.student} -> {wording.runtime_name(report)} {wording.grid(report)}"
            f"{wording.way(report)}, seed {report.seed}"
        ),
        style="bold",
    )
    return Group(Text(), title, _accuracies(report), Text(), _facts(report), _gates(report), _status(report))


def _accuracies(report: ReportFields) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    accuracy = report.accuracy
    table.add_column(
        f"{accuracy.images} image{'' if accuracy.images == 1 else 's'}", min_width=LABEL_COLUMNS, no_wrap=True
    )
    columns = wording.scores(report)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    of_sample = wording.scores(report, of_sample=True)
    ran_there = {heading for heading, value in of_sample if value is not None}
    table.add_row(
        wording.metric_words(report),
        *("" if value is None and heading in ran_there else wording.percentage(value) for heading, value in columns),
    )
    if report.sample is not None:
        table.add_row(f"{report.sample.images} of these", *(wording.percentage(value) for _, value in of_sample))
    return table


def _facts(report: ReportFields) -> Table:
    table = fact_table()
    for name, value in fact_rows(report):
        # As Text: names of files and layers may hold what rich takes for markup.
        table.add_row(name, Text(plain(value), style=STYLES["undecided"] if name == _NO_GAIN else ""))
    return table


def fact_table() -> Table:
    """Return the table of two columns that facts stand in, a name and a value each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", min_width=LABEL_COLUMNS, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def fact_rows(report: ReportFields) -> list[tuple[str, str]]:
    """Return what there is to say of a report beside scores and gates, as (name, value)."""
    latency, size = report.latency, report.size
    times = wording.NOT_HERE
    if latency.quantised_ms is not None:
        factor = "" if latency.speedup is None else f", {wording.factor(latency.speedup)}"
        times = (
            f"float {wording.milliseconds(latency.float_ms)}, "
            f"quantised {wording.milliseconds(latency.quantised_ms)}{factor}; "
            f"batch {latency.batch}, threads {latency.threads}"
        )
    shrunk = f"float {wording.kilobytes(size.float_bytes)}, quantised {wording.kilobytes(size.quantised_bytes)}"
    if (ratio := wording.size_ratio(report)) is not None:
        shrunk += f", {wording.factor(ratio)}"
    target = wording.target_words(report)
    rows = [] if target is None else [("target", target)]
    if not wording.is_plain_classifier(report):
        shown = report.outputs[: wording.NAMED_OUTPUTS]
        rows += [("output", f"{output.name}: {wording.output_words(output)}") for output in shown]
        if len(report.outputs) > len(shown):
            rows.append(("", f"and {len(report.outputs) - len(shown)} more outputs, see the report"))
    rows += [("runtime vs oracle", wording.parity_words(report)), ("kernels", wording.kernel_words(report))]
    float_layers = report.kernels.float_layers
    rows += [("", f"float: {layer.name} ({layer.reason})") for layer in float_layers[:LONGEST_LIST]]
    if len(float_layers) > LONGEST_LIST:
        rows.append(("", f"and {len(float_layers) - LONGEST_LIST} more, see the report"))
    rows += [("latency", times)]
    if (slow := wording.speed_words(report)) is not None:
        rows.append((_NO_GAIN, slow))
    rows += [("size", shrunk)]
    if (training := wording.training_words(report)) is not None:
        rows.append(("distillation", training))
    if (course := report.strategy) is not None:
        rows += [("strategy", course_words(course)), *(("", step_words(step)) for step in course.steps)]
    if report.data is not None and report.data.unreadable:
        names = ", ".join(report.data.unreadable_names)
        rows.append(("images skipped", f"{report.data.unreadable} unreadable of {report.data.images}: {names}"))
    spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    if spent:
        rows.append(("seconds", f"{sum(report.seconds.values()):.1f}: {spent}"))
    rows += [("note", note) for note in report.notes]
    return rows


def _gates(report: ReportFields) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", min_width=LABEL_COLUMNS, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for index, gate in enumerate(report.gates):
        words, value, outcome = wording.gate_words(gate)
        style = {True: "green", False: "bold red", None: "yellow"}[gate.passed]
        table.add_row("gates" if index == 0 else "", Text(words), value, Text(outcome, style=style))
    if (why := wording.undecided_words(report)) is not None:
        table.add_row("", Text(why), "", "")
    return table


def _status(report: ReportFields) -> Text:
    words = f"{wording.VERDICTS[report.status]} (exit status {report.exit_status})"
    return Text(f"{'status':<{LABEL_COLUMNS}}  ", style="dim") + Text(words, style=STYLES[report.status])
