"""The search for rates: which stay, which is chosen, what the choice adds to the error, and when it stops."""

from typing import Any

import numpy as np
import pytest

from empirical.planning import search
from empirical.planning.comparison import Outcomes, as_good_as, chosen, deficit_of, standard_error
from empirical.planning.search import Lane, Start, lanes_of, raced, stacked
from empirical.planning.stand_in import Split

STEPS = 10


class _Known:
    """Trials whose accuracy at a rate is known, with noise common to all rates and noise of their own."""

    steps = STEPS

    def __init__(self, accuracy, common=0.02, own=0.01, seed=0):
        self.accuracy, self.common, self.own, self.seed = accuracy, common, own, seed
        self.most, self.made = 0, set()

    def run(self, head, splits, draws):
        self.most = max(self.most, draws)
        rows = []
        for split in splits:
            rate = split.lp_lr if split.lp_steps == STEPS else split.lr
            self.made |= {(head, split, draw) for draw in range(draws)}
            key = [self.seed, abs(hash((round(np.log(rate), 6), split.lp_steps))) % 2**32]
            shared = np.random.default_rng(self.seed).standard_normal(256)[:draws]
            own = np.random.default_rng(key).standard_normal(256)[:draws]
            rows.append(self.accuracy(rate, split) + self.common * shared + self.own * own)
        return Outcomes(np.array(rows), np.ones((len(rows), draws)))


# instead of Trials
Known: Any = _Known


def lane(rates, steps=0):
    return Lane("gaussian", lambda rate: Split(steps, 1.0, rate), list(rates))


def peaked(at):
    return lambda rate, split: 0.8 - 0.05 * np.log(rate / at) ** 2


@pytest.mark.parametrize("at", [1 / 81, 1.0, 81.0])
def test_rates_are_searched_beyond_the_start_where_accuracy_grows(at):
    trials, found = Known(peaked(at), own=0.0), lane([1 / 3, 1.0, 3.0])
    found.extend(trials, 4)
    assert at == pytest.approx(found.choose(trials, 4)[0])
    assert not found.last
    # as far as it takes, and one more
    assert max(found.rates) <= 3 * max(3.0, at) * 1.01


def test_the_search_ends_and_says_so():
    trials, found = Known(lambda rate, split: 0.1 * np.log(rate), own=0.0), lane([1.0, 3.0])
    found.extend(trials, 4)
    assert (len(found.rates), found.last) == (6, True)
    # equal accuracies are no reason to go on
    level = lane([1.0, 3.0])
    level.extend(Known(lambda rate, split: 0.5, own=0.0), 4)
    assert (len(level.rates), level.last) == (2, False)


def test_each_round_halves_the_rates_and_keeps_those_that_noise_does_not_tell_apart():
    trials, found = Known(peaked(1.0)), lane(3.0**k for k in range(-3, 4))
    for draws, most in ((4, 4), (8, 2), (16, 2)):
        found.narrow(trials, draws)
        assert len(found.rates) <= most
        assert 1.0 in [round(rate, 6) for rate in found.rates]
    # two that differ by less than noise both stay, one that is clearly worse goes
    level = lane([1.0, 3.0])
    level.narrow(Known(lambda rate, split: 0.8), 16)
    assert level.rates == [1.0, 3.0]
    level.narrow(Known(lambda rate, split: 0.8 - 0.1 * (rate > 1)), 16)
    assert level.rates == [1.0]


def test_of_rates_within_noise_the_smaller_one_is_chosen():
    same = Known(lambda rate, split: 0.8, own=0.0)
    assert lane([1.0, 3.0, 9.0]).choose(same, 16)[0] == 1.0
    better = Known(lambda rate, split: 0.8 + 0.1 * (rate == 3.0))
    assert lane([1.0, 3.0, 9.0]).choose(better, 16)[0] == 3.0


def test_the_choice_does_not_raise_the_accuracy_of_the_report():
    random = np.random.default_rng(0)
    reported, naive = [], []
    for _ in range(400):
        # all rates are equally good: the best looks better than it is
        accuracy = 0.5 + 0.1 * random.standard_normal((6, 16))
        found = chosen(accuracy, np.ones_like(accuracy))
        reported.append(found.accuracy.mean())
        naive.append(accuracy.mean(1).max())
    error = standard_error(np.array(reported))
    assert abs(np.mean(reported) - 0.5) < 4 * error
    # the control
    assert np.mean(naive) - 0.5 > 4 * standard_error(np.array(naive))


def test_errors_include_the_choice():
    random = np.random.default_rng(1)
    common = 0.1 * random.standard_normal(16)
    # two rates that differ from draw to draw, hardly on average; and one rate alone
    apart = np.array([common + 0.05, common + 0.05 + 0.1 * random.standard_normal(16)])
    either = chosen(apart, np.ones_like(apart))
    single = chosen(apart[:1], np.ones((1, 16)))
    assert single.error == 0
    assert either.error > 0
    rows = np.array([single.accuracy, either.accuracy - 0.02])
    _, plain = deficit_of(rows, np.ones_like(rows))
    _, whole = deficit_of(rows, np.ones_like(rows), np.array([0.0, either.error]))
    assert whole[1] == pytest.approx(np.hypot(plain[1], either.error))
    # which may make the difference
    assert as_good_as(rows, np.ones_like(rows), np.array([0.0, 1.0])).all()


def test_rounds_double_and_stop_when_shares_are_told_apart():
    def raced_with(own, resolution, gap=0.0):
        trials = Known(lambda rate, split: 0.8 - gap * (split.lp_steps > 0), own=own)
        lanes = [lane([1.0], steps=0), lane([1.0], steps=5)]
        return raced(trials, lanes, 128, resolution), trials

    n, trials = raced_with(own=0.001, resolution=0.005)
    assert n == trials.most == search.LEAST
    n, trials = raced_with(own=0.03, resolution=0.007)
    assert n in (16, 32, 64)
    assert deficit_of(*stacked(trials, [lane([1.0]), lane([1.0], 5)], n))[1].max() <= 0.007
    assert deficit_of(*stacked(trials, [lane([1.0]), lane([1.0], 5)], n // 2))[1].max() > 0.007
    # not for ever, and not for what is clearly worse
    assert raced_with(own=0.03, resolution=0.0)[0] == 128
    assert raced_with(own=0.03, resolution=0.0, gap=0.3)[0] == search.LEAST


def test_a_further_head_is_searched_around_the_rates_of_the_one_before():
    trials = Known(peaked(27.0))
    _, start = lanes_of(trials, "gaussian", [0, 5, STEPS], Start([1 / 3, 1.0, 3.0], [1.0]), 32)
    assert start.lp == pytest.approx([9.0, 27.0, 81.0])
    assert start.fft == pytest.approx([9.0, 27.0, 81.0])
    before = len(trials.made)
    found, _ = lanes_of(trials, "zero", [0, 5, STEPS], start, 32)
    # with fewer runs, to the same rates
    assert len(trials.made) - before < 0.8 * before
    for lane in found[:2]:
        assert lane.choose(trials, 32)[0] == pytest.approx(27.0)


def test_draws_are_common_to_heads_shares_and_rates():
    trials = Known(peaked(1.0), common=0.1)
    lanes = [
        found
        for head in ("gaussian", "zero")
        for found in lanes_of(trials, head, [0, 5, STEPS], Start([1 / 3, 1.0, 3.0], [1 / 3, 1.0, 3.0]), 32)[0]
    ]
    draws = raced(trials, lanes, 32, 0.0)
    assert draws == 32
    accuracy, _, _ = stacked(trials, lanes, draws)
    # noise of the draws is common: it cancels in differences
    assert accuracy.std(1).min() > 1.5 * (accuracy[1:] - accuracy[0]).std(1).max()
    # far fewer runs than all rates at all draws
    assert len(trials.made) < 0.7 * 6 * 5 * 32
