"""Curves of Jaccard against DDI rate: by hand, from runs, and by the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medrec.config import TrainConfig
from medrec.evaluation.frontier import (
    Curve,
    Setting,
    build_frontier,
    jaccard_at,
    on_front,
    penalised_logits,
    shared_range,
)
from medrec.evaluation.groups import load_rows
from medrec.evaluation.metrics import summarise, visit_rows
from medrec.redecode import Redecoder, post_hoc_curve, trained_setting
from medrec.report.frontier import ddi_curves
from medrec.runs import Home, Run
from medrec.training import run_training
from orchestration.cli import app
from orchestration.frontier import FrontierRequest, at_target, check_figure, parse_values
from quantum.base import InputError, ProgramMissingError

RETAIN = {
    "name": "retain",
    "model": {"name": "retain", "d_model": 8, "dropout": 0.0},
    "loss": {"gate": "molerec"},
    "optim": {"epochs": 2, "lr": 0.01},
}


def retain(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({**RETAIN, **changes})


# --------------------------------------------------------------------------- curves by hand


def test_the_front_holds_what_nothing_beats():
    ddi = [0.10, 0.05, 0.05, 0.20, 0.15, 0.10, 0.02]
    jaccard = [0.50, 0.40, 0.45, 0.50, 0.60, 0.50, 0.45]
    # 0.05/0.45 is beaten by 0.02/0.45, 0.20 by 0.15; of two equal points the first stays
    assert on_front(ddi, jaccard).tolist() == [True, False, False, False, True, False, True]
    assert on_front([0.1], [0.3]).tolist() == [True]


def test_straight_lines_between_settings_and_nothing_outside():
    ddi, jaccard = np.array([0.10, 0.02, 0.06]), np.array([0.50, 0.30, 0.40])
    assert jaccard_at(ddi, jaccard, 0.02) == pytest.approx(0.30)
    assert jaccard_at(ddi, jaccard, 0.04) == pytest.approx(0.35)
    assert jaccard_at(ddi, jaccard, 0.09) == pytest.approx(0.475)
    assert jaccard_at(ddi, jaccard, 0.10) == pytest.approx(0.50)
    assert np.isnan(jaccard_at(ddi, jaccard, 0.0199))
    assert np.isnan(jaccard_at(ddi, jaccard, 0.1001))


def test_a_curve_never_falls():
    ddi, jaccard = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.3, 0.6])
    assert jaccard_at(ddi, jaccard, 0.2) == pytest.approx(0.5)
    assert jaccard_at(ddi, jaccard, 0.25) == pytest.approx(0.55)
    values = [float(jaccard_at(ddi, jaccard, x)) for x in np.linspace(0, 0.3, 31)]
    assert (np.diff(values) >= -1e-12).all()


def test_every_resample_is_a_curve_of_its_own():
    ddi = np.array([[0.0, 0.2], [0.1, 0.0]])
    jaccard = np.array([[0.2, 0.8], [0.4, 0.2]])
    assert jaccard_at(ddi, jaccard, 0.05).tolist() == pytest.approx([0.3, 0.35])
    found = jaccard_at(ddi, jaccard, 0.15)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(0.65)


def test_equal_rates_of_two_settings():
    assert jaccard_at(np.array([0.1, 0.1]), np.array([0.3, 0.2]), 0.1) == pytest.approx(0.3)


def test_the_shared_range_is_what_all_reach():
    assert shared_range([np.array([0.1, 0.3]), np.array([0.5, 0.2])]) == (0.2, 0.3)
    assert shared_range([np.array([0.1, 0.2]), np.array([0.3, 0.4])]) is None


def test_a_penalty_lowers_the_rate_step_by_step():
    ddi = np.zeros((4, 4))
    ddi[0, 1] = ddi[1, 0] = ddi[1, 2] = ddi[2, 1] = 1.0
    logits = np.array([[2.0, 1.0, 0.6, 0.4], [1.5, -1.0, 1.2, 0.1]])
    rates = []
    for strength in (0.0, 0.2, 0.5, 1.0, 2.0, 5.0):
        chosen = penalised_logits(logits, ddi, strength) >= 0.0
        pairs = np.einsum("ni,ij,nj->", chosen * 1.0, ddi, chosen * 1.0) / 2
        rates.append(pairs)
    assert rates[0] == 2.0
    assert all(b <= a for a, b in itertools.pairwise(rates))
    assert rates[-1] == 0.0
    # the drug without an interaction keeps its logit
    assert penalised_logits(logits, ddi, 5.0)[:, 3].tolist() == [0.4, 0.1]
    # by hand: 2 - 0.5 sigmoid(1)
    expected = 2.0 - 0.5 / (1.0 + np.exp(-1.0))
    assert penalised_logits(logits, ddi, 0.5)[0, 0] == pytest.approx(expected)
    assert penalised_logits(np.array([[-900.0, 900.0]]), np.eye(2)[::-1], 1.0)[0, 0] == -901.0


# --------------------------------------------------------------------------- curves of rows

D = 8
DDI = np.triu(np.ones((D, D)), 1)[:, :] * (np.arange(D) < 4)[:, None] * (np.arange(D) < 4)
DDI = DDI + DDI.T


def rows(n_interacting: int, n_right: int, seed: int = 0, n_patients: int = 40) -> pd.DataFrame:
    """Sets of some of four interacting drugs and of some of four true ones."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 2)
    selected = np.zeros((len(patient), D), dtype=bool)
    for own in selected:
        own[rng.choice(4, n_interacting, replace=False)] = True
        own[4 + rng.choice(4, n_right, replace=False)] = True
    target = np.broadcast_to(np.arange(D) >= 4, selected.shape)
    visit, zero = np.tile([0, 1], n_patients), np.zeros(len(patient), int)
    return visit_rows(target, selected, selected * 0.9, DDI, patient, visit, zero)


def setting(value: float, n_interacting: int, n_right: int) -> Setting:
    # rates are the same for every visit, so every resample reaches them
    return Setting(value, (rows(n_interacting, n_right),), (rows(n_interacting, n_right),))


def curve(name: str, *points: tuple[int, int]) -> Curve:
    return Curve(name, "k", tuple(setting(k, *point) for k, point in enumerate(points)))


def test_points_by_hand():
    # sets of (interacting, right): 2 and 3 are 10 pairs, one interacts, Jaccard 3/6; with 2: 2/6
    found = build_frontier([curve("c", (0, 2), (2, 3), (2, 2))], n_resamples=50)
    points = found.points
    assert points["ddi_rate"].tolist() == pytest.approx([0.0, 1 / 10, 1 / 6])
    assert points["jaccard"].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    assert points["val_jaccard"].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    # as good at a higher rate is beaten
    assert points["on_front"].tolist() == [True, False, False]
    assert points["mean_n_drugs"].tolist() == [2.0, 5.0, 4.0]


def test_differences_at_equal_rates_by_hand():
    # (interacting, right) -> DDI rate, Jaccard: (0,1) 0, 1/4; (2,4) 1/15, 4/6; (0,2) 0, 2/4
    low, high = curve("low", (0, 1), (2, 4)), curve("high", (0, 2), (2, 4))
    found = build_frontier([low, high], n_resamples=100)
    assert found.shared == pytest.approx((0.0, 1 / 15))
    assert found.matched["ddi_rate"].unique() == pytest.approx(
        np.array([0.1, 0.3, 0.5, 0.7, 0.9]) / 15
    )
    table = found.matched.set_index(["curve", "ddi_rate"])
    middle = found.matched["ddi_rate"].unique()[2]
    assert table.loc[("low", middle), "jaccard"] == pytest.approx((1 / 4 + 4 / 6) / 2)
    line = table.loc[("high", middle)]
    assert line["jaccard"] == pytest.approx((1 / 2 + 4 / 6) / 2)
    assert line["difference"] == pytest.approx(1 / 8)
    assert line["difference_low"] == pytest.approx(1 / 8)
    assert line["share_covered"] == 1.0
    assert (table.loc["low"]["difference"] == 0.0).all()


def test_rates_that_a_curve_does_not_reach_stay_empty():
    short, long = curve("short", (0, 1), (2, 4)), curve("long", (0, 2), (2, 4), (3, 4))
    found = build_frontier([long, short], at=[0.05, 0.12], n_resamples=50)
    line = found.matched.set_index(["curve", "ddi_rate"]).loc[("short", 0.12)]
    assert line[["jaccard", "difference", "difference_low"]].isna().all()
    apart = build_frontier([curve("a", (0, 1)), curve("b", (2, 4))], n_resamples=50)
    assert apart.shared is None
    assert len(apart.matched) == 0


def test_validation_decides_what_is_on_a_curve():
    """A setting that only the test part favours does not get on the curve."""
    lucky = Setting(1.0, (rows(2, 1),), (rows(2, 4),))
    found = build_frontier([Curve("c", "k", (setting(0, 0, 2), lucky))], n_resamples=50)
    assert found.points["on_front"].tolist() == [True, False]
    assert found.points["jaccard"].iloc[1] > found.points["jaccard"].iloc[0]


def test_intervals_are_left_out_where_resamples_miss_the_rate():
    def mixed() -> pd.DataFrame:
        """Half of the patients without an interaction: the rate depends on who is drawn."""
        two, none = rows(2, 2, n_patients=20), rows(0, 2, n_patients=20)
        return pd.concat([two, none.assign(patient=none["patient"] + 20)], ignore_index=True)

    uncertain = Setting(0.0, (mixed(),), (mixed(),))
    certain = setting(1.0, 4, 4)
    low, high = (summarise(item.test[0])["ddi_rate"] for item in (uncertain, certain))
    rates = [low + 1e-4 * (high - low), high - 1e-4 * (high - low)]
    found = build_frontier([Curve("c", "k", (uncertain, certain))], at=rates, n_resamples=500)
    near, far = found.matched.to_dict("records")
    assert 0.3 < near["share_covered"] < 0.8
    assert near["jaccard"] == near["jaccard"]
    assert np.isnan(near["jaccard_low"])
    assert far["share_covered"] == 1.0
    assert far["jaccard_low"] <= far["jaccard"] <= far["jaccard_high"]


def test_seeds_are_averaged_and_names_are_checked():
    two = Setting(0.0, (rows(0, 1), rows(0, 2)), (rows(0, 1), rows(0, 2)))
    found = build_frontier([Curve("c", "k", (two,))], n_resamples=20)
    assert found.points["jaccard"].item() == pytest.approx((1 / 4 + 2 / 4) / 2)
    with pytest.raises(InputError, match="2 curves with 1 names"):
        build_frontier([curve("a", (0, 1)), curve("a", (0, 1))])
    with pytest.raises(InputError, match="'z' is none of the curves: a"):
        build_frontier([curve("a", (0, 1))], reference="z")
    other = Setting(0.0, (rows(0, 1),), (rows(0, 1, n_patients=39),))
    with pytest.raises(InputError, match="score different visits"):
        build_frontier([curve("a", (0, 1)), Curve("b", "k", (other,))])


# --------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def home(tmp_path_factory, synthetic) -> Home:
    home = Home(tmp_path_factory.mktemp("frontier"))
    home.cohorts.symlink_to(synthetic[0].cohorts)
    return home


@pytest.fixture(scope="module")
def run(home, synthetic) -> Run:
    return run_training(retain(), synthetic[1], home)


def test_strength_zero_is_the_runs_own_prediction(run, home):
    (plain,) = post_hoc_curve("c", [run], home, (0.0,)).settings
    pd.testing.assert_frame_equal(plain.test[0], load_rows(run))
    pd.testing.assert_frame_equal(
        plain.validation[0], Redecoder.of(run, home).plain_rows("validation")
    )
    assert plain.thresholds == (pytest.approx(run.report()["threshold"]),)


def test_a_strong_penalty_lowers_the_rate(home, synthetic):
    # a low threshold, so that the run's own sets hold interacting drugs
    optim = {"epochs": 1, "threshold": 0.05, "tune_threshold": False}
    run = run_training(retain(name="low", optim=optim), synthetic[1], home)
    plain, strong = post_hoc_curve("c", [run], home, (0.0, 50.0)).settings
    assert plain.thresholds == (pytest.approx(0.05),)
    rates = [summarise(item.test[0])["ddi_rate"] for item in (plain, strong)]
    assert rates[1] < rates[0]


def test_a_trained_setting_is_the_runs(run, home):
    found = trained_setting([run], home, 0.06)
    assert summarise(found.validation[0])["jaccard"] == pytest.approx(run.report()["val_jaccard"])
    pd.testing.assert_frame_equal(found.test[0], load_rows(run))


def test_curves_of_one_severity(home, synthetic):
    optim = {"epochs": 1, "threshold": 0.05, "tune_threshold": False}
    run = run_training(retain(name="low", optim=optim), synthetic[1], home)
    grade = int(Redecoder.of(run, home).severity.max())
    strengths = (0.0, 50.0)
    curves = [
        post_hoc_curve("all", [run], home, strengths),
        post_hoc_curve("one", [run], home, strengths, grade),
    ]
    found = build_frontier(curves, grade=grade, n_resamples=20).points.set_index(
        ["curve", "setting"]
    )
    own = summarise(load_rows(run))[f"ddi_rate_severity_{grade}"]
    assert found.loc[("one", 0.0), "ddi_rate"] == pytest.approx(own)
    assert own > 0.0
    assert found.loc[("one", 50.0), "ddi_rate"] < own
    # fewer pairs are penalised than by all interactions
    drugs = found["mean_n_drugs"]
    assert drugs["one", 50.0] > drugs["all", 50.0]
    with pytest.raises(InputError, match="severity 4 is asked for"):
        build_frontier([curve("a", (0, 1))], grade=4)


def test_a_model_that_decodes_its_sets_gets_no_penalty(home, synthetic):
    config = TrainConfig.model_validate({"name": "topk", "model": {"name": "topk"}})
    with pytest.raises(InputError, match="topk decodes its sets itself"):
        post_hoc_curve("c", [run_training(config, synthetic[1], home)], home)


def test_requests_that_give_no_curve_are_refused_before_training(run):
    def refuse(match: str, *arguments: object, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            FrontierRequest(*arguments, **options).check()

    targets = [0.05, 0.1]
    refuse("nothing to vary", [retain()])
    refuse("is trained already", [], [run], targets)
    refuse("one value", [retain()], targets=[0.05])
    refuse("loss.gate: none", [retain(loss={"gate": "none"})], targets=targets)
    for name in ("leap", "topk"):
        refuse("no DDI term", [retain(name=name, model={"name": name})], targets=targets)
    FrontierRequest([retain()], [run], targets, post_hoc=True).check()


def test_targets_change_the_loss_alone():
    changed = at_target(retain(), 0.11)
    assert changed.loss.ddi_target == 0.11
    assert at_target(changed, 0.06) == retain()
    with pytest.raises(InputError, match="target is 1"):
        at_target(retain(), 1.5)
    assert parse_values("0.1, 0.02,0.1", "--targets") == [0.02, 0.1]
    for text in ("a", "-1", "nan"):
        with pytest.raises(InputError, match="--targets has"):
            parse_values(text, "--targets")


def test_figures_that_cannot_be_written_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_figure(Path("a.html"))
    with pytest.raises(ProgramMissingError, match="kaleido"):
        check_figure(Path("a.png"))
    with pytest.raises(InputError, match=r"\.html"):
        check_figure(Path("a.txt"))


def test_the_figure_has_a_line_per_curve_and_open_marks_for_beaten_settings():
    found = build_frontier([curve("a", (0, 1), (2, 4), (3, 4)), curve("b", (0, 2))], n_resamples=20)
    figure = ddi_curves(found.points, 0.1, 0.2)
    assert [trace.name for trace in figure.data] == ["a", "a, beaten on validation", "b"]
    assert len(figure.data[0].x) == 2


def test_the_command(home, synthetic, tmp_path):
    path, figure = tmp_path / "retain.yaml", tmp_path / "f.html"
    path.write_text(json.dumps(RETAIN))
    _, cohort = synthetic
    arguments = ["frontier", str(path), "--cohort", cohort.folder.name, "--targets", "0.01,0.5"]
    arguments += ["--post-hoc", "--strengths", "0,1", "--home", str(home.root), "-q"]
    runner = CliRunner()
    done = runner.invoke(app, [*arguments, "--figure", str(figure), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [row["curve"] for row in document["points"]] == 2 * ["retain trained"] + 2 * [
        "retain decoded"
    ]
    assert "Plotly" in figure.read_text()
    n_runs = len(list(home.runs.iterdir()))
    done = runner.invoke(app, arguments)  # found, not trained again
    assert "settings, test part" in done.stdout
    assert len(list(home.runs.iterdir())) == n_runs
