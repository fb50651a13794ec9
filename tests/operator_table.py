"""The page that shows every operator of the survey's networks: translated, rewritten, or refused with the way round.

    python3 -m tests.operator_table

writes docs/aten-operators.md from tests/backends/operators/operator_survey.jsonl and the tables of the packages.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from backends.onnx_file.translations import TRANSLATORS
from backends.onnx_file.translations.refused import REFUSED
from calibration.normal_form.mutation import functional_name
from calibration.normal_form.rules import REWRITTEN
from tests.operator_survey import NOT_ASKED, Row, read

PAGE = Path(__file__).resolve().parent.parent / "docs" / "aten-operators.md"

_HEAD = """# Operators of vision networks

What `torch.export` makes of networks of timm, torchvision, transformers and Ultralytics, with random weights and
without the blocks that repeat others, and what becomes of each operator: *translated* into an operator of the file;
*rewritten* into such as are translated, before anything is planned ([operators.md](operators.md) says into which);
*constant, or refused*: where it is computed from constants alone it is no operator of the file, else it is refused by
name with the way round that stands here. A network that is *converted* has been captured, folded and written as
ONNX; of one that is *exported alone* only the operators are known; one that is *not asked* does not run on images
alone, or is too large for the machine of the survey. `python3 -m tests.operator_survey` asks networks that have no row
yet (libraries that are not installed are left out; `--export-only` is faster), `python3 -m tests.operator_table` writes
this page.
"""


def status(operator: str) -> tuple[str, str]:
    """What becomes of an operator, by its name with the overload, and what is said of it where it is refused."""
    if operator.startswith("aten.sym_") or operator in REWRITTEN or functional_name(operator) in REWRITTEN:
        return "rewritten", ""
    translated = {str(target) for target in TRANSLATORS}
    if operator in translated or functional_name(operator) in translated:
        return "translated", ""
    why = REFUSED.get(functional_name(operator).rpartition(".")[0])
    return ("", "") if why is None else ("constant, or refused", why)


def operators_of(rows: list[Row]) -> dict[str, Counter[str]]:
    """Every ATen operator of the survey with the number of networks, per library, that have it."""
    counted: dict[str, Counter[str]] = {}
    for row in rows:
        for operator in row["operators"]:
            if not operator.startswith("higher_order") and not operator.startswith("wrap_"):
                counted.setdefault(operator, Counter())[row["library"]] += 1
    return dict(sorted(counted.items()))


def _kind(row: Row) -> str:
    outcome: str = row["outcome"]
    if outcome.startswith(NOT_ASKED):
        return "not asked"
    return outcome if outcome in ("converted", "exported") else "refused"


def page(rows: list[Row]) -> str:
    """The page as text."""
    libraries = sorted({row["library"] for row in rows})
    lines = [_HEAD, "| library | networks | converted | exported alone | refused | not asked |", "|---" * 6 + "|"]
    for library in libraries:
        outcomes = Counter(_kind(row) for row in rows if row["library"] == library)
        shown = " | ".join(str(outcomes[kind]) for kind in ("converted", "exported", "refused", "not asked"))
        lines.append(f"| {library} | {outcomes.total()} | {shown} |")
    lines += ["", f"| operator | {' | '.join(libraries)} | what becomes of it |", "|---" * (len(libraries) + 2) + "|"]
    for operator, counts in operators_of(rows).items():
        what, why = status(operator)
        shown = " | ".join(str(counts[library] or "") for library in libraries)
        lines.append(f"| `{operator}` | {shown} | {what}{': ' + why if why else ''} |")
    for title, outcome in (("converted", "converted"), ("exported alone", "exported")):
        lines += ["", f"## Networks that are {title}", ""]
        for library in libraries:
            names = sorted(row["network"] for row in rows if (row["library"], row["outcome"]) == (library, outcome))
            lines += [f"- {library}: {', '.join(names)}"] if names else []
    for title, kind in (("refused", "refused"), ("not asked", "not asked")):
        lines += ["", f"## Networks that are {title}", "", "| library | network | the line |", "|---|---|---|"]
        for row in rows:
            if _kind(row) == kind:
                said = row["outcome"].removeprefix(NOT_ASKED).replace("|", "/")
                lines.append(f"| {row['library']} | {row['network']} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(read()), encoding="utf-8")
