"""ModelShape: the sizes of a Mixture-of-Experts model that placement depends on."""

from dataclasses import dataclass, replace

from placer.bounds import MOST_EXPERTS, MOST_LAYERS, check_bounds
from placer.errors import ModelError
from placer.names import lookup


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model. Layers are counted among the layers that have experts.

    ``first_moe_layer`` is the index, in the whole model, of the first of them; the formats of
    other engines count from there. ``other_bytes`` are the weights that every GPU holds besides
    its experts (attention, shared experts, embeddings), as with data-parallel attention.
    ``dispatch_bits`` and ``combine_bits`` are of each value on the wire, there and back.
    Without ``sized`` the hidden sizes are stand-ins: times and bytes then mean nothing.
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    moe_intermediate: int
    groups: int = 1
    first_moe_layer: int = 0
    weight_bits: float = 16.0
    dispatch_bits: float = 16.0
    combine_bits: float = 16.0
    other_bytes: int = 0
    sized: bool = True

    def __post_init__(self) -> None:
        for field in ("layers", "experts", "top_k", "hidden", "moe_intermediate", "groups"):
            if getattr(self, field) < 1:
                raise ModelError(
                    f"{self.name}: {field} is {getattr(self, field)}: it must be 1 or more"
                )
        bounds = {
            "layers": (1, MOST_LAYERS),
            "first_moe_layer": (0, MOST_LAYERS),
            "experts": (1, MOST_EXPERTS),
            "hidden": (1, 2**24),
            "moe_intermediate": (1, 2**24),
            "weight_bits": (0.1, 64),
            "dispatch_bits": (0.1, 64),
            "combine_bits": (0.1, 64),
            "other_bytes": (0, 2**50),
        }
        check_bounds(self, bounds, ModelError, self.name)
        if self.top_k > self.experts:
            raise ModelError(
                f"{self.name}: top_k {self.top_k} exceeds its {self.experts} experts"
                ": check the model's config"
            )
        if self.experts % self.groups:
            raise ModelError(
                f"{self.name}: {self.experts} experts do not divide into {self.groups} groups"
                ": check the model's config"
            )

    @property
    def expert_bytes(self) -> int:
        """Weight bytes of one expert in one layer: gate, up and down projections."""
        return max(round(3 * self.hidden * self.moe_intermediate * self.weight_bits / 8), 1)

    @property
    def expert_flops(self) -> int:
        """Floating-point operations of one token in one expert."""
        return 6 * self.hidden * self.moe_intermediate

    @property
    def dispatch_bytes(self) -> float:
        """Bytes of one token's activation on its way to its experts."""
        return self.hidden * self.dispatch_bits / 8

    @property
    def combine_bytes(self) -> float:
        """Bytes of one token's result on its way back."""
        return self.hidden * self.combine_bits / 8

    @property
    def dims(self) -> str:
        return f"{self.layers} layers x {self.experts} experts, top-{self.top_k}"


_DEEPSEEK_V3 = ModelShape(
    "deepseek-v3", 58, 256, 8, 7168, 2048, 8, 3, weight_bits=8, other_bytes=17_100_000_000
)

# From the models' public config.json; other_bytes is the published parameter count less the
# experts', in the checkpoint's own precision.
PRESETS: dict[str, ModelShape] = {
    model.name: model
    for model in (
        ModelShape("mixtral-8x7b", 32, 8, 2, 4096, 14336, other_bytes=3_200_000_000),
        ModelShape(
            "deepseek-v2-lite", 26, 64, 6, 2048, 1408, first_moe_layer=1, other_bytes=2_630_000_000
        ),
        _DEEPSEEK_V3,
        replace(_DEEPSEEK_V3, name="deepseek-r1"),
        ModelShape("qwen3-30b-a3b", 48, 128, 8, 2048, 768, other_bytes=3_080_000_000),
        ModelShape("qwen3-235b-a22b", 94, 128, 8, 4096, 1536, other_bytes=15_900_000_000),
        # MXFP4: 4-bit values and an 8-bit scale for each 32 of them.
        ModelShape(
            "gpt-oss-20b", 24, 32, 4, 2880, 2880, weight_bits=4.25, other_bytes=3_600_000_000
        ),
        ModelShape(
            "gpt-oss-120b", 36, 128, 4, 2880, 2880, weight_bits=4.25, other_bytes=4_300_000_000
        ),
        ModelShape("olmoe-1b-7b", 16, 64, 8, 2048, 1024, other_bytes=950_000_000),
        ModelShape(
            "kimi-k2",
            60,
            384,
            8,
            7168,
            2048,
            first_moe_layer=1,
            weight_bits=8,
            other_bytes=11_700_000_000,
        ),
    )
}


def preset(name: str) -> ModelShape:
    """The preset of that name, in any case. Raises ModelError with the nearest name."""
    return lookup("model", name, PRESETS, ModelError, " (or give a file: YAML or config.json)")


def matching(layers: int, top_k: int, experts_seen: int) -> ModelShape | None:
    """The one preset with these layers and top-k and at least the experts seen, if just one."""
    found = [
        model
        for model in PRESETS.values()
        if (model.layers, model.top_k) == (layers, top_k) and model.experts >= experts_seen
    ]
    return found[0] if len({replace(model, name="") for model in found}) == 1 else None
