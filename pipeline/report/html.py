"""The report as one HTML page that needs nothing beside itself: no network, no script, no other file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.report import wording
from pipeline.report.charts import line_chart
from pipeline.report.schema import Report
from pipeline.tools.printing import plain


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: str
    share: float | None
    """Length as a percentage of the chart's width; None: not run here."""
    kind: str
    """Style of the bar: float or quantised."""


def page(report: Report) -> str:
    """Return the report as the text of an HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        wording=wording,
        accuracy_bars=_accuracy_bars(report),
        latency_bars=_latency_bars(report),
        size_bars=_size_bars(report),
        chart=line_chart(report.distillation.curve if report.distillation is not None else ()),
        device_steps=_device_steps(report),
        breakable=_breakable,
    )


def _shown(value: object) -> object:
    """A value of the page; names of files and layers may hold what turns the direction of text around."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """Return a name, escaped, that may be broken behind its dots, slashes and underscores."""
    return Markup(re.sub(r"(?<=[._/])(?=[^._/])", "<wbr>", str(escape(plain(name)))))


def _accuracy_bars(report: Report) -> list[Bar]:
    return [
        Bar(
            label=label,
            value=wording.percentage(fraction),
            share=None if fraction is None else 100 * fraction,
            kind="float" if label == "float teacher" else "quantised",
        )
        for label, fraction in wording.scores(report)
    ]


def _latency_bars(report: Report) -> list[Bar]:
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


def _size_bars(report: Report) -> list[Bar]:
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


def _device_steps(report: Report) -> list[str]:
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
