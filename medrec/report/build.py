"""Gather what a page shows, section by section; a missing piece is said, not hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from medrec.data.cohort import Cohort
from medrec.evaluation.compare import PRIMARY, Comparison, compare_runs, load_rows
from medrec.evaluation.describe import reliability
from medrec.molecules.features import FeatureTable
from medrec.report import figures
from medrec.report.cases import patient_section
from medrec.report.elf import ElfMap, slice_figure, surface_figure
from medrec.report.learned import SHOWN_RUNS, Models, concept_section, vector_section
from medrec.report.page import Page, escape, facts, paragraph, table
from medrec.runs import Home, Run
from quantum.base import InputError, MedrecError, code_version, now_utc, write_text_atomic
from quantum.molecule import species_from_smiles

_HEADINGS = {
    "jaccard": "Jaccard",
    "f1": "F1",
    "prauc": "PRAUC",
    "ddi_rate": "DDI rate",
    "mean_n_drugs": "drugs per visit",
}


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
        f"{cohort.config.preset} preset, {cohort.n_patients} patients, "
        f"{len(cohort.visits)} visits, {len(cohort.drugs)} drug classes",
    )
    comparison = compare_runs(runs, cohort) if runs else None
    page.add("Summary", *_summary(cohort, comparison, features))
    page.add("Cohort", *_cohort(page, cohort))
    page.add("Comparison", *_comparison(comparison))
    page.add("Jaccard and DDI", *_frontier(page, comparison, tune_run))
    page.add("Calibration", *_calibration(page, comparison, runs))
    page.add("Training", *_training(page, runs))
    page.add("Pre-training", *_pretraining(page, pretrain_run))
    models = Models(home, comparison, runs)
    page.add("Drug vectors", *vector_section(page, cohort, models, pretrain_run, features))
    page.add("A patient", *patient_section(cohort, models.first(SHOWN_RUNS), with_patient))
    concepts = concept_section(home, runs)
    if concepts:
        page.add("Medical concepts", *concepts)
    page.add("Molecules", *_molecules(features))
    page.add("ELF map", *_elf(page, home, cohort, features))
    extra = [run for run in (tune_run, pretrain_run) if run is not None]
    page.add("Provenance", *_provenance(cohort, features, [*runs, *extra]))
    write_text_atomic(out, page.render())
    return out


def _summary(
    cohort: Cohort, comparison: Comparison | None, features: FeatureTable | None
) -> list[str]:
    if comparison is None:
        return [paragraph("No training run was given; this page shows the cohort alone.")]
    best = _titled(comparison).sort_values("jaccard", ascending=False).iloc[0]
    header = comparison.header
    tiles = [
        (f"{best['jaccard']:.3f}", f"best Jaccard ({best['model']})"),
        (f"{header['DDI of ground truth']:.3f}", "DDI rate of the physicians' own sets"),
        (f"{header['DDI of chance']:.3f}", "DDI rate of random sets"),
        (f"{header['drugs per visit, truth']:.1f}", "drug classes per visit, truth"),
    ]
    if features is not None:
        counts = features.coverage()
        tiles.append((f"{counts['with ELF map']} of {counts['species']}", "molecules with ELF map"))
    cards = "".join(
        f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles
    )
    text = (
        f"{len(comparison.table)} models were trained on the same patients and scored once on "
        f"the same test part ({header['patients']}; {header['visits']}). The highest Jaccard is "
        f"{best['jaccard']:.3f}, of {best['model']}, with a 95 % interval from "
        f"{best['jaccard_low']:.3f} to {best['jaccard_high']:.3f}."
    )
    notes = [paragraph(note, "note") for note in cohort.notes[:2]]
    return [
        paragraph(text),
        paragraph(str(header["caution"]), "caution"),
        f'<div class="tiles">{cards}</div>',
        *notes,
    ]


def _cohort(page: Page, cohort: Cohort) -> list[str]:
    ddi = cohort.ddi
    source = f"{ddi['source']}, severity {ddi['min_severity']} or worse"
    return [
        paragraph("What is left after every filter.", "note"),
        page.figure(figures.funnel(cohort.funnel), "cohort funnel"),
        "<h3>Prescriptions mapped to ATC</h3>",
        page.figure(figures.coverage(cohort.coverage), "coverage of the code maps"),
        facts(
            [
                ("interactions", source),
                ("interacting pairs of classes", f"{100 * ddi['density']:.1f} %"),
                *((f"note {i}", note) for i, note in enumerate(cohort.notes, start=1)),
            ]
        ),
    ]


def _comparison(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [paragraph("No training run was given.")]
    rows = []
    for title, row in zip(comparison.titles(), comparison.table.to_dict("records"), strict=True):
        cells: list[Any] = [title]
        for name in PRIMARY:
            digits = 1 if name == "mean_n_drugs" else 3
            value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
            cells.append((f"{value:.{digits}f}\n[{low:.{digits}f}, {high:.{digits}f}]", value))
        cells.append(_difference(row, comparison.reference))
        cells.append((f"{row['n_parameters']:,}", int(row["n_parameters"])))
        cells.append((f"{row['seconds']:.1f}", float(row["seconds"])))
        rows.append(cells)
    columns = ["model", *(_HEADINGS[n] for n in PRIMARY), "Δ Jaccard", "numbers", "seconds"]
    return [
        facts(comparison.header.items()),
        table(columns, rows),
        paragraph(
            "Brackets: 95 % interval from 10,000 bootstrap resamples of the test patients. "
            "Δ: difference to the first row, on the same resamples. Jaccard, F1 and PRAUC are "
            "averaged over the visits of a patient, then over patients; the DDI rate is pooled "
            "over drug pairs.",
            "note",
        ),
    ]


def _titled(comparison: Comparison) -> pd.DataFrame:
    """Table of a comparison whose models are named apart."""
    return comparison.table.assign(model=comparison.titles())


def _difference(row: dict[Any, Any], reference: str) -> Any:
    if row["run"] == reference:
        return ("reference", 0.0)
    value, low, high = (row[f"jaccard_difference{s}"] for s in ("", "_low", "_high"))
    return (f"{value:+.3f}\n[{low:+.3f}, {high:+.3f}]", value)


def _frontier(page: Page, comparison: Comparison | None, tune_run: Run | None) -> list[str]:
    trials = None
    if tune_run is not None:
        trials = pd.read_parquet(tune_run.folder / "trials.parquet")
    if comparison is None:
        return [paragraph("No training run was given.")]
    truth, chance = comparison.header["DDI of ground truth"], comparison.header["DDI of chance"]
    figure = figures.frontier(trials, _titled(comparison), truth, chance)
    parts = [page.figure(figure, "Jaccard against DDI rate")]
    if trials is None:
        return [*parts, paragraph("No search was given, so there are no trials.", "note")]
    parts.append("<h3>Trials</h3>")
    names = [name for name in trials.columns if name != "pareto"]
    rows = [[_plain(row[name]) for name in names] for row in trials.to_dict("records")]
    parts.append(table([name.removeprefix("params.") for name in names], rows))
    parts.append(
        paragraph(
            "Trials are scored on the validation part, models on the test part: the two are shown "
            "together for orientation, not for comparison.",
            "note",
        )
    )
    return parts


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return ("-", -1.0) if value != value else (f"{value:.4g}", value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value


def _calibration(page: Page, comparison: Comparison | None, runs: list[Run]) -> list[str]:
    if comparison is None:
        return [paragraph("No training run was given.")]
    # of several runs of a model the first: bins of other seeds are other models' scores
    firsts = [str(names).split(", ")[0] for names in comparison.table["runs"]]
    by_name = {run.name: run for run in runs}
    tables = {
        title: reliability(load_rows(by_name[name]))
        for title, name in zip(comparison.titles(), firsts, strict=True)
    }
    return [
        page.figure(figures.reliability(tables), "reliability plot"),
        paragraph(
            "Scores of the test part in ten bins: on the dashed line, of the drugs with score 0.3 "
            "three in ten were given. Counting baselines give frequencies, not probabilities of a "
            "visit.",
            "note",
        ),
    ]


def _training(page: Page, runs: list[Run]) -> list[str]:
    named = dict(zip(_labels(runs), runs, strict=True))
    curves = {label: run.metrics() for label, run in named.items()}
    learned = {name: t for name, t in curves.items() if "train_loss" in t.columns and len(t) > 1}
    if not learned:
        return [paragraph("No model with epochs was given.")]
    best = [
        f"{label}: epoch {run.report()['best_epoch']}"
        for label, run in named.items()
        if "best_epoch" in run.report()
    ]
    return [
        page.figure(figures.training(learned), "training curves"),
        paragraph("Selected on validation Jaccard: " + ", ".join(best) + ".", "note"),
    ]


def _labels(runs: list[Run]) -> list[str]:
    """Name of each run's configuration; the run's own where several have that name."""
    names = [str(run.config()["name"]) for run in runs]
    return [
        name.replace("_", " ") if names.count(name) == 1 else run.name
        for name, run in zip(names, runs, strict=True)
    ]


def _pretraining(page: Page, run: Run | None) -> list[str]:
    if run is None:
        return [paragraph("No pre-training run was given.")]
    report = run.report()
    return [
        page.figure(figures.pretraining(run.metrics()), "pre-training curves"),
        facts(
            (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value)
            for name, value in report.items()
        ),
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


def _elf(page: Page, home: Home, cohort: Cohort, features: FeatureTable | None) -> list[str]:
    found = _largest_map(home, cohort, features)
    if found is None:
        return [paragraph("No ELF map is in the feature table.")]
    elf, smiles = found
    settings = features.manifest["spec"] if features is not None else {}
    level = settings.get("calculation", {})
    return [
        paragraph(f"{elf.title}: {smiles}. {level.get('method', '').upper()}/{level.get('basis')}"),
        paragraph(
            "The electron localisation function is 1 where electrons are perfectly paired (bonds, "
            "lone pairs, cores) and one half in the uniform electron gas. Drag to turn.",
            "note",
        ),
        page.figure(surface_figure(elf), "ELF isosurface"),
        page.figure(slice_figure(elf), "slices of the ELF map"),
    ]


def _largest_map(
    home: Home, cohort: Cohort, features: FeatureTable | None
) -> tuple[ElfMap, str] | None:
    if features is None or not features.species["elf_key"].notna().any():
        return None
    # the atlas has features without maps; only what was computed here can be drawn
    present = features.species[features.species["elf_key"].notna()]
    row = present.sort_values(["n_atoms", "smiles"], ascending=[False, True]).iloc[0]
    record = home.open_store().get(str(row["elf_key"]))
    smiles = str(row["smiles"])
    formula = CalcMolFormula(Chem.AddHs(Chem.MolFromSmiles(smiles)))
    return ElfMap.from_record(record, f"{_class_of(cohort, smiles)}{formula}"), smiles


def _class_of(cohort: Cohort, smiles: str) -> str:
    """Drug classes that hold a molecule, for the title."""
    names = dict(zip(cohort.drugs["atc"], cohort.drugs["name"], strict=True))
    classes = []
    for atc, text in zip(cohort.molecules["atc"], cohort.molecules["smiles"], strict=True):
        try:
            same = species_from_smiles(text).smiles == smiles
        except InputError:
            continue
        if same:
            classes.append(f"{names.get(atc, '')} ({atc})")
    return f"{classes[0]}, " if classes else ""


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
            f"<details><summary>{escape(run.name)}</summary><pre>{escape(text)}</pre></details>"
        )
    return parts
