"""The compiled arithmetic: products, softmax and sums against NumPy, torch and hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from natal.lab.engines import kernels

RNG = np.random.default_rng


@njit
def _exponentials(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = kernels.exponential(x[i])


@njit
def _logarithms(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = kernels.logarithm(x[i])


@njit
def _folds(a, b):  # type: ignore[no-untyped-def]
    return kernels.fold("sum", a, a), kernels.fold("max", a, a), kernels.fold("dot", a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1, 16), (6, 5, 64), (7, 3, 112), (13, 192, 48), (97, 20, 128)]
)
def test_a_product_is_added_whatever_the_shape_and_the_strides(
    rows: int, inner: int, columns: int, dtype: type
) -> None:
    rng = RNG(0)
    # whole numbers: every order of summation gives the same result
    a, b = (rng.integers(-9, 9, size).astype(dtype) for size in ((rows, inner), (inner, columns)))
    start = rng.integers(-9, 9, (rows, columns)).astype(dtype)
    for left in (a, np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
        total = start.copy()
        kernels.add_product(left, b, total)
        np.testing.assert_array_equal(total, start + a @ b)


@pytest.mark.parametrize("rows", [1, 6])  # both heights of a tile
def test_each_sum_of_a_product_is_one_chain_of_fused_multiply_adds(rows: int) -> None:
    def product(a: list[float], b: list[float]) -> set[float]:
        total = np.zeros((rows, 32), np.float32)
        column = np.repeat(np.array(b, np.float32)[:, None], 32, 1)
        kernels.add_product(np.repeat(np.array([a], np.float32), rows, 0), column, total)
        return set(total.flatten().tolist())

    assert product([2**24, 1, 1], [1, 1, 1]) == {2**24}  # in order: each 1 is lost on its own
    assert product([1, 1, 2**24], [1, 1, 1]) == {2**24 + 2}
    x = 1 + 2**-12  # x² = 1 + 2**-11 + 2**-24, whose last bit a product rounded by itself would lose
    assert product([1 + 2**-11, x], [-1, x]) == {2**-24}


def test_a_fold_goes_through_lanes_then_halves() -> None:
    a = np.zeros(48, np.float32)
    a[0], a[16], a[8] = 2**24, 1, 1  # lane 0 loses its 1 before the half with lane 8 comes, which is lost too
    assert _folds(a, a)[0] == 2**24
    a = np.zeros(48, np.float32)
    a[1], a[17], a[0] = 1, 1, 2**24  # lane 1 has 2 before it meets lane 0
    assert _folds(a, a)[0] == 2**24 + 2
    x, y = RNG(0).integers(-9, 9, (2, 48)).astype(np.float64)
    assert _folds(x, y) == (x.sum(), x.max(), x @ y)


@pytest.mark.parametrize(("dtype", "units"), [(np.float32, 1.0), (np.float64, 2.0)])
def test_exponential_and_logarithm_are_right_to_the_last_place(dtype: type, units: float) -> None:
    x = np.concatenate([-np.abs(RNG(0).standard_normal(20_000) * 20), [0.0, -80.0, 1.0]]).astype(dtype)
    for compiled, exact, numbers in (
        (_exponentials, np.exp, x),
        (_logarithms, np.log, np.exp(RNG(1).uniform(0.001, 5, 20_000)).astype(dtype)),
    ):
        result = np.empty_like(numbers)
        compiled(numbers, result)
        true = exact(numbers.astype(np.longdouble))
        assert (np.abs(result - true) <= units * np.spacing(np.abs(result))).all()
    nothing = np.array([-np.inf, -200.0], np.float32)
    _exponentials(nothing, nothing)
    assert nothing.tolist() == [0, 0]


def test_exponential_and_logarithm_are_those_of_torchs_softmax_to_the_last_bit() -> None:
    x = torch.from_numpy((-np.abs(RNG(0).standard_normal((250_000, 16))) * 20).astype(np.float32))
    one = torch.zeros_like(x)
    one[:, 0] = 1  # softmax's backward: 1 - e^x there, 0 - e^x elsewhere
    theirs = -torch.ops.aten._log_softmax_backward_data(one, x, 1, torch.float32)[:, 1:].numpy()
    ours = np.empty(x.numel(), np.float32)
    _exponentials(x.flatten().numpy(), ours)
    ours = ours.reshape(x.shape)[:, 1:]

    spread = np.linspace(0.01, 3, 40_000)[:, None]  # sums from 2 to 96
    rows = torch.from_numpy((RNG(1).standard_normal((40_000, 96)) * spread).astype(np.float32))
    rows[:, 0] = rows.amax(1) + 1e-3  # its log-softmax is minus the logarithm of the sum
    exps, totals = np.empty(rows.numel(), np.float32), np.empty(len(rows), np.float32)
    _exponentials((rows - rows[:, :1]).flatten().numpy(), exps)
    sums = np.array([_folds(row, row)[0] for row in exps.reshape(rows.shape)], np.float32)
    _logarithms(sums, totals)
    softmax = torch.log_softmax(rows, 1)[:, 0].numpy()
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(-totals, softmax)
    else:  # other algorithms, other orders
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)
        np.testing.assert_allclose(-totals, softmax, rtol=1e-6)


def _random(
    one_hot: bool, classes: bool, dtype: type
) -> tuple[kernels.Shape, list[np.ndarray], list[torch.Tensor]]:
    """A network of 6 inputs, 16 neurons, 35 outputs and 400 rows, for kernels and for torch."""
    shape, rows, rng = kernels.Shape(6, 16, 35 if classes else 1), 400, RNG(3)
    size = 7 * 16 + shape.outputs * 17
    theta = rng.standard_normal((1, -(-size // 16) * 16)).astype(dtype)
    ones = np.stack([rng.integers(0, 3, rows), rng.integers(3, 6, rows)], 1).astype(np.int32)
    numbers = np.zeros((rows, 6), dtype)
    np.put_along_axis(numbers, ones, 1, 1)
    if not one_hot:
        numbers = rng.standard_normal((rows, 6)).astype(dtype)
    y = (
        rng.integers(0, 35, rows).astype(np.int32)
        if classes
        else rng.standard_normal((rows, 1)).astype(dtype)
    )
    w1, w2 = theta[0, : 7 * 16].reshape(7, 16), theta[0, 7 * 16 : (7 + shape.outputs) * 16].reshape(-1, 16)
    b2 = theta[0, (7 + shape.outputs) * 16 :][: shape.outputs]
    tensors = [torch.tensor(t) for t in (numbers, y.astype(np.int64) if classes else y, w1, w2, b2)]
    return shape, [theta, (ones if one_hot else numbers)[None], y[None]], tensors


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("classes", [True, False])
def test_gradients_and_scores_are_autograds(one_hot: bool, classes: bool) -> None:
    shape, (theta, inputs, targets), (x, y, w1, w2, b2) = _random(one_hot, classes, np.float64)
    room, losses, gradient = kernels.room(shape, 400, np.float64), np.zeros(1), np.empty_like(theta)
    scale = np.float64(1 / 400 if classes else 2 / 400)
    kernels.gradients(theta, gradient, shape, inputs, targets, scale, room, losses)
    for p in (w1, w2, b2):
        p.requires_grad_()
    out = torch.relu(w1[0] + x @ w1[1:]) @ w2.T + b2
    loss = torch.nn.functional.cross_entropy(out, y) if classes else ((out - y) ** 2).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert losses[0] / 400 == pytest.approx(loss.item(), rel=1e-12)
    expected = torch.cat([p.grad.flatten() for p in (w1, w2, b2) if p.grad is not None]).numpy()
    np.testing.assert_allclose(gradient[0, : len(expected)], expected, rtol=1e-9, atol=1e-14)
    assert (gradient[0, len(expected) :] == 0).all()

    kernels.scores(theta, shape, inputs, targets, room, losses)
    score = (out.argmax(1) == y).sum() if classes else ((out - y) ** 2).sum()
    assert losses[0] == pytest.approx(score.item(), rel=1e-12)


def test_softmax_and_sums_over_rows_are_torchs_to_the_last_bit() -> None:
    shape, (theta, inputs, targets), (_, y, w1, w2, b2) = _random(True, True, np.float32)
    room, losses, gradient = kernels.room(shape, 400, np.float32), np.zeros(1), np.empty_like(theta)
    kernels.gradients(theta, gradient, shape, inputs, targets, np.float32(1 / 400), room, losses)
    out = np.zeros((400, 48), np.float32)
    hidden = np.maximum(np.stack([w1[0] + w1[1 + i] + w1[1 + j] for i, j in inputs[0]]), 0).astype(np.float32)
    kernels.add_product(hidden, np.pad(w2.numpy().T, ((0, 0), (0, 13))).copy(), out)
    logits = b2 + torch.from_numpy(out[:, :35])
    logits.requires_grad_()
    torch.nn.functional.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    ours, theirs = gradient[0, 42 * 16 :][:35], logits.grad.sum(0).numpy()
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        np.testing.assert_array_equal(ours, theirs)
    else:  # torch adds up in another order there
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_a_tie_goes_to_the_first_class_and_nan_is_never_right() -> None:
    shape = kernels.Shape(1, 16, 3)
    theta = np.zeros((1, 2 * 16 + 3 * 16 + 16), np.float32)
    inputs, room, counts = np.zeros((1, 3, 1), np.float32), kernels.room(shape, 3, np.float32), np.zeros(1)
    targets = np.array([[0, 1, 2]], np.int32)
    kernels.scores(theta, shape, inputs, targets, room, counts)
    assert counts[0] == 1
    theta[0, 80:83] = np.nan
    kernels.scores(theta, shape, inputs, targets, room, counts)
    assert counts[0] == 0


def test_a_softmax_over_one_class_and_over_numbers_that_are_none() -> None:
    shape = kernels.Shape(1, 16, 1)
    theta, inputs = np.ones((1, 64), np.float32), np.ones((1, 3, 1), np.float32)
    room, losses, gradient = kernels.room(shape, 3, np.float32), np.zeros(1), np.empty_like(theta)
    for array in room:
        array[...] = 7  # what another network may have left
    kernels.gradients(theta, gradient, shape, inputs, np.zeros((1, 3), np.int32), np.float32(1), room, losses)
    assert losses[0] == 0  # one class has all the probability
    assert (gradient == 0).all()
    for bad in (np.nan, np.inf):
        shape = kernels.Shape(1, 16, 3)
        theta = np.ones((1, 2 * 16 + 3 * 16 + 16), np.float32)
        theta[0, 80] = bad
        room, gradient = kernels.room(shape, 3, np.float32), np.empty_like(theta)
        kernels.gradients(
            theta, gradient, shape, inputs, np.ones((1, 3), np.int32), np.float32(1), room, losses
        )
        assert not np.isfinite(losses[0])


def test_adam_is_torchs_to_a_rounding() -> None:
    rng = RNG(5)
    theta, first, root = rng.standard_normal((1, 64)), np.zeros((1, 64)), np.zeros((1, 64))
    second, mask = np.zeros((1, 64)), (rng.random((1, 64)) < 0.5).astype(np.float64)
    theta *= mask
    p = torch.tensor(theta[0], requires_grad=True)
    adam = torch.optim.Adam([p], lr=0.01)
    for t in range(1, 6):
        g = rng.standard_normal((1, 64))
        kernels.moments(g, first, second, root, 1 - 0.9, 1 - 0.999, 0.999)
        kernels.move(theta, first, root, mask, 0.01 / (1 - 0.9**t), (1 - 0.999**t) ** 0.5, 1e-8)
        p.grad = torch.tensor(g[0])
        adam.step()
        with torch.no_grad():
            p.mul_(torch.tensor(mask[0]))
        np.testing.assert_allclose(theta[0], p.detach().numpy(), rtol=1e-13, atol=1e-15)
