"""The loop of pre-training and fine-tuning: plain, or as one of N workers; no Ray, no files.

With several workers each takes every N-th molecule of a batch. For term k of K the loss of a step
is S_k / C_k, sum and count over the whole batch, whoever holds its molecules and in however many
parts they pass::

    loss = sum_k S_k / C_k

Counts need no network, so a step begins with their exchange. The same small tensor tells all
workers whether somebody found a number that is not finite, or wants a checkpoint. A worker then
passes its sums over C_k backwards, times N, because distributed gradients are averaged.

Whatever is random follows from seed, epoch, step and worker. A run that goes on from a checkpoint
in the middle of an epoch ends with the same bits, on one CPU worker, as one never interrupted; with
another number of workers it goes on within rounding.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medrec.config_molecules import FitConfig
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import BatchStream, Rows, plan_epoch, stream
from medrec.pretrain.epoch_sums import EpochSums
from medrec.pretrain.problem import LossModel, Problem, State
from medrec.pretrain.steps import build_optimiser, build_schedule, cut, pairs_that_fit, stand_in
from quantum.base import ConvergenceError, InputError

MakeState = Callable[[], State]

PROGRESS_SECONDS = 1.0


class Reporter(Protocol):
    """Who listens to a fit.

    ``make_state`` makes a state to resume from, as a copy; only the first worker's is complete.
    """

    def epoch(self, metrics: dict[str, Any], make_state: MakeState) -> None:
        """Take the numbers of an epoch; called on every worker after every epoch."""

    def checkpoint(self, make_state: MakeState) -> None:
        """Save a state in the middle of an epoch; called on every worker before the same step."""

    def progress(self, epoch: int, step: int, n_steps: int, numbers: dict[str, float]) -> None:
        """Show the steps done of an epoch and its running numbers.

        Called by the first worker about once a second; the numbers are of its own molecules.
        """

    def wants_checkpoint(self) -> bool:
        """Tell whether a checkpoint is needed now; asked before every step, on every worker."""


def fit(
    problem: Problem,
    config: FitConfig,
    *,
    reporter: Reporter,
    wrap_model: Callable[[nn.Module], nn.Module] = lambda model: model,
    resume: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    max_pairs: int | None = None,
) -> State:
    """Optimise a model.

    Parameters
    ----------
    problem : Problem
        Its model is trained in place.
    wrap_model : callable
        Makes the model distributed (`DistributedDataParallel`); the identity for one worker.
    resume : dict or None
        A state from a reporter or an earlier call, made with any number of workers.
    rank, world_size : int
        Which worker of how many; a process group exists if there are several.
    max_pairs : int, optional
        Padded pairs of atoms, B * n^2, that pass the network at once; larger parts of a batch are
        cut. By default what fits the device.

    Returns
    -------
    dict
        ``model``; ``best``, copied weights of the best epoch (averaged ones with ``config.ema``),
        ``best_score``, ``best_epoch`` (-1 before the first); ``epoch``, the one under way, which
        is the number of finished ones, and ``step``, those done in it; ``optimiser``, ``schedule``,
        ``ema``, ``sums``. Loads with ``torch.load(weights_only=True)``.

    Raises
    ------
    InputError
        If problem and settings do not fit each other.
    ConvergenceError
        If a loss, a gradient or the validation score is not finite. Names epoch, step and term.
    """
    _check(problem, config, world_size)
    device = torch.device(device)
    max_pairs = max_pairs or pairs_that_fit(device)
    return _Fit(
        problem, config, reporter, wrap_model, resume, rank, world_size, device, max_pairs
    ).run()


def _check(problem: Problem, config: FitConfig, world_size: int) -> None:
    n = len(problem.rows)
    if not n:
        raise InputError(f"no molecule of library {problem.library.name} is left for training")
    if config.batch_size < world_size:
        raise InputError(
            f"batch_size {config.batch_size} is less than one molecule for each of "
            f"{world_size} workers"
        )
    if config.accumulate > 1 and not problem.model.separable:
        raise InputError(
            f"accumulate is {config.accumulate}, but the loss compares all molecules of a batch; "
            "expected 1"
        )
    steps = config.epochs * _steps(problem, config)
    if config.warmup_steps >= steps:
        raise InputError(f"warmup_steps {config.warmup_steps} leave nothing of {steps} steps")


def _steps(problem: Problem, config: FitConfig) -> int:
    return -(-len(problem.rows) // config.batch_size)


# --------------------------------------------------------------------------- the loop


class _Fit:
    """State of a fit and its steps."""

    def __init__(
        self,
        problem: Problem,
        config: FitConfig,
        reporter: Reporter,
        wrap_model: Callable[[nn.Module], nn.Module],
        resume: State | None,
        rank: int,
        world_size: int,
        device: torch.device,
        max_pairs: int,
    ) -> None:
        self.problem, self.config, self.reporter = problem, config, reporter
        self.rank, self.world_size = rank, world_size
        self.device, self.max_pairs = device, max_pairs
        self.n_steps = _steps(problem, config)
        self.model: LossModel = problem.model.to(device)
        self.optimiser = build_optimiser(self.model, config)
        self.schedule = build_schedule(self.optimiser, config, config.epochs * self.n_steps)
        self.average = None
        if config.ema is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.best = _weights(self.model)
        self.best_score, self.best_epoch = math.nan, -1
        self.epoch = self.step = 0
        self.lr = config.lr
        self.sums = EpochSums.zeros(len(self.model.terms), device)
        if resume is not None:
            self._restore(resume)
        self.wrapped = wrap_model(self.model)
        self.saved_at = time.monotonic()
        # per term, and for the gradient: whether the last step had a number that is not finite
        self.broken = torch.zeros(len(self.model.terms) + 1, dtype=torch.float64, device=device)

    def run(self) -> State:
        while self.epoch < self.config.epochs and not self._out_of_patience():
            metrics = self._train_epoch()
            metrics |= self._validate()
            self._keep_if_best(metrics)
            self.epoch, self.step = self.epoch + 1, 0
            self.sums = EpochSums.zeros(len(self.model.terms), self.device)
            self.reporter.epoch(metrics, self.make_state)
        return self.make_state()

    # ------------------------------------------------------------------ states

    def make_state(self) -> State:
        self.saved_at = time.monotonic()
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "best": self.best,
                "best_score": self.best_score,
                "best_epoch": self.best_epoch,
                "epoch": self.epoch,
                "step": self.step,
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "ema": None if self.average is None else self.average.state_dict(),
                "sums": self.sums.state(),
            }
        )

    def _restore(self, state: State) -> None:
        state = copy.deepcopy(state)  # an optimiser would go on in the caller's tensors
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.best, self.best_score = state["best"], state["best_score"]
        self.best_epoch, self.epoch, self.step = state["best_epoch"], state["epoch"], state["step"]
        self.sums = EpochSums.restore(state["sums"], self.device)
        if self.rank != 0:
            self.sums = self.sums.times_alone()

    # ------------------------------------------------------------------ one epoch

    def _train_epoch(self) -> dict[str, Any]:
        plan = plan_epoch(
            self.problem.library,
            self.problem.rows,
            self.config.batch_size,
            self.config.seed,
            self.epoch,
        )
        parts = [self._parts(batch) for batch in plan[self.step :]]
        # a worker for which a batch has no molecule passes another one's, and it does not count
        read = [own or [batch[:1]] for own, batch in zip(parts, plan[self.step :], strict=True)]
        self.wrapped.train()
        flat = [part for step in read for part in step]
        with stream(self.problem.library, flat, self.device) as batches:
            self._train_steps([len(step) for step in parts], batches)
        self._exchange(self.broken.new_zeros(len(self.model.terms)))  # of the last step
        self.sums = self.sums.over_workers(self.world_size)
        numbers = self.sums.numbers(self.model.terms)
        if not self.sums.terms[1].any():
            raise InputError(
                f"no molecule has an item of the loss terms {', '.join(self.model.terms)}; "
                f"library {self.problem.library.name}"
            )
        return {"epoch": self.epoch, **numbers, "lr": self.lr}

    def _parts(self, batch: Rows) -> list[Rows]:
        """Parts of a batch for this worker, perhaps none; one if the loss compares molecules."""
        own = batch[self.rank :: self.world_size]
        if not self.model.separable:
            return [own] if len(own) else []
        return cut(self.problem.library, own, self.config.accumulate, self.max_pairs)

    def _train_steps(self, sizes: list[int], batches: BatchStream) -> None:
        clock = shown = time.perf_counter()
        waited = 0.0
        for size in sizes:
            self._train_step(list(islice(batches, max(size, 1))), idle=not size)
            now = time.perf_counter()
            self.sums.seconds += now - clock
            self.sums.waited_s += batches.waited_s - waited
            clock, waited = now, batches.waited_s
            if self.rank == 0 and now - shown >= PROGRESS_SECONDS:
                shown = now
                numbers = self.sums.numbers(self.model.terms)
                self.reporter.progress(self.epoch, self.step, self.n_steps, numbers)

    def _train_step(self, parts: list[MoleculeBatch], idle: bool) -> None:
        """One update from a worker's parts of a batch, or from none of its own if it is idle."""
        weight = 0.0 if idle else 1.0
        parts = [stand_in(part) for part in parts] if idle else parts
        each = torch.stack([self.model.counts(part, self.epoch) for part in parts])
        counts = weight * each.double().sum(0)
        shared = self._exchange(counts)
        self._seed()
        self.optimiser.zero_grad(set_to_none=True)
        scale = weight * self.world_size / shared.clamp(min=1.0)
        sums = torch.zeros_like(counts)
        for number, part in enumerate(parts, start=1):
            with self._gradients_stay_local(number < len(parts)):
                with torch.autocast(
                    self.device.type, torch.bfloat16, self.config.precision == "bfloat16"
                ):
                    of_part = self.wrapped(part, self.epoch)
                (of_part * scale.to(of_part.dtype)).sum().backward()
            sums += of_part.detach()
            if not idle:
                self.sums.molecules += part.n_molecules
                self.sums.add_facts(self.model.facts(part, self.epoch))
        self.sums.terms += torch.stack([weight * sums, counts])
        self._update(sums)

    def _update(self, sums: Tensor) -> None:
        """Move the weights along their gradients, and note whether anything was not finite."""
        norm = self._clip_gradients()
        self.broken = (~torch.isfinite(torch.cat([sums, norm.double().reshape(1)]))).double()
        self.lr = float(self.schedule.get_last_lr()[0])
        self.optimiser.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    def _seed(self) -> None:
        """Dropout of a step is the same whether or not a run was resumed."""
        seed = hash((self.config.seed, self.epoch, self.step, self.rank)) % 2**31
        # torch.manual_seed takes milliseconds: it notes a traceback for every absent accelerator
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def _gradients_stay_local(self, yes: bool) -> Any:
        """Exchange gradients only in the last backward pass of a step."""
        return cast(Any, self.wrapped).no_sync() if yes and self.world_size > 1 else nullcontext()

    def _clip_gradients(self) -> Tensor:
        """Norm of the whole gradient before it is clipped."""
        weights = list(self.model.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(weights, self.config.max_grad_norm, norm)
        return norm

    # ------------------------------------------------------------------ what workers agree on

    def _exchange(self, counts: Tensor) -> Tensor:
        """Counts (K,) over all workers; stops or saves on all of them alike.

        The weights are those after ``self.step`` steps: whatever was broken was so in the last one,
        so that nothing broken is ever saved.
        """
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.rank == 0 and minutes >= self.config.checkpoint_minutes
        asked = self.reporter.wants_checkpoint()  # on every worker: it may wait for the others
        wanted = counts.new_tensor([float(due or asked)])
        packet = torch.cat([counts, self.broken, wanted])
        if self.world_size > 1:
            distributed.all_reduce(packet)
        *broken, save = packet[len(counts) :].tolist()
        self._stop_if_broken(broken)
        if save and self.step < self.n_steps:
            total = self.sums.over_workers(self.world_size)
            self.sums = total if self.rank == 0 else total.times_alone()
            self.reporter.checkpoint(self.make_state)
            self.saved_at = time.monotonic()
        return packet[: len(counts)]

    def _stop_if_broken(self, broken: list[float]) -> None:
        names = [f"loss term {name}" for name in self.model.terms] + ["gradient"]
        found = [name for name, value in zip(names, broken, strict=True) if value]
        if found:
            raise ConvergenceError(
                f"{found[0]} is not finite in epoch {self.epoch}, step {self.step - 1} of "
                f"{self.n_steps}, at a learning rate of {self.lr:.3g}; a smaller one, "
                "max_grad_norm or precision float32 may help. The best weights are those of "
                + ("the start" if self.best_epoch < 0 else f"epoch {self.best_epoch}")
            )

    # ------------------------------------------------------------------ which epoch is best

    def _validate(self) -> dict[str, float]:
        """Numbers of the first worker on all of them; in float32, with averaged weights if any."""
        if self.problem.validate is None:
            return {}
        box: list[dict[str, float]] = [{}]
        if self.rank == 0:
            model = self._candidate().eval()
            with torch.no_grad():
                box[0] = self.problem.validate(model, self.device)
        if self.world_size > 1:
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _candidate(self) -> LossModel:
        if self.average is None:
            return self.model
        return cast(LossModel, self.average.module)

    def _keep_if_best(self, metrics: dict[str, Any]) -> None:
        name = self.problem.score_name or "loss"
        if name not in metrics:
            raise InputError(f"validation gave no {name}; it gave {', '.join(metrics)}")
        score = float(metrics[name])
        if not math.isfinite(score):
            raise ConvergenceError(f"{name} is {score} after epoch {self.epoch}")
        higher = self.problem.score_name is not None and self.problem.score_mode == "max"
        better = score > self.best_score if higher else score < self.best_score
        if better or self.best_epoch < 0:
            self.best, self.best_score = _weights(self._candidate()), score
            self.best_epoch = self.epoch

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        waited = self.epoch - 1 - self.best_epoch
        return patience is not None and self.best_epoch >= 0 and waited >= patience


def _weights(model: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
