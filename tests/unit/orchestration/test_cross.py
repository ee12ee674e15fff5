"""Cross tables: what runs, which runs are paired, and what a failing cell leaves."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from medrec.config import CrossConfig, TrainConfig
from medrec.data.cohort import Cohort
from medrec.evaluation.bootstrap import bootstrap_intervals, paired_bootstrap
from medrec.evaluation.context import TestPart
from medrec.evaluation.cross import Variant, cross_table
from medrec.evaluation.metrics import summarise, visit_rows
from medrec.evaluation.significance import holm, patient_differences, wilcoxon_p
from medrec.loading import load_config, validate_config
from medrec.molecules.drugs import ddi_matrix, severity_matrix
from medrec.report.cross import forest
from medrec.runs import Home
from orchestration import many
from orchestration.cli import app
from orchestration.console import Terminal
from orchestration.cross import coverage, load_cross, plan_cells, run_cross
from orchestration.stages import Stages
from quantum.base import ConfigError, InputError, ResourceError

MOLEREC = {
    "name": "molerec",
    "model": {"name": "molerec", "d_model": 4, "representation": {"layers": 1, "dropout": 0.4}},
    "optim": {"epochs": 1, "batch_patients": 30},
}
SMALL = {
    "name": "t",
    "recommenders": [MOLEREC],
    "representations": [
        {"label": "none", "representation": {"kind": "none"}},
        {"label": "gin", "representation": {"kind": "gin"}},
    ],
    "seeds": [1, 2],
}


def checked(**changes: object) -> CrossConfig:
    return validate_config({**SMALL, **changes}, CrossConfig, "here")


def plan_of(config: CrossConfig):
    return plan_cells(config, [TrainConfig.model_validate(MOLEREC)])


# --------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"label": "a", "representation": {}}, "no kind"),
        ({"label": "a", "representation": {"kind": "gin", "shuffle_seed": 1}}, "shuffled_null"),
        ({"label": "a", "representation": {"kind": "elf"}, "pretrained": True}, "kind 'elf'"),
        ({"label": "none", "representation": {"kind": "gin"}}, "label 'none'"),
        ({"label": "a b", "representation": {"kind": "gin"}}, "label"),
    ],
)
def test_entries_that_make_no_sense_are_refused(entry, expected):
    with pytest.raises(ConfigError, match=expected):
        checked(representations=[*SMALL["representations"], entry])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reference": "nothing"}, "none, gin"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": []}, "seed"),
    ],
)
def test_references_and_seeds_are_checked(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        checked(**changes)


def test_recommenders_come_from_files_and_have_molecules(tmp_path):
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(MOLEREC))
    (tmp_path / "topk.yaml").write_text(yaml.safe_dump({"name": "topk", "model": {"name": "topk"}}))
    path = tmp_path / "cross.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "recommenders": ["m.yaml"]}))
    config, bases = load_cross(path, seeds=[7], overrides=["optim.epochs=3"])
    assert (config.seeds, config.splits) == ((7,), (0,))
    assert bases[0].optim.epochs == 3
    path.write_text(yaml.safe_dump({**SMALL, "recommenders": ["topk.yaml"]}))
    with pytest.raises(ConfigError, match=r"topk.*no representation"):
        load_cross(path)
    path.write_text(yaml.safe_dump({**SMALL, "recommenders": ["m.yaml", MOLEREC]}))
    with pytest.raises(ConfigError, match="one name: molerec, molerec"):
        load_cross(path)


@pytest.mark.parametrize("name", ["small", "full"])
def test_shipped_tables_plan_every_cell(name, root):
    config, bases = load_cross(root / "configs" / "cross" / f"{name}.yaml")
    cells = plan_cells(config, bases)
    n = len(config.representations)
    assert len(cells) == len(bases) * (2 * n - 1) * len(config.seeds) * len(config.splits)
    assert len({cell.config.digest() for cell in cells}) == len(cells)
    kinds = {item.representation.kind for item in config.representations}
    assert kinds == {"none", "fingerprint", "gin", "molinteract", "elf", "gin_elf"}


# --------------------------------------------------------------------------- cells


def test_a_cell_changes_what_was_written_and_nothing_else():
    entry = {"label": "elf", "representation": {"kind": "elf", "feature_sets": ["elf"]}}
    cells = plan_of(checked(representations=[*SMALL["representations"], entry]))
    found = next(cell for cell in cells if cell.variant == Variant("molerec", "elf"))
    base = TrainConfig.model_validate(MOLEREC)
    expected = base.model.representation.model_dump() | {"kind": "elf", "feature_sets": ("elf",)}
    assert found.config.model.representation.model_dump() == expected
    assert found.config.optim == base.optim
    assert found.config.name == "molerec_elf"


def test_every_seed_shuffles_anew_and_none_is_not_shuffled():
    cells = plan_of(checked(splits=[0, 1]))
    shuffled = [cell for cell in cells if cell.variant.shuffled]
    assert {cell.variant.representation for cell in shuffled} == {"gin"}
    assert [cell.config.model.representation.shuffle_seed for cell in shuffled] == [1, 2, 1, 2]
    assert all(
        cell.config.model.representation.shuffle_seed is None
        for cell in cells
        if not cell.variant.shuffled
    )
    assert len(cells) == 12
    assert len(plan_of(checked(splits=[0, 1], shuffled_null=False))) == 8


# --------------------------------------------------------------------------- the table


def guess(cohort: Cohort, skill: float, seed: int, split: int = 0) -> pd.DataFrame:
    """Rows of a predictor that knows each entry with probability ``skill``."""
    rng = np.random.default_rng([seed, split])
    part = TestPart.of(cohort, split)
    known = rng.random(part.target.shape) < skill
    probs = np.where(known, part.target, rng.random(part.target.shape)) * 0.9 + 0.05
    ddi, severity = ddi_matrix(cohort, part.drugs), severity_matrix(cohort, part.drugs)
    n_unseen = np.zeros(len(probs), int)
    return visit_rows(
        part.target, probs >= 0.5, probs, ddi, part.patient, part.visit, n_unseen, severity
    )


def skilled(cohort: Cohort, variants: dict[Variant, float], keys) -> dict:
    return {
        variant: {(split, seed): guess(cohort, skill, 10 * seed + n, split) for split, seed in keys}
        for n, (variant, skill) in enumerate(variants.items())
    }


NONE, GIN, NULL = Variant("m", "none"), Variant("m", "gin"), Variant("m", "gin", True)


def test_one_run_each_is_the_paired_bootstrap(synthetic):
    _, cohort = synthetic
    rows = skilled(cohort, {NONE: 0.3, GIN: 0.8, NULL: 0.4}, [(0, 1)])
    table = cross_table(rows, "none").set_index("representation")
    ours, theirs, null = (rows[v][0, 1] for v in (GIN, NONE, NULL))
    row = table.loc["gin"]
    assert row["jaccard"] == pytest.approx(summarise(ours)["jaccard"])
    assert (row["jaccard_low"], row["jaccard_high"]) == pytest.approx(
        bootstrap_intervals(ours)["jaccard"]
    )
    for name, other in (("reference", theirs), ("null", null)):
        expected = paired_bootstrap(ours, other)["jaccard"]
        found = [row[f"to_{name}{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx([expected[k] for k in ("difference", "low", "high")])
        p = wilcoxon_p(patient_differences([[ours]], [[other]], "jaccard"))
        assert row[f"to_{name}_p"] == pytest.approx(p)
        assert (row[f"to_{name}_pairs"], row[f"to_{name}_above"]) == (1, 1)
    # the family of Holm's correction is all differences of the table, and no other
    raw = [row["to_reference_p"], row["to_null_p"]]
    corrected = [row["to_reference_p_holm"], row["to_null_p_holm"]]
    assert corrected == pytest.approx(holm(raw))
    assert table.loc["none"][["to_reference", "to_null", "to_null_p_holm"]].isna().all()


def test_seeds_and_splits_are_pooled_by_pairs(synthetic):
    _, cohort = synthetic
    keys = [(0, 1), (0, 2), (1, 1), (1, 2)]
    rows = skilled(cohort, {NONE: 0.3, GIN: 0.7}, keys)
    row = cross_table(rows, "none").iloc[1]
    points = {
        v: np.array([summarise(rows[v][key])["jaccard"] for key in keys]) for v in (NONE, GIN)
    }
    gap = points[GIN] - points[NONE]
    assert row["to_reference"] == pytest.approx(gap.mean())
    assert row["to_reference_sd_runs"] == pytest.approx(gap.std(ddof=1))
    assert row["to_reference_above"] == (gap > 0).sum()
    assert row["jaccard_sd_runs"] == pytest.approx(points[GIN].std(ddof=1))
    single = cross_table({v: {(0, 1): rows[v][0, 1]} for v in rows}, "none").iloc[1]
    width = row["to_reference_high"] - row["to_reference_low"]
    assert width < single["to_reference_high"] - single["to_reference_low"]


def test_a_run_without_its_partner_enters_no_difference(synthetic):
    _, cohort = synthetic
    rows = skilled(cohort, {NONE: 0.3, GIN: 0.7, NULL: 0.3}, [(0, 1), (0, 2)])
    del rows[NONE][0, 2]
    rows[NULL].clear()
    row = cross_table(rows, "none").iloc[1]
    alone = {v: {(0, 1): rows[v][0, 1]} for v in (NONE, GIN)}
    assert row["n_runs"] == 2
    assert row["to_reference_pairs"] == 1
    assert row["to_reference"] == pytest.approx(cross_table(alone, "none").iloc[1]["to_reference"])
    assert row["to_null_pairs"] == 0
    assert np.isnan(row["to_null"])
    assert np.isnan(row["jaccard_null"])


def test_equal_models_differ_by_nothing_and_other_visits_are_refused(synthetic):
    _, cohort = synthetic
    same = {(0, 1): guess(cohort, 0.5, 1)}
    row = cross_table({NONE: same, GIN: same}, "none").iloc[1]
    assert [row[f"to_reference{end}"] for end in ("", "_low", "_high", "_p")] == [0, 0, 0, 1]
    with pytest.raises(InputError, match="different visits"):
        cross_table({NONE: same, GIN: {(0, 2): same[0, 1].iloc[1:]}}, "none")


def test_the_figure_has_a_mark_for_every_difference(synthetic):
    _, cohort = synthetic
    rows = skilled(cohort, {NONE: 0.3, GIN: 0.7, NULL: 0.3, Variant("n", "gin"): 0.5}, [(0, 1)])
    table = cross_table(rows, "none")
    figure = forest(table, {"reference": "to none", "null": "to shuffled"})
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(marks) == 4  # two recommenders, two comparisons
    drawn = marks[0]
    gin = table[table["representation"] == "gin"].iloc[0]
    assert drawn.x[1] == pytest.approx(gin["to_reference"])
    assert drawn.x[1] - drawn.error_x.arrayminus[1] == pytest.approx(gin["to_reference_low"])
    assert drawn.x[1] + drawn.error_x.array[1] == pytest.approx(gin["to_reference_high"])


# --------------------------------------------------------------------------- running


@pytest.fixture
def stages(tmp_path, synthetic) -> Stages:
    (tmp_path / "cohorts").symlink_to(synthetic[0].cohorts)
    return Stages(Home(tmp_path), Terminal(quiet=True))


def run(stages: Stages, cohort: Cohort, config: CrossConfig, **inputs):
    given = {"features": None, "pretrained": None, **inputs}
    return run_cross(config, [TrainConfig.model_validate(MOLEREC)], stages, cohort, **given)


def test_a_table_is_trained_once_and_found_again(stages, synthetic, monkeypatch):
    _, cohort = synthetic
    first = run(stages, cohort, checked())
    assert first.table["n_runs"].tolist() == [2, 2]
    assert first.table["to_null_pairs"].tolist() == [0, 2]
    assert set(first.runs.values()) == {
        Variant("molerec", "none"),
        Variant("molerec", "gin"),
        Variant("molerec", "gin", True),
    }
    assert first.header["runs"].startswith("6 of 6 finished; 2 seeds")
    assert first.header["tests"].startswith("2 (Wilcoxon")
    monkeypatch.setattr("medrec.training.build_learning_data", None)
    again = run(stages, cohort, checked())
    assert again.runs == first.runs
    pd.testing.assert_frame_equal(again.table, first.table)


def test_a_failing_cell_does_not_lose_the_others(stages, synthetic, monkeypatch):
    _, cohort = synthetic
    train = Stages.train

    def sometimes(self, config, *inputs):
        if config.name == "molerec_gin" and config.seed == 1:
            raise ResourceError("no memory")
        if config.name == "molerec_gin_shuffled" and config.seed == 2:
            raise RuntimeError("defect")
        return train(self, config, *inputs)

    monkeypatch.setattr(Stages, "train", sometimes)
    result = run(stages, cohort, checked())
    assert result.failed == {
        "molerec_gin split 0 seed 1": "resource: no memory",
        "molerec_gin_shuffled split 0 seed 2": "unknown: RuntimeError: defect",
    }
    row = result.table.iloc[1]
    assert (row["n_runs"], row["to_reference_pairs"], row["to_null_pairs"]) == (1, 1, 0)
    assert result.header["runs"].startswith("4 of 6")
    monkeypatch.setattr(Stages, "train", lambda *a: (_ for _ in ()).throw(ResourceError("full")))
    with pytest.raises(ResourceError, match=r"all 6 runs failed; the first: .*full"):
        run(stages, cohort, checked())


def test_side_by_side_the_same_cells_run(stages, synthetic, monkeypatch):
    _, cohort = synthetic
    seen = {}

    def serial(jobs, workers, terminal):
        seen["workers"], seen["jobs"] = workers, jobs
        return {job: many.run_job(job) for job in jobs[1:]}, {jobs[0]: ("transient", "lost worker")}

    monkeypatch.setattr("orchestration.cross.try_many", serial)
    result = run(stages, cohort, checked(seeds=[1]), workers=2)
    assert seen["workers"] == 2
    assert result.failed == {"molerec_none split 0 seed 1": "transient: lost worker"}
    alone = run(stages, cohort, checked(seeds=[1]))
    assert set(alone.runs) > set(result.runs)
    assert all(job.features is None and job.pretrained is None for job in seen["jobs"])


def test_inputs_that_rows_need_are_asked_for(stages, synthetic):
    _, cohort = synthetic
    elf = {"label": "elf", "representation": {"kind": "elf"}}
    with pytest.raises(InputError, match="elf read a feature table"):
        run(stages, cohort, checked(representations=[*SMALL["representations"], elf]))
    started = {"label": "gin_pre", "representation": {"kind": "gin"}, "pretrained": True}
    config = checked(
        representations=[*SMALL["representations"], started], seeds=[1], shuffled_null=False
    )
    result = run(stages, cohort, config)
    assert result.header["left out"] == "gin_pre: no --pretrained"
    assert result.table["representation"].tolist() == ["none", "gin"]
    assert "null" not in result.header


def test_only_marked_rows_and_their_null_start_from_the_run(stages, synthetic, monkeypatch):
    _, cohort = synthetic
    seen = {}
    finished = Stages.train
    monkeypatch.setattr(
        Stages,
        "train",
        lambda self, config, cohort, features, start: (
            seen.__setitem__(config.name, start) or finished(self, config, cohort, None, None)
        ),
    )
    started = {"label": "pre", "representation": {"kind": "gin", "layers": 2}, "pretrained": True}
    config = checked(representations=[*SMALL["representations"], started], seeds=[1])
    source = stages.train(plan_of(checked())[0].config, cohort, None, None)
    seen.clear()
    run(stages, cohort, config, pretrained=source)
    assert {name for name, start in seen.items() if start is source} == {
        "molerec_pre",
        "molerec_pre_shuffled",
    }
    assert {name for name, start in seen.items() if start is None} == {
        "molerec_none",
        "molerec_gin",
        "molerec_gin_shuffled",
    }


def test_coverage_counts_molecules_of_the_vocabulary(synthetic):
    _, cohort = synthetic
    counts = coverage(cohort, None, 0)
    assert counts["classes"] == len(cohort.vocabularies(0).drugs)
    assert counts["with_elf_map"] == counts["with_conformer"] == 0
    assert counts["molecules"] > 0


def test_the_command_writes_table_json_and_figure(stages, synthetic, tmp_path):
    _, cohort = synthetic
    path, out = tmp_path / "cross.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**SMALL, "seeds": [1]}))
    arguments = ["cross", str(path), "--cohort", cohort.folder.name, "--home", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), "-q", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    stored = json.loads((out / "cross.json").read_text())
    assert printed["rows"] == stored["rows"]
    assert printed["rows"][0]["to_reference"] is None  # no NaN in JSON
    assert printed["failed"] == {}
    table = pd.read_csv(out / "table.csv")
    assert table["representation"].tolist() == ["none", "gin"]
    assert "http" not in (out / "forest.html").read_text().split("<script")[0]
    shown = CliRunner().invoke(app, [*arguments, "-q"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    for part in ("caution", "ELF maps", "Δ null"):
        assert part in shown.stdout
    assert load_config(path, CrossConfig).name == "t"
