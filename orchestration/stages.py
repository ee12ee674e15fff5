"""The stages behind the commands: each finds its finished work by name, or does it.

One object holds the home folder and the terminal. Heavy modules load inside the methods, so a
command pays only for what it uses, and Ray starts only when there is work for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medrec.config import (
    CohortConfig,
    ConceptConfig,
    FeatureRunConfig,
    PretrainRunConfig,
    TrainConfig,
    TuneConfig,
)
from medrec.runs import Home, Run
from orchestration.console import Terminal, frame_table, pairs_table
from quantum.base import InputError, IntegrityError
from quantum.store import open_store

_SHOWN_PAIRS = 12

if TYPE_CHECKING:
    from medrec.concepts.table import ConceptTable
    from medrec.data.cohort import Cohort
    from medrec.molecules.features import FeatureTable


class Stages:
    """Run, find and show each stage.

    Parameters
    ----------
    home : Home
        Folder for everything computed.
    terminal : Terminal
        Where results, progress and messages go.
    """

    def __init__(self, home: Home, terminal: Terminal) -> None:
        self.home, self.terminal = home, terminal

    # ------------------------------------------------------------------ find

    def cohort(self, name: str) -> Cohort:
        """Load a prepared cohort by name or unique beginning."""
        from medrec.data.cohort import Cohort

        return Cohort.load(self.home.find(self.home.cohorts, name))

    def features(self, name: str | None) -> FeatureTable | None:
        """Load an exported feature table by name; None stays None."""
        return None if name is None else self.feature_table(name)

    def feature_table(self, name: str) -> FeatureTable:
        """Load an exported feature table by name or unique beginning."""
        from medrec.molecules.features import FeatureTable

        return FeatureTable.load(self.home.find(self.home.features, name))

    def concepts(self, name: str | None) -> ConceptTable | None:
        """Load a concept table by name; None stays None."""
        from medrec.concepts.table import ConceptTable

        if name is None:
            return None
        return ConceptTable.load(self.home.find(self.home.concepts, name))

    def run(self, name: str) -> Run:
        """Open a run by name or unique beginning."""
        return Run.load(self.home.find(self.home.runs, name))

    def cohort_of(self, run: Run) -> Cohort:
        """Find the cohort that a run was made on, by its digest."""
        from medrec.data.cohort import Cohort

        return Cohort.load(self.home.by_digest(self.home.cohorts, run.inputs["cohort"]))

    # ------------------------------------------------------------------ cohort

    def prepare(self, config: CohortConfig) -> Cohort:
        """Prepare a cohort, or find it."""
        from medrec.data.cohort import prepare_cohort

        with self.terminal.progress("prepare", None) as step:
            return prepare_cohort(config, self.home, progress=lambda note: step.advance(note))

    def show_cohort(self, cohort: Cohort) -> None:
        """Print funnel, mapping coverage and DDI density."""
        facts = [
            ("cohort", cohort.folder.name),
            ("preset", cohort.config.preset),
            ("patients, visits", f"{cohort.n_patients}, {len(cohort.visits)}"),
            ("drug classes", len(cohort.drugs)),
            *((f"DDI {name}", value) for name, value in cohort.record["ddi"].items()),
            *(("note", note) for note in cohort.record["notes"]),
        ]
        document = {
            "cohort": cohort.folder.name,
            "digest": cohort.digest,
            "funnel": cohort.funnel.to_dict("records"),
            "coverage": cohort.coverage.to_dict("records"),
            "ddi": cohort.record["ddi"],
            "problems": cohort.record.get("problems", []),
            "expected_counts": cohort.record.get("expected_counts", []),
        }
        columns = {
            "problems": ["table", "problem", "rows", "done"],
            "expected_counts": ["count", "expected", "found", "met"],
        }
        more = [
            frame_table(pd.DataFrame(document[key], columns=names), key.replace("_", " "))
            for key, names in columns.items()
            if document[key]
        ]
        self.terminal.result(
            document,
            *more,
            frame_table(cohort.funnel, "funnel"),
            frame_table(cohort.coverage, "prescription rows mapped to ATC"),
            pairs_table(facts),
        )

    # ------------------------------------------------------------------ features

    def run_features(
        self,
        config: FeatureRunConfig,
        cohorts: Sequence[Cohort],
        retry: tuple[str, ...] = (),
        workers: int | None = None,
        export_every_s: float | None = None,
    ) -> FeatureTable:
        """Compute what is missing for the cohorts' molecules, then export the table."""
        from medrec.molecules.features import FeatureTable
        from orchestration.features import run_features

        folder = run_features(
            config, cohorts, self.home, self.terminal, retry, workers, export_every_s
        )
        return FeatureTable.load(folder)

    def show_features(self, features: FeatureTable) -> None:
        """Print how many species have a conformer and an ELF map, and why others have not."""
        coverage = features.coverage()
        self.terminal.result(
            {"features": features.folder.name, "digest": features.digest, "coverage": coverage},
            pairs_table([("features", features.folder.name), *coverage.items()]),
        )

    def show_feature_status(self, config: FeatureRunConfig, cohorts: Sequence[Cohort]) -> None:
        """Print present, failed and missing per stage."""
        from orchestration.features import feature_status

        table = feature_status(config, cohorts, self.home)
        self.terminal.result(table.to_dict("records"), frame_table(table, "stages"))

    def verify_store(self, location: str | None = None) -> None:
        """Recompute all digests of a store (the home's, if none is named); damage raises."""
        store = self.home.open_store() if location is None else open_store(location, make=False)
        with self.terminal.progress("verify", None) as step:
            checked, damaged = store.verify(lambda done, total: step.at(done, total))
        self.terminal.result(
            {"store": store.location, "checked": checked, "damaged": damaged},
            f"{checked} objects checked, {len(damaged)} damaged",
        )
        if damaged:
            raise IntegrityError(
                f"{len(damaged)} objects do not match their digest, first {damaged[0][:16]}; "
                "they were set aside and are computed again by the next features run"
            )

    # ------------------------------------------------------------------ concepts

    def build_concepts(self, config: ConceptConfig, cohort: Cohort) -> ConceptTable:
        """Make the codes of a cohort's concepts, or find them."""
        from medrec.concepts.build import build_concepts

        with self.terminal.progress("concepts", None) as step:
            return build_concepts(config, cohort, self.home, lambda note: step.advance(note))

    def show_concepts(self, table: ConceptTable, without: ConceptTable | None = None) -> None:
        """Print collisions and memory of a concept table."""
        from orchestration.cli_concepts import show_concepts

        show_concepts(self.terminal, table, without)

    # ------------------------------------------------------------------ learning

    def pretrain(self, config: PretrainRunConfig, cohort: Cohort, features: FeatureTable) -> Run:
        """Pre-train molecule encoders through Ray Train, or find the finished run."""
        from orchestration.train import run_pretrain

        with self.terminal.progress("pretrain", config.task.epochs) as step:
            return run_pretrain(
                config,
                cohort,
                features,
                self.home,
                on_epoch=lambda row: step.at(
                    int(row["epoch"]) + 1, None, f"loss {row['loss']:.3f}"
                ),
            )

    def show_run(self, run: Run) -> None:
        """Print a run's name and its numbers."""
        report = run.report()
        flat = {k: v for k, v in report.items() if isinstance(v, int | float | str)}
        self.terminal.result(
            {"run": run.name, **report}, pairs_table([("run", run.name), *flat.items()])
        )

    def tune(
        self,
        config: TuneConfig,
        cohort: Cohort,
        features: FeatureTable | None,
        concepts: ConceptTable | None = None,
        pick: str | None = None,
        **asked: Any,
    ) -> Run:
        """Search hyper-parameters; ``asked`` as in `orchestration.search.SearchRequest`."""
        from orchestration.search import SearchRequest
        from orchestration.tune import run_tune

        request = SearchRequest(warn=self.terminal.warn, **asked)
        with self.terminal.progress("tune", request.n_trials or config.n_trials) as step:
            return run_tune(config, cohort, self.home, features, step.at, concepts, request, pick)

    def show_trials(self, run: Run, options: dict[str, str | None] | None = None) -> None:
        """Print the trials of a search, and the command for the best (with ``options``)."""
        from orchestration.search_export import show_trials

        show_trials(self.terminal, run, options)

    def train(
        self,
        config: TrainConfig,
        cohort: Cohort,
        features: FeatureTable | None,
        pretrained: Run | None,
        concepts: ConceptTable | None = None,
    ) -> Run:
        """Train one recommender and evaluate it once, or find the finished run."""
        from medrec.models import LEARNED_MODELS
        from medrec.training import run_training
        from orchestration.tracking import tracking

        learned = config.model.name in LEARNED_MODELS
        with self.terminal.progress(config.name, config.optim.epochs if learned else None) as step:
            return run_training(
                config,
                cohort,
                self.home,
                features=features,
                pretrained=pretrained,
                concepts=concepts,
                on_epoch=lambda row: step.at(
                    int(row["epoch"]) + 1, None, f"validation Jaccard {row['val_jaccard']:.4f}"
                ),
                during=lambda run: tracking(run, self.terminal),
            )

    def train_all(
        self,
        configs: Sequence[TrainConfig],
        cohort: Cohort,
        features: FeatureTable | None,
        pretrained: Run | None,
        workers: int = 1,
        concepts: ConceptTable | None = None,
    ) -> list[Run]:
        """Train many recommenders, one after the other or as Ray tasks."""
        if workers == 1:
            return [
                self.train(config, cohort, features, pretrained, concepts) for config in configs
            ]
        from orchestration.many import Job, train_many

        inputs = (features, pretrained, concepts)
        places = [str(item.folder.resolve()) if item else None for item in inputs]
        folder, home = str(cohort.folder.resolve()), str(self.home.root.resolve())
        jobs = [Job(config, folder, home, *places) for config in configs]
        return train_many(jobs, workers, self.terminal)

    # ------------------------------------------------------------------ evidence

    def show_evaluation(self, run: Run, figure: Path | None = None) -> None:
        """Print every metric of one run with its interval."""
        from orchestration.evidence import show_evaluation

        show_evaluation(self.terminal, run, figure)

    @staticmethod
    def usual_reference(runs: Sequence[Run]) -> str | None:
        """Logistic regression, the yardstick of a comparison, if it is among the runs."""
        models = {run.report().get("model"): run.name for run in runs}
        return models.get("logistic_regression")

    def show_comparison(
        self, runs: list[Run], cohort: Cohort, reference: str | None = None, **files: Any
    ) -> None:
        """Print the comparison table; ``files`` as in `orchestration.evidence`."""
        from orchestration.evidence import show_comparison

        show_comparison(self.terminal, runs, cohort, reference, **files)

    def recommend(self, run: Run, visits: Path, top: int, hard: str | None = None) -> None:
        """Recommend for one patient read from JSON; ``hard`` names a forbidden severity."""
        from medrec.evaluation.hard_mode import parse_grade
        from medrec.recommend import recommend

        grade = None if hard is None else parse_grade(hard)

        result = recommend(run, self.home, read_document(visits), forbid=grade)
        for text in result["warnings"]:
            self.terminal.warn(text)
        drugs = pd.DataFrame(result["drugs"][:top])
        pairs = pd.DataFrame(result["interactions"])
        n_more = max(len(pairs) - _SHOWN_PAIRS, 0)
        pairs = pairs.head(_SHOWN_PAIRS).drop(columns="severity", errors="ignore")
        tables: list[Any] = [frame_table(drugs, "recommended for the latest visit")]
        tables.append(
            frame_table(pairs, "interacting pairs among the selected")
            if len(pairs)
            else "no interacting pair among the selected drugs"
        )
        if n_more:
            tables.append(f"and {n_more} more pairs; --json lists all")
        self.terminal.result(
            result,
            *tables,
            "Interactions are between classes: any two member substances may be the cause.",
            result["caution"],
        )

    def report(
        self,
        runs: list[Run],
        features: FeatureTable | None,
        out: Path | None,
        with_patient: bool = False,
    ) -> Path:
        """Write the HTML page of some runs."""
        from medrec.report import build_report

        if not runs:
            raise InputError("no run given; expected at least one")
        on_molecules = [run for run in runs if "library" in run.inputs]
        if on_molecules:
            return self._molecule_report(runs, out)
        cohort = self.cohort_of(runs[0])
        by_kind: dict[str, list[Run]] = {"train": [], "tune": [], "pretrain": []}
        for run in runs:
            by_kind[run.kind].append(run)
        target = out or self.home.reports / f"{cohort.folder.name}.html"
        return build_report(
            self.home,
            cohort=cohort,
            runs=by_kind["train"],
            tune_run=next(iter(by_kind["tune"]), None),
            pretrain_run=next(iter(by_kind["pretrain"]), None),
            features=features,
            with_patient=with_patient,
            out=target,
        )

    def _molecule_report(self, runs: list[Run], out: Path | None) -> Path:
        """Write the page of runs on molecule libraries."""
        from medrec.report.molecules import write_molecule_page

        others = [run.name for run in runs if "library" not in run.inputs]
        if others:
            raise InputError(
                f"{others[0]} is about a cohort, other runs are about molecule libraries; "
                "expected one or the other on a page"
            )
        return write_molecule_page(runs, out or self.home.reports / f"{runs[0].name}.html")


def read_document(path: Path) -> Any:
    """Read JSON from a file, or from standard input for ``-``."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except FileNotFoundError as error:
        raise InputError(f"file not found: {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"not readable as JSON: {path} ({type(error).__name__})") from error
