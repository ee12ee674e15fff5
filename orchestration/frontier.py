"""`medrec frontier`: curves of Jaccard against DDI rate, and models at equal DDI rates."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.config import LossConfig, TrainConfig
from medrec.data.ddi import SEVERITY_NAMES
from medrec.loading import load_config
from medrec.runs import Run
from orchestration.console import frame_table, pairs_table
from orchestration.evidence import records
from orchestration.many import variants
from orchestration.stages import Stages
from quantum.base import InputError, ProgramMissingError, write_text_atomic

if TYPE_CHECKING:
    from medrec.evaluation.frontier import Curve, Frontier, Setting

NOTES = (
    "Which settings are on a curve, epochs and thresholds were chosen on validation; the test "
    "part was only read.",
    "Intervals are over test patients; they do not hold what another training would change.",
    "Matched rows: Jaccard at a DDI rate of at most the given one, between settings by a straight "
    "line; '-' where a curve does not reach the rate.",
)


@dataclass(frozen=True)
class FrontierRequest:
    """What to put on curves.

    Parameters
    ----------
    configs : sequence of TrainConfig
        Trained at every target, and once as they are for a penalty at decoding.
    runs : sequence of Run
        Finished runs, for a penalty at decoding.
    targets : sequence of float
        DDI targets to train at; none for no trained curve.
    post_hoc : bool
        Whether to add curves of a penalty at decoding.
    strengths : sequence of float
        Of that penalty; empty means the usual ones.
    seeds : sequence of int
        Of every training; a point is their mean.
    grade : int, optional
        Severity whose rate is compared, and penalised at decoding, in place of the DDI rate.
    """

    configs: Sequence[TrainConfig]
    runs: Sequence[Run] = ()
    targets: Sequence[float] = ()
    post_hoc: bool = False
    strengths: Sequence[float] = ()
    seeds: Sequence[int] = ()
    grade: int | None = None

    def check(self) -> None:
        """Refuse what cannot become a curve, before anything runs.

        Raises
        ------
        InputError
        """
        if not (self.targets or self.post_hoc):
            raise InputError("nothing to vary; expected --targets, --post-hoc or both")
        if self.runs and not self.post_hoc:
            raise InputError(
                f"run {self.runs[0].name} is trained already; expected --post-hoc, or a "
                "configuration file in its place"
            )
        cohorts = {run.inputs.get("cohort") for run in self.runs}
        if len(cohorts) > 1:
            raise InputError(f"runs are of {len(cohorts)} cohorts; expected one")
        if len(self.targets) == 1:
            raise InputError("--targets has one value; expected two or more for a curve")
        for config in self.configs if self.targets else ():
            _check_target_matters(config)


def parse_values(text: str | None, option: str) -> list[float]:
    """Numbers of an option such as ``0.02,0.05``, each once, ascending.

    Raises
    ------
    InputError
        If a part is no number, or below 0.
    """
    values = set()
    for part in (text or "").replace(" ", "").split(","):
        try:
            value = float(part) if part else 0.0
        except ValueError:
            value = float("nan")
        if not 0.0 <= value < float("inf"):
            raise InputError(f"{option} has '{part}'; expected numbers such as 0.02,0.05,0.1")
        if part:
            values.add(value)
    return sorted(values)


def load_systems(
    stages: Stages, names: Sequence[str], overrides: list[str]
) -> tuple[list[TrainConfig], list[Run]]:
    """Configurations (files that end in .yaml or .yml) and finished runs (all other names)."""
    configs, runs = [], []
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            configs.append(load_config(Path(name), TrainConfig, overrides))
        else:
            runs.append(stages.run(name))
    return configs, runs


def at_target(config: TrainConfig, target: float) -> TrainConfig:
    """Return the configuration with another DDI target."""
    if not 0.0 < target < 1.0:
        raise InputError(f"DDI target is {target:g}; expected a rate between 0 and 1")
    loss = LossConfig.model_validate({**config.loss.model_dump(), "ddi_target": target})
    return config.model_copy(update={"loss": loss})


def _check_target_matters(config: TrainConfig) -> None:
    from medrec.models import LEARNED_MODELS
    from medrec.models.decoding import ListRecommender

    kind = LEARNED_MODELS.get(config.model.name)
    if kind is None or issubclass(kind, ListRecommender):
        raise InputError(
            f"{config.name}: {config.model.name} has no DDI term in its loss, so targets change "
            "nothing; expected another model, or --post-hoc"
        )
    if config.loss.gate == "none":
        raise InputError(
            f"{config.name} has loss.gate: none, so targets change nothing; expected a gate, such "
            "as --set loss.gate=molerec"
        )


def build_curves(request: FrontierRequest, stages: Stages, workers: int, **inputs: Any) -> Any:
    """Train what is missing, and decode anew.

    Parameters
    ----------
    inputs : dict
        ``cohort``, ``features``, ``pretrained``, ``concepts`` of the trainings.

    Returns
    -------
    list of medrec.evaluation.frontier.Curve
    """
    from medrec.evaluation.frontier import Curve
    from medrec.redecode import STRENGTHS, post_hoc_curve, trained_setting

    swept = [at_target(config, t) for config in request.configs for t in request.targets]
    plain = list(request.configs) if request.post_hoc else []
    wanted = variants([*swept, *plain], [], request.seeds)
    runs = stages.train_all(wanted, workers=workers, **inputs) if wanted else []
    n_seeds = max(len(request.seeds), 1)
    points = [runs[i : i + n_seeds] for i in range(0, len(runs), n_seeds)]
    curves: list[Curve] = []
    n_targets, both = len(request.targets), bool(request.targets) and request.post_hoc
    for number, config in enumerate(request.configs):
        own = points[number * n_targets : (number + 1) * n_targets]
        if own:
            pairs = zip(own, request.targets, strict=True)
            settings = tuple(trained_setting(found, stages.home, t) for found, t in pairs)
            name = f"{config.name} trained" if both else config.name
            curves.append(Curve(name, "DDI target of the training", settings))
    strengths = list(request.strengths) or list(STRENGTHS)
    decoded = [
        (f"{config.name} decoded" if both else config.name, points[len(swept) + number])
        for number, config in enumerate(plain)
    ]
    decoded += [(run.name, [run]) for run in request.runs]
    curves += [
        post_hoc_curve(name, own, stages.home, strengths, request.grade) for name, own in decoded
    ]
    return curves


def check_figure(path: Path | None) -> None:
    """Refuse a figure that cannot be written, before anything runs.

    Raises
    ------
    InputError
        If the ending is not known.
    ProgramMissingError
        If a picture needs a package that is not there.
    """
    if path is None or path.suffix == ".html":
        return
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"figure {path}: expected a name that ends in .html, .png, .svg or .pdf")
    if importlib.util.find_spec("kaleido") is None:
        raise ProgramMissingError(
            f"figure {path} needs kaleido: pip install kaleido, or name a file that ends in .html"
        )


def write_figure(path: Path, figure: Any) -> None:
    """Write a Plotly figure as HTML (self-contained) or as a picture, by the file's ending."""
    if path.suffix == ".html":
        write_text_atomic(path, figure.to_html(include_plotlyjs=True, full_html=True))
    else:
        figure.write_image(path)


def show_frontier(
    stages: Stages,
    curves: Sequence[Curve],
    at: Sequence[float] = (),
    reference: str | None = None,
    grade: int | None = None,
    figure: Path | None = None,
) -> None:
    """Print both tables, and write the figure."""
    from medrec.evaluation.compare import caution
    from medrec.evaluation.frontier import build_frontier

    found = build_frontier(curves, at, reference, grade)
    first = curves[0].settings[0]
    truth, chance = _context(stages, first, grade)
    if figure is not None:
        from medrec.report.frontier import ddi_curves

        write_figure(figure, ddi_curves(found.points, truth, chance))
        stages.terminal.say(f"figure: {figure}")
    notes = [caution(int(first.test[0]["patient"].nunique())), *NOTES]
    counted = "all interactions" if grade is None else f"{SEVERITY_NAMES[grade]} ({grade})"
    facts: dict[str, Any] = {
        "DDI counts": counted,
        "DDI of ground truth": round(truth, 4),
        "DDI of chance": round(chance, 4),
        "DDI rates that all curves reach": _range_text(found),
        "reference": found.reference,
    }
    document = {
        "grade": grade,
        "ddi_rate_true": truth,
        "ddi_rate_chance": chance,
        "shared_range": found.shared,
        "reference": found.reference,
        "points": records(found.points),
        "matched": records(found.matched),
        "notes": notes,
    }
    tables: list[Any] = [frame_table(_shown_points(found), "settings, test part")]
    if len(found.matched):
        tables.append(frame_table(_shown_matched(found), "at equal DDI rates"))
    shown = [*facts.items(), *(("note", note) for note in notes)]
    stages.terminal.result(document, *tables, pairs_table(shown))


def _context(stages: Stages, first: Setting, grade: int | None) -> tuple[float, float]:
    """Rate of the true sets and of random ones."""
    from medrec.evaluation.metrics import ddi_rate_chance, summarise
    from medrec.molecules.drugs import severity_matrix

    run, truth = stages.run(first.runs[0]), summarise(first.test[0])
    if grade is None:
        return truth["ddi_rate_true"], float(run.report()["ddi_rate_chance"])
    cohort = stages.cohort_of(run)
    drugs = cohort.vocabularies(int(run.report()["split"])).drugs
    chance = ddi_rate_chance(severity_matrix(cohort, drugs) == grade)
    return truth[f"ddi_rate_severity_{grade}_true"], chance


def _range_text(found: Frontier) -> str:
    if found.shared is None:
        return "none: no comparison at an equal DDI rate is possible"
    return f"{found.shared[0]:.4f} to {found.shared[1]:.4f}"


def _shown_points(found: Frontier) -> pd.DataFrame:
    rows = found.points.to_dict("records")
    return pd.DataFrame(
        {
            "curve": [row["curve"] for row in rows],
            "setting": [f"{row['setting']:g}" for row in rows],
            "front": ["yes" if row["on_front"] else "-" for row in rows],
            "ddi": [_with_interval(row, "ddi_rate", 4) for row in rows],
            "jaccard": [_with_interval(row, "jaccard", 4) for row in rows],
            "drugs": [f"{row['mean_n_drugs']:.1f}" for row in rows],
            "threshold": [row["thresholds"] for row in rows],
        }
    )


def _shown_matched(found: Frontier) -> pd.DataFrame:
    rows = found.matched.to_dict("records")
    return pd.DataFrame(
        {
            "ddi": [f"{row['ddi_rate']:.4f}" for row in rows],
            "curve": [row["curve"] for row in rows],
            "jaccard": [_with_interval(row, "jaccard", 4) for row in rows],
            "difference": [
                "reference"
                if row["curve"] == found.reference
                else _with_interval(row, "difference", 4, "+")
                for row in rows
            ],
        }
    )


def _with_interval(row: dict[Any, Any], name: str, digits: int, sign: str = "") -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value != value:
        return "-"
    text = f"{value:{sign}.{digits}f}"
    return text if low != low else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
