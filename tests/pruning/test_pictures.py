"""Pictures of masks, by hand."""

from __future__ import annotations

import torch

from natal.pruning.mask import Mask
from natal.pruning.pictures import pictures


def grid(levels: str, rows: int) -> list[str]:
    wide = len(levels) // rows
    return [levels[i : i + wide] for i in range(0, len(levels), wide)]


def test_blocks_show_shares_and_the_corner_single_weights() -> None:
    kept = torch.zeros(24, 36, dtype=torch.bool)
    kept[:2, :3] = True  # one block of 2 x 3, whole
    kept[2, 0] = True  # one weight of the block below it: a sixth
    kept[23, 30:36] = True  # two blocks at the end, half of each
    whole, corner = pictures(Mask({"fc.weight": kept}), {"fc.weight": 0})
    assert (whole.layer, whole.shows, whole.rows, whole.most) == ("fc.weight", "all", 12, 1.0)
    drawn = grid(whole.levels, 12)
    # 35 levels: 35 / 6 = 5.8 is drawn as 6, 17.5 as 18 ("i")
    assert drawn == ["z" + "0" * 11, "6" + "0" * 11, *["0" * 12] * 9, "0" * 10 + "ii"]
    assert (corner.shows, corner.most) == ("corner", 1.0)
    assert grid(corner.levels, 12) == ["zzz" + "0" * 9] * 2 + ["z" + "0" * 11] + ["0" * 12] * 9


def test_a_small_layer_is_drawn_weight_by_weight_and_units_are_rows() -> None:
    kept = torch.tensor([[True, False], [True, True], [False, False]])
    (one,) = pictures(Mask({"w": kept}), {"w": 0})
    assert (one.rows, one.levels) == (3, "z0zz00")
    (turned,) = pictures(Mask({"w": kept}), {"w": 1})  # units along the other axis
    assert (turned.rows, turned.levels) == (2, "zz00z0")
    (empty,) = pictures(Mask({"w": torch.zeros(2, 2, dtype=torch.bool)}), {"w": 0})
    assert (empty.most, empty.levels) == (0.0, "0000")


def test_the_first_layer_shows_what_it_sees_of_an_image() -> None:
    # two units on two channels of 2 x 2 pixels
    kept = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    kept[0, :, 0, 0] = True  # unit 0 sees the first pixel in both channels
    kept[1, 0, 1, 1] = True  # unit 1 sees the last in one
    linear = pictures(Mask({"w": kept.flatten(1)}), {"w": 0}, (2, 2, 2))
    assert [(p.shows, p.most, p.levels) for p in linear[:3]] == [
        ("pixels", 0.5, "z00i"),
        ("unit 0", 1.0, "z000"),
        ("unit 1", 0.5, "000z"),
    ]
    kernels = pictures(Mask({"w": kept}), {"w": 0}, (2, 9, 9))
    assert [p.shows for p in kernels] == ["unit 0", "unit 1", "all"]
    other = pictures(Mask({"w": kept.flatten(1)}), {"w": 0}, (1, 9, 9))  # reads no image of this size
    assert [p.shows for p in other] == ["all"]


def test_large_images_and_deep_networks_are_pictured_in_part() -> None:
    layers = {f"l{i}": torch.ones(20, 28 * 28, dtype=torch.bool) for i in range(9)}
    found = pictures(Mask(layers), {}, (1, 28, 28))
    assert [p.shows for p in found[:7]] == ["pixels", *(f"unit {i}" for i in (0, 4, 8, 11, 15, 19))]
    assert (found[0].rows, len(found[0].levels)) == (14, 14 * 14)
    assert list(dict.fromkeys(p.layer for p in found)) == ["l0", "l3", "l5", "l8"]
