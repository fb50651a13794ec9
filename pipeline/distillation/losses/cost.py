"""What each form of the affinity loss costs, and the choice between those that mean the same.

Per image, multiply-accumulates of one training step: the student's forward and backward and the teacher's
forward, as `pipeline.distillation.losses.affinity` executes them. The published costs (arXiv 2302.10899: FA N^2 C,
FFA 2 N C k, and N C^2 for a Gram matrix) are per map and network, forward only.

The form chosen estimates or equals the SQUARED loss whichever it is, so that the choice never changes what
the loss means; only FFA is random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

AffinityForm = Literal["fa", "ffa", "gram"]

# Normalising both maps and carrying the gradient back through it is a fixed number of passes over the maps,
# bound by memory. Least squares over 48 maps (N 16 to 3136, C 16 to 1024, k = 15; one thread of an AVX-512
# server CPU, torch 2.15) gives 0.018 ns per multiply-accumulate and 4.8 ns per number of the student's map:
# 260 MACs, half of them per network. The middle 80 % of the predicted times were 0.68 to 1.17 of the measured
# ones, Gram matrices larger than N x C apart.
MACS_PER_MAP_ELEMENT = 130

# What an exact form may cost, relative to FFA, and still be preferred: it adds no noise to the gradient,
# FFA's has a relative standard deviation of up to sqrt(2 / k) per image. Ours: a choice, not a derivation.
EXACT_FORM_ALLOWANCE = 1.25


def fa_macs(positions: int, student_channels: int, teacher_channels: int) -> int:
    """Multiply-accumulates per image of exact FA: N^2 (2 C_student + C_teacher)."""
    return positions**2 * (2 * student_channels + teacher_channels)


def ffa_macs(positions: int, student_channels: int, teacher_channels: int, projections: int) -> int:
    """Multiply-accumulates per image of FFA: N k (5 C_student + 2 C_teacher)."""
    return positions * projections * (5 * student_channels + 2 * teacher_channels)


def gram_macs(positions: int, student_channels: int, teacher_channels: int) -> int:
    """Multiply-accumulates per image of the Gram form: 5 N C^2, C the larger number of channels."""
    return 5 * positions * max(student_channels, teacher_channels) ** 2


# name -> function of (N, C_student, C_teacher, k)
FORM_MACS: dict[AffinityForm, Callable[[int, int, int, int], int]] = {
    "fa": lambda positions, student, teacher, _projections: fa_macs(positions, student, teacher),
    "gram": lambda positions, student, teacher, _projections: gram_macs(positions, student, teacher),
    "ffa": ffa_macs,
}


def form_cost(
    form: AffinityForm, *, positions: int, student_channels: int, teacher_channels: int, projections: int
) -> int:
    """Cost per image of one form, in multiply-accumulates, the passes over the maps included as such.

    Args:
        form: "fa", "ffa" or "gram".
        positions: N = H * W of the student's map, >= 1.
        student_channels: C_student, >= 1.
        teacher_channels: C_teacher, >= 1.
        projections: k of FFA, >= 1; the exact forms do not depend on it.
    """
    macs = FORM_MACS[form](positions, student_channels, teacher_channels, projections)
    return macs + MACS_PER_MAP_ELEMENT * positions * (student_channels + teacher_channels)


def choose_form(*, positions: int, student_channels: int, teacher_channels: int, projections: int) -> AffinityForm:
    """The cheapest form of the squared affinity loss for one map.

    The cheaper exact form is taken unless FFA saves more than a fifth of its cost (EXACT_FORM_ALLOWANCE).
    With k = 15 and equal channel counts that means: FA up to 65 positions, the Gram form up to 39 channels,
    FFA beyond both.

    Args:
        positions: N = H * W of the student's map, >= 1.
        student_channels: C_student, >= 1.
        teacher_channels: C_teacher, >= 1.
        projections: k of FFA, >= 1; more than N rules FFA out.
    """
    cost: dict[AffinityForm, int] = {
        form: form_cost(
            form,
            positions=positions,
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            projections=projections,
        )
        for form in FORM_MACS
    }
    exact: AffinityForm = "fa" if cost["fa"] <= cost["gram"] else "gram"
    if projections > positions or cost[exact] <= EXACT_FORM_ALLOWANCE * cost["ffa"]:
        return exact
    return "ffa"
