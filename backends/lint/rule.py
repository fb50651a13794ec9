"""What a rule of a target is, what a file is held against, and what breaks one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from backends.facts.file_form import FileForm
from backends.facts.profile import Profile, RuntimeName
from backends.onnx_file.view import OnnxView
from calibration.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One broken rule: its number, the node that breaks it, and how."""

    rule: int
    node: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class LintRules:
    """What a file is held against: a target, the form it asks for, its bound on weight integers, and a plan's bits.

    `weight_limit` is the largest magnitude of an 8-bit weight (127 where the profile sets none); `weight_bits` maps a
    layer to the bits of its weight, which the file does not show where fewer than 8 are stored as int8; `planned_float`
    are the nodes that the plan knows to run in float, whatever their neighbours' roundings look like.
    """

    target: RuntimeName
    form: FileForm
    weight_limit: int = 127
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    planned_float: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 1 <= self.weight_limit <= 127:
            raise ValueError(f"a weight limit of {self.weight_limit} is outside 1 to 127")


def lint_rules(profile: Profile, plan: Plan | None = None) -> LintRules:
    """The rules for files of a profile, with the weight bits and float nodes of a plan where there is one."""
    return LintRules(
        target=profile.name,
        form=profile.form,
        weight_limit=profile.weight_limit or 127,
        weight_bits={placement.layer: placement.grid.bits for placement in plan.weights} if plan else {},
        planned_float=frozenset(plan.float_nodes) if plan else frozenset(),
    )


#: What a file that breaks a rule meets, at worst: wrong outputs without a word; a refusal; a layer in float; integers
#: that are slower than need be; or nothing, where the rule is there for our own files' sake.
Breach = Literal["wrong", "refused", "float", "slow", "none"]


@dataclass(frozen=True, kw_only=True)
class LintRule:
    """One row: the number and title of a rule, who it binds, what breaking it means, and where that is known from.

    `breach`: for each target that the rule binds; targets differ. `check`: how a file shows that it is broken, as pairs
    of node and problem; None for what the placement or the form of layers keeps, which a file alone cannot show.
    """

    number: int
    title: str
    breach: Mapping[RuntimeName, Breach]
    check: Callable[[OnnxView, LintRules], Iterable[tuple[str, str]]] | None
    source: str
