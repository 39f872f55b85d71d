"""The chart of a ladder: where points and labels stand, and what its scales say."""

from itertools import combinations

import pytest

from studio.artifacts.chart import DOT, NARROW, WIDE, Box, Point, label_boxes, ladder_chart

SIZES = {"f16": 271e6, "q8_0": 145e6, "q6_k": 138e6, "q5_k_m": 112e6, "q4_k_m": 105e6, "q4_0": 102e6, "iq4_xs": 91e6, "q2_k": 88e6}
LOSSES = {"f16": 1.1e-5, "q8_0": 0.011, "q6_k": 0.032, "q5_k_m": 0.094, "q4_k_m": 0.16, "q4_0": 0.21, "iq4_xs": 0.19, "q2_k": 1.9}


def points(**columns):
    return [Point(name, int(SIZES[name]), LOSSES[name], recommended=name == "q8_0", **columns) for name in SIZES]


def test_further_left_is_smaller_and_further_down_is_closer():
    chart = ladder_chart(points())
    spots = {spot["point"].label: (spot["x"], spot["y"]) for spot in chart["points"]}
    assert [spot["point"].label for spot in chart["points"]] == sorted(SIZES, key=SIZES.get)
    assert sorted(spots, key=lambda name: spots[name][0]) == sorted(SIZES, key=SIZES.get)
    assert sorted(spots, key=lambda name: spots[name][1]) == sorted(LOSSES, key=LOSSES.get)
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in spots.values())


def test_the_curve_joins_what_no_smaller_file_beats():
    chart = ladder_chart(points())
    assert len(chart["line"].split()) == len(SIZES) - 1  # q4_0 is larger than iq4_xs, and further from the model


@pytest.mark.parametrize(("layout", "picture"), [("wide", WIDE), ("narrow", NARROW)])
def test_no_label_lies_on_another_or_on_a_point(layout, picture):
    chart = ladder_chart(points())
    width, height = picture
    boxes, dots = [], []
    for spot in chart["points"]:
        x, y = spot["x"] * width, spot["y"] * height
        dots.append(Box(x - DOT / 2, y - DOT / 2, DOT, DOT))
        if spot[layout] != "hidden":
            boxes.append(label_boxes(len(spot["point"].label) * 6.8, x, y)[spot[layout]])
    assert len(boxes) > len(SIZES) / 2
    assert not [pair for pair in combinations(boxes, 2) if pair[0].touches(pair[1])]
    assert not [(box, dot) for box in boxes for dot in dots if box.touches(dot)]
    assert next(spot for spot in chart["points"] if spot["point"].recommended)[layout] != "hidden"


def test_scales_are_labelled_with_round_figures():
    chart = ladder_chart(points())
    assert [tick["text"] for tick in chart["losses"]] == ["0.00001", "0.0001", "0.001", "0.01", "0.1", "1", "10"]
    assert [tick["text"] for tick in chart["sizes"]] == ["100 MB", "150 MB", "200 MB", "300 MB"]
    assert [tick["at"] for tick in chart["losses"]][:: len(chart["losses"]) - 1] == [0, 1]


@pytest.mark.parametrize("losses", [(0.0, 0.0), (1e-9, 1e-9), (0.01, 0.01), (0.011, 0.012), (1.0, 1.0), (0.0, 30.0)])
def test_equal_and_tiny_differences_can_be_drawn(losses):
    first, second = losses
    chart = ladder_chart([Point("f16", 10**9, first), Point("q8_0", 5 * 10**8, second)])
    assert all(0 <= spot["y"] <= 1 for spot in chart["points"])
    assert len(chart["losses"]) >= 3


@pytest.mark.parametrize("size", [1, 1000, 10**12])
def test_files_of_one_size_can_be_drawn(size):
    chart = ladder_chart([Point("q4_k_m", size, 0.16), Point("q4_k_m", size, 0.11, careful=True)])
    assert chart["careful"] and {spot["x"] for spot in chart["points"]} == {0.5}


def test_one_file_alone_is_no_chart():
    assert ladder_chart([Point("q8_0", 10**8, 0.01)]) is None
