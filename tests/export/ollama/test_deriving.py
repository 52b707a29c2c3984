"""Templates for Ollama: derived from chat templates, and equal to them on conversations."""

import pytest
from transformers import PreTrainedTokenizerFast

from adapterhub.errors import ExportError
from adapterhub.export.ollama.conversations import Conversation
from adapterhub.export.ollama.deriving import derive_template
from adapterhub.export.ollama.go_template import render_go_template
from adapterhub.export.ollama.source import PromptSource
from adapterhub.export.ollama.verifying import conversations, verify_template
from adapterhub.requests.prompts import choose_style
from tests.export.ollama.families import CHATML, FAMILIES, SPECIAL_TOKENS, ZEPHYR, prompt_source
from tests.tiny import make_tokenizer

WITH_TOOLS = ("demo", "llama3_1", "mistral-v3", "qwen2_5", "qwen3", "qwen3-training", "qwen3_instruct_2507")
WITHOUT_SYSTEM = ("gemma", "mistral-v1")
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
AGAIN = {"role": "user", "content": "Why?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": "<1>"}}},
    ],
}
RESULT = {"role": "tool", "content": "4", "name": "add"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds & returns.",
        "parameters": {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "string"}}},
    },
}


def prompt(
    family: str, *messages: dict, tools: tuple = (), think: bool | None = None, added: str = ""
) -> str:
    template = derive_template(prompt_source(family, added))
    return render_go_template(template.text, Conversation(messages, tools, think).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_equal_on_every_conversation(family: str):
    source = prompt_source(family)
    template = derive_template(source)
    assert ("system" in template.roles) == (family not in WITHOUT_SYSTEM)
    assert template.has_tools == (family in WITH_TOOLS)
    # All but those that the format refuses: a system message after the first, turns that do not alternate.
    assert len(list(conversations(template))) * 0.85 <= verify_template(source, template)


@pytest.mark.parametrize("family", ["chatml", "llama2", "qwen2_5", "phi3", "zephyr", "demo"])
def test_it_is_what_transformers_renders(family: str):
    tokenizer: PreTrainedTokenizerFast = make_tokenizer(chat_template=FAMILIES[family])
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    messages = [SYSTEM, ASK, ANSWER, AGAIN]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt(family, *messages) == expected


def test_prompts_of_the_families():
    assert prompt("chatml", ASK) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("llama2", SYSTEM, ASK, ANSWER, AGAIN) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n2 + 2? [/INST] 4 </s><s>[INST] Why? [/INST]"
    )
    assert prompt("llama3", SYSTEM, ASK) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert prompt("gemma3", SYSTEM, ASK) == (
        "<s><start_of_turn>user\nBe brief.\n\n2 + 2?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert prompt("phi3", ASK, ANSWER, AGAIN) == (
        "<|user|>\n2 + 2?<|end|>\n<|assistant|>\n4<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"
    )
    assert prompt("zephyr", ASK) == "<|user|>\n2 + 2?</s>\n<|assistant|>\n"


def test_the_system_text_of_a_template_stands_only_where_there_is_no_other():
    default = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    asked = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("smollm2", ASK) == default + asked
    assert prompt("smollm2", SYSTEM, ASK) == "<|im_start|>system\nBe brief.<|im_end|>\n" + asked


def test_tools_calls_and_results():
    assert prompt("demo", ASK, CALL, RESULT, tools=(TOOL,)) == (
        "<|im_start|>system\n<tools>\n"
        '{"name": "add", "description": "Adds & returns.", "parameters": {"type": "object", "properties": '
        '{"a": {"type": "string"}, "b": {"type": "number"}}}}\n'  # Ollama sorts the names of properties
        "</tools><|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": "<1>", "b": 2}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_json_with_an_indent():
    assert (
        "Do not use variables.\n\n"
        "{\n"
        '    "type": "function",\n'
        '    "function": {\n'
        '        "name": "add",\n'
        '        "description": "Adds & returns.",\n'
        '        "parameters": {\n'
        '            "type": "object",\n'
        '            "properties": {\n'
        '                "a": {\n'
        '                    "type": "string"\n'
        "                },\n"
        '                "b": {\n'
        '                    "type": "number"\n'
        "                }\n"
        "            }\n"
        "        }\n"
        "    }\n"
        "}\n\n2 + 2?<|eot_id|>"
    ) in prompt("llama3_1", ASK, tools=(TOOL,))


def test_reasoning_stands_in_answers_after_the_last_question():
    thought = {**CALL, "reasoning_content": "A sum."}
    rendered = prompt("qwen3", ASK, thought, RESULT, tools=(TOOL,))
    assert "<|im_start|>assistant\n<think>\nA sum.\n</think>\n\n<tool_call>\n" in rendered
    later = prompt("qwen3", ASK, thought, RESULT, ANSWER, AGAIN, tools=(TOOL,))
    assert "A sum." not in later
    off = prompt("qwen3", ASK, think=False)
    assert off == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert prompt("qwen3", ASK, think=True) == off.removesuffix("<think>\n\n</think>\n\n")


def test_an_answer_that_has_begun_is_continued():
    begun = {"role": "assistant", "content": "It is"}
    assert prompt("chatml", ASK, begun) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is"


def test_messages_of_one_role_are_joined_as_ollama_joins_them():
    assert prompt("chatml", ASK, AGAIN) == (
        "<|im_start|>user\n2 + 2?\n\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt("demo", ASK, CALL, RESULT, RESULT).count("<tool_response>") == 2


def test_the_token_that_the_tokenizer_adds_is_left_out():
    assert prompt("llama3", ASK, added="<s>").startswith("<|start_header_id|>user")
    assert (
        prompt("llama2", ASK, ANSWER, AGAIN, added="<s>")
        == "[INST] 2 + 2? [/INST] 4 </s><s>[INST] Why? [/INST]"
    )


def test_a_prompt_format_without_a_chat_template():
    source = PromptSource(choose_style(None), SPECIAL_TOKENS)
    template = derive_template(source)
    verify_template(source, template)
    rendered = render_go_template(template.text, Conversation((SYSTEM, ASK)).values())
    assert rendered == "Be brief.\n\n### Instruction:\n2 + 2?\n\n### Response:\n"


@pytest.mark.parametrize(
    "text", ["{{", "{", '"""', "\u200d", "\U000e0001", "}}", "{{- x -}}", "`\\n`", "「", "\t"]
)
def test_texts_that_go_or_a_modelfile_would_read_otherwise(text: str):
    chat_template = (
        "{% for m in messages %}"
        + f"{{{{ {text!r} }}}}"
        + "<{{ m.role }}>{{ m.content }}</>"
        + (f"{{% endfor %}}{{{{ {text!r} }}}}")
    )
    source = PromptSource(choose_style(chat_template), {})
    template = derive_template(source)
    assert verify_template(source, template) == 25
    assert '"""' not in template.text
    assert all(sign.isprintable() or sign in "\n\t" for sign in template.text)


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        (CHATML + "{{ strftime_now('%Y') }}", "it writes the date of each request"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "it changes, repeats or reorders"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
            "it changes, repeats or reorders",
        ),
        (
            CHATML.replace("{% for m in messages %}", "{% for m in messages | reverse %}"),
            "reorders the contents",
        ),
        (CHATML.replace("<|im_start|>", "<{{ loop.index }}>", 1), "depends on more than these two"),
        (CHATML + "{{ messages | length }}", "depends on more than these two"),
        (CHATML + "{{ messages[0].content | length }}", "in a test conversation it gives"),
        (CHATML.replace("in messages", "in messages[-9:]"), "in a test conversation it gives"),
        (CHATML.replace("{{ m.content }}", "{{ m.content[:9999] }}"), "in a test conversation it gives"),
        ("{{ raise_exception('no') }}", "it refuses a plain conversation"),
        (
            ZEPHYR + "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}",
            "not their JSON",
        ),
        (
            "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% for c in m.tool_calls %}{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}="
            "{{ v }}{% endfor %}){% endfor %}</>{% endfor %}",
            "calls of tools in a form that is not name and JSON arguments",
        ),
        (
            FAMILIES["demo"] + "{% for m in messages %}{% if m.tool_calls and not m.content %}"
            "{{ raise_exception('say something') }}{% endif %}{% endfor %}",
            "it refuses calls without a text",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(chat_template: str, reason: str):
    source = PromptSource(choose_style(chat_template), SPECIAL_TOKENS)
    with pytest.raises(ExportError, match=reason) as refused:
        verify_template(source, derive_template(source))
    assert refused.value.hint


@pytest.mark.parametrize("family", ["demo", "qwen3", "llama3_1"])
def test_a_template_that_differs_is_found(family: str):
    source = prompt_source(family)
    template = derive_template(source)
    changed = template.text.replace("{{ .Function.Name }}", "{{ .Function.Name }} ")
    assert changed != template.text
    with pytest.raises(ExportError, match="in a test conversation it gives"):
        verify_template(source, type(template)(changed, template.has_tools, "", template.roles))
