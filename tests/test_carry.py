"""Guards against a recurrent state that is lost, mixed up between rows or trained through when it is carried over
consecutive windows: against PyTorch's LSTM, over accumulation, devices, packs and a resume."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

import lmjax
from lmjax import models, pack, run_record, trainer
from lmjax.errors import InputError
from lmjax.models.recurrent import CELLS
from lmjax.resolve import resolve
from tests.conftest import small, train
from tests.test_resume import StopAt, assert_same_end

# Rows of 8 tokens, 16 in a batch, 6 steps in an epoch: 8 steps cross its border. 8 rows of validation per batch.
CARRY = {
    **{"data__mode": "consecutive", "model__options__carry": True, "data__sources": ("markov2:700",)},
    **{"data__seq_len": 8, "data__global_batch_size": 16, "data__max_epochs": 3.0, "duration__steps": 8},
    **{"data__validation_fraction": 0.2, "evaluation__max_tokens": None, "metrics__every_steps": 1},
    **{"schedule__name": "constant", "schedule__warmup_steps": 0, "optimizer__clip_norm": None},
}


@functools.cache
def carrying(**overrides):
    return resolve(small("rnn", **{**CARRY, **overrides}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("carry") / "run"
    assert train(carrying(), run_dir) == trainer.DONE
    return run_dir


def losses_of(run_dir):
    return [record["loss"] for record in run_record.read_metrics(run_dir / "metrics.jsonl")]


def batches_of(run, steps):
    return [run.batches.rows(range(16 * step, 16 * step + 16)) for step in range(steps)]


def test_rows_go_on_where_they_ended_in_the_step_before():
    """Every window once per epoch, in another place in the next one; none goes on over the end of an epoch or text."""
    run = carrying()
    text, per_epoch = run.data.stores[0].tokens("train"), run.batches.rows_per_epoch // 16
    windows = [tuple(text[at : at + 8]) for at in range(0, 128 * per_epoch, 8)]
    assert 3 < per_epoch < 8 and len(set(windows)) == len(windows)
    batches = batches_of(run, 3 * per_epoch)
    read = [[windows.index(tuple(row)) for row in batch["inputs"]] for batch in batches]
    for step, (batch, now) in enumerate(zip(batches, read, strict=True)):
        first = step % per_epoch == 0
        assert batch["continues"].tolist() == [not first and window > 0 for window in now]
        if not first:
            assert all(b == a + 1 for a, b in zip(read[step - 1], now, strict=True) if b)
            before = batches[step - 1]["targets"][:, -1]
            np.testing.assert_array_equal(before[batch["continues"]], batch["inputs"][batch["continues"], 0])
    epochs = np.asarray(read).reshape(3, -1)
    assert all(sorted(epoch) == list(range(len(windows))) for epoch in epochs.tolist())
    assert len(set(epochs[:, 0].tolist())) == 3
    assert carrying(data__seed=1).batches.rows([0])["inputs"].tolist() != batches[0]["inputs"][:1].tolist()


def test_losses_are_those_of_pytorch(trained):
    """Two layers, AdamW, carried and detached states, on 8 devices; validation text read as one; all within 1e-5."""
    torch = pytest.importorskip("torch")
    run = carrying()
    init = trainer.make_init(run.model, trainer.make_optimizer(run.config.optimizer), run.batches.rows([0]))
    params = jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0))["params"])
    lstm = torch.nn.LSTM(16, 16, num_layers=2, batch_first=True)
    for i in range(2):
        parts = {"weight_ih": "input_kernel", "weight_hh": "recurrent_kernel", "bias_ih": "bias"}
        for theirs, ours in parts.items():
            getattr(lstm, f"{theirs}_l{i}").data.copy_(torch.tensor(params[f"layer_{i}"][ours].T))
        getattr(lstm, f"bias_hh_l{i}").requires_grad_(False).zero_()
    table, bias = (torch.nn.Parameter(torch.tensor(params["embedding"][name])) for name in ("embedding", "head_bias"))

    def loss_of(inputs, targets, state=None):
        inputs, targets = (torch.tensor(ids.astype(np.int64)) for ids in (inputs, targets))
        h, state = lstm(table[inputs] * run.config.model.embedding_scale, state)
        logits = run.config.model.logit_scale * h @ table.T + bias
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), state

    def kind(word):
        return [p for name, p in lstm.named_parameters() if word in name and p.requires_grad]

    settings = run.config.optimizer
    groups = [
        {"params": [table, *kind("weight")], "weight_decay": settings.weight_decay},
        {"params": [bias, *kind("bias")], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, settings.learning_rate, (settings.b1, settings.b2), settings.epsilon)
    found, state = [], (torch.zeros(2, 16, 16), torch.zeros(2, 16, 16))
    for batch in batches_of(run, run.steps):
        continues = torch.tensor(batch["continues"]).float()[None, :, None]
        loss, state = loss_of(batch["inputs"], batch["targets"], tuple(s.detach() * continues for s in state))
        adam.zero_grad()
        loss.backward()
        adam.step()
        found.append(loss.item())
    np.testing.assert_allclose(losses_of(trained), found, atol=1e-5)

    text, summary = run.data.stores[0].tokens("validation"), run_record.read_json(trained / "summary.json")
    windows = [text[None, at : at + 9] for at in range(0, len(text) - 1, 8)]
    assert len(windows) > 8 and summary["loss_tokens"] == len(text) - 1
    with torch.no_grad():
        carried = float(loss_of(text[None, :-1], text[None, 1:])[0])
        alone = [float(loss_of(window[:, :-1], window[:, 1:])[0]) for window in windows]
    alone = np.average(alone, weights=[window.size - 1 for window in windows])
    assert summary["loss"] == pytest.approx(carried, abs=1e-5)
    assert summary["without_carry_loss"] == pytest.approx(alone, abs=1e-5)
    assert abs(carried - alone) > 1e-4


@pytest.mark.parametrize("cell", CELLS)
def test_windows_with_carry_have_the_loss_of_one_long_window(cell):
    """4 windows of 8 tokens against 1 of 32, under muP, for rows of which one begins anew at the third window."""
    options = {"model__options__cell": cell, "parametrization__name": "mup", "parametrization__base_width": 8}
    run, long = carrying(**options), resolve(small("rnn", data__seq_len=32, **options))
    ids = np.random.default_rng(0).integers(65, 81, (2, 33)).astype(np.int32)
    weights = np.ones((2, 32), np.float32)
    params = jax.jit(lambda key: long.model.init(key, {"inputs": ids[:, :-1]})["params"])(jax.random.key(0))
    parts, whole = (jax.jit(lambda b, run=run: run.loss_terms(params, b, jax.random.key(0))) for run in (run, long))
    carry, totals = jax.tree.map(lambda x: jnp.ones((2, *x.shape[2:])), run.carry), []
    for at in range(0, 32, 8):
        batch = {"inputs": ids[:, at : at + 8], "targets": ids[:, at + 1 : at + 9], "weights": weights[:, :8]}
        batch["continues"] = np.array([at > 0, at not in (0, 16)])
        found, _, carry = parts({**batch, **carry})
        totals.append(float(found["lm"][0]))
    begins = np.array([[1] * 32, [1] * 16 + [2] * 16], np.int32)
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights, "segment_ids": begins}
    assert sum(totals) == pytest.approx(float(whole(batch)[0]["lm"][0]), rel=1e-6)


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path, monkeypatch):
    """Stopped in the first epoch; the state is in the checkpoint."""
    monkeypatch.setattr(trainer, "StopRequest", StopAt(3))
    assert train(carrying(), tmp_path / "run") == trainer.PREEMPTED
    monkeypatch.undo()
    assert train(carrying(), tmp_path / "run") == trainer.DONE
    assert_same_end(carrying(), trained, tmp_path / "run")


def test_micro_batches_packs_and_generation(trained, tmp_path):
    """A pack of two data seeds, on one device and in micro-batches, has the losses of the run alone."""
    runs = [(carrying(train__accumulation_steps=2, data__seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    assert pack.train_pack(runs, pack.Program(runs[0][0], 2, jax.devices()[:1]), show=False) == trainer.DONE
    np.testing.assert_allclose(losses_of(tmp_path / "0"), losses_of(trained), rtol=1e-5)
    assert losses_of(tmp_path / "1") != losses_of(tmp_path / "0")
    [[one]] = lmjax.load(trained).generate([[65, 66]], max_new_tokens=2, stop_ids=())
    assert len(one.ids) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data__mode": "concat_and_split"},
            "model.options.carry: .* expected data.mode consecutive .* got concat_and",
        ),
        ({"objective__name": "fill_in_the_middle"}, "objective.name causal_lm, got consecutive and fill_in_the_middle"),
        ({"data__sources": ("markov2:900", "zipf:900"), "data__weights": (0.5, 0.5)}, "expected one data.sources, got"),
        ({"data__global_batch_size": 64}, "expected 2 windows of 9 tokens or more for each of the 64 rows"),
        ({"model__options__carry": 1}, "model.options.carry: expected .* got '?1"),
    ],
)
def test_what_cannot_be_carried_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        resolve(small("rnn", **{**CARRY, **overrides}))


def test_models_without_a_state_are_refused(monkeypatch):
    class Stateless(nn.Module):
        config: FrozenConfigDict
        attention, options = ("causal",), {"carry": False}

    monkeypatch.setitem(models.MODELS, "stateless", Stateless)
    with pytest.raises(InputError, match="'stateless' has no state to carry: expected a field cache_len"):
        resolve(small("decoder", **{**CARRY, "model__family": "stateless"}))
    with pytest.raises(InputError, match="unknown config key 'model.options.carry'"):
        resolve(small("seq2seq", model__options__carry=True))
