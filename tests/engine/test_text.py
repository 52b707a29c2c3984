from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.echo import EchoTokenizer
from adapterhub.engine.text import TextAssembler
from tests.tiny import make_tokenizer

BYTES = make_tokenizer()


def pieces(assembler: TextAssembler, ids: list[int]) -> list[str]:
    out = []
    for token in ids:
        out.append(assembler.push(token))
        if assembler.stopped:
            return out
    return [*out, assembler.flush()]


@given(st.text())
def test_the_pieces_are_the_text(text: str):
    assert "".join(pieces(TextAssembler(BYTES), BYTES.encode(text, add_special_tokens=False))) == text


@given(st.text())
def test_no_piece_ends_within_a_character(text: str):
    whole = text.replace("\ufffd", "")
    for piece in pieces(TextAssembler(BYTES), BYTES.encode(whole, add_special_tokens=False)):
        assert "\ufffd" not in piece


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]):
    tokenizer = EchoTokenizer()
    assembler = TextAssembler(tokenizer, stop)
    got = "".join(pieces(assembler, tokenizer.encode(text)))
    # the stop string that is complete first wins; of several complete at once, the one that begins first
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    assert got == expected
    assert assembler.stopped == bool(ends)


def test_a_possible_stop_string_is_held_back():
    assembler = TextAssembler(EchoTokenizer(), ["END"])
    assert [assembler.push(ord(c)) for c in "xENx"] == ["x", "", "", "ENx"]


def test_spaces_between_words_survive():
    ids = BYTES.encode("the quick brown fox", add_special_tokens=False)
    assert "".join(pieces(TextAssembler(BYTES), ids)) == "the quick brown fox"
