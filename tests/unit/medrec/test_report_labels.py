"""Runs of one model stay apart in the report."""

from __future__ import annotations

from medrec.report.build import _labels


class Named:
    def __init__(self, name: str, run: str) -> None:
        self._name, self.name = name, run

    def config(self) -> dict[str, str]:
        return {"name": self._name}


def test_runs_are_named_by_their_configuration_and_repeated_ones_by_themselves():
    runs = [Named("mmm", "mmm-1"), Named("mmm_wo_elf", "mmm_wo_elf-2")]
    assert _labels(runs) == ["mmm", "mmm wo elf"]
    assert _labels([*runs, Named("mmm", "mmm-3")]) == ["mmm-1", "mmm wo elf", "mmm-3"]
