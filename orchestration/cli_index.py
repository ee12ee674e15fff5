"""Names and one-line helps of all commands, so that ``medrec --help`` imports none of them.

A test compares every line with what the module defines.
"""

from __future__ import annotations

from dataclasses import dataclass

RECORDS, MOLECULES, MODELS = "Records", "Molecules", "Train"
JUDGE, MACHINES, SETUP = "Judge and look", "Machines", "Set-up"
PANELS = (SETUP, RECORDS, MOLECULES, MODELS, JUDGE, MACHINES)


@dataclass(frozen=True)
class Entry:
    """Where a command is defined, and the line that stands for it in the overview.

    Parameters
    ----------
    target : str
        ``module:attribute`` inside this package; a function, or a `typer.Typer` with commands.
    """

    name: str
    target: str
    help: str
    panel: str


COMMANDS = {
    entry.name: entry
    for entry in (
        Entry(
            "demo",
            "cli_stages:demo",
            "Run the whole chain on the open MIMIC demo: records, molecules, models, report.",
            SETUP,
        ),
        Entry(
            "doctor",
            "cli_checks:doctor",
            "Print what is on this machine and what to do about what is missing.",
            SETUP,
        ),
        Entry(
            "check-configs",
            "cli_checks:check_configs",
            "Load every configuration file of a folder; exit code 2 if one does not validate.",
            SETUP,
        ),
        Entry(
            "completion",
            "cli_completion:completion",
            "Print the completion script of a shell, or install it.",
            SETUP,
        ),
        Entry(
            "prepare",
            "cli_stages:prepare",
            "Turn raw tables into a cohort, with a count after every filter.",
            RECORDS,
        ),
        Entry(
            "records",
            "cli_records:records_app",
            "Tables of health records as they are read.",
            RECORDS,
        ),
        Entry(
            "synth",
            "cli_synth:synth_app",
            "Made-up records with a planted structure whose best possible prediction is known.",
            RECORDS,
        ),
        Entry(
            "concepts",
            "cli_concepts:concepts",
            "Turn the diagnoses, procedures and drugs of a cohort into discrete codes (SCQMed, "
            "stage 1).",
            RECORDS,
        ),
        Entry(
            "features",
            "cli_features:features_app",
            "Conformers, DFT and ELF features of drugs.",
            MOLECULES,
        ),
        Entry(
            "molecule",
            "cli_checks:molecule",
            "Show the species that is calculated for a SMILES: salts stripped, charge and spin "
            "stated.",
            MOLECULES,
        ),
        Entry(
            "molecules",
            "cli_molecules:molecules_app",
            "Molecule libraries, molecular pre-training, property prediction.",
            MOLECULES,
        ),
        Entry(
            "pretrain",
            "cli_stages:pretrain",
            "Pre-train the 2D and 3D molecule encoders through Ray Train.",
            MODELS,
        ),
        Entry(
            "tune",
            "cli_search:tune",
            "Search hyper-parameters with Ray Tune and Optuna; the same command resumes a search.",
            MODELS,
        ),
        Entry(
            "train",
            "cli_stages:train",
            "Train recommenders, select on validation, evaluate once on the test part.",
            MODELS,
        ),
        Entry(
            "study",
            "cli_study:study",
            "Run a paper's system and its ablations, from raw records to a table and a page.",
            MODELS,
        ),
        Entry(
            "cross",
            "cli_cross:cross",
            "Train every recommender with every representation of molecules, and compare.",
            MODELS,
        ),
        Entry(
            "frontier",
            "cli_frontier:frontier",
            "Trade Jaccard against DDI rate: whole curves, compared at equal DDI rates.",
            MODELS,
        ),
        Entry(
            "evaluate",
            "cli_evaluate:evaluate",
            "Print every metric of one run with its 95 % interval, from the stored per-visit rows.",
            JUDGE,
        ),
        Entry(
            "compare",
            "cli_evaluate:compare",
            "Compare runs: intervals, paired differences, tests, ground-truth and chance DDI.",
            JUDGE,
        ),
        Entry(
            "replicate",
            "cli_replicate:replicate",
            "Judge finished runs on the patients of another cohort.",
            JUDGE,
        ),
        Entry(
            "recommend",
            "cli_stages:recommend",
            "Rank drugs for one patient's latest visit and name the interacting pairs.",
            JUDGE,
        ),
        Entry(
            "explain",
            "cli_explain:explain",
            "Show which visits, codes, substructures and interactions moved a recommendation.",
            JUDGE,
        ),
        Entry(
            "report",
            "cli_stages:report",
            "Write one self-contained HTML page about runs, their cohort and their molecules.",
            JUDGE,
        ),
        Entry(
            "sweep-report",
            "cli_sweep:sweep_report",
            "Write one self-contained HTML page about a search: best trial, what mattered, all "
            "trials.",
            JUDGE,
        ),
        Entry(
            "view",
            "cli_view:view",
            "Show runs, molecules and recommendations as a web page on this machine; Ctrl-C ends "
            "it.",
            JUDGE,
        ),
        Entry("cluster", "cli_cluster:cluster_app", "Clusters of machines for Ray.", MACHINES),
        Entry("jobs", "cli_jobs:jobs_app", "Commands as jobs of a Ray cluster.", MACHINES),
        Entry(
            "spot-watch",
            "cli_spot:spot_watch",
            "Watch the cloud's notices of preemption; drain and stop this machine's Ray in time.",
            MACHINES,
        ),
    )
}
