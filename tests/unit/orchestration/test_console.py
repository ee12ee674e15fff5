"""The one look: tables that fit, JSON without NaN, progress lines, times at the end."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.progress import Progress

from medrec.config import TrainConfig
from medrec.loading import load_config, validate_config
from medrec.runs import Home
from orchestration import console
from orchestration.console import (
    Terminal,
    duration_text,
    frame_table,
    pairs_table,
    plain,
    progress_columns,
    rate_text,
)
from orchestration.console_tables import timing_table
from quantum.base import ConfigError, InputError


def terminal(*, width: int = 80, tty: bool = False, **options: bool) -> Terminal:
    def make() -> Console:
        return Console(
            file=io.StringIO(), width=width, force_terminal=tty, highlight=False, color_system=None
        )

    return Terminal(out=make(), err=make(), **options)


def shown(*tables: object, width: int = 80) -> list[str]:
    found = terminal(width=width)
    found.result({}, *tables)
    return found.out.file.getvalue().splitlines()


def wide_frame(columns: int = 20) -> pd.DataFrame:
    numbers = {f"metric_{i}": [0.123456 + i, 2.0, 1e6] for i in range(columns)}
    return pd.DataFrame({"model": ["molerec", "topk", "a rather long name of one"], **numbers})


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_wide_frame_is_cut_into_parts_that_fit(width: int):
    frame = wide_frame()
    lines = shown(frame_table(frame, "test part"), width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    heads = [line for line in lines if re.match(r"\s*model\s", line)]
    assert len(heads) > 1
    for i in range(20):
        assert len(re.findall(rf"metric_{i}\b", text)) == 1
    assert text.count("1,000,000") == 20
    assert text.count("test part") == 1


def test_numbers_are_never_folded_and_text_is_folded_at_words():
    text = "conformers of a drug that needed a second seed because the first one failed twice"
    frame = pd.DataFrame({"note": [text], "value": [1234567.0], "count": [12345678]})
    lines = shown(frame_table(frame))
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"1,234,567\s+12,345,678$", line) for line in lines)
    folded = " ".join(line[:50].strip() for line in lines[2:])
    assert folded.split()[: len(text.split()) - 1] != []
    words = " ".join(lines).split()
    assert all(word in words for word in text.split())


def test_a_narrow_frame_is_one_plain_table():
    frame = pd.DataFrame({"code": ["a", "b"], "n": [1, 20]})
    assert shown(frame_table(frame)) == ["code   n", "────────", "a      1", "b     20"]


def test_first_columns_can_be_kept_whole():
    name = "features-run-" + "x" * 30
    frame = pd.DataFrame({"job": [name], "command": ["python -m orchestration " * 5]})
    lines = shown(frame_table(frame, whole=1))
    assert any(line.startswith(name) for line in lines)
    assert max(map(len, lines)) <= 80


def test_pairs_fold_text_and_keep_paths_whole():
    path = Path("/records") / ("folder-with-a-name/" * 8)
    lines = shown(pairs_table([("page", path), ("caution", "six patients " * 20), ("n", 1234)]))
    assert any(line.endswith(str(path)) for line in lines)
    assert max(len(line) for line in lines if str(path) not in line) <= 80
    assert " n        1,234" in lines


def test_names_of_pairs_stay_whole_where_values_leave_room():
    name = "a_name_of_more_than_a_third.yaml"
    assert shown(pairs_table([(name, "short")]), width=60) == [f" {name}  short"]
    folded = shown(pairs_table([(name, "long " * 30)]), width=60)
    assert all(len(line) <= 60 for line in folded)
    assert not any(name in line for line in folded)


def test_lines_of_prose_fold_and_commands_stay_whole():
    command = "next: medrec train " + "a-long-name.yaml " * 8
    lines = shown("interactions are between classes " * 6, command, "page: " + "/folder" * 20)
    assert [len(line) <= 80 for line in lines] == [True, True, True, False, False]
    assert lines[-2] == command.rstrip()


def test_markup_in_data_is_no_markup():
    smiles = "C[C@@H](N)C(=O)[O-]"
    lines = "\n".join(
        shown(
            frame_table(pd.DataFrame({"[bold]": [smiles]}), "[red]t"),
            pairs_table([("[b]", smiles)], "[i]"),
            f"drug {smiles}",
        )
    )
    assert lines.count(smiles) == 3
    assert "[bold]" in lines
    assert "[b]" in lines
    assert "[i]" in lines


def test_piped_output_has_neither_codes_nor_blanks_at_line_ends():
    lines = shown(frame_table(wide_frame(3), "t"), pairs_table([("a", "b")]), "text")
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def test_json_is_one_document_on_standard_output(capsys: pytest.CaptureFixture[str]):
    frame = pd.DataFrame({"a": [1.0, math.nan], "when": [pd.Timestamp("2020-01-02"), pd.NaT]})
    with (found := Terminal(as_json=True)).progress("work", 1) as step:
        step.advance()
    found.say("a message")
    found.result({"rows": frame, "x": np.float32("nan"), "n": np.int64(3), "p": Path("a/b")})
    out, err = capsys.readouterr()
    rows = [{"a": 1.0, "when": "2020-01-02 00:00:00"}, {"a": None, "when": None}]
    assert json.loads(out) == {"rows": rows, "x": None, "n": 3, "p": "a/b"}
    assert "NaN" not in out
    assert "work: 1/1" in err


def test_plain_values_of_json():
    value = {1: (np.bool_(True), math.inf, {"ä"}), "s": pd.Series([1, 2]), "n": pd.NA}
    assert plain(value) == {"1": [True, None, ["ä"]], "s": [1, 2], "n": None}


def test_several_results_become_one_document():
    found = terminal(as_json=True)
    with found.gathered() as documents:
        found.result({"a": 1})
        found.out.print("a line of its own")
        found.result([2])
    found.result({"stages": documents})
    assert json.loads(found.out.file.getvalue()) == {"stages": [{"a": 1}, [2]]}
    assert "a line of its own" in found.err.file.getvalue()


def test_quiet_shows_results_and_warnings_alone():
    found = terminal(quiet=True, tty=True)
    with found.stage("stage"), found.progress("work", 3) as step:
        step.advance()
    found.say("message")
    found.warn("careful")
    found.result({}, "result")
    assert found.err.file.getvalue().strip() == "warning: careful"
    assert found.out.file.getvalue().strip() == "result"


@pytest.mark.parametrize(
    ("speed", "text"),
    [(None, "-"), (0.0, "-"), (1500, "1,500/s"), (2, "2.0/s"), (0.5, "30.0/min"), (0.01, "36.0/h")],
)
def test_rates(speed: float | None, text: str):
    assert rate_text(speed) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (7.4, "0:07"), (59.9, "1:00"), (3723, "1:02:03")]
)
def test_durations(seconds: float | None, text: str):
    assert duration_text(seconds) == text


@pytest.mark.parametrize("width", [80, 140])
def test_a_progress_line_has_count_rate_and_estimate(width: int):
    now = 0.0
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar = Progress(
        *progress_columns(width), console=out, expand=True, get_time=lambda: now,
        auto_refresh=False,
    )  # fmt: skip
    task = bar.add_task("a label that is far too long for a line", total=100, note="n" * 90)
    for _ in range(10):
        now += 1.0
        bar.update(task, advance=2)
    with out.capture() as kept:
        out.print(bar.get_renderable())
    (line,) = kept.get().splitlines()
    assert len(line.rstrip()) <= width
    assert re.search(r"20/100 +2\.0/s +0:10, 0:40 left +n", line)


def test_line_progress_says_rate_and_estimate(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    found = terminal()
    with found.progress("train", 10) as step:
        now = 101.0
        step.advance()
        now = 120.0
        step.advance("loss 1")
        now = 121.0
        step.at(10)
    assert found.err.file.getvalue().splitlines() == [
        "train: 2/10 (0.1/s, about 80 s left) loss 1",
        "train: 10/10 (0.48/s)",
    ]


def table_text(*arguments: object) -> str:
    out = Console(file=io.StringIO(), width=60)
    out.print(timing_table(*arguments))
    return out.file.getvalue()


def test_times_are_added_up_and_the_rest_is_shown():
    text = table_text([("a", 1.0), ("b", 2.0), ("a", 3.0)], 8.0)
    rows = dict(re.findall(r"(?m)^ ?(\S.*?) {2,}([\d.]+)", text))
    assert rows == {"a (2 times)": "4.0", "b": "2.0", "rest": "2.0", "all": "8.0"}
    assert re.search(r"a \(2 times\) .* 50 %", text)


@pytest.mark.parametrize(
    ("seconds", "options", "expected"),
    [
        ([3.0, 4.0], {}, True),
        ([3.0], {}, False),
        ([0.5, 0.5], {}, False),
        ([3.0, 4.0], {"quiet": True}, False),
        ([3.0, 4.0], {"as_json": True}, False),
    ],
)
def test_times_close_a_long_command_of_several_stages(seconds, options, expected, monkeypatch):
    now = 0.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    found = terminal(**options)
    with found.summary():
        for number, length in enumerate(seconds):
            with found.stage(f"stage {number}"), found.progress("inside", None):
                now += length
    text = found.err.file.getvalue()
    assert ("seconds" in text) is expected
    assert ("7.0" in text) is expected
    assert [title for title, _ in found.timings] == [f"stage {i}" for i in range(len(seconds))]


def test_no_times_after_an_error():
    found = terminal()
    found.timings += [("a", 5.0), ("b", 5.0)]
    with pytest.raises(InputError), found.summary():
        raise InputError("stop")
    assert found.err.file.getvalue() == ""


# --------------------------------------------------------------------------- misspelt names


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"optim": {"epoch": 3}}, "unknown key 'optim.epoch' (did you mean 'epochs'?), valid keys"),
        ({"learning_rte": 1, "optim": {}}, "unknown key 'learning_rte'"),
        ({"epochs": 3}, "unknown key 'epochs' (did you mean 'optim.epochs'?)"),
        ({"model": {"name": "molrec"}}, "(did you mean 'molerec'?)"),
        (
            {"model": {"name": "topk", "dropot": 1}},
            "unknown key 'model.topk.dropot', valid keys here: ",
        ),
    ],
)
def test_a_misspelt_key_or_value_gets_the_nearest_one(tree, expected):
    whole = {"name": "x", "model": {"name": "molerec"}, **tree}
    with pytest.raises(ConfigError) as caught:
        validate_config(whole, TrainConfig, "f.yaml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("f.yaml: ")


def test_valid_keys_are_those_of_the_section():
    with pytest.raises(ConfigError) as caught:
        validate_config(
            {"name": "x", "model": {"name": "topk"}, "optim": {"lrr": 1}}, TrainConfig, "f"
        )
    keys = str(caught.value).partition("valid keys here: ")[2].split(", ")
    optim = TrainConfig.model_validate({"name": "x", "model": {"name": "topk"}}).optim
    assert keys == sorted(type(optim).model_fields)


def test_a_wrong_override_is_named_and_a_wrong_file_is_not_blamed_on_it(tmp_path: Path):
    path = tmp_path / "train.yaml"
    path.write_text("name: x\nmodel: {name: molerec}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, TrainConfig, ["seed=1", "optim.epoch=3", "model.d_modl=2"])
    text = str(caught.value)
    assert f"{path}: " in text
    assert "--set optim.epoch=3: unknown key 'optim.epoch' (did you mean 'epochs'?)" in text
    assert "--set model.d_modl=2: unknown key 'model.molerec.d_modl'" in text
    path.write_text("name: x\nmodel: {name: molerec, d_modl: 2}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, TrainConfig, ["seed=1", "optim.epochs=3"])
    assert "--set" not in str(caught.value)


def test_a_misspelt_file_gets_the_nearest_one(tmp_path: Path):
    (tmp_path / "retain.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"not found: .*retian\.yaml \(did you mean '.*retain\.y"):
        load_config(tmp_path / "retian.yaml", TrainConfig)
    with pytest.raises(ConfigError, match=r"not found: .*absent\.yaml$"):
        load_config(tmp_path / "absent.yaml", TrainConfig)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("molrec", "(did you mean 'molerec'?)"),
        ("mimc4", "(did you mean 'mimic4_demo_strict-7bc260bc'?)"),
        ("zzzzz", "; there is: "),
    ],
)
def test_a_misspelt_run_gets_the_nearest_one(tmp_path: Path, name: str, expected: str):
    home = Home(tmp_path)
    for known in ("molerec-8d491d9f", "topk-9eb5533c", "mimic4_demo_strict-7bc260bc"):
        (home.runs / known).mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        home.find(home.runs, name)
    assert expected in str(caught.value)
    assert ("did you mean" in str(caught.value)) is ("did you mean" in expected)


def test_a_long_list_of_runs_is_cut(tmp_path: Path):
    home = Home(tmp_path)
    for number in range(25):
        (home.runs / f"run{number:02d}-0000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run19-0000 and 5 more$"):
        home.find(home.runs, "zzz")
