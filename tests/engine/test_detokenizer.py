import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.echo import EchoTokenizer
from tests.tiny import make_tokenizer

BYTES = make_tokenizer()
WORDS = ["▁the", "▁quick", "▁", "t", "h", "e", "q", "u", "i", "c", "k", "п", "и", ","]
SPECIAL = "<|x|>"


def llama_2() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it: a space before the text, and bytes for characters it does not know."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = BPE(
        {token: index for index, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", additional_special_tokens=[SPECIAL]
    )


def metaspace() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer that marks words, as T5 and XGLM have it."""
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), *((word, -1.0) for word in WORDS)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", additional_special_tokens=[SPECIAL]
    )


SENTENCEPIECE = {"llama 2": llama_2(), "metaspace": metaspace()}


def deltas(detokenizer: IncrementalDetokenizer, ids: list[int]) -> list[str]:
    out = []
    for token in ids:
        out.append(detokenizer.push(token))
        if detokenizer.stopped:
            return out
    return [*out, detokenizer.flush()]


@given(st.text())
def test_the_deltas_join_to_the_text(text: str):
    assert (
        "".join(deltas(IncrementalDetokenizer(BYTES), BYTES.encode(text, add_special_tokens=False))) == text
    )


@given(st.text())
def test_no_delta_ends_within_a_character(text: str):
    whole = text.replace("\ufffd", "")
    for delta in deltas(IncrementalDetokenizer(BYTES), BYTES.encode(whole, add_special_tokens=False)):
        assert "\ufffd" not in delta


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]):
    tokenizer = EchoTokenizer()
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    got = "".join(deltas(detokenizer, tokenizer.encode(text)))
    # the stop string that is complete first wins; of several complete at once, the one that begins first
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    assert got == expected
    assert detokenizer.stopped == bool(ends)


def test_a_possible_stop_string_is_held_back():
    detokenizer = IncrementalDetokenizer(EchoTokenizer(), ["END"])
    assert [detokenizer.push(ord(c)) for c in "xENx"] == ["x", "", "", "ENx"]


def test_spaces_between_words_survive():
    ids = BYTES.encode("the quick brown fox", add_special_tokens=False)
    assert "".join(deltas(IncrementalDetokenizer(BYTES), ids)) == "the quick brown fox"


@pytest.mark.parametrize("tokenizer", SENTENCEPIECE.values(), ids=SENTENCEPIECE)
@pytest.mark.parametrize(
    "text",
    [
        "the quick",
        "  the  quick ",
        f"the{SPECIAL} quick",
        f"{SPECIAL}the",
        "日本語 the 本",
        "the, 日",
        "пи 🙂🙂",
    ],
)
def test_the_deltas_of_sentencepiece_join_to_the_text(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(deltas(IncrementalDetokenizer(tokenizer), ids)) == whole


@given(st.text())
def test_the_deltas_of_byte_fallback_join_to_the_text(text: str):
    tokenizer = SENTENCEPIECE["llama 2"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(deltas(IncrementalDetokenizer(tokenizer), ids)) == whole
