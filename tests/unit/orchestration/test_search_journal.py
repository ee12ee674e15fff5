"""A study whose file was cut or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrec.config import TuneConfig
from orchestration.search import complete_trials, open_study, to_distribution
from orchestration.search_journal import JOURNAL, repair_journal
from quantum.base import IntegrityError

CONFIG = TuneConfig.model_validate(
    {
        "name": "s",
        "base": {"name": "m", "model": {"name": "molerec"}},
        "space": {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        "n_trials": 3,
    }
)
SPACE = {path: to_distribution(item) for path, item in CONFIG.space.items()}


@pytest.fixture
def journal(tmp_path) -> Path:
    study = open_study(tmp_path, CONFIG)
    for value in (0.1, 0.2, 0.3):
        study.tell(study.ask(SPACE), value)
    return tmp_path / JOURNAL


def values(folder: Path) -> list[float]:
    return [trial.value for trial in complete_trials(open_study(folder, CONFIG))]


def test_a_whole_journal_is_left_alone(journal, tmp_path):
    before = journal.read_bytes()
    assert repair_journal(tmp_path) == 0
    assert journal.read_bytes() == before
    assert list(tmp_path.iterdir()) == [journal]
    assert repair_journal(tmp_path / "nothing") == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped_and_kept_aside(journal, tmp_path, cut):
    whole = journal.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    assert cut < len(last)
    torn = whole[:-cut]
    journal.write_bytes(torn)
    told: list[str] = []
    dropped = repair_journal(tmp_path, told.append)
    if cut == 1:  # only the end of the line is missing
        assert (dropped, told, journal.read_bytes()) == (0, [], whole)
        return
    assert dropped == len(last) - cut
    assert f"{dropped} bytes" in told[0]
    assert (tmp_path / f"{JOURNAL}.damaged-1").read_bytes() == torn
    # the trial whose end was cut off runs again; the others stay, and more can be written
    assert values(tmp_path) == [0.1, 0.2]
    study = open_study(tmp_path, CONFIG)
    study.tell(study.ask(SPACE), 0.4)
    assert values(tmp_path) == [0.1, 0.2, 0.4]
    assert repair_journal(tmp_path, told.append) == 0


def test_a_record_that_was_appended_to_a_torn_one_is_saved(journal, tmp_path):
    lines = journal.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:20]
    journal.write_bytes(b"".join([*lines[:-1], torn, *lines[-1:]]))
    with pytest.warns(UserWarning, match="20 bytes of a record"):
        assert repair_journal(tmp_path) == 20
    assert values(tmp_path) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("damage", [b"\x00" * 30, b"rubbish", b""])
def test_a_damaged_line_in_the_middle_is_named(journal, tmp_path, damage):
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = damage + b"\n"
    journal.write_bytes(b"".join(lines))
    before = journal.read_bytes()
    with pytest.raises(IntegrityError, match=rf"line 5 of {len(lines)}.*head -n 4") as caught:
        repair_journal(tmp_path)
    assert str(journal) in str(caught.value)
    assert journal.read_bytes() == before


def test_the_lock_of_a_killed_session_is_not_waited_for(journal, tmp_path):
    lock = tmp_path / f"{JOURNAL}.lock"
    lock.symlink_to(journal)
    repair_journal(tmp_path)
    assert not lock.is_symlink()
    study = open_study(tmp_path, CONFIG)
    study.tell(study.ask(SPACE), 0.5)
    assert values(tmp_path)[-1] == 0.5
