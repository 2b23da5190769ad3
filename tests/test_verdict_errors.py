"""How often verdicts err, by simulation: `pytest -s tests/test_verdict_errors.py` prints the rates.

Tolerances are four standard errors of a share of the simulations, so that a correct rule fails about once in 16,000.
"""

from operator import attrgetter

import numpy as np
import pytest
from repro_data import Scores, claim, result
from scipy import stats as scipy_stats

from mmkit import stats
from mmkit.repro import claims, guards
from mmkit.repro.claims import Claim

FIELDS = ("effect", "low", "high", "low90", "high90", "error", "df")
SMALLEST, SEEDS, REPEATS = 0.02, 10, 3000
DIRECTED = Claim.model_validate(claim(smallest_effect=SMALLEST, seeds=SEEDS))
EQUAL = Claim.model_validate(claim(smallest_effect=SMALLEST, seeds=SEEDS, direction="equal"))


def slack(rate, repeats=REPEATS):
    return 4 * np.sqrt(rate * (1 - rate) / repeats)


def said(what, rate, wanted):
    print(f"\n{what}: {rate:.1%} ({wanted})", end="")
    return rate


def stacked(estimates):
    """Many estimates as one of arrays."""
    values = np.array([attrgetter(*FIELDS)(one) for one in estimates]).T
    return stats.Estimate(*values, effects=np.stack([one.effects for one in estimates]))


def crossed(rng, effect, *, seeds=SEEDS, of_seed=0.01, of_cluster=0.06, of_cell=0.1, count=None):
    """The estimate of one comparison with a true effect, noise of seeds, of clusters and of their cells."""
    count = np.ones(40) if count is None else np.asarray(count, dtype=float)
    shape = seeds, len(count)
    values = effect + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_cluster, shape[1])
    values = values + rng.normal(0, of_cell, shape)
    return stats.t_estimate([stats.Term(values * count, np.broadcast_to(count, shape), 1.0, "test")])


def by_seeds(rng, effects, spread=0.02, seeds=SEEDS):
    """Comparisons of true effects, (R,), where only seeds differ: an estimate of arrays."""
    drawn = np.asarray(effects)[:, None] + rng.normal(0, spread, (len(effects), seeds))
    error = drawn.std(axis=1, ddof=1) / np.sqrt(seeds)
    half, half90 = scipy_stats.t.ppf([0.975, 0.95], seeds - 1)
    mean = drawn.mean(axis=1)
    ends = mean - half * error, mean + half * error, mean - half90 * error, mean + half90 * error
    return stats.Estimate(mean, *ends, error, np.full(len(mean), seeds - 1.0), drawn)


def judged(declared, estimate):
    return claims.outcome(declared, estimate, *claims.p_values(declared, estimate, draws=4000))


def rates(found):
    names, counts = np.unique(found, return_counts=True)
    return dict(zip(names.tolist(), (counts / len(found)).tolist(), strict=True))


@pytest.fixture(scope="module")
def drawn():
    """Outcomes of a claim of more than the smallest effect, by the true effect in units of it."""
    rng, found = np.random.default_rng(20), {}
    for factor in (0.0, 1.0, 2.0, 4.0):
        made = stacked([crossed(rng, factor * SMALLEST) for _ in range(REPEATS)])
        found[factor] = rates(judged(DIRECTED, made))
    return found


def test_no_effect_is_seldom_supported_or_contradicted(drawn):
    either = drawn[0.0].get("supported", 0) + drawn[0.0].get("direction only", 0)
    assert said("effect 0: supported or direction only", either, "at most 2.5 %") <= 0.025 + slack(0.025)
    assert said("effect 0: contradicted", drawn[0.0].get("contradicted", 0), "2.5 %") <= 0.025 + slack(0.025)
    assert said("effect 0: supported", drawn[0.0].get("supported", 0), "next to never") <= 0.005


def test_the_smallest_effect_itself_is_seldom_supported_and_seldom_excluded(drawn):
    for name in ("supported", "excluded"):
        rate = said(f"effect at the smallest that matters: {name}", drawn[1.0].get(name, 0), "2.5 %")
        assert rate <= 0.025 + slack(0.025), "the old rule supported every second one"
    wrong = drawn[1.0].get("equivalent", 0)
    assert said("effect at the smallest that matters: equivalent", wrong, "at most 5 %") <= 0.05 + slack(0.05)


def test_power_grows_with_the_effect(drawn):
    power = [drawn[factor].get("supported", 0) for factor in (1.0, 2.0, 4.0)]
    for factor, rate in zip((1, 2, 4), power, strict=True):
        said(
            f"effect {factor} x the smallest: supported",
            rate,
            f"direction only {drawn[factor].get('direction only', 0):.1%}",
        )
    assert power[0] < power[1] < power[2] and power[2] > 0.95
    found = sum(drawn[2.0].get(name, 0) for name in ("supported", "direction only"))
    error = np.sqrt(0.01**2 / 10 + 0.06**2 / 40 + 0.1**2 / 400)
    expected = scipy_stats.norm.sf(1.96 - 2 * SMALLEST / error)
    assert said("effect 2 x the smallest: its direction found", found, f"formula {expected:.1%}") == pytest.approx(
        expected, abs=0.05
    )


def any_of(families, p, name):
    """How often one or more claims of equality of a family get a verdict."""
    return np.any([claims.outcome(EQUAL, *one, *two) == name for *one, two in zip(families, p, strict=True)], 0).mean()


def test_holm_keeps_four_equalities_at_their_margin_from_erring_together():
    rng = np.random.default_rng(21)
    families = [by_seeds(rng, np.full(REPEATS, SMALLEST), spread=0.01) for _ in range(4)]
    p = np.stack([claims.p_values(EQUAL, one) for one in families])
    adjusted = stats.holm(p)
    plain, held = any_of(families, p, "supported"), any_of(families, adjusted, "supported")
    assert said("four equalities at their margin, one or more supported, unadjusted", plain, "18.5 %") > 0.14
    assert said("the same with Holm's adjustment", held, "at most 5 %") <= 0.05 + slack(0.05)
    beyond = any_of(families, adjusted, "contradicted")
    assert said("the same, one or more contradicted", beyond, "at most 5 %") <= 0.05 + slack(0.05)


LOPSIDED = {  # items of each cluster
    "two clusters hold half": np.r_[10, 10, np.full(38, 20 / 38)],
    "one holds a quarter": np.r_[13, np.ones(39)],
    "twenty alike": np.ones(20),
}


def test_the_interval_covers_less_where_few_clusters_hold_the_items():
    covered = {}
    for name, count in LOPSIDED.items():
        rng, number = np.random.default_rng(22), stats.effective_clusters(count)
        made = stacked([crossed(rng, 0.0, of_cluster=0.3, count=count) for _ in range(REPEATS // 2)])
        covered[name] = said(f"{name}, {number:.1f} effective: covers", np.mean((made.low <= 0) & (made.high >= 0)), "")
        assert (number < guards.FEWEST_CLUSTERS) == (name == "two clusters hold half")
    assert covered["two clusters hold half"] < 0.85, "why such a claim gets no verdict"
    assert covered["one holds a quarter"] > 0.88 and covered["twenty alike"] > 0.95 - slack(0.95, REPEATS // 2)


def arm(rng, runs, *, learnt=0.7, fallen=0.0, items=400, chance=0.25):
    """Results of one arm, a share of whose runs collapses to chance."""
    levels = np.where(rng.random(runs) < fallen, chance, np.clip(learnt + rng.normal(0, 0.02, runs), 0, 1))
    found = []
    for seed, level in enumerate(levels):
        scores = {"accuracy": Scores(rng.random(items) < level, np.arange(items))}
        found.append(result("a", seed, scores, levels={"accuracy": {"chance": chance}}))
    return found, levels


def test_collapsed_runs_are_found_and_no_others():
    rng, right, wrong = np.random.default_rng(23), [], []
    for _ in range(60):
        results, levels = arm(rng, SEEDS, fallen=0.3)
        told = guards.collapsed(results, "accuracy")
        if (levels == 0.25).any() and (levels > 0.25).any():
            right += (told == (levels == 0.25)).tolist()
        wrong.append(guards.collapsed(arm(rng, SEEDS, learnt=rng.choice([0.25, 0.3, 0.4, 0.9]))[0], "accuracy").any())
    assert said("runs told rightly, collapsed or not", np.mean(right), "2.3 % lie above two standard errors") > 0.98
    assert said("arms without a collapse called unstable", np.mean(wrong), "next to never") <= 0.02


def test_the_interval_covers_less_where_an_arm_collapses_in_few_runs():
    rng, truth = np.random.default_rng(24), 0.1 * (0.7 - 0.25)
    lost = np.where(rng.random((REPEATS, SEEDS)) < 0.1, 0.45, 0.0) + rng.normal(0, 0.02, (REPEATS, SEEDS))
    some = np.ptp(lost, axis=1) > 0.2
    made = stats.Estimate(*np.zeros((5, REPEATS)), 1.0, 9.0, lost)
    half = scipy_stats.t.ppf(0.975, 9) * made.effects.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    covers = np.abs(lost.mean(axis=1) - truth) <= half
    rate = said("an arm collapses in a tenth of its runs: the interval covers", covers.mean(), "why it is 'unstable'")
    assert rate < 0.8 and 0.6 < some.mean() < 0.7


def pair(rng, first, second, levels):
    """What a claim asks of two arms at two true levels."""
    asked = []
    for name, level, weight in (("a", first, 1.0), ("b", second, -1.0)):
        results = []
        for seed in range(SEEDS):
            scores = {"accuracy": Scores(rng.random(300) < level + rng.normal(0, 0.01), np.arange(300))}
            results.append(result(name, seed, scores, levels={"accuracy": levels}))
        asked.append((weight, "accuracy", None, results))
    return asked


@pytest.mark.parametrize(
    ("truth", "verdict", "least", "most"),
    [
        ((0.25, 0.25), "nothing learned to compare", 0.9, 1.0),
        ((0.44, 0.44), "nothing learned to compare", 0.9, 1.0),
        ((0.995, 1.0), "nothing left to tell apart", 0.97, 1.0),
        ((0.25, 0.44), "", 0.97, 1.0),
        ((0.25, 0.60), "", 0.97, 1.0),
        ((0.80, 0.90), "", 0.97, 1.0),
    ],
)
def test_floor_and_ceiling_are_told_where_both_arms_lie_there(truth, verdict, least, most):
    rng = np.random.default_rng(25)
    levels = {"chance": 0.25, "alone": 0.44, "oracle": 1.0}
    told = [guards.no_room(pair(rng, *truth, levels), SMALLEST)[0] == verdict for _ in range(100)]
    assert least <= said(f"true scores {truth}: {verdict or 'no guard'}", np.mean(told), "") <= most


def test_the_chance_to_come_out_again_is_the_share_that_does():
    """Over true effects of all sizes: of verdicts said to come again in 60 to 80 %, so many do."""
    rng, repeats = np.random.default_rng(26), 700
    true = rng.uniform(-3, 4, repeats) * SMALLEST
    makers = {"seeds": {"of_cluster": 0.0}, "clusters, too": {"of_cluster": 0.06}}
    for name, noise in makers.items():
        first = stacked([crossed(rng, effect, **noise) for effect in true])
        second = stacked([crossed(rng, effect, **noise) for effect in true])
        was, came = judged(DIRECTED, first), judged(DIRECTED, second) == judged(DIRECTED, first)
        predicted = np.empty(repeats)
        for place in range(repeats):
            values = [values[place] for values in attrgetter(*FIELDS)(first)]
            one = stats.Estimate(*values, effects=first.effects[place])
            drawn = stats.replicates(one, SEEDS, count=300, seed=place)
            predicted[place] = (judged(DIRECTED, drawn) == was[place]).mean()
        bins = np.digitize(predicted, [0.4, 0.6, 0.8])
        for place in range(4):
            here = bins == place
            if here.sum() >= 40:
                wanted, wide = predicted[here].mean(), slack(came[here].mean(), here.sum()) + 0.03
                rate = said(f"{name}, predicted {wanted:.0%}: came again", came[here].mean(), f"{here.sum()} verdicts")
                assert rate == pytest.approx(wanted, abs=wide)
        assert said(f"{name}, all: came again", came.mean(), f"predicted {predicted.mean():.1%}") == pytest.approx(
            predicted.mean(), abs=slack(came.mean(), repeats)
        )


def test_replicates_spread_like_new_experiments():
    """Their effects vary by twice the error about the estimate, from seeds and from clusters."""
    one = crossed(np.random.default_rng(27), 0.0, of_cluster=0.2)
    again = stats.replicates(one, SEEDS, count=20_000)
    inner = np.abs(again.effect - one.effect) < np.quantile(np.abs(again.effect - one.effect), 0.95)
    t = scipy_stats.t(one.df)
    expected = np.sqrt(2) * one.error * t.std()
    assert again.effect.mean() == pytest.approx(one.effect, abs=0.05 * expected) and inner.any()
    assert again.effect.std() == pytest.approx(expected, rel=0.08)
    assert np.median(again.error) == pytest.approx(one.error, rel=0.1) and again.effects.shape == (20_000, SEEDS)
    steady = stats.Estimate(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 9.0, np.ones(10))
    assert (stats.replicates(steady, 10, count=50).low == 1.0).all(), "a cost that never differs comes out again"
