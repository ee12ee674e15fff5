"""The fitting engine on one worker, against plain loops written here."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medrec.config_molecules import FitConfig
from medrec.library.loader import collate, plan_epoch
from medrec.pretrain import engine
from medrec.pretrain.engine import fit
from medrec.pretrain.steps import build_optimiser, build_schedule, cut
from quantum.base import ConvergenceError, InputError


def make_config(**options) -> FitConfig:
    return FitConfig.model_validate({"epochs": 3, "batch_size": 5, "lr": 0.01, **options})


def learn(toy, library, config, *, notes=None, resume=None, max_pairs=None, **options):
    """Notes, last state and model of a fit, or of one that was broken off."""
    notes = notes or toy.Notes()
    problem = toy.toy_problem(library, **options)
    state = None
    with contextlib.suppress(KeyboardInterrupt):
        state = fit(problem, config, reporter=notes, resume=resume, max_pairs=max_pairs)
    return notes, state, problem.model


def same(one, other) -> bool:
    """Equal to the last bit, however nested."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other or (one != one and other != other)


def assert_close(one, other, tolerance):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=name)


# --------------------------------------------------------------------------- loss and updates


def test_a_plain_loop_gives_the_same_weights_and_metrics(toy, small_library):
    """Own Adam, own cosine, means over the whole batch taken term by term."""
    config = make_config(epochs=2, max_grad_norm=0.5)
    notes, state, _ = learn(toy, small_library, config)
    model = toy.toy_problem(small_library).model
    weights = list(model.parameters())
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    t, n_steps = 0, 2 * 4
    for epoch in range(2):
        total = np.zeros((2, 3))
        for rows in plan_epoch(small_library, np.arange(16), 5, config.seed, epoch):
            batch = collate(small_library, rows)
            sums, counts = model(batch, epoch), model.counts(batch, epoch)
            total += np.stack([sums.detach().numpy(), counts.numpy()])
            gradients = torch.autograd.grad((sums / counts.clamp(min=1)).sum(), weights)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            lr = 0.01 * (1 + math.cos(math.pi * t / n_steps)) / 2
            t += 1
            with torch.no_grad():
                for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                    g = g * min(1.0, 0.5 / norm)
                    m.mul_(0.9).add_(g, alpha=0.1)
                    v.mul_(0.999).addcmul_(g, g, value=0.001)
                    step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                    w -= lr * step
        row = notes.rows[epoch]
        means = total[0] / total[1]
        assert row["loss"] == pytest.approx(means.sum(), rel=1e-5)
        for name, mean in zip(model.terms, means, strict=True):
            assert row[f"loss_{name}"] == pytest.approx(mean, rel=1e-5)
        assert row["lr"] == pytest.approx(lr)
        assert row["atoms_per_molecule"] == pytest.approx(small_library.n_atoms.mean())
        assert row["molecules_per_s"] == pytest.approx(16 / row["seconds"])
        assert 0 <= row["waited_s"] <= row["seconds"]
    assert_close(model.state_dict(), state["model"], 2e-5)


def test_terms_have_very_different_counts(toy, small_library):
    """Or the tests of equal gradients would pass with means of parts."""
    batch = collate(small_library, np.arange(16))
    counts = toy.ToyModel().counts(batch, 0)
    assert counts.max() > 20 * counts.min()


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"max_pairs": 100}, {"max_pairs": 1}])
def test_gradients_do_not_depend_on_how_a_batch_is_cut(toy, small_library, options):
    max_pairs = options.pop("max_pairs", None)
    one, _, whole = learn(toy, small_library, make_config(epochs=1, batch_size=16))
    config = make_config(epochs=1, batch_size=16, **options)
    other, _, parts = learn(toy, small_library, config, max_pairs=max_pairs)
    assert other.numbers()[0] == pytest.approx(one.numbers()[0], rel=1e-5)
    assert len(whole.seen) == 1
    assert len(parts.seen) >= 4
    assert sorted(sum(parts.seen, ())) == list(range(16))
    largest = max(float(p.grad.abs().max()) for p in whole.parameters())
    assert largest > 0.1
    for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-6, msg=name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 6), st.integers(1, 3000))
def test_cut_keeps_every_molecule_and_the_limit(n_atoms, parts, max_pairs):
    class library:
        pass

    library.n_atoms = np.array(n_atoms, dtype=np.int64)
    rows = np.arange(len(n_atoms))
    found = cut(library, rows, parts, max_pairs)
    assert np.concatenate([rows[:0], *found]).tolist() == rows.tolist()
    assert len(found) >= min(parts, len(rows))
    assert all(len(part) for part in found)
    for part in found:
        assert len(part) <= 1 or len(part) * library.n_atoms[part].max() ** 2 <= max_pairs


def test_a_loss_that_compares_molecules_is_never_cut(toy, small_library):
    problem = toy.toy_problem(small_library)
    problem.model.separable = False
    fit(problem, make_config(epochs=1), reporter=toy.Notes(), max_pairs=1)
    assert sorted(map(len, problem.model.seen)) == [1, 5, 5, 5]
    with pytest.raises(InputError, match=r"accumulate is 2.*expected 1"):
        fit(problem, make_config(accumulate=2), reporter=toy.Notes())


def test_cosine_ends_at_zero_after_a_linear_warm_up():
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=2.0)
    schedule = build_schedule(optimiser, make_config(warmup_steps=4), 12)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[4:] == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)


def test_a_run_ends_at_learning_rate_zero_or_stays_constant(toy, small_library):
    _, state, _ = learn(toy, small_library, make_config())
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(0.0, abs=1e-12)
    notes, state, _ = learn(toy, small_library, make_config(schedule="constant"))
    assert {row["lr"] for row in notes.rows} == {0.01}


def test_adam_as_published_and_decoupled_weight_decay():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    plain = build_optimiser(model, make_config())
    assert type(plain) is torch.optim.Adam
    assert plain.param_groups[0]["betas"] == (0.9, 0.999)
    assert [len(group["params"]) for group in plain.param_groups] == [1]
    decayed = build_optimiser(model, make_config(weight_decay=0.1))
    assert type(decayed) is torch.optim.AdamW
    assert decayed.param_groups[0]["weight_decay"] == 0.1


def test_bfloat16_is_for_products_only(toy, small_library):
    notes, state, model = learn(toy, small_library, make_config(precision="bfloat16"))
    assert model.dtypes == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in state["model"].values())
    exact, _, model = learn(toy, small_library, make_config())
    assert model.dtypes == {torch.float32}
    assert notes.rows[-1]["loss"] == pytest.approx(exact.rows[-1]["loss"], rel=0.05)


def test_averaged_weights(toy, small_library):
    """One recursion over the weights after every step, and validation and best use it."""
    given = []

    def validate(model, device):
        given.append(copy.deepcopy(model.state_dict()))
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"score": float(len(given))}

    config = make_config(ema=0.7, epochs=2)
    notes = toy.Notes(save_at=range(100))
    notes, state, _ = learn(
        toy, small_library, config, notes=notes, validate=validate, score_name="score",
        score_mode="max",
    )  # fmt: skip
    # a checkpoint stands before a step, so the last step of an epoch shows in the next epoch
    after = [item["model"] for item in notes.saved[1:]] + [state["model"]]
    assert len(after) == 8
    average = dict(after[0])
    for weights in after[1:]:
        average = {name: 0.7 * average[name] + 0.3 * weights[name] for name in average}
    assert_close(average, state["best"], 1e-6)
    assert_close(average, given[-1], 1e-6)
    assert float((state["best"]["embed.weight"] - state["model"]["embed.weight"]).abs().max()) > 0


# --------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 5, 6])
def test_a_run_resumed_in_an_epoch_ends_with_the_same_bits(toy, small_library, tmp_path, stop):
    """Dropout, averages, several parts, patience; through a file and the restricted unpickler."""

    def validate(model, device):
        weights = torch.cat([p.flatten() for p in model.parameters()])
        return {"size": float(weights.norm())}

    config = make_config(
        epochs=4, ema=0.5, accumulate=2, max_grad_norm=1.0, warmup_steps=3, patience=4
    )
    options = {"dropout": 0.3, "validate": validate, "score_name": "size"}
    whole, end, _ = learn(toy, small_library, config, **options)
    notes = toy.Notes(save_at=range(100), stop_at=stop)
    broken, nothing, _ = learn(toy, small_library, config, notes=notes, **options)
    assert nothing is None
    saved = broken.saved[-1]
    assert (saved["epoch"], saved["step"]) == divmod(stop, 4)
    torch.save(saved, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    before = copy.deepcopy(loaded)
    rest, again, _ = learn(toy, small_library, config, resume=loaded, **options)
    assert same(before, loaded)  # the fit did not go on in the caller's tensors
    end["sums"] = again["sums"] = None
    assert same(again, end)
    assert [row["epoch"] for row in rest.rows] == list(range(stop // 4, 4))
    assert rest.numbers() == whole.numbers()[stop // 4 :]
    seconds = rest.rows[0]["seconds"]
    assert seconds > saved["sums"]["seconds"]


def test_resume_after_an_epoch_and_after_the_end(toy, small_library):
    config = make_config()
    whole, end, _ = learn(toy, small_library, config, dropout=0.3)
    rest, again, _ = learn(toy, small_library, config, resume=whole.states[0], dropout=0.3)
    assert rest.numbers() == whole.numbers()[1:]
    assert same(again, end)
    nothing, still, model = learn(toy, small_library, config, resume=end)
    assert nothing.rows == model.seen == []
    assert same(still, end)


def test_dropout_and_order_change_from_epoch_to_epoch(toy, small_library):
    _, _, model = learn(toy, small_library, make_config(epochs=2))
    assert set(model.seen[:4]) != set(model.seen[4:])
    one = learn(toy, small_library, make_config(seed=1), dropout=0.3)[0].numbers()
    other = learn(toy, small_library, make_config(seed=2), dropout=0.3)[0].numbers()
    assert one != other


def test_checkpoints_by_the_clock(toy, small_library, monkeypatch):
    """A checkpoint is due when so many minutes have passed since any state was taken."""
    now = [0.0]

    def monotonic():
        now[0] += 60.0  # read once per step, and once per state that is taken
        return now[0]

    monkeypatch.setattr(engine.time, "monotonic", monotonic)
    config = make_config(epochs=1, batch_size=1, checkpoint_minutes=4.5)
    notes, _, _ = learn(toy, small_library, config)
    steps = [state["step"] for state in notes.saved]
    assert steps[0] == 4
    assert len(set(np.diff(steps))) == 1
    assert not learn(toy, small_library, make_config())[0].saved


def test_progress_counts_steps(toy, small_library, monkeypatch):
    monkeypatch.setattr(engine, "PROGRESS_SECONDS", 0.0)
    notes, _, _ = learn(toy, small_library, make_config(epochs=2))
    assert [item[:3] for item in notes.shown] == [(e, s, 4) for e in (0, 1) for s in (1, 2, 3, 4)]
    assert notes.shown[-1][3]["loss"] == notes.rows[-1]["loss"]


# --------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_run(toy, small_library, how):
    plan = plan_epoch(small_library, np.arange(16), 5, 42, 1)
    row = 11
    step = next(i for i, batch in enumerate(plan) if row in batch)
    notes = toy.Notes(save_at=range(100))
    what = "loss term pair" if how == "loss" else "gradient"
    with pytest.raises(ConvergenceError, match=f"{what} is not finite in epoch 1, step {step} of"):
        learn(toy, small_library, make_config(), notes=notes, poison=(1, row, how))
    assert len(notes.rows) == 1
    for state in notes.saved + notes.states:
        for part in ("model", "best"):
            assert all(torch.isfinite(value).all() for value in state[part].values())
    assert (notes.saved[-1]["epoch"], notes.saved[-1]["step"]) == (1, step)


def test_so_they_do_in_the_last_step_of_all(toy, small_library):
    row = int(plan_epoch(small_library, np.arange(16), 5, 42, 2)[-1][0])
    notes = toy.Notes()
    with pytest.raises(ConvergenceError, match="epoch 2, step 3 of 4"):
        learn(toy, small_library, make_config(), notes=notes, poison=(2, row, "loss"))
    assert len(notes.states) == 2


def scores(values):
    left = iter(values)

    def validate(model, device):
        return {"mae": next(left), "other": 0.0}

    return {"validate": validate, "score_name": "mae"}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_patience_and_the_best_epoch(toy, small_library, mode, best):
    values = [3.0, 5.0, 1.0, 6.0, 1.0, 2.0, 2.0, 2.0]
    notes, state, _ = learn(
        toy, small_library, make_config(epochs=8, patience=3), score_mode=mode, **scores(values)
    )
    assert len(notes.rows) == best + 3 + 1
    assert [row["mae"] for row in notes.rows] == values[: len(notes.rows)]
    assert state["best_epoch"] == best
    assert state["best_score"] == values[best]
    assert same(state["best"], notes.states[best]["model"])
    assert not same(state["best"], notes.states[-1]["model"])
    resumed, _, _ = learn(toy, small_library, make_config(epochs=8, patience=3), resume=state)
    assert not resumed.rows


def test_without_a_score_the_training_loss_decides(toy, small_library):
    notes, state, _ = learn(toy, small_library, make_config(epochs=4))
    losses = [row["loss"] for row in notes.rows]
    assert losses[-1] < losses[0]
    assert state["best_score"] == min(losses)
    assert state["best_epoch"] == losses.index(min(losses))


def test_a_score_that_is_missing_or_no_number(toy, small_library):
    with pytest.raises(ConvergenceError, match="mae is nan after epoch 1"):
        learn(toy, small_library, make_config(), **scores([1.0, math.nan]))
    problem = {**scores([1.0]), "score_name": "rmse"}
    with pytest.raises(InputError, match=r"validation gave no rmse; it gave .*mae, other"):
        learn(toy, small_library, make_config(), **problem)


def test_settings_that_do_not_fit_are_refused(toy, small_library):
    with pytest.raises(InputError, match="no molecule of library small is left"):
        learn(toy, small_library, make_config(), rows=[])
    with pytest.raises(InputError, match="warmup_steps 12 leave nothing of 12 steps"):
        learn(toy, small_library, make_config(warmup_steps=12))
    with pytest.raises(InputError, match=r"batch_size 5 .* 6 workers"):
        fit(toy.toy_problem(small_library), make_config(), reporter=toy.Notes(), world_size=6)


def test_a_term_without_items_is_left_out_and_no_item_at_all_is_an_error(toy, small_library):
    methane, salt = 6, 12  # no pair of bonded atoms
    notes, _, _ = learn(toy, small_library, make_config(), rows=[methane, salt])
    assert "loss_pair" not in notes.rows[0]
    assert notes.rows[0]["loss"] == pytest.approx(
        notes.rows[0]["loss_atom"] + notes.rows[0]["loss_molecule"]
    )
    problem = toy.toy_problem(small_library)
    problem.model.counts = lambda batch, epoch: torch.zeros(3)
    with pytest.raises(InputError, match=r"no molecule has an item of .* molecule, atom, pair"):
        fit(problem, make_config(), reporter=toy.Notes())


def test_an_error_while_reading_ends_the_fit(toy, small_library):
    with pytest.raises(IndexError):
        learn(toy, small_library, make_config(), rows=[0, 1, 2, 99])
