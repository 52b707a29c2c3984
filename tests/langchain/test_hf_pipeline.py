"""`HuggingFacePipeline` on a hub: what chains that hold one rely on, with the answers of the hub."""

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

from adapterhub import AdapterHub
from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.langchain import huggingface_pipeline

PROMPT = "the quick brown"
NAMES = ("json", "code", "support")


@pytest.fixture
def llm(live_hub: AdapterHub) -> HuggingFacePipeline:
    return huggingface_pipeline(live_hub, "json", max_new_tokens=12, do_sample=False)


def wanted(hub: AdapterHub, adapter: str = "json", prompt: str = PROMPT, **options: Any) -> str:
    return hub.generate(prompt, adapter, raw=True, temperature=0, max_tokens=12, **options).text


@pytest.mark.spec("4-F7")
def test_answers_are_those_of_the_hub(live_hub: AdapterHub):
    answers = {}
    for name in (*NAMES, "base", "json:0.5+code:0.5"):
        llm = huggingface_pipeline(live_hub, name, max_new_tokens=12, do_sample=False)
        assert isinstance(llm, HuggingFacePipeline)
        answers[name] = llm.invoke(PROMPT)
        assert answers[name] == PROMPT + wanted(live_hub, name)
    assert len(set(answers.values())) == 5


def test_a_chain(llm: HuggingFacePipeline, live_hub: AdapterHub):
    chain = PromptTemplate.from_template("the {what} brown") | llm | StrOutputParser()
    assert chain.invoke({"what": "quick"}) == PROMPT + wanted(live_hub)
    answer_only = llm.bind(skip_prompt=True)
    assert answer_only.invoke(PROMPT) == wanted(live_hub)
    assert llm.invoke(PROMPT, pipeline_kwargs={"return_full_text": False}) == wanted(live_hub)
    assert len(llm.invoke(PROMPT, pipeline_kwargs={"max_new_tokens": 2})) < len(PROMPT + wanted(live_hub))


async def test_every_entry_point(llm: HuggingFacePipeline, live_hub: AdapterHub):
    text = wanted(live_hub)
    assert "".join(llm.stream(PROMPT)) == text
    assert "".join(llm.stream(PROMPT, skip_prompt=False)) == PROMPT + text
    assert "".join([part async for part in llm.astream(PROMPT)]) == text
    assert await llm.ainvoke(PROMPT) == PROMPT + text
    assert llm.batch([PROMPT, PROMPT]) == [PROMPT + text] * 2


def test_a_batch_shares_its_forward_passes(llm: HuggingFacePipeline, live_hub: AdapterHub):
    prompts = [f"one two {number}" for number in range(10)]
    alone, longest = [], 0
    for prompt in prompts:
        before = live_hub.stats().steps
        alone.append(llm.invoke(prompt))
        longest = max(longest, live_hub.stats().steps - before)
    before = live_hub.stats().steps
    assert llm.batch(prompts) == alone
    assert live_hub.stats().steps - before <= longest + 1


async def test_beside_requests_for_other_adapters(live_hub: AdapterHub):
    llms = [huggingface_pipeline(live_hub, name, max_new_tokens=12, do_sample=False) for name in NAMES] * 3
    others = [live_hub.agenerate(PROMPT, name, raw=True, temperature=0, max_tokens=12) for name in NAMES * 3]
    answers = await asyncio.gather(*(llm.ainvoke(PROMPT) for llm in llms), *others)
    texts = [wanted(live_hub, name) for name in NAMES] * 3
    assert answers[:9] == [PROMPT + text for text in texts]
    assert [answer.text for answer in answers[9:]] == texts


def test_stop(llm: HuggingFacePipeline, live_hub: AdapterHub):
    text = wanted(live_hub)
    stop = text[3:5]
    cut = text[: text.index(stop)]
    assert llm.invoke(PROMPT, stop=[stop]) == PROMPT + cut
    assert "".join(llm.stream(PROMPT, stop=[stop])) == cut
    assert llm.invoke(PROMPT, pipeline_kwargs={"stop_strings": [stop]}) == PROMPT + cut


def test_a_chat_model_over_it(llm: HuggingFacePipeline, live_hub: AdapterHub):
    chat = ChatHuggingFace(llm=llm)
    answer = live_hub.generate("Hi", "json", temperature=0, max_tokens=12).text
    assert chat.invoke("Hi").text.endswith("<|im_start|>assistant\n" + answer)
    assert chat.bind(skip_prompt=True).invoke("Hi").text == answer
    assert "".join(chunk.text for chunk in chat.stream("Hi")) == answer


def test_the_pipeline_itself(llm: HuggingFacePipeline, live_hub: AdapterHub):
    text = {"generated_text": PROMPT + wanted(live_hub)}
    assert llm.pipeline(PROMPT) == [text]
    assert llm.pipeline([PROMPT, PROMPT], batch_size=None) == [[text], [text]]
    several = llm.pipeline(PROMPT, do_sample=True, num_return_sequences=3, top_k=50, max_new_tokens=20)
    assert len({one["generated_text"] for one in several}) > 1
    assert llm.pipeline.task == "text-generation"
    assert llm.pipeline.tokenizer is live_hub.engine.tokenizer


def test_a_cache_does_not_mix_adapters(live_hub: AdapterHub):
    cache = InMemoryCache()
    answers = set()
    for name in NAMES * 2:
        llm = huggingface_pipeline(live_hub, name, max_new_tokens=12, do_sample=False)
        llm.cache = cache
        answers.add(llm.invoke(PROMPT))
    assert len(answers) == len(cache._cache) == 3


def test_invalid_requests(live_hub: AdapterHub, llm: HuggingFacePipeline):
    with pytest.raises(AdapterNotFoundError):
        huggingface_pipeline(live_hub, "nobody")
    with pytest.raises(InvalidRequestError, match="num_beams"):
        huggingface_pipeline(live_hub, "json", num_beams=4)
    with pytest.raises(InvalidRequestError, match="num_beams"):
        llm.invoke(PROMPT, pipeline_kwargs={"num_beams": 4})
