"""QM9: mean absolute errors of the 12 targets, models side by side, on a budget.

The split is the usual one (110,000 / 10,000 / rest, seed 42). All rows learn the 12 targets at once
with the same sizes, the same training molecules and the same number of epochs; the paper trains one
model per target on all 110,000 molecules for 1,000 epochs. ``--full`` adds one row: MolInteract on
all training molecules. Pre-training sees training molecules alone, without their targets.

Figures compare MolInteract with every rival: mean over the targets of the error in standard
deviations, paired on the same test molecules, with 95 % intervals of resampled molecules. Needs the
QM9 file, given as ``--qm9``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from molecule_rows import Plan, frames, library_of, metrics, plain, pretraining_fit, rows, warmup
from record import Figure, publish

OURS = "MolInteract, L_All"
PAPER_EPOCHS, PAPER_TRAIN = 1000, 110_000
SPLIT = {"kind": "random", "train": 110_000, "valid": 10_000, "seed": 42}
FULL = "MolInteract, all training molecules"


def settings(options: argparse.Namespace, limit: int | None, epochs: int) -> dict[str, Any]:
    """Fine-tuning; the validation part is the usual one."""
    return {
        "split": SPLIT,
        "limit_train": limit,
        "fit": {
            "epochs": epochs,
            "batch_size": options.batch,
            "lr": options.lr,
            "warmup_steps": warmup(epochs, limit or PAPER_TRAIN, options.batch),
            "ema": 0.99,
            "precision": options.precision,
        },
    }


def compare(results: Any, predictions: Any) -> list[Figure]:
    """MolInteract with all tasks against every other row, and against its paper."""
    from medrec.properties.finetune import MEAN
    from medrec.properties.paper_rows import QM9_TABLE_1
    from medrec.properties.tables import difference_table

    figures = []
    differences = difference_table(predictions, OURS)
    for row in differences[differences["target"] == MEAN].to_dict("records"):
        anchor = "ViSNet" in row["model"]
        figures.append(
            Figure(
                f"mean error in SD: {row['model']} minus {OURS}, "
                f"95 % [{row['low']:+.4f}, {row['high']:+.4f}]",
                round(row["difference"], 4),
                "SD of the test labels",
                goal=None if anchor else 0.0,
                met=None if anchor else bool(row["low"] > 0),
            )
        )
    paper = dict(zip(QM9_TABLE_1.columns, QM9_TABLE_1.rows[OURS], strict=True))
    best = FULL if FULL in set(results["model"]) else OURS
    for row in results[results["model"] == best].to_dict("records"):
        printed = paper[row["column"]]
        figures.append(
            Figure(
                f"{best}: {row['column']}",
                float(f"{row['value']:.4g}"),
                row["unit"],
                peer=printed,
                ratio=round(printed / row["value"], 4),
            )
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qm9", type=Path, required=True, help="QM9 as Parquet or gdb9.sdf")
    parser.add_argument("--home", type=Path, default=Path("medrec-work"))
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pretrain", type=int, default=20_000, help="molecules")
    parser.add_argument("--pretrain-epochs", type=int, default=2)
    parser.add_argument("--full", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--no-anchor", action="store_true", help="leave ViSNet out: it is slow")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--precision", default="bfloat16")
    options = parser.parse_args()

    from medrec.properties.paper_rows import QM9_TABLE_1
    from medrec.properties.tables import as_text, beside_paper, learning_curves, result_table

    library = library_of("qm9", options.home, source__path=options.qm9.resolve())
    fit = pretraining_fit(options.pretrain_epochs, options.pretrain, options.precision)
    plan = Plan(
        options.home,
        {"d_model": options.d, "layers": options.layers},
        {"split": SPLIT, "limit": options.pretrain, "fit": fit},
    )
    table = [row for row in rows("both") if row.encoder != "visnet" or not options.no_anchor]
    plan.pretrain(table, library)
    names = plan.finetune(table, library, settings(options, options.train, options.epochs), (42,))
    if options.full:
        first = table[0]
        plan.processes = 1
        own = plan.finetune([first], library, settings(options, None, options.full), (42,))
        names[FULL] = own[first.name]
    results = result_table(frames(options.home, names, "properties.parquet"))
    predictions = frames(options.home, names, "predictions.parquet")
    predictions.pop(FULL, None)
    shown = beside_paper(results, QM9_TABLE_1)
    print(as_text(shown))
    figures = compare(results, predictions)
    seen = options.full * PAPER_TRAIN if options.full else options.epochs * options.train
    figures.append(
        Figure(
            "molecules seen in fine-tuning, of the row beside the paper",
            seen,
            "molecules",
            peer=PAPER_EPOCHS * PAPER_TRAIN,
            ratio=round(seen / (PAPER_EPOCHS * PAPER_TRAIN), 6),
        )
    )
    curves = learning_curves(metrics(options.home, names), ["loss", "valid_mae", "seconds"])
    publish(
        "qm9",
        figures,
        results=plain(shown),
        learning_curves=plain(curves),
        budget={
            "pretraining": {"molecules": options.pretrain, "epochs": options.pretrain_epochs},
            "finetuning": {"molecules": options.train, "epochs": options.epochs},
            "full": {"molecules": PAPER_TRAIN, "epochs": options.full},
            "paper": {"molecules": PAPER_TRAIN, "epochs": PAPER_EPOCHS},
            "sizes": {"d": options.d, "layers": options.layers},
        },
    )


if __name__ == "__main__":
    main()
