"""What a worker says of itself."""

from dataclasses import dataclass

GONE_S = 60.0  # one that was silent for so long is taken for gone: agents pause up to 20 s


@dataclass(frozen=True, slots=True)
class Worker:
    """What does not change while it runs.

    name:     of the worker among those of its engine, such as ``worker-3``
    model:    name, and in ``dims`` layers x experts and top-k, of the experts alone
    slots:    physical experts a layer, of all ranks
    ep_rank, ep_size: its place in expert parallelism
    can_apply: whether the engine's balancer is on, which moves the weights
    records:  whether it counts; of ranks that see the same tokens the first does
    can_resize, can_replicate: whether its engine can have other ranks, or more physical experts,
              while it serves
    tp_size, most_ranks: ranks of a tensor-parallel group, of which a width is a multiple, and the
              most that its engine can have; 0 if they are not known
    vocabulary: the hash of its tokenizer's file; empty if that is not known
    """

    name: str
    model: str
    layers: int
    experts: int
    top_k: int
    slots: int
    ep_rank: int
    ep_size: int
    can_apply: bool
    records: bool
    can_resize: bool = False
    can_replicate: bool = False
    tp_size: int = 0
    most_ranks: int = 0
    vocabulary: str = ""

    @property
    def dims(self) -> str:
        return f"{self.layers} layers x {self.experts} experts"


@dataclass(frozen=True, slots=True)
class Pod:
    """Where it runs in Kubernetes, and on which node; empty outside of it."""

    name: str = ""
    uid: str = ""
    node: str = ""


NOWHERE = Pod()


@dataclass(frozen=True, slots=True)
class Identity:
    """A worker's names and addresses, to a controller.

    pool:   engines that serve the same model; those of one width share a plan
    engine: the expert-parallel group of workers that it belongs to
    actor:  the Ray actor that carries out migrations; without one the engine moves by itself
    api:    the API server that changes the engine's width, if somebody said
    metrics: where the engine answers with its metrics, if somebody said
    pod:    where it runs, if somebody said
    """

    pool: str
    engine: str
    actor: str = ""
    api: str = ""
    metrics: str = ""
    pod: Pod = NOWHERE


@dataclass(frozen=True, slots=True)
class Status:
    """What does.

    epoch, digest: of the plan that was applied last, as read back from the engine's map
    refused:   the epoch of a plan that it will not apply, and why
    tokens:    counted and pushed so far; ``dropped`` pushes were lost
    condition: what keeps it from its work
    """

    worker: Worker
    epoch: int = 0
    digest: str = ""
    refused_epoch: int = 0
    refused: str = ""
    tokens: int = 0
    dropped: int = 0
    condition: str = ""
