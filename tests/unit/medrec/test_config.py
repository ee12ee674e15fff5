"""Configuration: presets, overrides, and complaints that a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medrec.config import CohortConfig, LossConfig, TrainConfig, TuneConfig
from medrec.loading import load_config, validate_config
from orchestration.configs import check_folder
from quantum.base import ConfigError

SOURCE = {"format": "mimic4", "path": "somewhere"}


def cohort(**changes: object) -> CohortConfig:
    return validate_config({"name": "x", "source": SOURCE, **changes}, CohortConfig, "here")


def test_presets_differ_in_the_published_rules():
    strict, legacy = cohort(preset="strict"), cohort(preset="legacy")
    assert (strict.visit_order, legacy.visit_order) == ("admit_time", "hadm_id")
    assert (strict.min_visits_rule, legacy.min_visits_rule) == ("after_joins", "raw_prescriptions")
    assert (strict.vocabulary_fit, legacy.vocabulary_fit) == ("train", "all")
    assert legacy.top_diagnoses == 2000
    assert strict.top_diagnoses is None


def test_a_field_written_out_wins_over_the_preset():
    assert cohort(preset="legacy", visit_order="admit_time").visit_order == "admit_time"


def test_digest_ignores_the_way_a_default_was_reached():
    assert cohort().digest() == cohort(preset="strict", min_visits=2).digest()
    assert cohort().digest() != cohort(min_visits=1).digest()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"nmae": "x"}, ["unknown key 'nmae'", "did you mean 'name'", "missing key 'name'"]),
        ({"name": "x", "model": {"name": "molrec"}}, ["'molrec'", "'molerec'", "'copy_last'"]),
        (
            {"name": "x", "model": {"name": "molerec", "dropout": 1.5}},
            ["model.molerec.dropout", "less than 1", "1.5"],
        ),
        (
            {"name": "x", "model": {"name": "molerec", "d_modle": 3}},
            ["unknown key 'model.molerec.d_modle'", "did you mean 'd_model'"],
        ),
    ],
)
def test_complaints_name_key_value_and_expectation(tree, expected):
    with pytest.raises(ConfigError) as caught:
        validate_config(tree, TrainConfig, "file.yaml")
    for part in ["file.yaml", *expected]:
        assert part in str(caught.value)


def test_overrides_obey_the_same_checks(tmp_path: Path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "model": {"name": "molerec"}}))
    config = load_config(path, TrainConfig, ["optim.lr=1e-3", "model.d_model=32"])
    assert config.optim.lr == pytest.approx(1e-3)
    assert config.model.d_model == 32
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        load_config(path, TrainConfig, ["optim.lr=-1"])
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load_config(path, TrainConfig, ["optim.lr"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_broken_files_are_config_errors(tmp_path: Path, text: str):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(path, TrainConfig)
    with pytest.raises(ConfigError, match="not found"):
        load_config(tmp_path / "absent.yaml", TrainConfig)


def test_search_space_paths_are_checked_before_the_first_trial():
    base = {"name": "x", "model": {"name": "molerec"}}
    space = {"model.d_modl": {"type": "int", "low": 1, "high": 2}}
    with pytest.raises(ConfigError, match=r"model\.d_modl.*did you mean 'd_model'"):
        validate_config({"name": "x", "base": base, "space": space}, TuneConfig, "f")
    upside_down = {"optim.lr": {"type": "loguniform", "low": 1, "high": 0.1}}
    with pytest.raises(ConfigError, match="not below"):
        validate_config({"name": "x", "base": base, "space": upside_down}, TuneConfig, "f")


def test_impossible_ranges_and_fractions():
    with pytest.raises(ConfigError, match=r"sum to 1\.5"):
        cohort(split_fractions=[0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match="ddi_target"):
        validate_config({"ddi_target": 1.2}, LossConfig, "f")
    with pytest.raises(ConfigError, match=r"ddi\.path"):
        cohort(ddi={"source": "twosides"})


def test_every_shipped_file_loads(root: Path):
    checked, problems = check_folder(root / "configs")
    assert problems == []
    assert len(checked) >= 15
