"""The words of the project: the glossary names the classes that exist, and no retired name is left anywhere.

A class that was renamed has to be renamed in the glossary of docs/concepts.md and in docs/architecture.md too. A
retired name that is found has a replacement below; where the word has its plain meaning, add an entry to `ALLOWED`.
"""

import importlib
import inspect
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONCEPTS = ROOT / "docs" / "concepts.md"
READ = (".py", ".md", ".toml", ".yml", ".yaml")
NOT_READ = {"CHANGELOG.md", "tests/test_vocabulary.py"}  # history, and the list itself

# Whole identifiers, as they are written: retired name -> today's. One that is also a plain word, such as `Row`, counts
# in Python code and between backticks.
RETIRED_IDENTIFIERS = {
    "AGEING_SECONDS": "AGING_SECONDS",
    "AdaptedLinear": "LinearWithLora",
    "AdapterLayers": "LoraModelManager",
    "AdapterSource": "LoraRequest",
    "Bank": "StackedLoraWeights",
    "Driver": "BackgroundLoop",
    "Ending": "Completion or its tokens",
    "EndingFinder": "CompletionSearch",
    "FEW": "a name with the quantity, such as MIN_EXAMPLES",
    "FEW_TOKENS": "a name with the quantity",
    "FewPatterns": "BoundedPatterns",
    "HostCache": "CpuAdapterCache",
    "Job": "SequenceState",
    "LARGEST_WASTE": "MAX_PADDING_RATIO",
    "LIKELY": "a name with the quantity",
    "LONGEST_EXAMPLE": "MAX_EXAMPLE_CHARS",
    "LOOK_AGAIN": "MAX_CARDS_AGE",
    "LanePool": "KVSlotPool",
    "LaneStep": "AttentionMetadata",
    "LoraRequest.blend": "BlendedLoraRequest.of",
    "MANY": "a name with the quantity",
    "OutOfTimeError": "DeadlineExceededError",
    "Piece": "TokenOutput",
    "RequestMaker": "RequestPreparer",
    "RouterFollowing": "SyncedRouter",
    "Row": "SequenceState",
    "RowMaker": "SequenceBuilder",
    "SMALLEST_LANE": "MIN_SLOT_TOKENS",
    "SURE": "a name with the quantity, such as Z_THRESHOLD",
    "SchemaFaultError": "SchemaViolationError",
    "SlotTable": "LoraSlotTable",
    "Spelling": "MinimalTokenizer or TokenizedBytes",
    "StepRow": "ScheduledSequence",
    "TOGETHER_FROM": "MIN_ADAPTERS_FOR_BATCHED",
    "TextAssembler": "IncrementalDetokenizer",
    "TokenSlots": "LoraMapping",
    "TokenSpelling": "MinimalTokenizer",
    "Turns": "LeaderFollower",
    "_FAR": "a name with the quantity",
    "_Look": "a search state",
    "_Way": "a search edge",
    "_astreamed": "_astream",
    "_carried": "_settable_fields",
    "_refuse_several": "check_single_completion",
    "_source_of": "_lora_request_of",
    "_weights_settle": "the warm-up of PackedRunner",
    "accuracy_of_kept": "selective_accuracy",
    "adapterhub_lanes": "adapterhub_packed",
    "adapters_tool": "create_list_adapters_tool",
    "answer_budget": "max_completion_tokens",
    "as_turns": "convert_messages",
    "can_ever_hold": "can_ever_fit",
    "column_scale": "magnitude_scale",
    "dense_weight": "dequantize_module_weight",
    "end_all": "fail_all",
    "every_piece": "whether every token output is queued",
    "find_origin": "locate_adapter",
    "first_problem": "describe_validation",
    "forbid_packing": "disable_weight_packing",
    "give_back": "release or free",
    "has_news": "has_output",
    "in_form": "fit_tool_calls",
    "in_words": "inline_tool_calls",
    "is_plain": "isinstance(..., SingleAdapter)",
    "kv_lanes": "kv_slots",
    "load_deltas": "load_folder_deltas",
    "load_source": "load_adapter_deltas",
    "only_unfit": "only_unsupported",
    "opens_block": "starts_block",
    "pointing_to": "aliases_of",
    "prose_lines": "unfenced_lines",
    "read_lessons": "read_labelled_requests",
    "request_in": "last_user_text",
    "routed_right": "routed_accuracy",
    "routing_tool": "create_route_request_tool",
    "slot_of_token": "token_slots",
    "start_from": "load_initial_weights",
    "take_in": "add, sync or learn",
    "template_tool": "create_template_tool",
    "token_spelling": "minimal_tokenizer",
    "told_of": "create_response_metadata",
    "users_of": "ref_counts",
}

# Words and phrases, in any case, in prose and as a part of identifiers: retired word -> today's. `?` and `|` as in
# regular expressions; a space stands for any white space, comment signs included.
RETIRED_WORDS = {
    "lanes?": "KV slot",
    "tickets?": "output queue",
    "untidy": "has pending work",
    "tid(y|ies|ied|ying)": "reap, clean up",
    "aside": "move, in the background",
    "beginnings? of (a |the )?prompts?": "prefix",
    "prompts?' beginnings?": "prefixes",
    "kept prompts?": "prefix cache",
    "(has|have|had) read (the|a|its) prompt": "prefilled",
    "reads? (the|a|its) prompt": "prefill",
    "reading (of )?(the|a|its) prompt": "prefill",
    "(parts? of )?prompts? that have yet to be read": "prompts in prefill",
    "answers? in (a|its|the|that) form": "structured output",
    "answers? (that must )?have a form": "structured output",
    "held to a form": "structured output",
    "forms? of (the|an|its) answers?": "output format",
    "keeps? (it |an answer )?(in|to) (the|its|a) form": "match the output format",
    "forms? that (an answer|answers) must have": "output format",
    "a form that cannot be (kept|enforced)": "an output format that cannot be enforced",
    "what is to be forgotten": "what is to be unloaded",
    "whoever comes first leads": "the first waiting thread leads",
}

# Plain meanings: (file, retired word as it is listed above, reason).
ALLOWED = [
    ("adapterhub/configs/priority/demo.yaml", "tickets?", "a support ticket in training data"),
    ("docs/finetune.md", "tickets?", "a support ticket in training data"),
    ("examples/chain.py", "tickets?", "a support ticket"),
    ("examples/demo/tasks/json_task.py", "tickets?", "something that is bought, in training data"),
    ("examples/demo/words.py", "tickets?", "a word of the demo's vocabulary"),
    ("examples/demo_real/calculate.py", "tickets?", "things that are bought, in training data"),
    ("examples/demo_real/extraction.py", "tickets?", "one for a journey, in training data"),
    ("examples/finetune.yaml", "tickets?", "a support ticket in training data"),
    ("tests/training/test_example.py", "tickets?", "a support ticket"),
]

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_GLOSSARY = re.compile(r"^\| (.+?) \| (.+?) \| `([\w.]+)` \|$", re.MULTILINE)


def _word_pattern(word: str) -> re.Pattern[str]:
    """Of one word, or of several with `|` between; for texts in lower case, which takes a quarter of the time."""
    spaced = word.replace(" ", r"[\s#_>*`]+")
    return re.compile(rf"(?<![a-z])(?:{spaced})(?![a-z])")


WORD_PATTERNS = {word: _word_pattern(word) for word in RETIRED_WORDS}
ANY_WORD = _word_pattern("|".join(RETIRED_WORDS))
IDENTIFIERS = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, RETIRED_IDENTIFIERS))})(?!\w)")
PLAIN_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        name
        for name in listed.stdout.splitlines()
        if name.endswith(READ) and name not in NOT_READ and (ROOT / name).is_file()
    ]


def code_names(text: str) -> set[tuple[int, str]]:
    """Line and name of every identifier of Python code; empty for other texts."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return set()
    return {(token.start[0], token.string) for token in tokens if token.type == tokenize.NAME}


def retired(text: str, *, python: bool = False) -> Iterator[tuple[int, str, str]]:
    """Line, retired name as it is listed, and its replacement, of everything retired in a text."""
    found = list(IDENTIFIERS.finditer(text))
    names = code_names(text) if python and found else set()
    for match in found:
        line, name = text.count("\n", 0, match.start()) + 1, match[0]
        quoted = text[match.start() - 1 : match.end() + 1] == f"`{name}`"
        if quoted or (line, name) in names or not PLAIN_WORD.fullmatch(name):
            yield line, name, RETIRED_IDENTIFIERS[name]
    spaced = _CAMEL.sub(" ", text).lower()  # lines stay what they are
    for word, pattern in WORD_PATTERNS.items() if ANY_WORD.search(spaced) else ():
        for match in pattern.finditer(spaced):
            yield spaced.count("\n", 0, match.start()) + 1, word, RETIRED_WORDS[word]


def retired_in(name: str) -> Iterator[tuple[int, str, str]]:
    """`retired` of a tracked file."""
    return retired((ROOT / name).read_text(encoding="utf-8"), python=name.endswith(".py"))


def glossary() -> list[tuple[str, str]]:
    text = CONCEPTS.read_text(encoding="utf-8").partition("## Glossary")[2].partition("\n## ")[0]
    return [(term, path) for term, _, path in _GLOSSARY.findall(text)]


def test_no_retired_name_is_left():
    allowed = {(file, word) for file, word, _ in ALLOWED}
    found = [
        f"{name}:{line}: {word!r} is retired; today: {today}"
        for name in tracked_files()
        for line, word, today in retired_in(name)
        if (name, word) not in allowed
    ]
    assert not found, f"{len(found)} retired names:\n" + "\n".join(found)


def test_every_allowed_plain_meaning_is_still_there():
    tracked = set(tracked_files())
    stale = [
        (file, word)
        for file, word, _ in ALLOWED
        if file not in tracked or word not in {found for _, found, _ in retired_in(file)}
    ]
    assert not stale, f"these entries of ALLOWED are not needed any more: {stale}"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("takes a lane.", "lanes?"),
        ("class KVLane:", "lanes?"),
        ("self._free_lanes = 2", "lanes?"),
        ("# the beginning of\n    # a prompt", "beginnings? of (a |the )?prompts?"),
        ("It is UNTIDY", "untidy"),
        ("job: Job = None\n", "Job"),
        ("the old `Row`", "Row"),
        ("column_scale", "column_scale"),
    ],
)
def test_a_retired_name_is_found(text: str, word: str):
    assert word in {found for _, found, _ in retired(text, python=True)}


@pytest.mark.parametrize(
    "text",
    [
        "planes",
        "the jobs",
        "LoraSlotTable",
        "Rowan",
        "a JobQueue",
        "a form with two fields",
        "Turns text into tokens.",
    ],
)
def test_another_word_is_not_found(text: str):
    assert not list(retired(text))


def test_the_glossary_is_read():
    terms = [term for term, _ in glossary()]
    assert len(terms) > 40
    assert len(terms) == len(set(terms))
    table = CONCEPTS.read_text(encoding="utf-8").partition("## Glossary")[2].partition("\n## ")[0]
    assert len(terms) == sum(line.startswith("| ") for line in table.splitlines()) - 2, (
        "a row has another shape"
    )


@pytest.mark.parametrize(("term", "path"), glossary())
def test_every_class_of_the_glossary_exists(term: str, path: str):
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    assert found is not None, (
        f"docs/concepts.md gives {path} for {term!r}, which does not exist: correct its row in the glossary"
    )


@pytest.mark.parametrize("face", ["adapterhub.engine", "adapterhub.lora", "adapterhub.routing"])
def test_the_glossary_has_every_public_class(face: str):
    module = importlib.import_module(face)
    listed = {path.rpartition(".")[2] for _, path in glossary()}
    missing = [
        name
        for name in module.__all__
        if not inspect.isfunction(getattr(module, name)) and name not in listed
    ]
    assert not missing, f"{face} has {missing}; add a row for each to the glossary in docs/concepts.md"
