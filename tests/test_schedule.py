"""The learning rate over a training: against the textbook formulas, torch's own cosine, and its bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.schedule import rate

warmups = st.floats(0, 0.99)
shares = st.floats(0, 1)


@given(done=shares, warmup=warmups)
@settings(deadline=None)
def test_the_rate_is_a_share_of_the_full_one(done, warmup):
    """It is never below 0 nor above 1, and above 0 at every step but the end, the first one included."""
    got = rate(done, warmup)
    assert 0 <= got <= 1
    if done < 0.999:
        assert got > 0


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_it_is_full_at_the_end_of_the_warm_up_and_nothing_at_the_end(warmup):
    """The highest rate is exactly the full one, reached where the warm-up ends; the training ends at 0."""
    assert rate(warmup, warmup) == 1
    assert rate(1, warmup) == pytest.approx(0, abs=1e-12)
    assert rate(1.5, warmup) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.05, 0.1, 0.5, 0.9])
def test_the_warm_up_is_a_line_from_almost_nothing(warmup):
    """Below the warm-up the rate is that of a straight line, which begins within two hundredths of 0."""
    done = np.linspace(0, warmup, 200, endpoint=False)
    got = np.array([rate(d, warmup) for d in done])
    assert 0 < got[0] < 0.02
    np.testing.assert_allclose(got, got[0] + (1 - got[0]) * done / warmup, atol=1e-12)


def test_without_a_warm_up_it_begins_in_full():
    """With no warm-up the first step has the full rate."""
    assert rate(0, 0) == 1


@pytest.mark.parametrize(("steps", "before"), [(50, 0), (50, 10), (400, 40)])
def test_after_the_warm_up_it_is_the_cosine_that_torch_has(steps, before):
    """Step by step the rate is that of torch's CosineAnnealingLR over what remains."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps - before)
    for step in range(before, steps + 1):
        assert rate(step / steps, before / steps) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-9)
        optimiser.step()
        scheduler.step()


@given(one=shares, other=shares, warmup=warmups)
@settings(deadline=None)
def test_it_rises_and_then_falls(one, other, warmup):
    """Within the warm-up a later step has the higher rate, after it the lower one."""
    early, late = sorted([one, other])
    if late <= warmup:
        assert rate(early, warmup) <= rate(late, warmup)
    elif early >= warmup:
        assert rate(early, warmup) >= rate(late, warmup)


@given(done=shares, step=st.floats(0, 1e-3), warmup=warmups)
@settings(deadline=None)
def test_it_makes_no_jump(done, step, warmup):
    """Between two near steps the rate moves by no more than the steepest of line and cosine allows."""
    steepest = max(1 / (warmup + 1e-3) if warmup else 0, np.pi / 2 / (1 - warmup))
    assert abs(rate(done + step, warmup) - rate(done, warmup)) <= steepest * step + 1e-9
