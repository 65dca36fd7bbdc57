"""Lines with round ticks, and numbers with as many digits as their intervals deserve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale import plain, scale_over, shown


@pytest.mark.parametrize(
    ("value", "precision", "words"),
    [
        (1.2166, 0.12, "1.22"),
        (74.2, 4.1, "74.2"),
        (-0.004, 0.5, "0.00"),
        (1249.94, 70.0, "1,250"),
        (0.0213, 0.003, "0.0213"),
        (5.0, 0.0, "5"),
        (2.5e13, 1e9, "2.5e+13"),
        (3e-12, 1e-14, "3e-12"),
        (float("nan"), 1.0, "nan"),
    ],
)
def test_a_number_is_rounded_to_the_second_digit_of_its_precision(value: float, precision: float, words: str) -> None:
    """And never shown as minus zero."""
    assert shown(value, precision) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.1, "1.1"),
        (1.100000023841858, "1.1"),
        (923.31, "923.31"),
        (-12345678.0, "-12,345,678"),
        (0.0, "0"),
        (1200.0, "1,200"),
        (-0.00001234, "-1.234e-05"),
    ],
)
def test_a_true_number_has_the_digits_that_it_was_written_with(value: float, words: str) -> None:
    """Without those that single precision adds."""
    assert plain(value) == words


def test_a_number_can_be_shown_with_fewer_digits() -> None:
    assert plain(1234.5678, digits=6) == "1,234.57"
    assert plain(1234567.8, digits=6) == "1,234,568"


NUMBERS = st.floats(-1e9, 1e9).map(lambda value: round(value, 6))


@given(st.lists(NUMBERS, min_size=2))
def test_a_line_holds_all_its_numbers_between_few_round_ticks(values: list[float]) -> None:
    """Its ends are no further away than one step."""
    scale = scale_over(values)
    if scale is None:
        assert max(values) - min(values) <= 1e-6 * max(map(abs, values))
        return
    assert 2 <= len(scale.ticks) <= 6
    slack = 1e-6 * scale.step
    assert scale.ticks[0] - slack <= min(values) < scale.ticks[1] + slack
    assert scale.ticks[-2] - slack < max(values) <= scale.ticks[-1] + slack
    assert [place for place, _ in scale.labels()] == pytest.approx(
        [number / (len(scale.ticks) - 1) for number in range(len(scale.ticks))], abs=1e-6
    )
    words = [word for _, word in scale.labels()]
    assert len(set(words)) == len(words)


def test_a_line_is_labelled_with_round_numbers() -> None:
    """A number without any other needs no line."""
    scale = scale_over([0.85, 1.59, 0.2])
    assert scale is not None
    assert [word for _, word in scale.labels()] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert scale.place(1.5) == pytest.approx(0.75)
    assert scale_over([4.0]) is None
    assert scale_over([1.0, float("inf")]) is None
