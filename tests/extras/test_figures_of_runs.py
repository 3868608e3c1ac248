"""Figures of runs: every shape in every view, the same bytes each time, words as they are, colours that stay."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

import numpy as np
import pytest

from homunculi.interop.measured_figures import draw_measurement
from homunculi.interop.run_figures import draw_chronology, draw_losses, draw_scalars, scalars_of
from homunculi.runs.chronology import Curve, HalfTime, half_time
from homunculi.runs.measures import Measurement, Stored
from tests.conftest import SKIPS

if find_spec("matplotlib") is None:
    pytest.skip(SKIPS["matplotlib"], allow_module_level=True)

SHAPES = [(3,), (2, 3), (2, 2, 3), (1, 2, 2, 3), (40, 30), (12, 5)]
HOSTILE = '$x_{ <b>&"\x1b[31m\ud800\u202e例'


def stored(view: str, found: Measurement) -> Stored:
    return Stored("thing", view, "A thing", "What?", 40, 400, found)


def words_of(figure: dict[str, bytes] | None) -> list[str]:
    """Words of the SVG, which must be well-formed; the PNG must have 200 dots an inch."""
    assert figure is not None and figure["png"][:8] == b"\x89PNG\r\n\x1a\n"
    at = figure["png"].index(b"pHYs")
    assert struct.unpack(">I", figure["png"][at + 4 : at + 8])[0] == round(200 / 0.0254)
    root = ElementTree.fromstring(figure["svg"])
    return [text for node in root.iter("{http://www.w3.org/2000/svg}text") if (text := "".join(node.itertext()))]


@pytest.mark.parametrize("view", ["line", "heatmap", "table", "text"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_every_view(view: str, shape: tuple[int, ...]) -> None:
    values = np.arange(float(np.prod(shape))).reshape(shape)
    values.flat[0] = np.nan
    found = Measurement({"some_values": values}, {"some_values": tuple(f"axis{i}" for i in range(len(shape)))})
    assert words_of(draw_measurement(stored(view, found)))


def test_the_same_measurement_gives_the_same_bytes() -> None:
    one = stored("heatmap", Measurement({"v": np.eye(3)}, {"v": ("a", "b")}))
    assert draw_measurement(one) == draw_measurement(one)


def test_words_stay_text_and_hostile_ones_do_nothing() -> None:
    labels = {"a": (HOSTILE, "$y$"), "b": ("pass 1", "pass 2")}
    found = Measurement(
        {HOSTILE: np.eye(2), "v": np.eye(2)}, {HOSTILE: ("a", "b"), "v": ("b", "a")}, labels, {"v": "$"}
    )
    for view in ("line", "heatmap", "table"):
        words = words_of(draw_measurement(stored(view, found)))
        assert any("$y$" in word for word in words) and any(word.startswith("$x_{ <b>&") for word in words)


def test_numbers_alone_and_empty_arrays_have_no_figure() -> None:
    found = Measurement({"n": np.array(1.0), "v": np.zeros((0, 3))}, {"v": ("a", "b")})
    assert draw_measurement(stored("line", found)) is None


def test_arrays_stand_in_the_order_of_the_instrument() -> None:
    found = Measurement({"a": np.eye(2), "z": np.eye(2)}, {"z": ("r", "c"), "a": ("r", "c")})
    words = words_of(draw_measurement(stored("heatmap", found)))
    assert words.index("z") < words.index("a")


def fills(figure: dict[str, bytes] | None) -> list[str]:
    """Fill colours of the cells of a heat map, row by row."""
    assert figure is not None
    mesh = next(
        node for node in ElementTree.fromstring(figure["svg"]).iter() if node.get("id", "").startswith("QuadMesh")
    )
    return [
        node.get("style", "").split("fill: ")[1].split(";")[0]
        for node in mesh.iter()
        if "fill: " in node.get("style", "")
    ]


def test_rows_of_different_quantities_are_shaded_each_by_itself() -> None:
    values = np.array([[1.0, 2.0], [1000.0, 3000.0]])
    own = draw_measurement(stored("heatmap", Measurement({"v": values}, {"v": ("measure", "step")})))
    shared = draw_measurement(stored("heatmap", Measurement({"v": values}, {"v": ("head", "step")})))
    assert fills(own)[:2] == fills(own)[2:4] and len(set(fills(own))) == 2
    assert len(set(fills(shared)[:2])) == 1 and "shaded row by row" in words_of(own)
    assert "shaded row by row" not in words_of(shared)


def test_what_is_not_drawn_is_said() -> None:
    found = Measurement({"v": np.ones((70, 12))}, {"v": ("a", "b")})
    assert "10 more rows and 3 more columns are in the run's measures" in words_of(
        draw_measurement(stored("table", found))
    )
    lines = words_of(draw_measurement(stored("line", found)))
    assert "62 more lines are in the run's measures" in lines


STEPS = np.array([0, 1, 2, 4, 8, 16, 32, 64.0])


def curves(shift: float = 0.0, **more: float) -> dict[str, Curve]:
    values = {
        "train/loss": 6 / (1 + STEPS / 9) + 1 + shift,
        "depth/rho": STEPS / 64 + shift,
        "depth/rho low": STEPS / 70,
    }
    values |= {name: np.full(8, value) for name, value in more.items()}
    return {name: Curve(name, STEPS, found, STEPS * 100) for name, found in values.items()}


def test_losses_of_one_run_and_of_groups() -> None:
    both = curves() | {"val/loss": Curve("val/loss", STEPS, 6 - STEPS / 20, STEPS * 100)}
    words = words_of(draw_losses({"run": [both]}))
    assert {"training", "validation", "tokens", "loss (nats per token)"} <= set(words)
    groups = {"first": [both, curves(0.1)], "second": [curves(0.2)]}
    words = words_of(draw_losses(groups))
    assert {"first", "second", "Bands: lowest to highest seed."} <= set(words)
    assert draw_losses({"run": [{}]}) is None


def test_a_group_keeps_its_colour_where_another_lacks_the_number() -> None:
    figure = draw_losses({"first": [{}], "second": [curves()]})
    assert figure is not None
    svg = figure["svg"].decode()
    panel, names = svg.index('id="axes_1"'), svg.index('id="axes_2"')
    assert "#c4501b" in svg[panel:names] and "#0b62a8" not in svg[panel:names]


def test_bounds_belong_to_their_number() -> None:
    one = curves() | {
        "depth/rho high": Curve("depth/rho high", STEPS, STEPS / 60, STEPS),
        "depth/rho null sd": Curve("depth/rho null sd", STEPS, STEPS * 0 + 0.1, STEPS),
    }
    assert scalars_of({"run": [one]}) == {"depth": ["depth/rho"], "train": ["train/loss"]}
    words = words_of(draw_scalars({"run": [one]}, ["depth/rho"], {"depth/rho": "nats"}))
    assert {"interval", "measured", "deviation by chance", "rho (nats)", "step"} <= set(words)
    several = words_of(draw_scalars({"a": [one, one], "b": [one]}, ["depth/rho"], {}))
    assert "interval" not in several and {"a", "b"} <= set(several)
    assert draw_scalars({"run": [one]}, ["no/such"], {}) is None


def test_what_came_when_is_drawn_for_what_has_a_half_time() -> None:
    nan = float("nan")
    found = [half_time(curve) for curve in curves().values()]
    none = HalfTime("never", nan, nan, nan, nan, nan, nan, reason="it moved by 0")
    words = words_of(draw_chronology([*found, none]))
    assert "train/loss" in words and "depth/rho" in words and "never" not in words
    assert draw_chronology([none]) is None
