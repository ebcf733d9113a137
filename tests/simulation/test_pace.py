"""What checkpoints may cost, and the time that is left, on a clock that the test turns."""

import pytest

from tf_dpfl.simulation.pace import LARGEST_CHECKPOINT_SHARE, Pace


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize("round_s", [0.001, 0.05, 1.0, 60.0])
@pytest.mark.parametrize("checkpoint_s", [0.0, 0.1, 5.0])
def test_checkpoints_take_no_more_than_their_share_of_the_time(clock, round_s, checkpoint_s):
    pace, spent, written = Pace(rounds=10_000, clock=clock), 0.0, 0
    for _ in range(10_000):
        clock.now += round_s
        if pace.allows_checkpoint():
            with pace.checkpoint():
                clock.now += checkpoint_s
            spent, written = spent + checkpoint_s, written + 1
    elapsed = clock.now - 1000.0
    # The first one is written whatever it costs.
    assert spent <= max(checkpoint_s, LARGEST_CHECKPOINT_SHARE * elapsed)
    if checkpoint_s <= LARGEST_CHECKPOINT_SHARE * round_s / 2:
        assert written == 10_000  # affordable ones are all written
    # Nor are they put off for longer than the share asks for.
    if written < 10_000:
        assert spent >= 0.9 * LARGEST_CHECKPOINT_SHARE * elapsed - checkpoint_s


def test_time_left_is_the_rounds_left_at_the_speed_so_far(clock):
    pace = Pace(rounds=10, clock=clock)
    clock.now += 6.0
    assert pace.seconds_left(3) == pytest.approx(14.0)
    clock.now += 14.0
    assert pace.seconds_left(10) == 0.0
