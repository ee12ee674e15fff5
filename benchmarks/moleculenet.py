"""MoleculeNet (2D input, ROC-AUC) and QM8 (2D and 3D input, MAE): scaffold splits, three seeds.

All rows have the same sizes and see the same number of molecules. Pre-training for MoleculeNet
reads drug-like molecules with one RDKit conformer each (``--molecules``, a CSV table with a column
``smiles``; the paper has 3.4 million with DFT geometries); pre-training for QM8 reads the training
molecules of QM8. A scaffold split has no randomness, so seeds move initial weights, batches and
dropout only. Figures compare MolInteract with every rival, paired on test molecules, with 95 %
intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from molecule_rows import Plan, Row, frames, library_of, plain, pretraining_fit, rows
from record import Figure, publish

OURS = "MolInteract, L_All"
DATASETS = ("bbbp", "bace", "clintox", "sider", "tox21")
SEEDS = (1, 2, 3)
SPLIT = {"kind": "scaffold", "train": 0.8, "valid": 0.1}


def finetuning(epochs: int, lr: float, precision: str, dropout: float) -> dict[str, Any]:
    return {
        "split": SPLIT,
        "encoder": {"dropout": dropout},
        "fit": {"epochs": epochs, "batch_size": 64, "lr": lr, "precision": precision},
    }


def figures_of(
    dataset: str, metric: str, home: Path, names: dict[str, list[str]]
) -> tuple[list[Figure], Any]:
    """Differences between MolInteract and every other row, and the table of one data set."""
    from medrec.properties.finetune import MEAN
    from medrec.properties.tables import difference_table, result_table

    results = result_table(frames(home, names, "properties.parquet"), metric, dataset)
    differences = difference_table(frames(home, names, "predictions.parquet"), OURS, metric)
    figures = []
    for row in differences[differences["target"] == MEAN].to_dict("records"):
        better = row["high"] < 0 if metric == "roc_auc" else row["low"] > 0
        ours, theirs = (
            float(results.loc[results["model"] == name, "value"].iloc[0])
            for name in (OURS, row["model"])
        )
        figures.append(
            Figure(
                f"{dataset}: {OURS} against {row['model']}; theirs minus ours "
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
                round(ours, 5),
                "ROC-AUC" if metric == "roc_auc" else "MAE, a.u.",
                peer=round(theirs, 5),
                ratio=round(ours / theirs if metric == "roc_auc" else theirs / ours, 4),
                goal=1.0,
                met=bool(better),
            )
        )
    return figures, results


def run_moleculenet(options: argparse.Namespace) -> tuple[list[Figure], list[Any]]:
    sizes = {"d_model": options.d, "layers": options.layers}
    fit = pretraining_fit(options.pretrain_epochs, options.corpus, options.precision)
    plan = Plan(options.home, sizes, {"fit": fit})
    table = rows("2d")
    corpus = library_of(
        "conformers", options.home, source__path=options.molecules.resolve(), limit=options.corpus
    )
    plan.pretrain(table, corpus)
    figures, tables = [], []
    for dataset, epochs in epochs_of(options).items():
        settings = finetuning(epochs, 5e-4, options.precision, 0.1)
        path = (options.moleculenet / f"{dataset}.csv.gz").resolve()
        library = library_of(dataset, options.home, source__path=path)
        names = plan.finetune(table, library, settings, SEEDS)
        found, results = figures_of(dataset, "roc_auc", options.home, names)
        figures += found
        tables.append(results)
    return figures, tables


def epochs_of(options: argparse.Namespace) -> dict[str, int]:
    """Epochs of fine-tuning on each data set."""
    datasets = options.datasets.split(",")
    numbers = [int(item) for item in options.epochs.split(",")]
    if len(numbers) not in (1, len(datasets)):
        raise SystemExit(f"--epochs has {len(numbers)} numbers for {len(datasets)} data sets")
    return dict(zip(datasets, numbers * (len(datasets) // len(numbers)), strict=True))


def run_qm8(options: argparse.Namespace) -> tuple[list[Figure], list[Any]]:
    paths = {
        "source__path": options.qm8 / "qm8.csv.gz",
        "source__links": options.qm8 / "qm8_to_qm9.csv.gz",
        "source__qm9": options.qm9,
    }
    library = library_of("qm8", options.home, **{k: v.resolve() for k, v in paths.items()})
    sizes = {"d_model": options.d, "layers": options.layers}
    fit = pretraining_fit(options.pretrain_epochs, options.qm8_train, options.precision)
    plan = Plan(options.home, sizes, {"split": SPLIT, "limit": options.qm8_train, "fit": fit})
    wanted = (
        OURS,
        "MolInteract, no pre-training",
        "contrastive, NT-Xent (BiMoRec, 3D InfoMax)",
        "SchNet alone",
    )
    table: list[Row] = [row for row in rows("both") if row.name in wanted]
    plan.pretrain(table, library)
    settings = finetuning(options.qm8_epochs, 5e-4, options.precision, 0.0)
    settings["limit_train"] = options.qm8_train
    names = plan.finetune(table, library, settings, SEEDS)
    figures, results = figures_of("qm8", "mae", options.home, names)
    return figures, [results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moleculenet", type=Path, required=True, help="folder of CSV tables")
    parser.add_argument("--molecules", type=Path, required=True, help="table for pre-training")
    parser.add_argument("--corpus", type=int, default=8_000, help="of its molecules")
    parser.add_argument("--qm8", type=Path, help="folder with qm8.csv.gz and its links to QM9")
    parser.add_argument("--qm9", type=Path, help="QM9, for the geometries of QM8")
    parser.add_argument("--qm8-train", type=int, default=17_428, help="training molecules of QM8")
    parser.add_argument("--qm8-epochs", type=int, default=5)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--home", type=Path, default=Path("medrec-work"))
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--epochs", default="12,12,12,12,4", help="one number, or one for each data set"
    )
    parser.add_argument("--pretrain-epochs", type=int, default=4)
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()

    import pandas as pd

    from medrec.properties.paper_rows import MOLECULENET_TABLE_3, QM8_TABLE_8
    from medrec.properties.tables import as_text, beside_paper

    figures, tables = run_moleculenet(options)
    shown = [beside_paper(pd.concat(tables, ignore_index=True), MOLECULENET_TABLE_3)]
    if options.qm8:
        more, tables = run_qm8(options)
        figures += more
        shown.append(beside_paper(tables[0], QM8_TABLE_8))
    for table in shown:
        print(as_text(table))
    publish(
        "moleculenet",
        figures,
        results=plain(pd.concat(shown, ignore_index=True)),
        budget={
            "pretraining": {"molecules": options.corpus, "epochs": options.pretrain_epochs},
            "finetuning": {"epochs": epochs_of(options), "seeds": list(SEEDS)},
            "qm8": {"molecules": options.qm8_train, "epochs": options.qm8_epochs},
            "paper": {"pretraining": {"molecules": 3_380_000, "epochs": 50}, "epochs": "40 to 100"},
            "sizes": {"d": options.d, "layers": options.layers},
        },
    )


if __name__ == "__main__":
    main()
