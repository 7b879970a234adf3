"""The compiled arithmetic, piece by piece: products, sums, exponentials and steps against hand-made numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from natal.lab.engines.compiled import arithmetic, folds, losses, optimisers, products, sparse, turn
from natal.lab.engines.compiled.vectors import aligned

RNG = np.random.default_rng
Array = np.ndarray[Any, Any]


@njit(error_model="numpy")
def add_product(a, b, c):  # type: ignore[no-untyped-def]
    products.add_product(a, b, c)


@njit(error_model="numpy")
def add_sparse_product(starts, columns, values, b, c):  # type: ignore[no-untyped-def]
    sparse.add_sparse_product(starts, columns, values, b, c)


@njit(error_model="numpy")
def add_kept_products(starts, columns, a, b, values):  # type: ignore[no-untyped-def]
    sparse.add_kept_products(starts, columns, a, b, values)


@njit(error_model="numpy")
def add_row_sums(a, b):  # type: ignore[no-untyped-def]
    folds.add_row_sums(a, b)


@njit(error_model="numpy")
def turned(a, b):  # type: ignore[no-untyped-def]
    turn.turn(a, b)


@njit(error_model="numpy")
def exponentials(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = arithmetic.exponential(x[i])


@njit(error_model="numpy")
def logarithms(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        y[i] = arithmetic.logarithm(x[i])


@njit(error_model="numpy")
def right(z, top, classes, rows):  # type: ignore[no-untyped-def]
    losses.largest(z, top)
    return losses.right(z, top, classes, rows)


@njit(error_model="numpy")
def cross_entropy(z, top, total, classes, rows):  # type: ignore[no-untyped-def]
    losses.largest(z, top)
    return losses.cross_entropy(z, top, total, classes, rows, 0.0)


@njit(error_model="numpy")
def adam(theta, gradient, first, second, powers, rule, rate):  # type: ignore[no-untyped-def]
    optimisers.adam(theta, gradient, first, second, powers, rule, rate)


def compressed(w: Array) -> tuple[Array, Array, Array]:
    """Where the rows of a matrix start among its numbers that are not zero, their columns, and they themselves."""
    row, column = np.nonzero(w)
    return (
        np.searchsorted(row, np.arange(len(w) + 1)).astype(np.int32),
        column.astype(np.int32),
        w[row, column],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(1, 1, 16), (6, 5, 64), (7, 3, 112), (13, 192, 48), (97, 20, 128), (4, 0, 16)],
)
def test_a_product_is_added_whatever_the_shape_and_the_strides(
    rows: int, inner: int, columns: int, dtype: type
) -> None:
    rng = RNG(0)
    # whole numbers: every order of summation gives the same result
    a, b = (rng.integers(-9, 9, size).astype(dtype) for size in ((rows, inner), (inner, columns)))
    start = rng.integers(-9, 9, (rows, columns)).astype(dtype)
    padded = np.zeros((rows, inner + 3), dtype)
    padded[:, :inner] = a
    for left in (padded[:, :inner], np.asfortranarray(padded)[:, :inner], np.repeat(a, 2, axis=1)[:, ::2]):
        total = start.copy()
        add_product(left, b, total)
        np.testing.assert_array_equal(total, start + a @ b)


@pytest.mark.parametrize("rows", [1, 6])  # both heights of a tile
def test_each_sum_of_a_product_is_one_chain_of_fused_multiply_adds(rows: int) -> None:
    def product(a: list[float], b: list[float]) -> set[float]:
        total = np.zeros((rows, 32), np.float32)
        column = np.repeat(np.array(b, np.float32)[:, None], 32, 1)
        add_product(np.repeat(np.array([a], np.float32), rows, 0)[:, ::1], column, total)
        return set(total.flatten().tolist())

    assert product([2**24, 1, 1], [1, 1, 1]) == {2**24}  # in order: each 1 is lost on its own
    assert product([1, 1, 2**24], [1, 1, 1]) == {2**24 + 2}
    x = 1 + 2**-12  # x² = 1 + 2**-11 + 2**-24, whose last bit a product rounded by itself would lose
    assert product([1 + 2**-11, x], [-1, x]) == {2**-24}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("columns", [16, 80, 192])
def test_a_sparse_product_is_the_dense_one_to_the_last_bit(columns: int, density: float, dtype: type) -> None:
    rng = RNG(1)
    w = (rng.standard_normal((37, 50)) * (rng.random((37, 50)) < density)).astype(dtype)
    b, start = (rng.standard_normal((rows, columns)).astype(dtype) for rows in (50, 37))
    dense, skipping = start.copy(), start.copy()
    add_product(w, b, dense)
    add_sparse_product(*compressed(w), b, skipping)
    assert dense.tobytes() == skipping.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_kept_weights_is_a_dot_product_of_rows(dtype: type) -> None:
    rng = RNG(2)
    w = (rng.integers(1, 9, (21, 30)) * (rng.random((21, 30)) < 0.3)).astype(dtype)
    a, b = rng.integers(-9, 9, (30, 48)).astype(dtype), rng.integers(-9, 9, (21, 48)).astype(dtype)
    starts, columns, values = compressed(w)
    grown = values.copy()
    add_kept_products(starts, columns, a, b, grown)
    np.testing.assert_array_equal(grown, values + (b @ a.T)[np.nonzero(w)])


@pytest.mark.parametrize("kept", [1, 4])  # alone, and four summed together
def test_a_gradient_goes_through_lanes_then_halves(kept: int) -> None:
    def gradients(row: Array) -> set[float]:
        values = np.zeros(kept, np.float32)
        ones = np.ones((kept, 48), np.float32)
        add_kept_products(
            np.array([0, kept], np.int32), np.arange(kept, dtype=np.int32), ones, row[None], values
        )
        sums = np.zeros(1, np.float32)
        add_row_sums(row[None], sums)
        return {*values.tolist(), *sums.tolist()}

    row = np.zeros(48, np.float32)
    row[0], row[16], row[8] = (
        2**24,
        1,
        1,
    )  # lane 0 loses its 1 before the half with lane 8 comes, which is lost too
    assert gradients(row) == {2**24}
    row = np.zeros(48, np.float32)
    row[1], row[17], row[0] = 1, 1, 2**24  # lane 1 has 2 before it meets lane 0
    assert gradients(row) == {2**24 + 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turning_is_transposition(dtype: type) -> None:
    a, b = RNG(3).standard_normal((48, 32)).astype(dtype), aligned((32, 48), dtype)
    turned(a, b)
    np.testing.assert_array_equal(b, a.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exponential_is_right_to_the_last_place(dtype: type) -> None:
    x = np.concatenate([-np.abs(RNG(0).standard_normal(50_000) * 20), [0.0, -80.0, -1e-30]]).astype(dtype)
    y = np.empty_like(x)
    exponentials(x, y)
    true = np.exp(x.astype(np.longdouble))
    true[true < np.finfo(dtype).tiny] = 0
    assert (np.abs(y - true) <= np.spacing(np.abs(y))).all()
    odd = np.array([-np.inf, -1000.0, np.nan], dtype)
    exponentials(odd, odd)
    assert odd[:2].tolist() == [0, 0]
    assert np.isnan(odd[2])


def test_the_logarithm_is_right_to_two_last_places() -> None:
    x = np.concatenate(
        [np.exp(RNG(1).uniform(-5, 460, 50_000)), 1 + RNG(2).uniform(-1e-3, 1e-3, 1000), [1.0, 2.0]]
    )
    y = np.empty_like(x)
    logarithms(x, y)
    assert (np.abs(y - np.log(x.astype(np.longdouble))) <= 2 * np.spacing(np.abs(y))).all()
    assert y[-2] == 0
    odd = np.array([np.nan, np.inf])
    logarithms(odd, odd)
    assert np.isnan(odd[0])
    assert odd[1] == np.inf


def test_a_tie_goes_to_the_first_class_and_nan_is_never_right() -> None:
    rows, classes, top = np.arange(3), np.array([0, 1, 2], np.int32), np.zeros(16, np.float32)
    assert right(np.zeros((3, 16), np.float32), top, classes, rows) == 1
    z = np.zeros((3, 16), np.float32)
    z[2] = 1
    assert right(z, top, classes, rows) == 1  # the third row's
    assert right(np.full((3, 16), np.nan, np.float32), top, classes, rows) == 0


def test_a_softmax_over_one_class_over_many_rows_and_over_numbers_that_are_none() -> None:
    top, total, rows = np.zeros(16, np.float32), np.zeros(16, np.float32), np.arange(3)
    one = np.ones((1, 16), np.float32)
    assert (
        cross_entropy(one, top, total, np.zeros(3, np.int32), rows) == 0
    )  # one class has all the probability
    for bad in (np.nan, np.inf):
        z = np.ones((3, 16), np.float32)
        z[0, 1] = bad
        assert not np.isfinite(cross_entropy(z, top, total, np.ones(3, np.int32), rows))
    # totals of 5,000 classes, whose product over the rows no float64 holds
    many, sums = np.zeros((5000, 96), np.float32), np.zeros((2, 96), np.float32)
    loss = cross_entropy(many, *sums, np.zeros(96, np.int32), np.arange(96))
    assert loss == pytest.approx(96 * np.log(5000), rel=1e-14)


def test_adams_root_is_ieees() -> None:
    g = np.abs(RNG(5).standard_normal(100_000)).astype(np.float32)
    theta, first, second = np.zeros((3, len(g)), np.float32)
    rule = optimisers.Rule(optimisers.ADAM, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0)  # the step is η g / √(g²)
    adam(theta, g, first, second, np.ones(2), rule, 1.0)
    np.testing.assert_array_equal(second, g * g)
    np.testing.assert_array_equal(theta, -(g / np.sqrt((g * g).astype(np.float64)).astype(np.float32)))
