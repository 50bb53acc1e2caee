"""Another width of the local engine, against what people do without: side by side in one run.

    SIZES=example,200,1000 python -m bench elastic

Widths go up and down beside streams on paced devices, then latencies from the command to ready with
an idle engine, in turns with the baselines; all read each tensor once by its offset, on the same
kind of memory processes and ranks.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from bench.elastic.engines import models
from bench.elastic.ladder import ladder
from bench.elastic.latencies import latencies
from bench.elastic.memory import peaks, primitives
from bench.elastic.streams import streams
from bench.timing import console


def run() -> None:
    with TemporaryDirectory() as folder:
        for model in models(Path(folder)):
            console.rule(model.name)
            streams(model)
            latencies(model)
            ladder(model)
            peaks(model)
        primitives()
