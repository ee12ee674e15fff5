"""Every command: one index, one set of options, help and results that fit 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from orchestration import cli, cli_jobs, job_request, jobs
from orchestration.cli_features import STORE_VARIABLE
from orchestration.cli_group import LazyGroup, load
from orchestration.cli_index import COMMANDS, PANELS
from orchestration.options import SEVERITIES

RAW = {"completion", "spot-watch", "jobs logs", "view"}
"""Commands that pass on a text of their own; the others print a result."""
LOADED = {"numpy", "pandas", "pydantic", "polars", "torch", "ray", "rdkit", "yaml"}


def leaves() -> dict[str, object]:
    """All commands with their full names."""
    found = {}
    for name, entry in COMMANDS.items():
        command = load(entry)
        if isinstance(command, TyperGroup):
            found |= {f"{name} {below}": item for below, item in command.commands.items()}
        else:
            found[name] = command
    return found


LEAVES = leaves()


def medrec(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("MEDREC_HOME", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "orchestration", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**clean, "COLUMNS": "80", "TERM": "xterm-256color", **env},
    )


def first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_index_says_what_the_module_says(name: str):
    entry, command = COMMANDS[name], load(COMMANDS[name])
    assert entry.name == command.name == name
    assert entry.help == first_paragraph(command.help)
    assert entry.panel in PANELS


def test_the_overview_shows_every_line_of_the_index():
    shown = " ".join(medrec("--help").stdout.replace("│", " ").split())
    for entry in COMMANDS.values():
        assert f"{entry.name} {entry.help}" in shown


@pytest.mark.parametrize("name", sorted(set(LEAVES) - RAW))
def test_every_result_has_json_and_quiet(name: str):
    options = {option for param in LEAVES[name].params for option in param.opts}
    assert {"--json", "--quiet"} <= options


@pytest.mark.parametrize("name", LEAVES)
def test_every_parameter_has_a_help_line(name: str):
    hidden = {"seed"}
    missing = [p.name for p in LEAVES[name].params if not getattr(p, "help", "x")]
    assert set(missing) <= hidden


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS)])
def test_help_fits_80_columns(words: tuple[str, ...], monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["medrec", *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["features", "--help"],
        ["jobs", "--help"],
        ["train", "--help"],
        ["trian"],
    ],
)
def test_light_commands_import_nothing_heavy(words: list[str]):
    code = (
        f"import sys; sys.argv = ['medrec', *{words!r}]\n"
        "from orchestration.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('loaded', sorted(set(sys.modules) & {LOADED!r}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = ["pydantic", "yaml"] if words == ["trian"] else []
    loaded = done.stderr.rpartition("loaded ")[2].strip()
    assert [name for name in LOADED if name in loaded and name not in allowed] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "medrec: no command 'trian'; did you mean 'train'?"),
        (("features", "rnu"), "medrec: no command 'rnu'; did you mean 'run'?"),
        (("qqqq",), "medrec: no command 'qqqq'; expected one of: demo, doctor"),
        (("train", "--cohrt", "x"), "medrec: no such option: --cohrt; did you mean --cohort?"),
        (("synth", "raw", "--like", "mimic5", "--out", "x"), "'mimic5' is not one of 'mimic3'"),
        (("train",), "medrec: missing argument"),
    ],
)
def test_misspelt_words_end_with_the_nearest_one(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medrec", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("medrec: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in (
        "runs/molerec-1234abcd", "runs/topk-5678cdef", "runs/.hidden", "cohorts/mimic4-0a0a0a0a",
        "features/demo-11112222", "concepts/codes-1", "molecules/qm9-33334444",
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("")
    return tmp_path


def complete(words: str, position: int, **env: str) -> list[str]:
    done = medrec(
        _MEDREC_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(position), **env
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("medrec tr", 1, ["train"]),
        ("medrec features r", 2, ["run"]),
        ("medrec train --coh", 2, ["--cohort"]),
        ("medrec evaluate ", 2, ["molerec-1234abcd", "topk-5678cdef"]),
        ("medrec compare topk-5678cdef mo", 3, ["molerec-1234abcd"]),
        ("medrec train x.yaml --cohort ", 4, ["mimic4-0a0a0a0a"]),
        ("medrec train x.yaml --features de", 4, ["demo-11112222"]),
        ("medrec molecules info ", 3, ["qm9-33334444"]),
        ("medrec synth raw --like ", 4, ["mimic3", "mimic4"]),
        ("medrec prepare co", 2, []),  # the shell completes file names then
    ],
)
def test_completion_knows_commands_options_and_names(home: Path, words, position, expected):
    assert complete(words, position, MEDREC_HOME=str(home)) == expected


def test_completion_follows_the_home_option(home: Path, tmp_path: Path):
    words = f"medrec evaluate --home {home} to"
    assert complete(words, 4, MEDREC_HOME=str(tmp_path / "absent")) == ["topk-5678cdef"]
    assert complete("medrec evaluate to", 2, MEDREC_HOME=str(tmp_path / "absent")) == []


@pytest.mark.parametrize(("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", None)])
def test_completion_script(shell: str, check: list[str] | None, tmp_path: Path):
    script = medrec("completion", shell).stdout
    assert f"_MEDREC_COMPLETE=complete_{shell}" in script
    if check:
        subprocess.run([*check, "-c", script], check=True)
    done = medrec("completion", shell, "--install", HOME=str(tmp_path))
    assert done.returncode == 0
    assert any(script.strip() in path.read_text() for path in tmp_path.rglob("*medrec*"))


def test_bash_completes_through_the_script(home: Path):
    lines = (
        medrec("completion", "bash").stdout,
        "COMP_WORDS=(medrec evaluate mo) COMP_CWORD=2",
        f'_medrec_completion "{Path(sys.executable).parent / "medrec"}"',
        'echo "${COMPREPLY[@]}"',
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MEDREC_HOME": str(home)},
    )
    assert done.stdout.split() == ["molerec-1234abcd"]


def test_help_has_colour_when_it_is_wanted_and_none_otherwise():
    assert "\x1b[" not in medrec("--help").stdout
    assert "\x1b[" in medrec("--help", FORCE_COLOR="1").stdout
    assert "\x1b[3" not in medrec("--help", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_check_configs_prints_one_document(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "good.yaml").write_text("name: a\nmodel: {name: topk}\n")
    (tmp_path / "train" / "bad.yaml").write_text("name: a\nmodel: {name: tpok}\n")
    done = medrec("check-configs", tmp_path, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 2
    assert list(document["files"].values()) == ["TrainConfig"]
    assert "bad.yaml" in document["problems"][0]
    assert done.stderr.startswith("medrec: ")
    assert "(did you mean 'topk'?)" in document["problems"][0]


def test_words_of_completion_are_words_of_the_program():
    from medrec.evaluation.hard_mode import parse_grade
    from medrec.runs import STORE_VARIABLE as OF_RUNS

    assert STORE_VARIABLE == OF_RUNS
    names = ("DEFAULT_ADDRESS", "API_VARIABLE")
    assert [getattr(cli_jobs, name) for name in names] == [getattr(jobs, name) for name in names]
    assert cli_jobs.STOP_WAIT_S == job_request.STOP_WAIT_S
    words = SEVERITIES(typer.Context(get_command(cli.app)), "")
    assert sorted(map(parse_grade, words)) == [1, 2, 3, 4]


def test_the_program_is_the_lazy_group():
    assert isinstance(get_command(cli.app), LazyGroup)
    assert medrec("--version").stdout.startswith("medrec 0.")
