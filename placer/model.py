"""ModelShape: the sizes of a Mixture-of-Experts model that placement depends on."""

from dataclasses import dataclass, replace

from placer.bounds import MOST_EXPERTS, MOST_LAYERS, check_bounds
from placer.errors import ModelError
from placer.names import lookup, ranges

BOUNDS = {
    "experts": (1, MOST_EXPERTS),
    "top_k": (1, MOST_EXPERTS),
    "hidden": (1, 2**24),
    "moe_intermediate": (1, 2**24),
    "groups": (1, MOST_EXPERTS),
    "hidden_layers": (1, MOST_LAYERS),
    "matrices": (2, 3),
    "zero_experts": (0, MOST_EXPERTS),
    "weight_bits": (0.1, 64),
    "dispatch_bits": (0.1, 64),
    "combine_bits": (0.1, 64),
    "other_bytes": (0, 2**50),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One model. Layers are counted among the layers that have experts.

    ``moe_layers`` are those layers' indices in the whole model, of ``hidden_layers`` layers; other
    engines' files count from there. Left out, all layers have experts, and none come after them.
    An expert has ``matrices`` matrices of ``hidden`` x ``moe_intermediate`` weights: gate, up and
    down, or 2 without a gate. ``zero_experts`` have ids after the experts' and no weights.
    ``other_bytes`` are the weights that every GPU holds besides its experts (attention, shared
    experts, embeddings), as with data-parallel attention. ``weight_bits`` are of a weight with its
    share of the scales, ``dispatch_bits`` and ``combine_bits`` of a value on the wire, there and
    back. Without ``sized`` the hidden sizes are stand-ins: times and bytes then mean nothing.

    Raises ModelError for what no model can be.
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    moe_intermediate: int
    groups: int = 1
    moe_layers: tuple[int, ...] = ()
    hidden_layers: int = 0
    matrices: int = 3
    zero_experts: int = 0
    weight_bits: float = 16.0
    dispatch_bits: float = 16.0
    combine_bits: float = 16.0
    other_bytes: int = 0
    sized: bool = True

    def __post_init__(self) -> None:
        check_bounds(self, {"layers": (1, MOST_LAYERS)}, ModelError, self.name)
        if not self.moe_layers:
            object.__setattr__(self, "moe_layers", tuple(range(self.layers)))
        if not self.hidden_layers:
            object.__setattr__(self, "hidden_layers", self.moe_layers[-1] + 1)
        check_bounds(self, BOUNDS, ModelError, self.name)
        self._check_layers()
        if self.top_k > self.experts + self.zero_experts:
            raise ModelError(
                f"{self.name}: top_k {self.top_k} exceeds its {self.experts} experts"
                ": check the model's config"
            )
        if self.experts % self.groups:
            raise ModelError(
                f"{self.name}: {self.experts} experts do not divide into {self.groups} groups"
                ": check the model's config"
            )

    def _check_layers(self) -> None:
        where, total = self.moe_layers, self.hidden_layers
        if len(where) != self.layers:
            raise ModelError(
                f"{self.name}: layers is {self.layers} but moe_layers lists {len(where)}"
                ": layers counts those with experts"
            )
        if list(where) != sorted(set(where)) or where[0] < 0 or where[-1] >= total:
            raise ModelError(
                f"{self.name}: moe_layers {ranges(where)} are not ascending indices below the "
                f"model's {total} layers: check moe_layers and hidden_layers"
            )

    @property
    def expert_bytes(self) -> int:
        """Weight bytes of one expert in one layer."""
        weights = self.matrices * self.hidden * self.moe_intermediate
        return max(round(weights * self.weight_bits / 8), 1)

    @property
    def expert_flops(self) -> int:
        """Floating-point operations of one token in one expert."""
        return 2 * self.matrices * self.hidden * self.moe_intermediate

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


MXFP4 = 4.25  # 4-bit values and an 8-bit scale for each 32 of them
INT4 = 4.5  # 4-bit values and a 16-bit scale for each 32 of them


def _model(
    name: str, dims: tuple[int, int, int], sizes: tuple[int, int], dense: int = 0, **more: object
) -> ModelShape:
    """dims: layers, experts, top-k; sizes: hidden, an expert's; dense: layers that come first."""
    where = tuple(range(dense, dense + dims[0]))
    return ModelShape(name, *dims, *sizes, moe_layers=where, **more)  # type: ignore[arg-type]


_DEEPSEEK_V3 = _model(
    "deepseek-v3",
    (58, 256, 8),
    (7168, 2048),
    3,
    groups=8,
    weight_bits=8,
    other_bytes=17_100_000_000,
)
_KIMI_K2 = _model(
    "kimi-k2", (60, 384, 8), (7168, 2048), 1, weight_bits=8, other_bytes=11_700_000_000
)
_GLM_45 = _model("glm-4.5", (89, 160, 8), (5120, 1536), 3, other_bytes=33_700_000_000)
_NEMOTRON_3_NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"

# From the models' public config.json; other_bytes is the published parameter count less the
# experts', in the checkpoint's own precision.
PRESETS: dict[str, ModelShape] = {
    model.name: model
    for model in (
        _model("mixtral-8x7b", (32, 8, 2), (4096, 14336), other_bytes=3_200_000_000),
        _model("deepseek-v2-lite", (26, 64, 6), (2048, 1408), 1, other_bytes=2_630_000_000),
        _DEEPSEEK_V3,
        replace(_DEEPSEEK_V3, name="deepseek-r1"),
        replace(_DEEPSEEK_V3, name="deepseek-v3.2", other_bytes=18_000_000_000),
        _model(
            "deepseek-v4-flash",
            (43, 256, 6),
            (4096, 2048),
            weight_bits=MXFP4,
            other_bytes=7_300_000_000,
        ),
        _model("qwen3-30b-a3b", (48, 128, 8), (2048, 768), other_bytes=3_080_000_000),
        _model("qwen3-235b-a22b", (94, 128, 8), (4096, 1536), other_bytes=15_900_000_000),
        _model("qwen3-next-80b-a3b", (48, 512, 10), (2048, 512), other_bytes=4_730_000_000),
        _model("qwen3.5-35b-a3b", (40, 256, 8), (2048, 512), other_bytes=4_900_000_000),
        _model("qwen3.5-397b-a17b", (60, 512, 10), (4096, 1024), other_bytes=19_600_000_000),
        _GLM_45,
        replace(_GLM_45, name="glm-4.6"),
        _model("glm-4.5-air", (45, 128, 8), (4096, 1408), 1, other_bytes=14_400_000_000),
        _model("minimax-m2", (62, 256, 8), (3072, 1536), weight_bits=8, other_bytes=4_010_000_000),
        _model("llama-4-scout", (48, 16, 1), (5120, 8192), other_bytes=22_300_000_000),
        replace(
            _model("llama-4-maverick", (24, 128, 1), (5120, 8192), other_bytes=28_300_000_000),
            moe_layers=tuple(range(1, 48, 2)),
            hidden_layers=48,
        ),
        _model(
            "gpt-oss-20b", (24, 32, 4), (2880, 2880), weight_bits=MXFP4, other_bytes=3_600_000_000
        ),
        _model(
            "gpt-oss-120b", (36, 128, 4), (2880, 2880), weight_bits=MXFP4, other_bytes=4_300_000_000
        ),
        _model("olmoe-1b-7b", (16, 64, 8), (2048, 1024), other_bytes=950_000_000),
        _KIMI_K2,
        # What is not an expert is in 16 bits here.
        replace(_KIMI_K2, name="kimi-k2-thinking", weight_bits=INT4, other_bytes=23_400_000_000),
        _model("ernie-4.5-21b-a3b", (27, 64, 6), (2560, 1536), 1, other_bytes=2_880_000_000),
        _model("ernie-4.5-300b-a47b", (51, 64, 8), (8192, 3584), 3, other_bytes=24_000_000_000),
        _model("hunyuan-a13b", (32, 64, 8), (4096, 3072), other_bytes=6_170_000_000),
        _model(
            "longcat-flash",
            (28, 512, 12),
            (6144, 2048),
            zero_experts=256,
            other_bytes=39_000_000_000,
        ),
        ModelShape(
            "nemotron-3-nano-30b-a3b",
            *(23, 128, 6, 2688, 1856),
            moe_layers=tuple(at for at, kind in enumerate(_NEMOTRON_3_NANO) if kind == "E"),
            matrices=2,
            other_bytes=4_410_000_000,
        ),
    )
}


def preset(name: str) -> ModelShape:
    """The preset of that name, in any case. Raises ModelError with the nearest name."""
    return lookup("model", name, PRESETS, ModelError, " (or give a file: YAML or config.json)")


def matching(layers: int, top_k: int, experts_seen: int) -> ModelShape | None:
    """The one preset with these layers and top-k and at least the experts seen, if just one.

    Presets that differ in name and ``other_bytes`` alone are one: the first of them.
    """
    found = [
        model
        for model in PRESETS.values()
        if (model.layers, model.top_k) == (layers, top_k) and model.experts >= experts_seen
    ]
    shapes = {replace(model, name="", other_bytes=0) for model in found}
    return found[0] if len(shapes) == 1 else None
