"""The rule of ElasticMoE (arXiv 2510.02613): a step up below the objective, down at low load.

    up    if attainment in the window < ``attainment``
    down  if not, and prompt tokens computed in the window < ``load`` * those of full speed

The paper has 90% and "low load"; window, cool-down, step and what low means are not in it and are
settings here. Where full speed was never seen, low means that nobody waited.

It loses whenever load rises fast: attainment falls when first tokens come late, so at the end of a
queue, and each step up waits for a window that shows the one before.
"""

from controller.policies.policy import Answer, Scaling, Wish
from controller.size_settings import Autoscale


def threshold(scaling: Scaling, settings: Autoscale, answer: Answer) -> Wish:
    """A step up, a step down, or what stands."""
    size, signals, window_s = scaling.size, scaling.signals, settings.window_s
    met = signals.attainment(settings.ttft_s, settings.tpot_s, window_s)
    step = settings.step * size.engines
    share = f"{met:.1%} of the last {window_s:g} s in time"
    if met < settings.attainment:
        return Wish(size.gpus + step, f"{share} < {settings.attainment:.0%}")
    used = utilisation(scaling, window_s)
    told = f"{share}, ranks used at {used:.0%}"
    if used < settings.load and signals.now.sums.waiting == 0:
        return Wish(size.gpus - step, f"{told} < {settings.load:.0%} and nobody waits")
    return Wish(size.gpus, told)


def utilisation(scaling: Scaling, window_s: float) -> float:
    """Prompt tokens computed, of those at full speed; 0 if that was never seen."""
    signals = scaling.signals
    now, then = signals.now, signals.before(window_s)
    took_s = now.at_s - then.at_s
    if took_s <= 0 or not scaling.full_rate:
        return 0.0
    tokens = now.sums.prompt_tokens - then.sums.prompt_tokens
    return tokens / took_s / (scaling.full_rate * scaling.size.gpus)
