"""Index arithmetic: every token is used once, no row is overfull, and packing loses no piece."""

import numpy as np
import pytest

from lmjax import objectives
from lmjax.data import pipeline, windows
from lmjax.errors import InputError


def random_sizes(rng):
    """Tokens of 1 to 25 documents."""
    return rng.integers(1, 61, rng.integers(1, 26)).tolist()


def bounds_of(sizes):
    return np.cumsum([0, *(size + 1 for size in sizes)])


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("n", [3, 4, 5, 8, 13, 20])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_cover_each_stretch_once(seed, n, overlap):
    bounds = bounds_of(random_sizes(np.random.default_rng(seed)))
    starts, lengths = windows.cut(bounds, n, overlap)
    assert lengths.min() >= 2 and lengths.max() <= n
    pieces = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        mine, pieces = _take(pieces, low, high)
        covered = [list(range(at + (overlap if i else 0), at + count)) for i, (at, count) in enumerate(mine)]
        assert sum(covered, []) == list(range(low, high + 1))
    assert not pieces


def _take(pieces, low, high):
    inside = [piece for piece in pieces if low <= piece[0] and piece[0] + piece[1] - 1 <= high]
    return inside, pieces[len(inside) :]


def test_cut_of_the_docstring():
    def cut(size, overlap):
        starts, lengths = windows.cut(np.array([0, size - 1]), 4, overlap)
        return [list(range(a, a + n)) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]

    assert cut(8, 0) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert cut(8, 1) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7]]
    assert cut(9, 0) == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert windows.whole_windows(10, 4, 1) == 3
    with pytest.raises(InputError, match="seq_len"):
        windows.cut(np.array([0, 5]), 2, 0)


@pytest.mark.parametrize("room", [6, 7, 12, 30])
@pytest.mark.parametrize("seed", range(5))
def test_first_fit_places_every_piece_once_and_never_overfills(seed, room):
    """Two arrays per piece, as in an encoder-decoder; both must fit."""

    def lengths_of(n):
        return {"inputs": n // 2 + 1, "encoder_inputs": n}

    rooms = {"inputs": room, "encoder_inputs": room + 3}
    rng = np.random.default_rng(seed)
    starts, lengths = windows.cut(bounds_of(random_sizes(rng)), min(room, 12), 0)
    order = rng.permutation(len(starts))
    packed = windows.first_fit(starts, lengths, lengths_of, rooms, order)
    rows = [packed.pieces(row) for row in range(len(packed))]
    assert sorted(sum(rows, [])) == sorted(zip(starts.tolist(), lengths.tolist(), strict=True))
    assert sorted(packed.numbers.tolist()) == list(range(len(starts)))
    assert np.array_equal(starts[packed.numbers], packed.starts)
    for row in rows:
        assert row
        for name, most in rooms.items():
            assert sum(lengths_of(n)[name] for _, n in row) <= most


def test_first_fit_of_the_docstring():
    starts, lengths = np.array([0, 10, 20, 30]), np.array([3, 3, 2, 1])
    packed = windows.first_fit(starts, lengths, lambda n: {"inputs": n}, {"inputs": 5}, np.arange(4))
    assert [[n for _, n in packed.pieces(row)] for row in range(len(packed))] == [[3, 2], [3, 1]]


def test_first_fit_wastes_little():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(1 / 100, 5000) + 1, 256)
    packed = windows.first_fit(
        np.cumsum(lengths), lengths, lambda n: {"inputs": n - 1}, {"inputs": 255}, rng.permutation(5000)
    )
    assert (lengths - 1).sum() / (len(packed) * 255) > 0.97


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
@pytest.mark.parametrize("room", [(40, 40), (128, 128), (37, 200), (200, 37)])
def test_window_length_is_the_longest_that_fits(name, room):
    objective = objectives.OBJECTIVES[name]
    n = objective.window_length(objective.options, *room)
    room = dict(zip(("inputs", "encoder_inputs"), room, strict=True))
    fits = [all(v <= room[k] for k, v in objective.lengths(m, objective.options).items()) for m in (n, n + 1)]
    assert fits == [True, False]


def test_window_length_when_nothing_fits():
    with pytest.raises(InputError, match="rows that hold 2 source tokens or more"):
        objectives.OBJECTIVES["causal_lm"].window_length({}, 0, 0)


def test_the_cells_of_a_sweep_share_one_packing_and_others_do_not(monkeypatch):
    """Equal arguments give the same plan without packing again; another order, room or length another one."""
    made = []
    monkeypatch.setattr(pipeline, "_PLANS", {})
    first_fit = windows.first_fit
    monkeypatch.setattr(windows, "first_fit", lambda *args: made.append(1) or first_fit(*args))
    starts, lengths, order = np.array([0, 3, 6, 8]), np.array([3, 3, 2, 1]), np.arange(4)

    def pack(room=5, order=order, lengths=lengths, extra=0):
        return pipeline._packed(starts, lengths, lambda n: {"inputs": n + extra}, {"inputs": room}, order)

    assert pack() is pack() and len(made) == 1
    others = [pack(room=6), pack(order=order[::-1]), pack(lengths=np.array([3, 3, 2, 2])), pack(extra=1)]
    assert len(made) == 5 and len({id(plan) for plan in [pack(), *others]}) == 5
