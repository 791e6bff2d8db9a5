"""Names never become anything but names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsite.names import InvalidName, check


@pytest.mark.parametrize("name", ["a", "site-a", "hv 01", "gold_b.local", "A" * 63, "7"])
def test_ordinary_names_pass(name: str) -> None:
    assert check(name, "server") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../a",
        "a/b",
        "a\nb",
        "a\n",
        "a" * 64,
        "a" * 300,
        " a",
        "a ",
        ".a",
        "-a",
        "..",
        "a\0b",
        "ä",
        "a\tb",
        "\u0661",
    ],
)
def test_what_could_be_a_path_an_option_or_a_line_is_refused_and_shown_harmlessly(name: str) -> None:
    with pytest.raises(InvalidName) as refused:
        check(name, "server")
    shown = str(refused.value)
    assert shown.isprintable()
    assert len(shown) < 120


@given(st.text(max_size=80))
def test_what_passes_is_one_safe_path_component(name: str) -> None:
    try:
        check(name, "vm")
    except InvalidName:
        return
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\\:*?\"'<>|$`")
    assert name not in {".", ".."}
