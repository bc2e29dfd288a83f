"""Guards against learning rates that do not transfer: wrong factors on rates, weight decay, epsilon, logits, attention
and branches when width or depth changes, and a muP that differs from "standard" at its base."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import cli, coordinates, models, trainer
from lmjax import config as configs
from lmjax.errors import InputError
from lmjax.models.layers import EMBEDDING_STD, Parameter
from lmjax.optim import parametrization
from lmjax.optim.optimizers import OPTIMIZERS, make_optimizer
from lmjax.resolve import resolve
from lmjax.scaling import settings
from lmjax.sweeps.plan import transfer_warnings
from tests.conftest import ROOT, small

FAMILIES = ("decoder", "encoder", "encoder_decoder")
BASE = {"parametrization__name": "mup", "parametrization__base_width": 16}
WIDE = {**BASE, "model__d_model": 64, "model__num_heads": 8}


@functools.cache
def resolved(family="decoder", **overrides):
    return resolve(small(family, **overrides))


def table(family="decoder", **overrides):
    """{path without "kernel": row} of `parametrization.table`, gradient factor included."""
    run = resolved(family, **overrides)
    boxed = models.parameter_shapes(run.model, run.batches.rows([0]))
    rows, scales = parametrization.table(run.config, boxed), jax.tree.leaves(run.scales)
    return {
        row["path"].removesuffix("/kernel").removeprefix("stack/layers/"): {**row, "gradient": scale.gradient}
        for row, scale in zip(rows, scales, strict=True)
    }


def programs(run):
    """The text of the programs that initialise and that make a step: with equal ones, all results are equal bits."""
    optimizer = make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics)
    batch = {name: x[None] for name, x in run.batches.rows(np.arange(8)).items()}
    key, arguments = jax.random.key(0), np.float32([0.01, 0.01, 1.0])
    step = jax.jit(trainer.make_step(run, optimizer))
    state = jax.eval_shape(init, key)
    return jax.jit(init).lower(key).as_text(), step.lower(state, batch, key, arguments).as_text()


ONE = {"model__num_layers": 1}
COMPLETEP = {**BASE, "parametrization__name": "completep", "parametrization__base_layers": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_base_all_factors_are_those_of_standard(family):
    """For four optimizers. A step depends on nothing else of the parametrization."""
    standard, same = resolved(family, **ONE), resolved(family, **ONE, **BASE, parametrization__base_head_dim=8)
    boxed = models.parameter_shapes(standard.model, standard.batches.rows([0]))
    assert same.run_id != standard.run_id
    assert [same.config.model[f"{name}_multiplier"] for name in ("logit", "attention", "branch")] == [1.0] * 3
    for optimizer in OPTIMIZERS:
        factors = [
            parametrization.scales(configs.overlay(run.config, {"optimizer.name": optimizer}), boxed)
            for run in (standard, same)
        ]
        assert factors[0] == factors[1]
        assert {scale.rate for scale in jax.tree.leaves(factors)} == {1.0}


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [("decoder", "adamw"), ("encoder", "lion"), ("encoder_decoder", "adafactor"), ("decoder", "muon")],
)
def test_at_the_base_mup_is_the_same_program_as_standard(family, optimizer):
    options = {"optimizer__name": optimizer, **ONE}
    other = COMPLETEP if optimizer == "lion" else BASE
    assert programs(resolved(family, **options)) == programs(resolved(family, **options, **other))


def test_rates_decay_and_gradients_at_four_times_the_base_width():
    """The table of the module, read off real models; peak rate 1, weight decay 0.1."""
    peak = {"optimizer__learning_rate": 1.0, "optimizer__epsilon": 1e-4}
    rows = table(**WIDE, **peak, model__use_bias=True, model__tie_embeddings=False)
    hidden, head, norm = rows["feed_forward/up"], rows["embedding/head"], rows["self_attention_norm/scale"]
    found = [[row[key] for key in ("role", "rate", "decay", "epsilon", "multiplier")] for row in (hidden, head, norm)]
    assert found == [
        ["hidden", 0.25, 0.1, 2.5e-5, 1.0],
        ["output", 1.0, 0.1, 2.5e-5, 0.25],
        ["vector", 1.0, 0.0, 2.5e-5, 1.0],
    ]
    assert rows["embedding/embedding"]["rate"] == 1.0 and rows["feed_forward/up/bias"]["role"] == "vector"
    assert {row["rate"] for name, row in rows.items() if row["role"] == "hidden"} == {0.25}
    coupled = table(**WIDE, **peak, parametrization__decay="coupled")
    assert coupled["feed_forward/up"]["decay"] == 0.025 and coupled["embedding/embedding"]["decay"] == 0.1
    muon = table(**WIDE, **peak, optimizer__name="muon")
    assert muon["feed_forward/up"]["rate"] == 0.5 and muon["feed_forward/up"]["epsilon"] is None
    assert muon["embedding/embedding"]["rate"] == 1.0
    shared = table(**WIDE, **peak, model__num_kv_heads=1)["self_attention/key"]  # few heads: hidden all the same
    assert shared["role"] == "hidden" and shared["rate"] == 0.25


def test_experts_their_router_and_norms_of_heads():
    """Experts train as the matrices they replace; the router as an output: constant initial std, logits divided."""
    peak = {"optimizer__learning_rate": 1.0, "optimizer__epsilon": 1e-4}
    options = {"model__num_experts": 4, "model__qk_norm": True, "model__num_layers": 1}
    rows = table(**WIDE, **peak, **options)
    up, router, gain = rows["feed_forward/up"], rows["feed_forward/router"], rows["self_attention/query_norm/scale"]
    assert [up[key] for key in ("role", "rate", "decay", "epsilon")] == ["hidden", 0.25, 0.1, 2.5e-5]
    assert up["std"] == 1 / 8
    found = [router[key] for key in ("role", "rate", "decay", "std", "multiplier")]
    assert found == ["output", 1.0, 0.1, EMBEDDING_STD, 0.25]
    assert [gain[key] for key in ("role", "rate", "decay", "epsilon")] == ["vector", 1.0, 0.0, 1e-4]
    muon = table(**WIDE, **peak, **options, optimizer__name="muon")
    assert muon["feed_forward/up"]["rate"] == 0.5 and muon["feed_forward/up"]["epsilon"] is None
    standard, same = (resolved(**options, **base) for base in ({}, BASE))
    assert programs(standard) == programs(same)


def test_initial_values_do_not_change_with_the_parametrization_except_as_stated():
    """Tables and heads: constant. Hidden: 1 / fan_in. Measured on initialised models, to 4 % (thousands of draws)."""
    options = {**WIDE, **ONE, "model__tie_embeddings": False}
    run = resolved("encoder_decoder", **options, model__attention_scale=1.0)
    boxed = models.parameter_shapes(run.model, run.batches.rows([0]))
    params = jax.jit(lambda key: run.model.init(key, run.batches.rows([0]))["params"])(jax.random.key(0))
    for row, leaf in zip(parametrization.table(run.config, boxed), jax.tree.leaves(params), strict=True):
        assert np.std(leaf) == pytest.approx(row["std"], rel=0.04 if leaf.size > 2000 else 0.5), row["path"]
    rows = table("encoder_decoder", **options)
    tables = [rows[f"embedding/{name}"]["std"] for name in ("embedding", "head")]
    assert tables == [EMBEDDING_STD] * 2


def test_wider_heads_change_the_attention_scale_and_not_the_query():
    """sqrt(K_base) / K, or K_base / K times T5's 1. The query's init is that of the base; else it undoes the scale."""
    wider = {**WIDE, "model__num_heads": 2, "parametrization__base_head_dim": 8}
    assert resolved(**wider).config.model.attention_multiplier * 32**-0.5 == pytest.approx(8**0.5 / 32)
    t5 = resolved(**wider, model__attention_scale=1.0).config.model
    assert t5.attention_multiplier == 8 / 32
    query = table(**wider, model__attention_scale=1.0)["self_attention/query"]
    assert query["std"] == pytest.approx((1 / 8 / 64) ** 0.5)
    assert table(**wider, model__position="relative")["position_bias/relative_bias"]["gradient"] == 4 / 4
    assert table(**WIDE, model__position="relative")["position_bias/relative_bias"]["gradient"] == 4


def test_completep_divides_branches_by_depth_and_keeps_the_initial_values_of_the_base():
    deep = {**WIDE, "model__num_layers": 4}
    completep = {**deep, "parametrization__name": "completep", "parametrization__base_layers": 2}
    row, plain = (table(**options)["feed_forward/down"] for options in (completep, deep))
    assert row["std"] == pytest.approx((1 / 4 / 256) ** 0.5) and plain["std"] == pytest.approx((1 / 8 / 256) ** 0.5)
    assert (row["multiplier"], plain["multiplier"]) == (0.5, 1.0)
    assert (row["gradient"], plain["gradient"]) == (8, 4)
    shared = table(**completep, model__share_layers=True)["feed_forward/down"]  # its gradient sums over the layers
    assert shared["role"] == "hidden" and shared["gradient"] == 4
    with pytest.raises(InputError, match="expected model.norm_position 'pre', got 'post'"):
        resolved(**completep, model__norm_position="post")


def test_runs_that_differ_in_multipliers_share_a_law():
    """A factor that follows the width would put every size into a group of its own."""
    assert {f"config.model.{name}_multiplier" for name in parametrization.MULTIPLIERS} <= set(settings.FREE)


def test_the_heads_of_older_runs_keep_their_factor():
    """Without it, a run of muP loaded from its record would have other outputs than it was trained with."""
    config = configs.to_dict(resolved("encoder", **WIDE, objective__name="masked_lm+sentence_order").config)
    assert config["model"].pop("heads_multiplier") == 0.25
    assert configs.from_record({"config": config, "format": 2}).model.heads_multiplier == 0.25


def test_a_token_table_of_constant_width():
    """ALBERT: the table does not widen, so neither its logits nor the projection to the model change; other heads read
    the width of the model, and used to be without a factor here."""
    options = {**WIDE, "model__embedding_dim": 8, "model__head": "transform"}
    options |= {"objective__name": "masked_lm+sentence_order"}
    rows, muon = (table("encoder", **options, optimizer__name=name) for name in ("adamw", "muon"))
    assert rows["embedding/embedding"]["multiplier"] == 1.0 and rows["embedding/embedding"]["gradient"] == 1.0
    assert rows["heads/order_kernel"]["multiplier"] == 0.25
    assert rows["embedding/projection"]["role"] == "input" and rows["embedding/transform"]["role"] == "hidden"
    rate = rows["embedding/projection"]["rate"]
    assert muon["embedding/projection"]["rate"] == pytest.approx(rate)  # sqrt(D / E) / sqrt(D)
    assert muon["embedding/transform"]["rate"] == pytest.approx(rate / 4)  # sqrt(E / D) / sqrt(D)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parametrization__name": "mup"}, "expected parametrization.base_width, got None"),
        ({**BASE, "parametrization__name": "completep"}, "expected parametrization.base_layers, got None"),
        ({"parametrization__name": "mpu"}, "unknown parametrization.name 'mpu'; did you mean 'mup'"),
        ({**WIDE, "model__logit_scale": 0.125}, "set it to its value at the base width, 0.25"),
        ({**WIDE, "model__logit_multiplier": 0.5}, "model.logit_multiplier: expected 0.25, as parametrization.name"),
        ({"model__branch_multiplier": 0.5}, "model.branch_multiplier: expected None, as parametrization.name 'stan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        resolve(small(**options))


def test_axes_without_a_role_are_refused():
    boxed = {"gate": Parameter(jnp.zeros((4, 2)), ("embed", "colour"))}
    with pytest.raises(InputError, match=r"\['gate'\]: expected logical axes with a role, got \('embed', 'colour'\)"):
        parametrization.scales(small(), boxed)


def update(optimizer, inputs, outputs, width, base):
    """rms(dW x) of a first update at rate 1, times its factor: inputs x of the batch, gradients of size 1 / width."""
    rng = np.random.default_rng(0)
    config = small(
        optimizer__name=optimizer,
        model__d_model=width,
        model__head_dim=8,
        parametrization__name="mup",
        parametrization__base_width=base,
    )
    w, x, g = (rng.normal(size=(2, n, m)) for n, m in ((inputs, outputs), (16, inputs), (16, outputs)))
    params, grads = ({"kernel": jnp.asarray(a, jnp.float32)} for a in (w / inputs**0.5, x.swapaxes(1, 2) @ g / width))
    boxed = {"kernel": Parameter(params["kernel"], ("layers", "embed", "mlp"))}
    factors, made = parametrization.scales(config, boxed), make_optimizer(config.optimizer)
    grads = jax.tree.map(lambda g, s: g * s.gradient, grads, factors)
    moved = jax.jit(lambda g, p: made.update(g, made.init(p), p)[0])(grads, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return float(np.sqrt(np.mean(np.square(x @ parametrization.moved(zeros, moved, factors, 1.0, 0.0)["kernel"]))))


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)], ids=["square", "up", "down"])
def test_one_update_changes_features_equally_at_widths_64_and_256(optimizer, shape):
    """Two layers of a stack; exponent of the width within 0.15 of 0 (standard: 0.9, muon 0.5)."""
    changes = [update(optimizer, shape[0] * n, shape[1] * n, n, 64) for n in (64, 256)]
    assert abs(np.log(changes[1] / changes[0]) / np.log(4)) < 0.15


def test_scaling_a_gradient_up_is_scaling_epsilon_down():
    """At an epsilon as large as the gradients, where it matters."""
    params = {"kernel": jnp.ones((4, 4))}
    grads = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)) * 1e-4, jnp.float32)}

    def updated(factor, epsilon):
        made = make_optimizer(small(optimizer__epsilon=epsilon).optimizer)
        return made.update(jax.tree.map(lambda g: factor * g, grads), made.init(params), params)[0]["kernel"]

    np.testing.assert_allclose(updated(4.0, 1e-4), updated(1.0, 0.25e-4), rtol=1e-6)
    assert abs(updated(1.0, 1e-4) / updated(1.0, 0.25e-4) - 1).max() > 0.1


def test_norms_without_gains_are_norms_with_gains_of_one():
    batch = {"inputs": np.arange(8, dtype=np.int32)[None]}
    logits = []
    for norm_scale in (True, False):
        model = resolved(model__norm_scale=norm_scale, **ONE).model
        assert ("final_norm/scale" in str(table(model__norm_scale=norm_scale, **ONE))) == norm_scale
        run = jax.jit(lambda key, model=model: model.apply(model.init(key, batch), batch))
        logits.append(run(jax.random.key(0)))
    np.testing.assert_array_equal(*logits)


def test_the_share_of_clipped_steps():
    records = [{"grad_norm": norm} for norm in (0.5, 1.5, 3.0, 0.9)]
    assert trainer._clipped_share(records, 1.0) == 0.5 and trainer._clipped_share(records, None) == 0.0


def test_ladders_whose_rate_does_not_transfer_are_reported():
    def ladder(**options):
        return transfer_warnings([resolved(**{**options, "model__d_model": d}).config for d in (16, 64)])

    assert "one rate (0.002) at widths 16, 64 under parametrization.name='standard'" in ladder()[0]
    assert "model.head_dim changes (8, 32) under 'mup' without" in ladder(**BASE)[0]
    assert ladder(**BASE, parametrization__base_head_dim=8) == ladder(**BASE, model__head_dim=8) == []
    assert transfer_warnings([resolved().config, resolved(**WIDE).config]) == []


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("decoder", {"model__num_experts": 4, "model__qk_norm": True}),
        ("encoder", {}),
        ("encoder_decoder", {}),
    ],
)
def test_coordinate_check(family, options):
    """Widths 32 and 128, heads of width 16; changes under standard grow by more than 2.5."""
    config = small(family, model__num_heads=1, model__num_layers=1, data__seq_len=32, **options)
    rows, good, verdict = coordinates.check(config, (32, 128))
    changes = {(row["parametrization"], row["width"]): row["logits"] for row in rows}
    assert good and "passes" in verdict, verdict
    assert changes["standard", 128] > 2.5 * changes["standard", 32], verdict


def test_the_discriminator_of_electra_is_measured():
    """By an encoder with its parameters, before and after the steps, on rows whose masked tokens are id 0."""
    config = small("encoder", objective__name="electra", model__family="electra", model__num_layers=1)
    run, key = resolve(config), jax.random.key(config.train.seed)
    optimizer, section = make_optimizer(run.config.optimizer), run.config.model.copy_and_resolve_references()
    section.unlock()
    section.family = "encoder"
    encoder, rows = models.build(section, heads=run.heads), run.batches.rows(np.arange(8 * coordinates.STEPS))
    read = {name: x[:8] for name, x in rows.items()}
    read["inputs"] = np.where(read["weights"] > 0, 0, read["inputs"])

    @jax.jit
    def replaced(params):
        own = {name: params[name] for name in ("embedding", "encoder", "heads")}
        return encoder.apply({"params": own}, read, project=False)["replaced"]

    start = state = jax.jit(trainer.make_init(run.model, optimizer, rows, run.metrics))(key)
    step = jax.jit(trainer.make_step(run, optimizer))
    arguments = np.float32([coordinates.RATE, run.config.optimizer.weight_decay, 1])
    for number in range(coordinates.STEPS):
        state, _ = step(state, {name: x[None, 8 * number : 8 * number + 8] for name, x in rows.items()}, key, arguments)
    change = np.abs(replaced(state["params"]) - replaced(start["params"])).mean()
    measured = coordinates.measure(config)
    assert measured["replaced"] == pytest.approx(change, rel=1e-3)
    assert set(measured) == {"initial", *coordinates.CHANGES} and min(measured.values()) > 0


def test_a_discriminator_whose_changes_depend_on_width_fails(monkeypatch):
    def measured(config):
        return dict.fromkeys(("initial", "logits", "blocks", "replaced_blocks"), 1.0) | {
            "replaced": config.model.d_model
        }

    monkeypatch.setattr(coordinates, "measure", measured)
    _, good, verdict = coordinates.check(small("encoder"), (16, 32))
    assert not good and "1.00 (logits), 1.00 (block outputs), 2.00 (discriminator's outputs) and 1.00 (its" in verdict


def test_the_command_fails_where_changes_depend_on_width(monkeypatch, capsys):
    def measured(config):
        return dict.fromkeys(("initial", "logits", "blocks"), float(config.model.d_model))

    monkeypatch.setattr(coordinates, "measure", measured)
    arguments = ["mup", "check", str(ROOT / "configs" / "tiny.py"), "--widths"]
    assert cli.main([*arguments, "64", "96"]) == 1
    assert "mup fails: from width 64 to 96" in capsys.readouterr().out
    assert cli.main([*arguments, "64", "72"]) == 64  # heads of width 16
    assert "width 72: expected model.num_heads 4 to scale to a whole number" in capsys.readouterr().err
    assert cli.main([*arguments, "64"]) == 64 and "at least two widths" in capsys.readouterr().err
