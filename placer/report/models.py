"""A model as it was understood, for people to check and for programs."""

from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from placer.files.configs import Reading
from placer.names import ranges


def rows(found: Reading) -> list[tuple[str, str]]:
    """What is worth checking: (what, how much)."""
    shape = found.shape
    kinds = "gate, up and down" if shape.matrices == 3 else "up and down, no gate"
    rows = [
        (
            "layers with experts",
            f"{shape.layers} of {shape.hidden_layers}: {ranges(shape.moe_layers)}",
        ),
        ("experts", f"{shape.experts}, of which a token uses {shape.top_k}"),
        ("groups", str(shape.groups)),
        ("hidden size", str(shape.hidden)),
        ("expert size", f"{shape.moe_intermediate}, {shape.matrices} matrices ({kinds})"),
        ("bits of a weight", f"{shape.weight_bits:g} ({found.precision})"),
        ("bits on the wire", f"{shape.dispatch_bits:g} out, {shape.combine_bits:g} back"),
        ("bytes of an expert", decimal(shape.expert_bytes)),
        ("bytes of all experts", decimal(_all_bytes(found))),
        (
            "bytes besides, on each GPU",
            decimal(shape.other_bytes) if shape.other_bytes else "not said",
        ),
    ]
    if shape.zero_experts:
        last = shape.experts + shape.zero_experts - 1
        zero = f"{shape.zero_experts}, ids {shape.experts}-{last}, without weights"
        rows.insert(2, ("zero experts", zero))
    return rows


def as_json(found: Reading) -> dict[str, Any]:
    sizes = {"expert_bytes": found.shape.expert_bytes, "experts_bytes": _all_bytes(found)}
    return asdict(found.shape) | sizes | {"precision": found.precision, "notes": found.notes}


def _all_bytes(found: Reading) -> int:
    shape = found.shape
    return shape.expert_bytes * shape.experts * shape.layers
