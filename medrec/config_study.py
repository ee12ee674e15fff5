"""Configuration of a study: one system from raw records to rows of a table; see `medrec.config`."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt

from quantum.base import Frozen


class StudySystem(Frozen):
    """One row of the table: a recommender and what it starts from. Paths of other files."""

    train: str
    pretrain: str | None = Field(None, description="pre-training whose encoder it starts from")
    concepts: str | None = Field(None, description="concept table that it reads")
    overrides: tuple[str, ...] = Field(
        (), description="changes of the training file, as key.path=value"
    )


class StudyConfig(Frozen):
    """One command's work: cohort, molecules, pre-training, concepts, recommenders, table, page.

    Paths are relative to the file.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    records: str = Field(description="cohort; another one can be given on the command line")
    features: str | None = Field(None, description="molecules of the cohort; null where none reads")
    systems: tuple[StudySystem, ...] = Field(min_length=1)
    reference: str = Field(description="name of the system that differences refer to")
    seeds: tuple[NonNegativeInt, ...] = (1203,)
    splits: tuple[NonNegativeInt, ...] = (0,)
