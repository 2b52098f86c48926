from appliance.runtime.schedule.pulse import FIRST, SILENCE, UNSEEN, Pulse


class Heard:
    def __init__(self, warmup: tuple[int, float] | None = None) -> None:
        self.beats: list[tuple[int, float]] = []
        self.pulse = Pulse(lambda steps, limit: self.beats.append((steps, limit)), warmup)


def test_of_the_first_step_nothing_is_known() -> None:
    heard = Heard()
    heard.pulse.before(100, 0, now=0.0)
    assert heard.beats == [(0, FIRST)]


def test_a_size_seen_before_is_short_again() -> None:
    pulse = Heard(warmup=(100, 0.01)).pulse
    assert pulse.limit(100) == SILENCE
    assert pulse.limit(4) == SILENCE
    assert pulse.limit(1000) == UNSEEN


def test_a_slow_machine_gets_the_time_it_needs() -> None:
    pulse = Heard(warmup=(1, 1.0)).pulse
    assert pulse.limit(1) == SILENCE
    assert 16 < pulse.limit(16) < 100
    pulse.took(16, 8.0)
    assert pulse.limit(16) == 24.0


def test_beats_are_few_while_steps_are_short() -> None:
    heard = Heard(warmup=(1, 0.001))
    for step in range(100):
        heard.pulse.before(1, step, now=step * 0.01)
        heard.pulse.after(1, 0.001, step + 1, now=step * 0.01 + 0.001)
    assert 3 <= len(heard.beats) <= 5


def test_after_a_long_step_the_silence_is_short_again() -> None:
    heard = Heard(warmup=(1, 0.001))
    heard.pulse.before(1, 0, now=0.0)
    heard.pulse.before(1000, 1, now=0.001)
    heard.pulse.after(1000, 0.1, 2, now=0.1)
    assert [limit for _, limit in heard.beats] == [SILENCE, UNSEEN, SILENCE]


def test_an_idle_loop_beats_too() -> None:
    heard = Heard()
    for tick in range(9):
        heard.pulse.idle(5, now=tick * 0.25)
    assert len(heard.beats) == 9
