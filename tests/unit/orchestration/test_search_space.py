"""What a search may look like, before its first trial: spaces, samplers, stopping rules, names."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from medrec.config import Objective, PropertyTuneConfig, TuneConfig
from medrec.config_search_space import combinations_to_check, corners, grid_points
from medrec.loading import load_config, validate_config
from medrec.runs import Home, Run
from orchestration.search import SearchRequest, open_search, slots_of
from orchestration.search_schedulers import build_sampler, build_stopper, check_sampler
from orchestration.search_space import fits_space, optuna_space
from quantum.base import ConfigError, InputError, digest

GATE = {"type": "choice", "values": ["none", "molerec", "scqmed_code"]}
LR = {"type": "loguniform", "low": 1e-4, "high": 1e-2}


def tree(**changes: object) -> dict:
    base = {"name": "m", "model": {"name": "molerec"}}
    return {"name": "s", "base": base, "space": {"optim.lr": LR}, "n_trials": 4, **changes}


def config(**changes: object) -> TuneConfig:
    return validate_config(tree(**changes), TuneConfig, "f")


def conditional() -> TuneConfig:
    kp = {"type": "uniform", "low": 0.01, "high": 0.1, "when": {"loss.gate": ["molerec"]}}
    return config(space={"loss.gate_kp": kp, "loss.gate": GATE, "optim.lr": LR})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"loss.gate_kp": LR | {"when": {"loss.gate": ["molerec"]}}}, "is not in the space"),
        ({"optim.lr": LR, "loss.gate_kp": LR | {"when": {"optim.lr": [1]}}}, "type loguniform"),
        ({"loss.gate": GATE, "optim.lr": LR | {"when": {"loss.gate": ["relu"]}}}, "having 'relu'"),
        ({"loss.gate": GATE, "optim.lr": LR | {"when": {"loss.gate": []}}}, "having no value"),
        ({"loss.gate": GATE, "optim.lr": LR | {"when": {}}}, "`when` is empty"),
        (
            {
                "loss.gate": GATE | {"when": {"loss.gate_rate": ["published"]}},
                "loss.gate_rate": {
                    "type": "choice", "values": ["published"], "when": {"loss.gate": ["none"]},
                },
            },
            "loss.gate, loss.gate_rate depend on each other",
        ),
        ({"loss.gate": {"type": "choice", "values": ["none", "relu"]}}, "gate', value 'relu'"),
        ({"model.dropout": {"type": "uniform", "low": 0.1, "high": 1.5}}, "value 1.5.*less than 1"),
    ],
)  # fmt: skip
def test_a_space_is_checked_as_a_whole(space, message):
    with pytest.raises(ConfigError, match=message):
        config(space=space)


def test_values_that_are_impossible_together_are_found():
    space = {
        "loss.gate_rate": {"type": "choice", "values": ["published", "weighted"]},
        "loss.severity_weights": {"type": "choice", "values": [1]},
    }
    with pytest.raises(ConfigError, match=r"space path 'loss\.severity_weights', value 1"):
        config(space=space)
    base = tree()["base"] | {"loss": {"severity_weights": [1, 1, 1, 1], "gate_rate": "weighted"}}
    assert config(base=base, space={"loss.gate_rate": space["loss.gate_rate"]})
    # each value alone is possible in the base, two of them together are not
    space = {
        "modality": {"type": "choice", "values": ["2d", "3d"]},
        "encoder.kind": {"type": "choice", "values": ["molinteract", "gine"]},
    }
    base = {"name": "t", "modality": "2d", "encoder": {"kind": "molinteract"}}
    expected = r"space, at modality='3d', encoder\.kind='gine': .*needs modality 2d"
    with pytest.raises(ConfigError, match=expected):
        validate_config({"name": "s", "base": base, "space": space}, PropertyTuneConfig, "f")


def test_conditions_leave_dimensions_out():
    search = conditional()
    found = list(corners(search.space))
    assert len(found) == 2 + 2 * 2 + 2
    assert all(("loss.gate_kp" in item) == (item["loss.gate"] == "molerec") for item in found)
    assert all(fits_space(item, search.space) for item in combinations_to_check(search.space))
    assert not fits_space(
        {"loss.gate": "none", "optim.lr": 1e-3, "loss.gate_kp": 0.05}, search.space
    )
    assert not fits_space({"loss.gate": "molerec", "optim.lr": 1e-3}, search.space)
    assert not fits_space({"loss.gate": "none", "optim.lr": 1.0}, search.space)
    define = optuna_space(search.space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        define(trial)
        assert fits_space(trial.params, search.space)


def test_large_spaces_are_sampled_with_every_limit():
    space = {f"optim.{n}": LR for n in ("lr", "weight_decay", "clip_norm")}
    choices = {"type": "choice", "values": [round(0.05 * n, 2) for n in range(1, 18)]}
    space |= {"model.dropout": choices, "optim.threshold": choices, "loss.ddi_target": choices}
    search = config(space=space)
    seen = list(combinations_to_check(search.space))
    assert len(seen) < 1000
    for path in space:
        assert {item[path] for item in seen} >= set(search.limits(path))
    assert seen == list(combinations_to_check(search.space))


def test_a_grid_counts_its_points():
    space = {"model.d_model": {"type": "choice", "values": [8, 16, 32]}, "optim.patience": {
        "type": "int", "low": 1, "high": 4}}  # fmt: skip
    without = {key: value for key, value in tree().items() if key != "n_trials"}
    grid = validate_config({**without, "space": space, "sampler": "grid"}, TuneConfig, "f")
    assert grid.n_trials == len(list(grid_points(grid.space))) == 12
    assert TuneConfig.model_validate(grid.model_dump(mode="json")) == grid
    with pytest.raises(ConfigError, match="all 12 points, n_trials is 4; leave it out"):
        config(space=space, sampler="grid")
    with pytest.raises(ConfigError, match=r"'optim\.lr' is of type loguniform"):
        validate_config({**without, "sampler": "grid"}, TuneConfig, "f")


def test_samplers_and_the_number_of_objectives():
    one = config(sampler="nsga2")
    with pytest.raises(ConfigError, match="nsga2 is for several objectives"):
        check_sampler(one)
    both = one.model_copy(
        update={"objectives": (Objective(), Objective(metric="ddi_rate", mode="min"))}
    )
    for sampler in ("tpe", "random", "nsga2", "gp", "grid"):
        check_sampler(both.model_copy(update={"sampler": sampler}))
    with pytest.raises(ConfigError, match="no objective"):
        check_sampler(one.model_copy(update={"objectives": ()}))
    with pytest.raises(ConfigError, match="'jaccard' is named twice"):
        check_sampler(one.model_copy(update={"objectives": (Objective(), Objective())}))
    assert isinstance(build_sampler(both, 0), optuna.samplers.NSGAIISampler)


def test_stopping_rules():
    assert config().rule == "asha"
    assert config(asha=None).rule == "none"
    assert config(asha=None, stopper="median").rule == "median"
    assert build_stopper(config(asha=None), 9) is None
    assert type(build_stopper(config(), 9)).__name__ == "AsyncHyperBandScheduler"
    assert type(build_stopper(config(stopper="median"), 9)).__name__ == "MedianStoppingRule"
    with pytest.raises(ConfigError, match="section `asha`, which is null"):
        config(stopper="asha", asha=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "tpe"}, "expected sampler: random"),
        ({"repeats": 2}, "cannot be combined with repeats 2"),
        ({"warm_start": ["r"]}, "cannot be combined with warm_start"),
        ({"n_trials": 1}, "of 1"),
        ({"space": {"model.d_model": {"type": "int", "low": 8, "high": 9}}}, "cannot change then"),
        ({"space": {"optim.epochs": {"type": "int", "low": 8, "high": 9}}}, "not epochs, patience"),
    ],
)
def test_what_a_population_cannot_be_combined_with(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**{"stopper": "pbt", "sampler": "random"} | changes)


def test_property_searches_refuse_populations_with_the_reason():
    base = {"name": "t", "encoder": {"kind": "gine"}, "modality": "2d"}
    search = {"name": "s", "base": base, "space": {"fit.lr": LR}, "sampler": "random"}
    with pytest.raises(ConfigError, match="keeps none"):
        validate_config(search | {"stopper": "pbt"}, PropertyTuneConfig, "f")


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("file", "kind", "name"),
    [
        ("tune/demo.yaml", TuneConfig, "28696184"),
        ("tune/scqmed.yaml", TuneConfig, "80d4a79b"),
        ("searches/small_qm9_size_depth.yaml", PropertyTuneConfig, "e0dfc4a6"),
    ],
)
def test_names_of_searches_made_before_stay(root, file, kind, name):
    search = load_config(root / "configs" / file, kind)
    given = {"cohort" if kind is TuneConfig else "library": "0" * 64}
    key = {"kind": "tune", "config": search.key().model_dump(mode="json"), "inputs": given}
    assert digest(key)[:8] == name


def test_how_a_search_is_computed_is_no_part_of_its_name():
    other = config(
        max_concurrent=None, cpus_per_trial=0.5, gpus_per_trial=0.25, trial_timeout_s=9,
        max_failed_trials=1,
    )  # fmt: skip
    assert other.key() == config().key()
    for changes in ({"repeats": 2}, {"stopper": "median"}, {"sampler": "gp"}, {"seed": 1}):
        assert config(**changes).key() != config().key()


def test_slots_follow_from_the_cluster():
    search = config(cpus_per_trial=0.5, gpus_per_trial=0.25)
    assert slots_of({"CPU": 8, "GPU": 1}, search) == 4
    assert slots_of({"CPU": 1, "GPU": 1}, search) == 2
    assert slots_of({"CPU": 0.1}, config()) == 1


def test_resuming_needs_something_to_resume(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(InputError, match=r"no search s-\w{8} to resume .*there is: none"):
        open_search(home, config(), {}, SearchRequest(resume=True))
    assert not home.runs.exists()
    run, _ = open_search(home, config(), {}, SearchRequest())
    assert open_search(home, config(), {}, SearchRequest(resume=True))[0].name == run.name
    with pytest.raises(InputError, match=f"there is: {run.name}"):
        open_search(home, config(seed=1), {}, SearchRequest(resume=True))


def test_warm_starts_are_checked_and_named_by_what_they_are(tmp_path):
    from orchestration.search import open_study

    home = Home(tmp_path)
    earlier, _ = open_search(home, config(), {}, SearchRequest())
    with pytest.raises(InputError, match="expected a search with a study"):
        open_search(home, config(seed=1), {}, SearchRequest(warm=(earlier,)))
    open_study(earlier.folder, config())
    by_name, _ = open_search(home, config(seed=1, warm_start=[earlier.name]), {}, SearchRequest())
    by_option, warm = open_search(home, config(seed=1), {}, SearchRequest(warm=(earlier,)))
    assert by_name.name == by_option.name
    assert by_option.inputs == {"warm_start": earlier.digest}
    assert [run.name for run in warm] == [earlier.name]
    other = config(seed=1, space={"optim.lr": LR, "loss.gate": GATE})
    with pytest.raises(ConfigError, match=r"only one of the two searches has loss\.gate"):
        open_search(home, other, {}, SearchRequest(warm=(earlier,)))
    down = config(seed=1, objectives=[{"metric": "jaccard", "mode": "min"}])
    with pytest.raises(ConfigError, match="its objectives are jaccard max; expected jaccard min"):
        open_search(home, down, {}, SearchRequest(warm=(earlier,)))
    training = Run.open(home, "train", "t", config().base, {})
    with pytest.raises(InputError, match="is of kind train"):
        open_search(home, config(), {}, SearchRequest(warm=(training,)))


def test_shipped_sensitivity_grids(root: Path):
    for name, n in (("sensitivity", 27), ("sensitivity_small", 8)):
        search = load_config(root / "configs" / "tune" / f"{name}.yaml", TuneConfig)
        assert (search.sampler, search.n_trials) == ("grid", n)
        assert set(search.space) == {
            "model.d_model", "model.representation.layers", "loss.ddi_target",
        }  # fmt: skip
