"""A run, and each call of its own, holds every rewrite of the runtime against the graph before it, on real images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import faqd
from backends.facts.profile import Profile
from calibration.rewrites.rewrite import RewriteChangedOutputs
from tests.faulty_row import PLANTED

pytestmark = pytest.mark.usefixtures("all_digits_narrow")


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every profile has a row that changes what a network computes."""
    monkeypatch.setattr(Profile, "rewrites_for", lambda *_: (PLANTED,))


NNCF = pytest.param("nncf", marks=pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed"))


@pytest.mark.parametrize("quantiser", ["faqd", NNCF])
def test_a_run_names_the_row_that_changed_something(quantiser: str, tmp_path: Path) -> None:
    config = faqd.RunConfig(
        data=faqd.DataConfig(calibration_images=16),
        quantisation=faqd.QuantisationConfig(quantiser=quantiser),  # type: ignore[arg-type]  # one of two names
        output=faqd.OutputConfig(folder=tmp_path / "out"),
    )
    with pytest.raises(RewriteChangedOutputs, match=r"the rewrite 'planted' changed the output output by 0\.01"):
        faqd.run(config)
    assert not (tmp_path / "out" / "bundle").exists()


def test_preparing_names_the_row_that_changed_something() -> None:
    network = faqd.load_network("digits")
    with pytest.raises(RewriteChangedOutputs, match=r"the rewrite 'planted' changed the output output by 0\.01"):
        faqd.prepare(network, faqd.open_images("digits", network))
