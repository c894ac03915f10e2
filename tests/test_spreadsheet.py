import pytest

from twostage_jax.io import inert


@pytest.mark.parametrize("before", ["", "\t", " ", "\r", "\0", "\u200b"])
@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a"])
def test_text_never_becomes_a_formula(before, text):
    assert inert(before + text) == f"'{text}"


def test_text_becomes_one_line_and_keeps_its_letters():
    assert inert("a=1") == "a=1"
    assert inert("Größe\n<b>\x07 of\u202e it") == "Größe <b> of it"
