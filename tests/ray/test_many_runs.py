"""Many training runs as Ray tasks: finished ones are kept, one that fails stops nobody."""

from __future__ import annotations

import pytest

from medrec.config import TrainConfig
from medrec.runs import Home, Run
from orchestration.console import Terminal
from orchestration.many import Job, train_many, variants
from quantum.base import ResourceError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_splits_and_seeds_side_by_side_and_a_failure_that_stops_nobody(ray, synthetic, tmp_path):
    _, cohort = synthetic
    own = Home(tmp_path)
    base = TrainConfig.model_validate({"name": "topk", "model": {"name": "topk"}})
    good = variants([base], [0, 1], [])
    bad = base.model_copy(update={"split": 99})
    jobs = [Job(config, str(cohort.folder), str(tmp_path)) for config in [*good, bad]]
    with pytest.raises(ResourceError, match=r"1 of 3 runs failed.*split 99"):
        train_many(jobs, 2, Terminal(quiet=True))
    runs = [Run.load(folder) for folder in own.runs.iterdir()]
    finished = sorted(run.name for run in runs if run.is_finished)
    assert len(finished) == 2
    runs = train_many(jobs[:2], 2, Terminal(quiet=True))
    assert [run.report()["split"] for run in runs] == [0, 1]
    assert sorted(run.name for run in runs) == finished
