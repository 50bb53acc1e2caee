from dataclasses import replace

from rich.console import Console

from placer.profile import Profile, of_trace
from placer.report.terminal import of_profile
from tests.builders import a_trace


def printed(profile: Profile) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(of_profile(profile))
    return capture.get()


def test_a_profile_is_shown_with_its_variety_where_requests_were_told_apart() -> None:
    profile = of_trace(a_trace([[[at % 4]] for at in range(640)], seq_lens=[64] * 10))
    assert profile.variety is not None
    assert f"│ {profile.variety:>7.2f} │" in printed(profile)
    assert f"│ {'-':>7} │" in printed(replace(profile, spread=None))
