"""Gather what a page shows, section by section; a missing piece is said, not hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from medrec.data.cohort import Cohort
from medrec.evaluation.compare import Comparison, compare_runs
from medrec.molecules.features import FeatureTable
from medrec.report import performance
from medrec.report.cases import patient_section
from medrec.report.classes import class_section
from medrec.report.elf_viewer import elf_section
from medrec.report.learned import SHOWN_RUNS, Models, concept_section
from medrec.report.overview import Contest, cohort_section, summary_section
from medrec.report.page import Page, escape, facts, paragraph
from medrec.report.severity import severity_section
from medrec.report.space import space_section
from medrec.report.sweep import sweep_section
from medrec.runs import Home, Run
from quantum.base import MedrecError, code_version, now_utc, write_text_atomic


def build_report(
    home: Home,
    *,
    cohort: Cohort,
    runs: list[Run],
    tune_run: Run | None = None,
    pretrain_run: Run | None = None,
    features: FeatureTable | None = None,
    with_patient: bool = False,
    out: Path,
) -> Path:
    """Write one self-contained HTML page.

    Parameters
    ----------
    runs : list of Run
        Finished training runs on the cohort; may be empty.
    with_patient : bool
        Show one test patient even if the records are restricted.
    out : Path
        File to write; its folder is created.

    Returns
    -------
    Path
        ``out``.
    """
    page = Page(
        f"medrec: {cohort.config.name}",
        f"{cohort.config.preset} preset, {cohort.n_patients:,} patients, "
        f"{len(cohort.visits):,} visits, {len(cohort.drugs):,} drug classes",
    )
    comparison = compare_runs(runs, cohort) if runs else None
    contest = Contest.of(comparison, runs, cohort) if comparison is not None else None
    summary = summary_section(cohort, comparison, contest, runs, pretrain_run, features)
    page.add("Summary", *summary)
    page.add("Cohort", *cohort_section(page, cohort))
    _results(page, cohort, comparison, runs, tune_run, pretrain_run)
    _molecules_and_patients(
        page, home, cohort, comparison, runs, tune_run, pretrain_run, features, with_patient
    )
    extra = [run for run in (tune_run, pretrain_run) if run is not None]
    page.add("Provenance", *_provenance(cohort, features, [*runs, *extra]))
    write_text_atomic(out, page.render())
    return out


def _results(
    page: Page,
    cohort: Cohort,
    comparison: Comparison | None,
    runs: list[Run],
    tune_run: Run | None,
    pretrain_run: Run | None,
) -> None:
    """Add the sections about scores and curves."""
    page.add("Comparison", *performance.comparison_section(page, comparison))
    frontier = performance.frontier_section(page, comparison, tune_run)
    page.add("Jaccard and DDI", *frontier)
    named = dict(zip(_labels(runs), runs, strict=True))
    page.add("Training", *performance.training_section(page, named))
    page.add("Pre-training", *performance.pretraining_section(page, pretrain_run))
    page.add("Calibration", *performance.calibration_section(page, comparison, runs))


def _molecules_and_patients(
    page: Page,
    home: Home,
    cohort: Cohort,
    comparison: Comparison | None,
    runs: list[Run],
    tune_run: Run | None,
    pretrain_run: Run | None,
    features: FeatureTable | None,
    with_patient: bool,
) -> None:
    """Add the sections that look into models, molecules and one patient."""
    models = Models(home, comparison, runs)
    page.add("DDI by severity", *severity_section(page, cohort, comparison, runs, models))
    page.add("Drug classes", *class_section(page, cohort, comparison, runs, models))
    page.add("Molecules", *_molecules(features))
    page.add("Molecule space", *space_section(page, cohort, models, pretrain_run, features))
    page.add("ELF maps", *elf_section(page, home, cohort, features))
    page.add("Search", *sweep_section(page, tune_run))
    page.add("A patient", *patient_section(page, cohort, models.first(SHOWN_RUNS), with_patient))
    concepts = concept_section(home, runs)
    if concepts:
        page.add("Medical concepts", *concepts)


def _labels(runs: list[Run]) -> list[str]:
    """Name of each run's configuration; the run's own where several have that name."""
    names = [str(run.config()["name"]) for run in runs]
    return [
        name.replace("_", " ") if names.count(name) == 1 else run.name
        for name, run in zip(names, runs, strict=True)
    ]


def _molecules(features: FeatureTable | None) -> list[str]:
    if features is None:
        return [paragraph("No feature table was given.")]
    counts = features.coverage()
    return [
        paragraph(
            "Every molecule of the cohort's drug classes gets a conformer. Density functional "
            "theory runs for the cheapest molecules within the budget; models know the others by a "
            "mask and one learned vector."
        ),
        facts(counts.items()),
        facts(
            [
                (
                    "how conformers were made",
                    json.dumps(features.species["conformer_method"].value_counts().to_dict()),
                ),
                ("programs", ", ".join(features.manifest["program_versions"]) or "none"),
            ]
        ),
    ]


def _provenance(cohort: Cohort, features: FeatureTable | None, runs: list[Run]) -> list[str]:
    code = code_version()
    pairs: list[tuple[str, Any]] = [
        ("page made", now_utc()),
        (
            "code",
            f"{code['version']}, commit {code['commit'] or 'unknown'}, "
            f"{'with' if code['dirty'] else 'without'} local changes",
        ),
        ("cohort", f"{cohort.name}, digest {cohort.digest}"),
    ]
    if features is not None:
        pairs.append(("features", f"{features.folder.name}, digest {features.digest}"))
    parts = [facts(pairs)]
    for run in runs:
        try:
            record = run.record()
        except MedrecError:
            continue
        machine = record["provenance"]["machine"]
        text = yaml.safe_dump(
            {
                "digest": record["digest"],
                "inputs": record["inputs"],
                "seeds": record.get("seeds"),
                "machine": machine,
                "packages": record["provenance"]["packages"],
                "config": run.config(),
            },
            sort_keys=False,
        )
        parts.append(
            f'<details class="record"><summary>{escape(run.name)}</summary>'
            f"<pre>{escape(text)}</pre></details>"
        )
    return parts
