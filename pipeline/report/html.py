"""The report as one HTML page that needs nothing beside itself: no network, no script, no other file."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from pipeline.report import course_words, wording
from pipeline.report.cards import Card
from pipeline.report.charts import Bar, line_chart
from pipeline.report.fields import ReportFields
from pipeline.report.printed_table import fact_rows
from pipeline.report.templates import rendered
from pipeline.tools.printing import plain


def page(report: ReportFields) -> str:
    """Return the report as the text of an HTML page."""
    return rendered(
        "page.html.j2",
        report=report,
        wording=wording,
        course_words=course_words,
        accuracy_bars=_accuracy_bars(report),
        latency_bars=_latency_bars(report),
        size_bars=_size_bars(report),
        chart=line_chart(report.distillation.curve if report.distillation is not None else ()),
        device_steps=_device_steps(report),
        breakable=_breakable,
    )


def report_card(report: ReportFields) -> str:
    """Return the report as a piece of HTML for a notebook: what decides, as bars and gates, and the page to unfold."""
    card = Card(
        title=f"{report.student} on {wording.runtime_name(report)}, {wording.grid(report)}",
        verdict=(wording.VERDICTS[report.status], wording.TONES[report.status]),
        facts=(("", wording.headline(report)), *fact_rows(report)),
        bars=(
            (wording.metric_sentence(report), tuple(_accuracy_bars(report))),
            ("Median latency", tuple(_latency_bars(report))),
            ("Model file", tuple(_size_bars(report))),
        ),
        heading=("Condition", "Found", "Outcome"),
        rows=tuple(wording.gate_words(gate) for gate in report.gates),
        chart=line_chart(report.distillation.curve if report.distillation is not None else ()),
    )
    return card.html(page=page(report))


def _breakable(name: str) -> Markup:
    """Return a name, escaped, that may be broken behind its dots, slashes and underscores."""
    return Markup(re.sub(r"(?<=[._/])(?=[^._/])", "<wbr>", str(escape(plain(name)))))


def _accuracy_bars(report: ReportFields) -> list[Bar]:
    bars, of_sample = [], dict(wording.scores(report, of_sample=True))
    for heading, of_all in wording.scores(report):
        label, fraction = heading, of_all
        if of_all is None and report.sample is not None and of_sample[heading] is not None:
            label, fraction = f"{heading}, {report.sample.images} images", of_sample[heading]
        bars.append(
            Bar(
                label=label,
                value=wording.percentage(fraction),
                share=None if fraction is None else 100 * fraction,
                kind="float" if heading == "float teacher" else "quantised",
            )
        )
    return bars


def _latency_bars(report: ReportFields) -> list[Bar]:
    times = {"float": report.latency.float_ms, "quantised": report.latency.quantised_ms}
    longest = max((time.median for time in times.values() if time is not None), default=0.0)
    return [
        Bar(
            label=kind,
            value=wording.milliseconds(time),
            share=None if time is None or not longest else 100 * time.median / longest,
            kind=kind,
        )
        for kind, time in times.items()
    ]


def _size_bars(report: ReportFields) -> list[Bar]:
    sizes = {"float": report.size.float_bytes, "quantised": report.size.quantised_bytes}
    largest = max((size for size in sizes.values() if size is not None), default=0)
    return [
        Bar(
            label=kind,
            value=wording.kilobytes(size),
            share=None if size is None or not largest else 100 * size / largest,
            kind=kind,
        )
        for kind, size in sizes.items()
    ]


def _device_steps(report: ReportFields) -> list[str]:
    """Return in words what the device must do to an image, in order; empty when the report does not say."""
    rule = report.preprocessing
    if rule is None:
        return []
    order = rule.get("channel_order", "RGB")
    grey = order == "L"
    height, width, resize = rule.get("height"), rule.get("width"), rule.get("resize")
    steps = ["Decode the image as " + ("greyscale." if grey else f"{order}, three channels in that order.")]
    how = rule.get("interpolation", "bilinear")
    fill = rule.get("fill")
    if rule.get("stored_bits", 16) != 16:
        steps.append(f"Of grey images with more than 8 bits keep the upper 8 of {rule['stored_bits']}.")
    if fill is not None:
        shown = ", ".join(map(str, fill))
        steps.append(f"Scale the whole image ({how}) to fit into {height} x {width} px, keeping the proportions.")
        steps.append(f"Fill the rest with {shown}, the image at the {rule.get('placement', 'centre')}.")
    elif isinstance(resize, list):
        steps.append(f"Resize to {resize[1]} x {resize[0]} px ({how}), whatever the proportions.")
        steps.append(f"Cut out the central {height} x {width} px.")
    elif resize is not None:
        steps.append(f"Resize the shorter side to {resize} px ({how}), keeping the proportions.")
        steps.append(f"Cut out the central {height} x {width} px.")
    else:
        steps.append(f"Resize to {height} x {width} px ({how}) where the size differs.")
    if (divisor := rule.get("divisor", 255)) != 1:
        steps.append(f"Divide the 8-bit values by {divisor:g}.")
    mean, std = (", ".join(f"{value:g}" for value in rule.get(key, ())) for key in ("mean", "std"))
    steps.append(f"Subtract {mean} and divide by {std}" + ("." if grey else ", per channel."))
    channels = rule.get("channels", 1 if grey else 3)
    steps.append(f"Give the network float32 of shape [batch, {channels}, {height}, {width}].")
    steps.append("preprocess.py in the bundle does all of this: python preprocess.py IMAGE... --output inputs.npz.")
    return steps
