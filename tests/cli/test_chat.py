"""`adapterhub chat`: what a request takes along, the commands, and what stops an answer or the chat."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterRegistry, ConfigError, EchoEngine, InvalidRequestError
from adapterhub.cli import chat as command
from adapterhub.cli.chat_config import ChatConfig
from adapterhub.cli.chat_history import ChatHistory
from adapterhub.cli.chat_session import ChatSession
from adapterhub.cli.output_dir import registry_of_checkpoint
from adapterhub.engine.interface import Request, TokenOutput
from adapterhub.errors import AdapterNotFoundError, RequestTooLongError
from adapterhub.registry import PromptProfile

FOUR = [(f"q{number}", f"a{number}") for number in range(4)]


def texts(messages: Sequence[dict[str, str]]) -> str:
    return " ".join(message["content"] for message in messages)


class Recording(EchoEngine):
    """Answers `ok`, or the next of its answers, and keeps the prompts; None in an answer is Ctrl-C."""

    def __init__(self, *answers: Sequence[str | None], context_length: int = 8192) -> None:
        super().__init__(context_length=context_length)
        self.prompts: list[str] = []
        self.answers = list(answers)

    def _echo(self, request: Request, max_tokens: int) -> Iterator[TokenOutput]:  # type: ignore[override]
        self.prompts.append(self.tokenizer.decode(request.prompt))
        for delta in self.answers.pop(0) if self.answers else ["ok"]:
            if delta is None:
                raise KeyboardInterrupt
            yield TokenOutput(delta, 0)
        yield TokenOutput("", 0, finish_reason="stop")


@pytest.fixture
def make(tiny_registry: Path):
    """Makes a session on a recording engine, and gives the engine too."""

    def make(
        *answers: Sequence[str | None], history: ChatHistory | None = None, context: int = 8192, **more: Any
    ):
        engine = Recording(*answers, context_length=context)
        hub = AdapterHub(engine, AdapterRegistry(tiny_registry))
        return ChatSession(hub, history or ChatHistory(), **more), engine

    return make


class TestHistory:
    @pytest.mark.spec("3-F4")
    @pytest.mark.parametrize(
        ("limit", "longest"),
        [
            (None, "q0 a0 q1 a1 q2 a2 q3 a3 new"),
            (10, "q0 a0 q1 a1 q2 a2 q3 a3 new"),
            (4, "q2 a2 q3 a3 new"),
            (3, "q3 a3 new"),  # an answer without its question is no start of a conversation
            (1, "new"),
            (0, "new"),
        ],
    )
    def test_limit(self, limit: int | None, longest: str):
        assert texts(next(ChatHistory(limit, exchanges=FOUR).prompts("new"))) == longest

    def test_the_oldest_exchange_goes_first_and_the_system_prompt_stays(self):
        history = ChatHistory(4, "Be brief.", FOUR)
        assert [texts(messages) for messages in history.prompts("new")] == [
            "Be brief. q2 a2 q3 a3 new",
            "Be brief. q3 a3 new",
            "Be brief. new",
        ]
        assert [message["role"] for message in [*history.prompts("new")][1]] == [
            "system",
            "user",
            "assistant",
            "user",
        ]

    def test_a_request_takes_what_fits(self, make):
        session, engine = make(history=ChatHistory(exchanges=[*FOUR]), history_tokens=100)
        session.take("new")
        assert len(engine.prompts[0]) <= 100
        assert ("a3" in engine.prompts[0], "a0" in engine.prompts[0]) == (True, False)
        # One more exchange would not have fit.
        assert len(engine.prompts[0]) + len("### Instruction:\nq2\n\n### Response:\na2\n\n") > 100

    def test_room_for_a_long_answer_makes_a_request_take_less(self, make):
        session, engine = make(
            history=ChatHistory(exchanges=[*FOUR]), context=400, generation={"max_tokens": 330}
        )
        session.take("new")
        assert 330 + len(engine.prompts[0]) <= 400
        assert "a3" not in engine.prompts[0]

    def test_a_message_beyond_the_context_is_refused_and_forgotten(self, make):
        session, engine = make(context=400)
        with pytest.raises(RequestTooLongError):
            session.take("x" * 500)
        session.take("short")
        assert "x" not in engine.prompts[0].replace("text", "")
        assert session.history.exchanges == [("short", "ok")]


class TestCommands:
    def test_adapter(self, make, capsys):
        session, _ = make()
        session.take("/adapter json")
        session.take("hello")
        session.take("/adapter code:0.5+json:0.5")
        session.take("hello")
        session.take("/adapter base")
        session.take("hello")
        session.take("/adapter")
        notes = capsys.readouterr().err
        for shown in ("[json@1,", "[code@1:0.5+json@1:0.5,", "[base,", "base, auto, code, json, support"):
            assert shown in notes

    def test_an_unknown_adapter_leaves_the_one_before(self, make, capsys):
        session, _ = make()
        session.take("/adapter json")
        with pytest.raises(AdapterNotFoundError, match="jsn"):
            session.take("/adapter jsn")
        session.take("hello")
        assert "[json@1," in capsys.readouterr().err

    def test_auto_shows_the_adapter_that_the_router_chose(self, make, capsys):
        session, engine = make()
        session.take("/adapter auto")
        session.take("my router shows an error")
        session.take("python code to reverse a list")
        first, second = capsys.readouterr().err.splitlines()[1:]
        assert first.startswith("[support@1, confidence 0.")
        assert second.startswith("[code@1, confidence ")
        assert "my router shows an error" in engine.prompts[1]  # one conversation, whoever answers

    def test_system(self, make, capsys):
        session, engine = make(history=ChatHistory(system="Be brief."))
        session.take("hello")
        session.take("/system Be kind.")
        session.take("hello")
        session.take("/system none")
        session.take("hello")
        assert [[text in prompt for text in ("Be brief.", "Be kind.")] for prompt in engine.prompts] == [
            [True, False],
            [False, True],
            [False, False],
        ]
        session.take("/system")
        assert "System prompt: that of the adapter" in capsys.readouterr().err.splitlines()[-1]

    def test_reset(self, make):
        session, engine = make()
        session.take("hello")
        session.take("/reset")
        session.take("again")
        assert "hello" not in engine.prompts[1]

    def test_save_writes_all_as_a_record_of_training_data(self, make, tmp_path: Path):
        from adapterhub.dataset.records import read_records

        session, _ = make(["да", "!"], history=ChatHistory(0, "Be brief."))
        session.take("hello")
        session.take("bye")
        session.take(f"/save {tmp_path / 'chat.jsonl'}")
        session.take("/reset")
        session.take("third")
        session.take(f"/save {tmp_path / 'chat.jsonl'}")
        first, second = read_records(tmp_path / "chat.jsonl")
        assert [message.content for message in first.messages] == ["Be brief.", "hello", "да!", "bye", "ok"]
        assert [message.content for message in second.messages] == ["Be brief.", "third", "ok"]

    def test_what_cannot_be_saved(self, make, tmp_path: Path):
        session, _ = make()
        with pytest.raises(ConfigError, match="nothing to save"):
            session.take("/save chat.jsonl")
        session.take("hello")
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError, match="JSON Lines"):
            session.take(f"/save {tmp_path / 'notes.txt'}")
        with pytest.raises(ConfigError, match="cannot be written"):
            session.take(f"/save {tmp_path / 'missing' / 'chat.jsonl'}")
        with pytest.raises(InvalidRequestError, match="no file"):
            session.take("/save")
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_an_unknown_command_is_no_message(self, make):
        session, engine = make()
        with pytest.raises(InvalidRequestError, match="no command /rset") as raised:
            session.take("/rset")
        assert raised.value.hint == "Did you mean /reset?"
        session.take(" /etc/hosts: what is it?")
        session.take("")
        session.take("   ")
        assert len(engine.prompts) == 1
        assert "/etc/hosts" in engine.prompts[0]

    def test_help_names_every_command(self, make, capsys):
        session, _ = make()
        session.take("/help")
        shown = capsys.readouterr().err
        assert all(f"/{name}" in shown for name in ("reset", "adapter", "system", "save", "help", "exit"))


class TestStopping:
    def test_ctrl_c_stops_the_answer_which_stays_in_the_conversation(self, make, capsys, monkeypatch):
        session, engine = make(["one ", "two", None, "three"])
        session.hub.set_adapter("json")
        lines = iter(["count", "go on", EOFError()])

        def typed(prompt: str) -> str:
            line = next(lines)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", typed)
        command._chat_with_person(session)
        shown = capsys.readouterr()
        assert shown.out == "one two\nok\n"
        assert "[json, stopped]" in shown.err
        assert "three" not in engine.prompts[1]
        assert session.history.exchanges == [("count", "one two"), ("go on", "ok")]

    @pytest.mark.spec("3-F4")
    def test_ctrl_c_twice_leaves(self, make, monkeypatch, capsys):
        session, engine = make()
        lines: Iterator[Any] = iter(
            [KeyboardInterrupt(), "hello", KeyboardInterrupt(), KeyboardInterrupt(), "no"]
        )

        def typed(prompt: str) -> str:
            line = next(lines)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", typed)
        command._chat_with_person(session)
        assert len(engine.prompts) == 1
        assert next(lines) == "no"
        assert capsys.readouterr().err.count("Ctrl-C again, or Ctrl-D, leaves.") == 2

    def test_an_error_does_not_end_a_person_s_chat(self, make, monkeypatch, capsys):
        session, engine = make()
        lines = iter(["/adapter jsn", "hello", "/exit", "no"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        command._chat_with_person(session)
        assert "Error: There is no adapter 'jsn'." in capsys.readouterr().err
        assert (len(engine.prompts), next(lines)) == (1, "no")

    def test_an_answer_cannot_control_the_terminal(self, make, capsys):
        session, _ = make(["\x1b[2J", "a\tb\n", "\x9b1m👩‍💻"])
        session.take("hello")
        assert capsys.readouterr().out == "[2Ja\tb\n1m👩‍💻\n"


class TestConfig:
    def test_options_win_over_the_file(self, tmp_path: Path):
        (tmp_path / "prompt.md").write_text("Think.\n")
        (tmp_path / "chat.yaml").write_text(
            "adapter: json\nsystem_prompt_file: prompt.md\nhistory_limit: 4\n"
            "generation: {temperature: 0.5, max_new_tokens: 20}\n"
        )
        config = ChatConfig.load(tmp_path / "chat.yaml", adapter="code", generation={"temperature": 0.9})
        assert (config.adapter, config.history_limit, config.system()) == ("code", 4, "Think.")
        assert config.generation == {"temperature": 0.9, "max_tokens": 20}
        assert ChatConfig.load(tmp_path / "chat.yaml", system_prompt="Be brief.").system() == "Be brief."

    def test_paths_of_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "chat.yaml").write_text(
            "registry: ~/adapters\nbase: ~/model\nsystem_prompt_file: prompt.md\n"
        )
        config = ChatConfig.load(tmp_path / "chat.yaml")
        assert config.registry == tmp_path / "home" / "adapters"
        assert config.base == str(tmp_path / "home" / "model")
        assert config.system_prompt_file == tmp_path / "prompt.md"

    @pytest.mark.parametrize(
        ("given", "temperature"),
        [
            ({"do_sample": False, "temperature": 0.7}, 0.0),
            ({"do_sample": True, "temperature": 0.7}, 0.7),
            ({"do_sample": True}, 1.0),
        ],
    )
    def test_do_sample(self, given: dict[str, Any], temperature: float):
        assert ChatConfig.load(generation=given).generation == {"temperature": temperature}

    def test_all_errors_at_once(self, tmp_path: Path):
        (tmp_path / "chat.yaml").write_text(
            "adaptor: json\nhistory_limit: -1\nhistory_tokens: many\ngeneration: {temprature: 1}\n"
        )
        with pytest.raises(ConfigError) as raised:
            ChatConfig.load(tmp_path / "chat.yaml")
        names = ("adaptor", "history_limit", "history_tokens", "temprature")
        assert all(name in raised.value.message for name in names)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"system_prompt": "a", "system_prompt_file": Path("b")}, "not both"),
            ({"generation": {"n": 2}}, "one answer"),
            ({"generation": {"temperature": -1}}, "temperature"),
            ({"generation": {"do_sample": "maybe"}}, "do_sample"),
        ],
    )
    def test_what_is_not_valid(self, given: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            ChatConfig.load(**given)

    def test_a_system_prompt_that_cannot_be_read(self, tmp_path: Path):
        with pytest.raises(ConfigError, match="cannot be read"):
            ChatConfig.load(system_prompt_file=tmp_path / "missing.md").system()
        (tmp_path / "latin.md").write_bytes(b"\xe9")
        with pytest.raises(ConfigError, match="not UTF-8"):
            ChatConfig.load(system_prompt_file=tmp_path / "latin.md").system()


class TestCommandLine:
    def test_lines_from_a_pipe_with_the_recipe_s_flags(
        self, run, monkeypatch, tiny_base: Path, tiny_registry: Path
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("one two\nthree\n"))
        shown = run(
            "chat", "json", "--quantization", "none", "--max_new_tokens", "6", "--history_limit", "10",
            "--system_prompt=Be brief.", "--repetition_penalty", "1.2", "--do_sample", "False",
        )  # fmt: skip
        assert shown.code == 0
        assert re.findall(r"^\[json@1, \d+ tokens", shown.err, re.MULTILINE) == ["[json@1, 6 tokens"] * 2
        with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None) as hub:
            messages = [{"role": "system", "content": "Be brief."}]
            answers = []
            for text in ("one two", "three"):
                messages.append({"role": "user", "content": text})
                answer = hub.generate(messages, "json", max_tokens=6, repetition_penalty=1.2).text
                messages.append({"role": "assistant", "content": answer})
                answers.append(answer)
        assert shown.out.rstrip("\n") == "\n".join(answers).rstrip("\n")

    def test_the_last_checkpoint_of_an_output_folder(
        self, run, monkeypatch, tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
    ):
        for number, name in ((9, "code"), (10, "json")):
            shutil.copytree(tiny_adapters[name], tmp_path / "results" / f"checkpoint-{number}")
        (tmp_path / "results" / "checkpoint-11").mkdir()  # is none
        said = {}
        for given in (("--output_dir", tmp_path / "results"), ("json",), ("code",)):
            monkeypatch.setattr(sys, "stdin", io.StringIO("one two\n"))
            shown = run("chat", *given, "--base", tiny_base, "--quantization", "none", "--max-tokens", "8")
            said[given[-1]] = shown.out
        assert said[tmp_path / "results"] == said["json"] != said["code"]

    def test_a_checkpoint_is_asked_as_it_was_trained(
        self, run, tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
    ):
        checkpoint = tmp_path / "results" / "checkpoint-9"
        shutil.copytree(tiny_adapters["json"], checkpoint)
        profile = {"system": "Be brief.", "format": "plain", "stop": ["#"], "chat_template": None}
        of_run = {f"card.prompt.{name}": value for name, value in profile.items()}
        of_run |= {"lora.r": 4, "card.prompt.generation.max_tokens": 8, "card.system_file": None}
        (checkpoint / "run.json").write_text(json.dumps({"run": of_run, "files": {}}))
        with registry_of_checkpoint(tmp_path / "results", str(tiny_base)) as (registry, reference):
            card = registry.resolve(reference)
        assert card.prompt == PromptProfile.model_validate({**profile, "generation": {"max_tokens": 8}})

        (checkpoint / "run.json").write_text("[")
        shown = run("chat", "--output-dir", tmp_path / "results", "--base", tiny_base)
        assert (shown.code, "run.json" in shown.err) == (1, True)

    def test_an_output_folder_without_a_checkpoint(self, run, tmp_path: Path):
        shown = run("chat", "--output-dir", tmp_path)
        assert (shown.code, "There is no checkpoint" in shown.err) == (1, True)
        assert run("chat", "json", "--output-dir", tmp_path).code == 2

    def test_what_is_wrong_is_said_before_the_base_is_loaded(self, run, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(command, "open_hub", lambda *_, **__: pytest.fail("the base was loaded"))
        for arguments, message in (
            (["jsn"], "There is no adapter 'jsn'"),
            (["json", "--temperature", "-1"], "temperature"),
            (["json", "--config", tmp_path / "missing.yaml"], "could not be read"),
            (["json", "--history-limit", "-1"], "history_limit"),
            (["json", "--system-prompt-file", tmp_path / "missing.md"], "cannot be read"),
        ):
            shown = run("chat", *arguments)
            assert (shown.code, shown.out) == (1, ""), arguments
            assert message in shown.err

    def test_an_error_ends_a_chat_from_a_pipe(self, run, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("/adapter jsn\nhello\n"))
        shown = run("chat", "json", "--quantization", "none")
        assert (shown.code, shown.out) == (1, "")
        assert "There is no adapter 'jsn'" in shown.err


@pytest.mark.spec("3-F4")
@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves(tmp_path: Path):
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal, which Windows has not")
    process, terminal = pty.fork()
    if process == 0:
        arguments = ["chat", "base", "--base", "adapterhub-demo", "--max-tokens", "900", "--ignore-eos"]
        os.execv(sys.executable, [sys.executable, "-m", "adapterhub.cli.main", *arguments])
    shown = ""

    def wait_for(text: str, after: int = 0) -> None:
        nonlocal shown
        while text not in shown[after:]:
            shown += os.read(terminal, 4096).decode(errors="replace")

    wait_for("/help shows the commands.")
    wait_for("> ")
    os.write(terminal, b"Tell me a long story.\n")
    asked = len(shown) + len("Tell me a long story.\r\n")
    while len(shown) < asked + 20:  # the answer has begun
        shown += os.read(terminal, 4096).decode(errors="replace")
    os.write(terminal, b"\x03")
    wait_for("[base, stopped]")
    wait_for("> ", after=shown.index("[base, stopped]"))
    os.write(terminal, b"\x04")
    while True:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the terminal was closed
            break
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "tokens/s]" not in shown
