"""From the arguments of a verb to values: which model, which traffic, which hardware."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from placer.cli.console import note, progress
from placer.errors import FileError, ModelError, PlacementError
from placer.files.atomic import sha256
from placer.files.conventions import Survey
from placer.files.faults import first_fault
from placer.files.routing import (
    Header,
    read_chunks,
    read_header,
    read_profile,
    read_trace,
    survey_of,
)
from placer.files.specs import read_model, read_topology, shape_of
from placer.model import ModelShape, matching, preset
from placer.plan import Input
from placer.profile import Profile, merge, of_chunks, of_trace
from placer.topology import Topology
from placer.trace import Trace, concatenate, told

DEFAULT_TOPOLOGY = "h100"

Overlap = Annotated[
    float,
    typer.Option(
        help="Share of communication that the engine hides behind the experts' work.", min=0, max=1
    ),
]
Guard = Annotated[
    float,
    typer.Option(help="Share of unknown traffic to plan for beside the recorded.", min=0, max=1),
]


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """What was recorded. ``profile`` is what to plan from, ``fit`` the trace behind it, if it is
    one, and ``holdout`` the sequences set apart."""

    model: ModelShape
    profile: Profile
    fit: Trace | None
    holdout: Trace | None
    inputs: tuple[Input, ...]


def load_traffic(
    paths: Sequence[Path],
    model_name: str | None,
    holdout: float | None,
    seed: int,
    only_traces: bool = True,
    clustered: bool = False,
) -> Traffic:
    """Traces and profiles as one. Only traces can be held out or measured on: with ``only_traces``
    a hold-out of profiles is refused, without it is left out. Clusters of requests are there only
    if asked for, and then they must be."""
    headers = [read_header(path) for path in paths]
    model = resolve_model(headers, model_name)
    inputs = tuple(Input(str(h.path), sha256(h.path), h.tokens) for h in headers)
    if any(header.kind == "profile" for header in headers):
        if holdout is not None and only_traces:
            raise FileError("--holdout needs sequences and a profile has none: give traces")
        profile = read_profiles(headers, model, clustered)
        if clustered and profile.clusters is None:
            raise FileError(
                "--homes needs requests and a profile has none: give traces, or profiles made with "
                "--clusters"
            )
        if not clustered:
            profile = replace(profile, clusters=None)
        return Traffic(model, profile, None, None, inputs)
    trace = read_traces(headers, model)
    if holdout is None:
        return Traffic(model, of_trace(trace, clustered), trace, None, inputs)
    fit, held_out = trace.split(holdout, seed)
    return Traffic(model, of_trace(fit, clustered), fit, held_out, inputs)


def read_traces(headers: Sequence[Header], model: ModelShape) -> Trace:
    for header in headers:
        if header.kind != "trace":
            raise FileError(f"{header.path} is a profile: give a trace, which has the tokens")
    trace = concatenate([read_trace(header.path, model) for header in headers])
    _say(trace.notes)
    return trace


def read_profiles(headers: Sequence[Header], model: ModelShape, clustered: bool = False) -> Profile:
    """Profiles as they are and traces counted, piece by piece, into one profile."""
    parts = []
    total = sum(header.tokens or 0 for header in headers)
    with progress("counting", total) as bar:
        task = bar.task_ids[0]
        for header in headers:
            if header.outdated:
                note(
                    f"{header.path}: transitions left out: an older placer counted them for one "
                    "expert of a token alone; record again, or count the trace again"
                )
            if header.kind == "profile":
                parts.append(read_profile(header.path, model))
                bar.advance(task, header.tokens or 0)
                continue

            def counted(header: Header = header) -> Any:
                for chunk in read_chunks(header.path, model):
                    yield chunk
                    bar.advance(task, chunk.tokens)

            parts.append(of_chunks(counted(), clustered))
    profile = merge(parts)
    _say(profile.notes)
    return profile


def _say(notes: Mapping[str, float]) -> None:
    for text in told(notes):
        note(text)


def resolve_model(headers: Sequence[Header], name: str | None) -> ModelShape:
    """--model, or what the files say, or the one preset that has these dimensions."""
    if name is not None:
        return read_model(name)
    first = headers[0]
    for other in headers[1:]:
        if other.layers != first.layers or (
            None not in (other.top_k, first.top_k) and other.top_k != first.top_k
        ):
            raise ModelError(
                f"{first.path} has {first.layers} layers and top-{first.top_k} but {other.path} "
                f"has {other.layers} and top-{other.top_k}: give recordings of one model only"
            )
    for header in headers:
        if (recorded := header.meta.get("model")) is not None:
            return _recorded_model(header, recorded)
    seen = [_seen(header) for header in headers]
    experts, top_k = max(one.experts for one in seen), seen[0].top_k
    if found := matching(first.layers, top_k, experts):
        note(f"taken as {found.name}, which has {found.dims}; --model says otherwise")
        return found
    note(
        f"no preset has {first.layers} layers and top-{top_k}: taken as {experts} experts of "
        "unknown size, without times and bytes; give --model for those"
    )
    return ModelShape("unknown", first.layers, experts, top_k, 4096, 2048, sized=False)


def _seen(header: Header) -> Survey:
    """What a file that does not name its model says of it."""
    if header.kind == "trace":
        return survey_of(header.path)
    if header.top_k is None or header.experts is None:
        raise ModelError(
            f"{header.path} has loads alone: give --model, which says the top-k (of how many tokens"
            " they are follows)"
        )
    return Survey(header.experts, header.top_k)


def _recorded_model(header: Header, recorded: Any) -> ModelShape:
    if isinstance(recorded, str):
        return preset(recorded)  # never a path: a recording does not say what else is read
    try:
        return shape_of(recorded)
    except ValidationError as error:
        raise ModelError(
            f"{header.path}: its model's {first_fault(error)}: give --model"
        ) from error


def resolve_topology(name: str | None, gpus: int | None, nodes: int | None) -> Topology:
    """A preset or file, resized where --gpus or --nodes ask for it."""
    if name is None and gpus is None:
        raise PlacementError("where to? give --gpus 8, or --topology with a preset or a file")
    found = read_topology(name or DEFAULT_TOPOLOGY)
    if gpus is None and nodes is None:
        return found
    return found.resized(found.gpus if gpus is None else gpus, nodes)
