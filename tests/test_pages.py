"""Parts of HTML pages: tables, pictures, and curves."""

from xml.etree import ElementTree

import torch

from chainrule.images import to_pil
from chainrule.pages import Line, document, lines, picture, table


def test_curves_lie_in_the_plot_and_carry_their_names():
    svg = ElementTree.fromstring(lines([Line([(0, 5), (100, 1)], "a & b"), Line([(50, 3)], "c")], "step", "nats"))
    curves = [one for one in svg.iter("polyline") if "curve" in one.get("class")]
    places = [tuple(map(float, place.split(","))) for place in curves[0].get("points").split()]
    assert places[0] == (64, 34) and places[1] == (536, 272)
    texts = [one.text for one in svg.iter("text")]
    assert "a & b" in texts and "c" in texts and {"0", "20", "100", "step", "nats"} <= set(texts)


def test_equal_values_have_an_axis():
    assert "<polyline" in lines([Line([(1, 2), (2, 2)], "even")], "x", "y")


def test_what_is_given_is_text(tmp_path):
    assert "&lt;b&gt;" in table(["<b>"], [["x"]]) and "&lt;i&gt;" in table(["x"], [["<i>"]], words=True)
    to_pil(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].save(tmp_path / "a.png")
    assert '&lt;a&gt;"><figcaption>&lt;b&gt;' in picture(tmp_path / "a.png", "<b>", "<a>")
    assert document("<t>", ["<p>markup</p>"]).count("<p>markup</p>") == 1
