"""Grids: every row of what papers sample at, against numpy's own writing of each on the paper's own clock."""

from itertools import pairwise

import numpy as np
import pytest

from fiducial.diffusion.grids import PLACES, STEPS, WITH_TAIL, named, read_spacing, shifted
from fiducial.diffusion.paths import linear


def shift(t, s):
    return s * t / (1 + (s - 1) * t)


def by_ddt(count, s):
    times = np.append(np.linspace(0, 1 - 0.04, count), 1.0)
    return times / (times + (1 - times) * s)


# By text and count: the times as the family writes them, and whether its clock begins at noise with 0.
FAMILIES = {
    "SiT, ODE of fixed steps": ("places", 250, np.linspace(0, 1, 250), True, 249),
    "SiT, SDE": ("places,tail=0.04", 250, np.append(np.linspace(0, 1 - 0.04, 250), 1), True, 250),
    "SiT, SDE of SBDM": ("places,start=0.999,tail=0.04", 250, np.append(np.linspace(1e-3, 0.96, 250), 1), True, 250),
    "SiT, VP": ("places,end=0.001", 250, np.linspace(0, 1 - 1e-3, 250), True, 249),
    "REPA, ODE": ("steps", 50, np.linspace(1, 0, 51), False, 50),
    "REPA, SDE": ("places,tail=0.04", 250, np.append(np.linspace(1, 0.04, 250), 0), False, 250),
    "LightningDiT": ("places,shift=1/0.3", 250, shift(np.linspace(0, 1, 250), 0.3), True, 249),
    "RAE": ("places,end=0.001,shift=sqrt(48)", 50, shift(1 - np.linspace(0, 0.999, 50), 48**0.5), False, 49),
    "RAEv2": ("steps,shift=8", 100, shift(np.linspace(1, 0, 101), 8), False, 100),
    "DDT": ("places,tail=0.04", 250, by_ddt(250, 1.0), True, 250),
    "PixelDiT": ("places,tail=0.04,shift=2", 100, by_ddt(100, 2.0), True, 100),
    "JiT": ("steps", 50, np.linspace(0, 1, 51), True, 50),
    "MeanFlow": ("steps", 1, np.array([1.0, 0.0]), False, 1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_grid_is_that_of_the_paper(name):
    text, count, times, begins_with_noise, steps = FAMILIES[name]
    found = read_spacing(text).times(count)
    assert np.allclose(found, 1 - times if begins_with_noise else times, rtol=0, atol=1e-14)
    assert len(read_spacing(text).places(linear, count)) == steps


WRONG = {  # of rows above
    "N for N - 1": ("SiT, ODE of fixed steps", "steps"),
    "N - 1 for N": ("JiT", "places"),
    "no tail": ("SiT, SDE", "places"),
    "no last step": ("REPA, SDE", "places,end=0.04"),
    "a shift on the other clock": ("LightningDiT", "places,shift=0.3"),
    "no shift": ("RAE", "places,end=0.001"),
    "an end at the image": ("RAE", "places,shift=sqrt(48)"),
    "no start": ("SiT, SDE of SBDM", "places,tail=0.04"),
    "a tail that is not shifted": ("PixelDiT", "places,tail=0.02,shift=2"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_grid_is_noticed(wrong):
    name, text = WRONG[wrong]
    _, count, times, begins_with_noise, _ = FAMILIES[name]
    found = np.array(read_spacing(text).times(count))
    expected = 1 - times if begins_with_noise else times
    assert found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=1e-5)


def test_raes_grid_ends_where_its_sheet_says():
    assert read_spacing("places,end=0.001,shift=sqrt(48)").times(50)[-1] == pytest.approx(0.0069, abs=5e-5)


def test_a_shift_leaves_the_ends_where_they_are():
    """So that no time is beyond them."""
    for shift in np.linspace(0.01, 50, 400):
        times = read_spacing(f"steps,shift={shift}").times(20)
        assert (times[0], times[-1]) == (1.0, 0.0)
        assert all(there < here for here, there in pairwise(times))


def test_a_shift_is_the_inverse_on_the_other_clock():
    for t in np.linspace(0, 1, 11):
        assert 1 - shifted(1 - t, 0.3) == pytest.approx(shifted(t, 1 / 0.3), abs=1e-15)
        assert t / (t + (1 - t) * 2.0) == pytest.approx(shifted(t, 0.5), abs=1e-15)


def test_places_are_numbers_that_a_person_types():
    """So that a closed end of an interval of guidance holds the place there."""
    for spacing, count in ((PLACES, 251), (STEPS, 250), (STEPS, 50), (PLACES, 11)):
        assert all(t == float(f"{t:.12g}") or abs(t - round(t, 3)) > 1e-9 for t in spacing.times(count))


def test_what_is_usual_is_what_its_text_says():
    assert (read_spacing("places"), read_spacing("steps"), read_spacing("places, tail=0.04")) == (PLACES, STEPS, WITH_TAIL)


def test_a_name_is_short_and_tells_grids_apart():
    grids = {read_spacing(text).times(count) for text, count, *_ in FAMILIES.values()}
    assert len({named(times) for times in grids}) == len(grids)
    assert named(WITH_TAIL.times(250)).startswith("250 steps from 1 to 0, the last of 0.04; sha256 ")
    assert all(len(named(times)) < 90 for times in grids)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("250", "begins with places"),
        ("linspace,tail=0.04", "begins with places"),
        ("steps,tail", "is no number"),
        ("steps,until=3", "takes start="),
        ("steps,end=0.1,end=0.2", "once each"),
        ("steps,end=0.1,tail=0.2", "not both"),
        ("places,end=x", "'end=x' is no number such as 0.04, 1/0.3 or sqrt"),
        ("places,shift=1/0", "is no number"),
        ("places,shift=sqrt(-4)", "is no number"),
        ("places,start=0.2,end=0.3", "must lead from start="),
        ("places,start=1.2", "must lead from start="),
        ("places,end=nan", "must lead from start="),
        ("places,tail=0", "tail=0 is no step"),
        ("places,shift=0", "shift= must be between"),
        ("places,shift=1e9", "shift= must be between"),
    ],
)
def test_what_names_no_grid_is_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said):
        read_spacing(text)
