"""Topology: GPUs, the nodes they stand in, and the links between them."""

from dataclasses import dataclass, replace

import numpy as np

from placer.arrays import IntArray
from placer.bounds import check_bounds
from placer.errors import TopologyError
from placer.names import lookup

GB = 10**9
MOST_GPUS = 4096
MOST_RATE = 1e30  # as good as infinite; a sum of them is still finite
MOST_LATENCY_S = 60.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. Peaks are the vendor's dense figures."""

    flops_16bit: float
    flops_8bit: float
    hbm_bytes: int
    hbm_bytes_per_s: float

    def __post_init__(self) -> None:
        check_bounds(self, dict.fromkeys(self.__slots__, (1, MOST_RATE)), TopologyError, "a GPU")


@dataclass(frozen=True, slots=True)
class Link:
    """One GPU's share of a link class, each way."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        bounds = {"bytes_per_s": (1, MOST_RATE), "latency_s": (0, MOST_LATENCY_S)}
        check_bounds(self, bounds, TopologyError, "a link")


@dataclass(frozen=True, slots=True)
class Topology:
    """``gpus`` accelerators in ``nodes`` equal nodes; ranks are laid node after node.

    ``local`` joins the GPUs of a node (NVLink, HCCS, PCIe), ``network`` joins the nodes. A node
    is also the fault domain: it fails as a whole.
    """

    name: str
    gpus: int
    nodes: int
    gpu: Gpu
    local: Link
    network: Link

    def __post_init__(self) -> None:
        bounds = dict.fromkeys(("gpus", "nodes"), (1, MOST_GPUS))
        check_bounds(self, bounds, TopologyError, f"topology {self.name}")
        if self.gpus % self.nodes:
            raise TopologyError(
                f"{self.gpus} GPUs do not divide into {self.nodes} equal nodes"
                f": use a node count that divides {self.gpus}"
            )

    @property
    def gpus_per_node(self) -> int:
        return self.gpus // self.nodes

    @property
    def title(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{self.gpus} GPUs in {nodes} ({self.name})"

    @property
    def node_of(self) -> IntArray:
        """[gpus] the node of each GPU."""
        return np.arange(self.gpus) // self.gpus_per_node

    def resized(self, gpus: int, nodes: int | None = None) -> "Topology":
        """The same hardware with other counts; without ``nodes``, nodes of today's size."""
        if nodes is None:
            size = min(self.gpus_per_node, max(gpus, 1))
            if gpus < 1:
                raise TopologyError(f"{gpus} GPUs hold no experts: give 1 or more")
            if gpus % size:
                raise TopologyError(
                    f"{gpus} GPUs do not fill nodes of {self.gpus_per_node} ({self.name})"
                    ": give --nodes as well, or a topology file with nodes of another size"
                )
            nodes = gpus // size
        return replace(self, gpus=gpus, nodes=nodes)


_ROCE_400G = Link(50 * GB, 8e-6)
_ROCE_200G = Link(25 * GB, 8e-6)

# One node of each kind. Sources: the vendors' data sheets (dense FLOPS, one-way link rates).
PRESETS: dict[str, Topology] = {
    node.name: node
    for node in (
        Topology(
            "h100",
            8,
            1,
            Gpu(989e12, 1979e12, 80 * GB, 3.35e12),
            Link(450 * GB, 3e-6),
            _ROCE_400G,
        ),
        Topology(
            "h200",
            8,
            1,
            Gpu(989e12, 1979e12, 141 * GB, 4.8e12),
            Link(450 * GB, 3e-6),
            _ROCE_400G,
        ),
        Topology(
            "gb200-nvl72",
            72,
            1,
            Gpu(2500e12, 5000e12, 186 * GB, 8e12),
            Link(900 * GB, 3e-6),
            _ROCE_400G,
        ),
        Topology(
            "a100",
            8,
            1,
            Gpu(312e12, 312e12, 80 * GB, 2.04e12),
            Link(300 * GB, 3e-6),
            _ROCE_200G,
        ),
        # Eight L40S on PCIe 4.0 x16, one 100 Gb/s port for two of them.
        Topology(
            "pcie-l40s",
            8,
            1,
            Gpu(362e12, 733e12, 48 * GB, 0.864e12),
            Link(25 * GB, 10e-6),
            Link(6.25 * GB, 10e-6),
        ),
        Topology(
            "ascend-910b",
            8,
            1,
            Gpu(313e12, 313e12, 64 * GB, 1.6e12),
            Link(196 * GB, 5e-6),
            _ROCE_200G,
        ),
    )
}


def preset(name: str) -> Topology:
    """One node of the preset of that name. Raises TopologyError with the nearest name."""
    return lookup("topology", name, PRESETS, TopologyError, " (or give a YAML file)")
