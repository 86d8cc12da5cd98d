"""Known answers for shared/stats, computed by scipy and statsmodels and, where random draws decide, by an independent
implementation of the generator. `reference.py answers.json` writes them, `reference.py --check answers.json` recomputes them
and fails on any difference.
"""

import itertools
import json
import math
import re
import sys
from fractions import Fraction

import numpy
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


class ChaCha8:
    """The words of rand_chacha's ChaCha8Rng after seed_from_u64 and set_stream, from the papers of its parts: ChaCha
    (Bernstein 2008) with 8 rounds and a 64-bit counter and stream, seeded by PCG32 (O'Neill 2014)."""

    def __init__(self, seed, stream=0):
        self.key, state = [], seed
        for _ in range(8):
            state = (state * 6364136223846793005 + 11634580027462260723) & MASK64
            mixed = ((((state >> 18) ^ state) >> 27)) & MASK32
            turn = state >> 59
            self.key.append((mixed >> turn | mixed << (32 - turn)) & MASK32 if turn else mixed)
        self.stream, self.counter, self.words = stream, 0, []

    def block(self):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *self.key]
        start += [self.counter & MASK32, self.counter >> 32, self.stream & MASK32, self.stream >> 32]
        x = list(start)

        def quarter(a, b, c, d):
            for one, other, into, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[one] = (x[one] + x[other]) & MASK32
                x[into] ^= x[one]
                x[into] = (x[into] << turn | x[into] >> (32 - turn)) & MASK32

        for _ in range(4):
            for column in range(4):
                quarter(column, 4 + column, 8 + column, 12 + column)
            for diagonal in range(4):
                quarter(diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
        self.counter += 1
        return [(a + b) & MASK32 for a, b in zip(x, start)]

    def word(self):
        if not self.words:
            self.words = self.block()[::-1]
        return self.words.pop()

    def below(self, count):
        """A number from 0 to count - 1 by widening multiplication, one more draw where the first is biased (Canon)."""
        high, low = divmod(self.word() * count, 2**32)
        if low > 2**32 - count:
            high += low + (self.word() * count >> 32) > MASK32
        return high


def average(values):
    """Left to right, as the tested code adds: no pairwise or compensated sum."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def pooled(rows, times):
    """Values per task over seeds that were drawn so many times each."""
    drawn = float(sum(times))
    values = []
    for task in range(len(rows[0])):
        total = 0.0
        for row, number in zip(rows, times):
            total += row[task] * float(number)
        values.append(total / drawn)
    return values


def drawn_seeds(seeds, draws, seed, stream):
    if seeds == 1:
        return [(1,)] * draws
    rng, ways = ChaCha8(seed, stream), []
    for _ in range(draws):
        times = [0] * seeds
        for _ in range(seeds):
            times[rng.below(seeds)] += 1
        ways.append(tuple(times))
    return ways


def resampled(tasks, draws, seed, values_of_draw):
    rng, means = ChaCha8(seed), []
    for draw in range(draws):
        values = values_of_draw(draw)
        means.append(average([values[rng.below(tasks)] for _ in range(tasks)]))
    return means


def interval(means):
    return [float(end) for end in numpy.percentile(means, [2.5, 97.5], method="linear")]


def estimate(rows, draws, seed):
    ways = drawn_seeds(len(rows), draws, seed, 1)
    means = resampled(len(rows[0]), draws, seed, lambda draw: pooled(rows, ways[draw]))
    return {"mean": average(pooled(rows, [1] * len(rows))), "interval": interval(means)}


def difference(first, second, paired, draws, seed):
    if paired:
        rows = [[a - b for a, b in zip(one, other)] for one, other in zip(first, second)]
        ways = drawn_seeds(len(rows), draws, seed, 1)
        of_draw = lambda draw: pooled(rows, ways[draw])
    else:
        ways = list(zip(drawn_seeds(len(first), draws, seed, 1), drawn_seeds(len(second), draws, seed, 2)))

        def of_draw(draw):
            one, other = pooled(first, ways[draw][0]), pooled(second, ways[draw][1])
            return [a - b for a, b in zip(one, other)]

    means = resampled(len(first[0]), draws, seed, of_draw)
    level = [a - b for a, b in zip(pooled(first, [1] * len(first)), pooled(second, [1] * len(second)))]
    tail = min(sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means))
    p_value = min(1.0, 2.0 * (tail + 1) / (draws + 1))
    return {"difference": average(level), "interval": interval(means), "p_value": p_value}


def shared_ranks(scores, noise):
    """By the definition, row by row: the rank of a row is that of the first leader that it is level with."""
    ranks, rest = [0] * len(scores), list(range(len(scores)))
    while rest:
        leader, rank = rest[0], len(scores) - len(rest) + 1
        level = [row for row in rest if row == leader or scores[leader] - scores[row] < noise]
        for row in level:
            ranks[row] = rank
        rest = [row for row in rest if row not in level]
    return ranks


def fixed(seed, shape, levels=20):
    """Pass rates of so many samples a task, from numpy's own generator."""
    return (numpy.random.default_rng(seed).integers(0, levels + 1, shape) / levels).tolist()


def wilson():
    pairs = [(0, 1), (1, 1), (0, 40), (40, 40), (3, 10), (1, 164), (209, 500), (487, 974), (50_000, 100_000)]
    ends = [proportion_confint(successes, trials, method="wilson") for successes, trials in pairs]
    return [{"successes": s, "trials": n, "interval": [max(0.0, low), min(1.0, high)]} for (s, n), (low, high) in zip(pairs, ends)]


def mcnemars():
    answers = []
    for first, second in [(0, 0), (0, 1), (1, 9), (5, 5), (0, 6), (2, 8), (13, 31), (40, 22), (120, 171), (700, 800), (60, 1400)]:
        table = [[100, first], [second, 100]]
        p_value = float(mcnemar(table, exact=True).pvalue) if first + second else 1.0
        other = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert math.isclose(p_value, min(other, 1.0), rel_tol=1e-9), (first, second, p_value, other)
        exact = min(Fraction(1), 2 * sum(math.comb(first + second, i) for i in range(min(first, second) + 1)) * Fraction(1, 2 ** (first + second)))
        assert math.isclose(p_value, float(exact), rel_tol=1e-9)
        answers.append({"only_first": first, "only_second": second, "p_value": float(exact)})
    return answers


def holms():
    lists = [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.5, 0.5], [0.0002, 0.9, 0.03, 0.03, 0.012, 0.0002], [1.0, 0.0, 0.4]]
    return [{"p_values": p, "adjusted": multipletests(p, method="holm")[1].tolist()} for p in lists]


def passes():
    cases = [(1, 1, 1), (10, 3, 5), (20, 3, 5), (20, 1, 10), (20, 7, 10), (100, 3, 10), (200, 13, 10), (200, 5, 100), (1000, 7, 100)]
    answers = []
    for n, c, k in cases:
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert math.isclose(float(exact), 1 - stats.hypergeom.pmf(0, n, c, k), rel_tol=1e-9, abs_tol=1e-9)
        answers.append({"n": n, "c": c, "k": k, "value": float(exact)})
    return answers


def resolutions():
    z = float(stats.norm.ppf(0.975))
    cases = [(0.11, 164), (0.11, 374), (0.11, 500), (0.11, 974), (0.031, 100)]
    return [{"mean_square": q, "tasks": n, "significant": z * math.sqrt(q / n), "reliable": 2.8 * math.sqrt(q / n)} for q, n in cases]


def estimates():
    cases = [(fixed(1, (1, 100)), 10_000, 42), (fixed(2, (1, 7)), 500, 1), (fixed(3, (3, 24)), 1000, 42), (fixed(4, (5, 12)), 1000, 7)]
    answers = []
    for rows, draws, seed in cases:
        answer = estimate(rows, draws, seed)
        if len(rows) == 1 and draws == 10_000:
            near = stats.bootstrap((rows[0],), numpy.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
            assert numpy.allclose(answer["interval"], near, atol=0.005), (answer, near)
        answers.append({"rows": rows, "draws": draws, "seed": seed, **answer})
    return answers


def differences():
    cases = [
        (fixed(5, (1, 100)), fixed(6, (1, 100)), False, 10_000, 42),
        (fixed(7, (3, 30)), fixed(8, (3, 30)), True, 1000, 42),
        (fixed(7, (3, 30)), fixed(8, (3, 30)), False, 1000, 42),
        (fixed(9, (2, 15)), fixed(10, (4, 15)), False, 1000, 3),
    ]
    return [
        {"first": first, "second": second, "paired": paired, "draws": draws, "seed": seed, **difference(first, second, paired, draws, seed)}
        for first, second, paired, draws, seed in cases
    ]


def exhaustive():
    """All 7^7 resamples of seven tasks: what the draws approach."""
    scores = fixed(11, (7,))
    sums = numpy.zeros(1)
    for _ in scores:
        sums = (sums[:, None] + numpy.array(scores)[None, :]).ravel()
    return {"scores": scores, "interval": interval(sums / len(scores)), "tolerance": 0.02}


def ranks():
    cases = [([0.9, 0.88, 0.5, 0.49, 0.1], 0.05), ([0.9, 0.8, 0.7, 0.6], 0.15), ([0.5], 0.1), ([0.4, 0.4, 0.4], 0.01)]
    return [{"scores": scores, "noise": noise, "ranks": shared_ranks(scores, noise)} for scores, noise in cases]


def main():
    answers = {
        "wilson": wilson(),
        "mcnemar": mcnemars(),
        "holm": holms(),
        "pass_at_k": passes(),
        "resolution": resolutions(),
        "estimate": estimates(),
        "difference": differences(),
        "exhaustive": exhaustive(),
        "shared_ranks": ranks(),
    }
    text = json.dumps(answers, indent=1) + "\n"
    text = re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    if sys.argv[1] != "--check":
        with open(sys.argv[1], "w") as file:
            file.write(text)
        return
    with open(sys.argv[2]) as file:
        kept = file.read()
    if kept != text:
        pairs = itertools.zip_longest(kept.splitlines(), text.splitlines())
        line, (old, new) = next((number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        sys.exit(f"{sys.argv[2]}, line {line}: {old} is kept, {new} was computed")
    print(f"{sys.argv[2]}: all answers are the same")


if __name__ == "__main__":
    main()
