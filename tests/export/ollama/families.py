"""Chat templates of the families: TRL's, the shipped ones, and short ones that write what published ones do."""

from pathlib import Path

import trl.chat_template_utils as trl_templates

import adapterhub
from adapterhub.export.ollama.source import PromptSource
from adapterhub.requests.prompts import choose_style

DEMO_BASE = Path(adapterhub.__file__).parent / "demo" / "base"
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\n{% endif %}" + CHATML
)
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
)
LLAMA2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% for m in (messages[1:] if system else messages) %}" + ALTERNATE + "{% if m.role == 'user' %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if system and loop.first else m.content %}"
    "{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V1 = (
    "{{ bos_token }}{% for m in messages %}"
    + ALTERNATE
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{% set system = messages[0].content if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] if system else messages %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and m == asked[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ system + '\n\n' if system and loop.last }}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content | tojson }}}[/TOOL_RESULTS]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_OF_TRL = (
    *(
        "cohere",
        "deepseekv3",
        "deepseek_r1_distill",
        "gemma",
        "gemma3",
        "llama3",
        "llama3_1",
        "phi3",
        "phi3_5",
    ),
    *("qwen2_5", "qwen3", "qwen3_instruct_2507"),
)
FAMILIES = {
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "llama2": LLAMA2,
    "mistral-v1": MISTRAL_V1,
    "mistral-v3": MISTRAL_V3,
    "zephyr": ZEPHYR,
    "demo": (DEMO_BASE / "chat_template.jinja").read_text(encoding="utf-8"),
    "qwen3-training": trl_templates.qwen3_training_chat_template,
    **{name: getattr(trl_templates, f"{name}_chat_template") for name in _OF_TRL},
}


def prompt_source(family: str, added: str = "") -> PromptSource:
    return PromptSource(choose_style(FAMILIES[family]), SPECIAL_TOKENS, added)
