"""The cost model: its counts by hand, and the choices that follow from it."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.distillation.losses.cost import (
    EXACT_FORM_ALLOWANCE,
    FORM_MACS,
    AffinityForm,
    choose_form,
    fa_macs,
    ffa_macs,
    form_cost,
    gram_macs,
)


def test_counts_by_hand() -> None:
    # 4 positions, 3 and 5 channels. FA: student's and teacher's S, and the student's gradient.
    assert fa_macs(4, 3, 5) == 4 * 4 * 3 + 4 * 4 * 5 + 4 * 4 * 3
    # FFA with k = 2: each network Fhat Z and Fhat^T (.), then three products of that size for the gradient.
    assert ffa_macs(4, 3, 5, 2) == (2 * 3 + 2 * 5 + 3 * 3) * 4 * 2
    # Gram: three of 5 x 5, then two products of that size for the gradient.
    assert gram_macs(4, 3, 5) == 5 * (5 * 5 * 4)


def test_savings_of_the_paper() -> None:
    # Published, forward and per network: N / (2 k), 34 at N = 1024 and 104 at N = 3136 with k = 15; with the
    # backward pass 3 N / (7 k).
    for positions, saving in ((1024, 34), (3136, 104)):
        assert positions / 30 == pytest.approx(saving, abs=0.6)
        ratio = fa_macs(positions, 32, 32) / ffa_macs(positions, 32, 32, 15)
        assert ratio == pytest.approx(3 * positions / (7 * 15))


@pytest.mark.parametrize(
    ("positions", "channels", "expected"),
    [
        # ResNet-20 at 32 px: every tap is exact.
        (1024, 16, "gram"),
        (256, 32, "gram"),
        (64, 64, "fa"),
        # ResNet-18 at 224 px.
        (3136, 64, "ffa"),
        (784, 128, "ffa"),
        (196, 256, "ffa"),
        (49, 512, "fa"),
        # The borders that the docstring names.
        (65, 1000, "fa"),
        (66, 1000, "ffa"),
        (50176, 39, "gram"),
        (50176, 40, "ffa"),
    ],
)
def test_choice(positions: int, channels: int, expected: AffinityForm) -> None:
    chosen = choose_form(positions=positions, student_channels=channels, teacher_channels=channels, projections=15)
    assert chosen == expected


def test_choice_is_never_far_from_the_cheapest() -> None:
    for positions, student, teacher, projections in product((1, 16, 49, 400), (1, 8, 64, 512), (3, 64), (1, 15, 60)):
        cost = {
            form: form_cost(
                form,
                positions=positions,
                student_channels=student,
                teacher_channels=teacher,
                projections=projections,
            )
            for form in FORM_MACS
        }
        chosen = choose_form(
            positions=positions, student_channels=student, teacher_channels=teacher, projections=projections
        )
        possible = [form for form in cost if form != "ffa" or projections <= positions]
        assert chosen in possible
        assert cost[chosen] <= EXACT_FORM_ALLOWANCE * min(cost[form] for form in possible)
        if chosen == "ffa":
            assert cost["ffa"] == min(cost.values())
