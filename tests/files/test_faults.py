"""The one line that somebody reads whose file is wrong."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from placer.files.documents import of_yaml
from placer.files.faults import first_fault


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Square(Strict):
    side: int


class Circle(Strict):
    radius: int
    colour: str = "red"


class Drawing(Strict):
    title: str
    size: Literal["small", "large"] = "small"
    shapes: dict[str, Square | Circle] = {}
    layers: list[Square] = []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("titel: a", "titel: there is no such key: did you mean 'title'? (line 1)"),
        ("title: a\nzoom: 3", "zoom: there is no such key: use one of layers, shapes, size, title"
         " (line 2)"),
        ("size: small", "title: field required"),
        ("title: a\nsize: 7", "size: input should be 'small' or 'large' (it has 7) (line 2)"),
        # Of two forms the one that it comes nearest to, without the form's own name.
        ("title: a\nshapes:\n  x: {radius: 2, color: blue}",
         "shapes.x.color: there is no such key: did you mean 'colour'? (line 3)"),
        ("title: a\nshapes:\n  Square: {side: a}", "shapes.Square.side: input should be a valid"
         " integer, unable to parse string as an integer (it has 'a') (line 3)"),
        ("title: a\nshapes:\n  x: {}", "shapes.x: side or radius is needed (line 3)"),
        ("title: a\nshapes:\n  x:\n    corner: 1", "shapes.x.corner: there is no such key: use one"
         " of colour, radius, side (line 4)"),
        ("title: a\nlayers:\n- side: 1\n- side: 1\n  sides: 4",
         "layers.1.sides: there is no such key: did you mean 'side'? (line 5)"),
        ("[1, 2]", "the file: input should be a valid dictionary or instance of drawing"
         " (it has [1, 2])"),
    ],
)  # fmt: skip
def test_a_fault_names_the_key_what_was_meant_and_the_line(text: str, fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(of_yaml(text, "a text"))
    assert first_fault(caught.value, Drawing, text) == fault


def test_without_the_type_a_fault_is_told_as_it_is() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Square).validate_python({"sid": 1, "side": 2})
    assert first_fault(caught.value) == "sid: extra inputs are not permitted"
