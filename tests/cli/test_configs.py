"""`adapterhub ls-configs` and `adapterhub cp-config`."""

from pathlib import Path

from adapterhub.configs import shipped_configs


def test_configurations_are_listed(run):
    shown = run("ls-configs")
    assert shown.out.splitlines()[0].split() == ["CONFIG", "BASE", "DESCRIPTION"]
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == [one.name for one in shipped_configs()]
    (demo,) = (one for one in run("ls-configs", "--json").json if one["name"] == "priority/demo")
    assert (demo["command"], demo["base"]) == ("finetune", "adapterhub-demo")


def test_one_is_copied_with_its_files(run, tmp_path: Path):
    shown = run("cp-config", "priority/demo", tmp_path / "a" / "own.yaml", "--make-parents")
    assert shown.out.splitlines() == [str(tmp_path / "a" / "own.yaml"), str(tmp_path / "a" / "support.jsonl")]
    (tmp_path / "a" / "own.yaml").write_text("{name: mine}")
    refused = run("cp-config", "priority/demo", tmp_path / "a" / "own.yaml")
    assert (refused.code, "exists already" in refused.err) == (1, True)
    assert run("cp-config", "priority/demo", tmp_path / "a" / "own.yaml", "-n", "--json").code == 0
    assert (tmp_path / "a" / "own.yaml").read_text() == "{name: mine}"
    assert run("cp-config", "priority/demo", tmp_path, "-n", "--force").code == 2
