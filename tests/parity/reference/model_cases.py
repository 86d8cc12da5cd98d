"""Cases that run a model: nano, nano-h4-mha, lora, rho1, rho1-step, generate, layout, fv."""
import math
import torch

import model
from pack import distance, write_case

OPT = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
WEIGHTING = dict(gamma=1.0, lam=0.95, temp=1.0, w_min=0.1, w_max=3.0)

# Sizes differ from each other everywhere, so that a transposition fails by shape.
NANO = dict(vocab=61, dim=32, ffn=88, n_heads=4, n_kv=2, n_layers=4, n_future=2, eps=1e-5, theta=10000.0,
            B=3, S=12, **WEIGHTING)
NANO_H4_MHA = dict(vocab=53, dim=36, ffn=70, n_heads=6, n_kv=6, n_layers=6, n_future=4, eps=1e-5, theta=10000.0,
                   B=2, S=17, **WEIGHTING)
SMALL = dict(vocab=37, dim=24, ffn=40, n_heads=4, n_kv=2, n_layers=4, n_future=2, eps=1e-5, theta=10000.0)

DTYPES = (('f32', torch.float32), ('bf16', torch.bfloat16), ('f16', torch.float16))


def inputs(c, g, spans):
    """Token ids, response masks (one span of targets a row), rewards and shared f32 rotary tables."""
    hd = c['dim'] // c['n_heads']
    ids = torch.randint(0, c['vocab'], (c['B'], c['S']), generator=g)
    mask = torch.zeros(c['B'], c['S'], dtype=torch.bool)
    for b, (lo, hi) in enumerate(spans):
        mask[b, lo:hi] = True
    cos, sin = model.rope_tables(torch.arange(c['S']), hd, c['theta'], torch.float32)
    reward = torch.tensor([1.0,0.0,1.0,1.0][:c['B']])
    return {'ids': ids, 'mask': mask, 'reward': reward, 'rope.cos': cos, 'rope.sin': sin}


def training_case(folder, c, seed, spans):
    """Stages 1 to 13 of one model."""
    g = torch.Generator().manual_seed(seed)
    p, blocks = model.random_parameters(c, g)
    inp = inputs(c, g, spans)
    truth, w = model.train(p, blocks, c, OPT, inp, torch.float64)
    floors = {}
    for name, dt in DTYPES:
        # The weights are those of the f64 run: the floor then measures arithmetic, not exp().
        got, _ = model.train(p, blocks, c, OPT, inp, dt, w=w, steps=10 if dt != torch.float16 else 1)
        for k, t in truth.items():
            if k in got and torch.isfinite(got[k].double()).all():
                floors.setdefault(k, {})[name] = distance(got[k], t)
    absent = sorted(set(p) - {k[5:] for k in truth if k.startswith('grad.')})
    write_case(folder, 'model', c, {k: v.to(torch.float64) for k, v in truth.items()}, inp, p, floors,
               optimizer=OPT, seed=seed, grad_absent=absent)


def nano(folder):
    """Ragged masks, one row with a single target, two key/value heads for four query heads."""
    training_case(folder, NANO, 20240, ((3, 12), (5, 10), (2, 3)))


def nano_h4_mha(folder):
    """Four horizons and as many key/value as query heads: the layout of the 7B model."""
    training_case(folder, NANO_H4_MHA, 20241, ((4, 17), (1, 9)))


def random_adapters(p, c, g):
    """f32 A [r, in] and B [out, r] beside every matrix of every block; B is not 0, as after some training."""
    matrices = [k.removesuffix('.weight') for k, v in p.items() if '.attention.' in k or '.feed_forward.' in k]
    adapters = {}
    for m in matrices:
        outputs, inputs = p[f'{m}.weight'].shape
        adapters[f'{m}.lora_a'] = 0.2 * torch.randn(c['r'], inputs, generator=g)
        adapters[f'{m}.lora_b'] = 0.1 * torch.randn(outputs, c['r'], generator=g)
    return adapters


def merged(p, c):
    """The plain model that an adapted one stands for: W + alpha / r * B A."""
    def of(name, w):
        m = name.removesuffix('.weight')
        return w + c['alpha'] / c['r'] * (p[f'{m}.lora_b'] @ p[f'{m}.lora_a']) if f'{m}.lora_a' in p else w
    return {k: of(k, v) for k, v in p.items() if '.lora_' not in k}


def lora(folder):
    """Adapters on every matrix of a frozen base: forward, gradients of the adapters alone, merge, ten steps.

    The base is smaller than nano: with nano's widths the merged matrices alone would take more than the case may.
    """
    c = SMALL | dict(n_layers=3, B=3, S=13, r=4, alpha=6.0)
    g = torch.Generator().manual_seed(20248)
    base, blocks = model.random_parameters(c, g, value_head=False)
    p = base | random_adapters(base, c, g)
    inp = inputs(c, g, ((3, 13), (4, 10), (1, 2)))
    del inp['reward']
    raw = torch.rand(c['B'], c['S'], generator=g) + 0.5
    inp['weights'] = (raw * inp['mask']).double()
    inp['weights'] /= inp['weights'][inp['mask']].mean()

    def run(dtype):
        out, _ = model.train(p, blocks, c, OPT, inp, dtype, w=inp['weights'], trained=lambda name: '.lora_' in name)
        plain, rec = merged({k: v.to(dtype) for k, v in p.items()}, c), {}
        cos, sin = inp['rope.cos'].to(dtype), inp['rope.sin'].to(dtype)
        model.forward(plain, blocks, c, inp['ids'], cos, sin, rec)
        return out | {f'merged.{k}': v for k, v in plain.items() if not torch.equal(v, base[k].to(dtype))} \
            | {f'merged.{k}': v for k, v in rec.items() if k.endswith('.logits')}
    truth, single = run(torch.float64), run(torch.float32)
    for k in (1, 2):
        assert distance(truth[f'merged.head.{k}.logits'], truth[f'head.{k}.logits']) < 1e-13
    assert {k[5:] for k in truth if k.startswith('grad.')} == {k for k in p if '.lora_' in k}
    floors = {k: {'f32': distance(single[k], t)} for k, t in truth.items()}
    write_case(folder, 'lora', c, {k: v.double() for k, v in truth.items()}, inp, p, floors,
               optimizer=OPT, seed=20248, grad_absent=sorted(base))


def projected(w0, lo, hi):
    """clip(c * w0, lo, hi) of mean 1; the mean is piecewise linear in c, so c is solved for exactly."""
    def clipped(c):
        return (c * w0).clamp(lo, hi)
    knots = torch.cat((lo / w0, hi / w0)).sort().values
    below = knots[torch.tensor([clipped(c).mean() <= 1 for c in knots])].max()
    above = knots[torch.tensor([clipped(c).mean() >= 1 for c in knots])].min()
    if below >= above:
        return clipped(below)
    mean_below, mean_above = clipped(below).mean(), clipped(above).mean()
    return clipped(below + (1 - mean_below) / (mean_above - mean_below) * (above - below))


def continuous(scores, c):
    """Whitening, exponential, projection."""
    z = (scores - scores.mean()) / (scores.std(unbiased=False) + 1e-8)
    u = torch.exp((z - z.max()) / c['temp'])
    return projected(u / u.mean(), c['w_min'], c['w_max'])


def selected(scores, c):
    """The highest `ratio` of scores share the mass, the rest sit at the lower bound, then the projection."""
    n = len(scores)
    top = scores.topk(round(c['ratio'] * n)).indices
    raw = torch.full((n,), c['w_min'], dtype=torch.float64)
    raw[top] = n / len(top)
    return projected(raw, c['w_min'], c['w_max'])


def rho1_keys(c, policy_ce, reference_ce, mask):
    """Excess and weights [B, S, H]; 0 where a horizon has no target."""
    B, S, H = *mask.shape, len(policy_ce)
    out = {f'rho1.{k}': torch.zeros(B, S, H, dtype=torch.float64)
           for k in ('policy_ce', 'excess', 'abs_excess', 'weight', 'topk')}
    out['rho1.reference_ce'] = torch.zeros(B, S, dtype=torch.float64)
    out['rho1.reference_ce'][:, 1:] = reference_ce.double() * mask[:, 1:]
    for k, ce in enumerate(policy_ce, 1):
        at = torch.zeros(B, S, dtype=torch.bool)
        at[:, k:] = mask[:, k:]
        full = torch.zeros(B, S, dtype=torch.float64)
        full[:, k:] = ce.double()
        difference = (full - out['rho1.reference_ce'])[at]
        small = difference.abs() < c['min_ce_diff']
        signed = difference.masked_fill(small, 0.0)
        # A difference at the threshold or two equal scores at the cut would be luck in f32.
        assert ((difference.abs() - c['min_ce_diff']).abs() > 1e-4).all() and small.any()
        ranked = signed.sort(descending=True).values
        cut = round(c['ratio'] * len(ranked))
        assert ranked[cut - 1] - ranked[cut] > 1e-4
        for key, values in (('policy_ce', full[at]), ('excess', signed), ('abs_excess', signed.abs()),
                            ('weight', continuous(signed, c)), ('topk', selected(signed, c))):
            out[f'rho1.{key}'][..., k - 1][at] = values
    return out


def rho1(folder):
    """A policy with two horizons and a next-token reference that predict the same target tokens."""
    policy = NANO | dict(S=15, ratio=0.6, min_ce_diff=0.17)
    reference = NANO | dict(n_layers=3, n_future=1)
    g = torch.Generator().manual_seed(20242)
    (p, p_blocks), (r, r_blocks) = (model.random_parameters(c, g, value_head=False) for c in (policy, reference))
    inp = inputs(policy, g, ((3, 15), (5, 11), (2, 9)))
    del inp['reward']

    def run(dtype):
        def ce(c, params, blocks):
            params = {k: v.to(dtype) for k, v in params.items()}
            lg = model.forward(params, blocks, c, inp['ids'], inp['rope.cos'].to(dtype), inp['rope.sin'].to(dtype), {})
            return [model.token_ce(l, inp['ids'], k) for k, l in enumerate(lg, 1)]
        return rho1_keys(policy, ce(policy, p, p_blocks), ce(reference, r, r_blocks)[0], inp['mask'])
    truth, single = run(torch.float64), run(torch.float32)
    weights = {f'policy.{k}': v for k, v in p.items()} | {f'reference.{k}': v for k, v in r.items()}
    floors = {k: {'f32': distance(single[k], t)} for k, t in truth.items()}
    write_case(folder, 'rho1', dict(policy=policy, reference=reference), truth, inp, weights, floors, seed=20242)


def rho1_step(folder):
    """One optimizer step of a policy under the continuous Rho-1 weights of each of its heads; its reference is frozen."""
    policy = dict(vocab=29, dim=20, ffn=28, n_heads=2, n_kv=1, n_layers=3, n_future=2, eps=1e-5, theta=10000.0,
                  B=3, S=13, ratio=0.3, min_ce_diff=0.1, **WEIGHTING)
    reference = policy | dict(n_layers=2, n_future=1)
    g = torch.Generator().manual_seed(20250)
    (p, p_blocks), (r, r_blocks) = (model.random_parameters(c, g, value_head=False) for c in (policy, reference))
    inp = inputs(policy, g, ((3, 13), (5, 11), (1, 4)))
    del inp['reward']

    def run(dtype):
        def weigh(logits, rec):
            frozen = {k: v.to(dtype) for k, v in r.items()}
            cos, sin = inp['rope.cos'].to(dtype), inp['rope.sin'].to(dtype)
            theirs = model.token_ce(model.forward(frozen, r_blocks, reference, inp['ids'], cos, sin, {})[0], inp['ids'], 1)
            ours = [model.token_ce(l, inp['ids'], k) for k, l in enumerate(logits, 1)]
            keys = rho1_keys(policy, ours, theirs, inp['mask'])
            rec.update(keys)
            return keys['rho1.weight']
        # Later steps would be weighed by statistics of the earlier ones.
        out, _ = model.train(p, p_blocks, policy, OPT, inp, dtype, steps=1, weigh=weigh)
        return {k: v for k, v in out.items() if k.startswith(('rho1.', 'loss.', 'grad.', 'param.', 'trace.'))}
    truth, single = run(torch.float64), run(torch.float32)
    weights = p | {f'reference.{k}': v for k, v in r.items()}
    floors = {k: {'f32': distance(single[k], t)} for k, t in truth.items()}
    write_case(folder, 'rho1step', dict(policy=policy, reference=reference), {k: v.double() for k, v in truth.items()},
               inp, weights, floors, optimizer=OPT, seed=20250, grad_absent=sorted(set(weights) - set(p)))


def nucleus(logits, temperature, top_p):
    """Probabilities after temperature and top-p: tokens by falling probability up to the one that crosses it."""
    probabilities = torch.softmax(logits.double() / temperature, -1)
    ranked, order = probabilities.sort(descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    # A token at the bound would be kept or not by rounding.
    assert ((before[1:] - top_p).abs() > 1e-9).all()
    ranked = ranked.masked_fill(before >= top_p, 0.0)
    out = torch.zeros_like(ranked)
    out[order] = ranked / ranked.sum()
    return out


def generate(folder):
    """32 greedy tokens behind three prompts, and the tempered nucleus of some logits."""
    g = torch.Generator().manual_seed(20243)
    c = SMALL | dict(new_tokens=32, sampling=[
        dict(name='plain', temperature=1.0, top_p=1.0), dict(name='usual', temperature=0.8, top_p=0.95),
        dict(name='narrow', temperature=1.3, top_p=0.5), dict(name='cold', temperature=0.2, top_p=0.9)])
    p, blocks = model.random_parameters(c, g, value_head=False)
    p64 = {k: 4 * v.double() if v.dim() == 2 else v.double() for k, v in p.items()}  # far-apart logits
    p = {k: v.float() for k, v in p64.items()}
    prompts = {f'prompt.{i}': torch.randint(0, c['vocab'], (n,), generator=g) for i, n in enumerate((1, 5, 11))}
    golden, hd = {}, c['dim'] // c['n_heads']
    for i, prompt in enumerate(prompts.values()):
        ids = prompt.clone()
        for _ in range(c['new_tokens']):
            cos, sin = model.rope_tables(torch.arange(len(ids)), hd, c['theta'], torch.float64)
            best = model.forward(p64, blocks, c, ids[None], cos, sin, {})[0][0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-3, 'a greedy choice by rounding'
            ids = torch.cat((ids, best.indices[:1]))
        golden[f'ids.cached.{i}'] = golden[f'ids.full.{i}'] = ids[len(prompt):].double()
    logits = 3 * torch.randn(c['vocab'], generator=g)
    golden |= {f"probability.{s['name']}": nucleus(logits, s['temperature'], s['top_p']) for s in c['sampling']}
    write_case(folder, 'generate', c, golden, prompts | {'logits': logits}, p, seed=20243)


def to_hugging_face(w, heads):
    """Rows of a query or key projection from interleaved to half-split order."""
    return w.view(heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def layout(folder):
    """Projections in Hugging Face's row order under half-split rotation, and casts to half precision."""
    g, c = torch.Generator().manual_seed(20244), SMALL | dict(n_layers=3, n_future=1)
    p, blocks = model.random_parameters(c, g, value_head=False)
    shipped = dict(p)
    golden = {}
    for b in blocks:
        for n, heads in (('wq', c['n_heads']), ('wk', c['n_kv'])):
            name = f'{b}.attention.{n}.weight'
            shipped[name] = to_hugging_face(p[name], heads).contiguous()
            golden[f'rows.{name}'] = p[name]
    ids = torch.randint(0, c['vocab'], (2, 13), generator=g)
    cos, sin = model.rope_tables(torch.arange(13), c['dim'] // c['n_heads'], c['theta'], torch.float32)

    def logits(dtype):
        q = {k: v.to(dtype) for k, v in shipped.items()}
        return model.forward(q, blocks, c, ids, cos.to(dtype), sin.to(dtype), {}, rope=model.half_split)[0]
    golden['logits.head1'] = logits(torch.float64)
    floors = {'logits.head1': {'f32': distance(logits(torch.float32), golden['logits.head1'])}}
    values = half_precision_values(g)
    for name, dt in (('bf16', torch.bfloat16), ('f16', torch.float16)):
        bits = values.to(dt).view(torch.int16).long() & 0xffff
        golden[f'bits.{name}'], golden[f'widened.{name}'] = bits, values.to(dt).float()
    inp = {'ids': ids, 'rope.cos': cos, 'rope.sin': sin, 'values': values}
    write_case(folder, 'layout', c, golden, inp, shipped, floors, seed=20244)


def half_precision_values(g):
    """f32 values at every kind of border of bf16 and f16: ties, subnormals, overflow, infinity, signed zero."""
    ties = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-8), -(1 + 3 * 2.0**-11)]
    beside = [1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-8 - 2.0**-20, 1 + 2.0**-11 + 2.0**-20]
    small = [2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 3 * 2.0**-25, 1023 * 2.0**-24, 2.0**-126, 2.0**-133,
             2.0**-134, 3 * 2.0**-134, 2.0**-149, -2.0**-149]
    large = [65504.0, 65519.0, 65520.0, -65520.0, 3.3895e38, 3.39e38, 3.4028234e38, -3.4028234e38]
    special = [0.0, -0.0, float('inf'), float('-inf')]
    spread = torch.randn(99, generator=g) * 10 ** (12 * torch.rand(99, generator=g) - 6)
    return torch.cat((torch.tensor(ties + beside + small + large + special), spread))


BOS, QUESTION, ANSWER, SEPARATOR, END, FIRST_WORD = range(6)


def few_shot(pairs, query):
    """Token ids of a prompt and the slot of each token: a word of several tokens is one slot, the last is `A`."""
    parts = [[BOS]]
    for word, label in pairs:
        parts += [[QUESTION], word, [SEPARATOR], [ANSWER], label, [END]]
    parts += [[QUESTION], query, [SEPARATOR], [ANSWER]]
    slots = [slot for slot, part in enumerate(parts) for _ in part]
    return torch.tensor([t for part in parts for t in part]), torch.tensor(slots)


def fixed_trials(c, g):
    """Trials of `n_shots` demonstrations; the corrupted prompt permutes their labels, words keep their order."""
    def word(tokens):
        return torch.randint(FIRST_WORD, c['vocab'], (tokens,), generator=g).tolist()
    trials = []
    for i, trial_id in enumerate(c['trial_ids']):
        pairs = [(word(1 + (i + d) % 2), word(1 + (i * d) % 2)) for d in range(c['n_shots'])]
        shuffled = list(range(len(pairs)))
        while shuffled == sorted(shuffled):  # a permutation that moves something
            shuffled = torch.randperm(len(pairs), generator=g).tolist()
        corrupted = [(w, pairs[j][1]) for (w, _), j in zip(pairs, shuffled)]
        query = word(2 - i % 2)
        clean_ids, slots = few_shot(pairs, query)
        # Answers of one token have no second one for horizon 2 to be asked for.
        trials.append(dict(id=trial_id, clean=clean_ids, slots=slots, corrupted=few_shot(corrupted, query)[0],
                           answer=torch.tensor(word(1 if i == 1 else 2))))
    return trials


def function_vector(p, blocks, c, trials, rope):
    """Every key of the case for one precision; `spec/parity.md` 2.4 to 2.7 and 5.3."""
    hd, n_trunk, H = c['dim'] // c['n_heads'], c['n_layers'] - c['n_future'], c['n_future']
    sites = [f'trunk.{i}' for i in range(n_trunk)] + [f'head.{k}' for k in range(1, H + 1)]

    def run(ids, edit=lambda site, x: x):
        rec, (cos, sin) = {}, (t[:len(ids)] for t in rope)
        logits = model.forward(p, blocks, c, ids[None], cos, sin, rec, edit=edit)
        return [lg[0, -1] for lg in logits], rec

    def at_last(site, change):
        def edit(seen, x):
            if seen == site:
                x = x.clone()
                change(x[0, -1])
            return x
        return edit

    def mean_of(trial):
        rec, slots = run(trial['clean'])[1], trial['slots']
        heads = torch.stack([rec[f'{s}.attn_heads'][0].view(-1, c['n_heads'], hd) for s in sites])
        return torch.stack([heads[:, slots == s].mean(1) for s in range(slots.max() + 1)], 2)
    means = torch.stack([mean_of(t) for t in trials]).mean(0)

    def answered(logits, answer):
        q = [torch.softmax(lg.double(), -1) for lg in logits]
        return torch.stack([q[k][answer[k]] if k < len(answer) else torch.tensor(math.nan).double() for k in range(H)])
    base = torch.stack([answered(run(t['corrupted'])[0], t['answer']) for t in trials])
    effect = torch.zeros(len(trials), len(sites), c['n_heads'], H, dtype=torch.float64)
    for i, t in enumerate(trials):
        for b, site in enumerate(sites):
            for h in range(c['n_heads']):
                patch = at_last(f'{site}.attn_heads', lambda x: x[h * hd:(h + 1) * hd].copy_(means[b, h, -1]))
                effect[i, b, h] = answered(run(t['corrupted'], patch)[0], t['answer']) - base[i]
    average = effect.nanmean(0)

    scores, order = average[:n_trunk, :, 0].flatten().sort(descending=True)
    top = order[:c['top_k']]
    # Two heads of equal effect would be ranked by rounding.
    assert (scores[:-1] - scores[1:])[:c['top_k']].min() > 1e-3 * scores.abs().max()
    by_block = torch.zeros(len(sites), c['dim'], dtype=means.dtype)
    for b, h in [divmod(i, c['n_heads']) for i in top.tolist()]:
        placed = torch.zeros(c['dim'], dtype=means.dtype)
        placed[h * hd:(h + 1) * hd] = means[b, h, -1]
        by_block[b] += p[f'{blocks[b]}.attention.wo.weight'] @ placed
    vector = by_block.sum(0)
    out = {'mean_activations': means, 'effect.base': base.nan_to_num(), 'effect.defined': (~base.isnan()).double(),
           'effect.indirect': effect.nan_to_num(), 'effect.average': average,
           'top.heads': torch.stack((top // c['n_heads'], top % c['n_heads']), 1), 'top.effects': scores[:c['top_k']],
           'fv_resid': vector, 'fv_by_block_resid': by_block}
    for site in sites:
        add = at_last(f'{site}.resid', lambda x: x.add_(c['coefficient'] * vector))
        logits = [run(t['corrupted'], add)[0] for t in trials]
        for k in range(1, H + 1):
            if site.startswith('trunk') or site == f'head.{k}':
                out[f'injected.{site}.logits.{k}'] = torch.stack([lg[k - 1] for lg in logits])
    return out


def fv(folder):
    """Function vectors of a few fixed trials: mean head activations, effects, top heads, the vector, its injection."""
    c = {k: v for k, v in NANO.items() if k not in (*WEIGHTING, 'B', 'S')}
    c |= dict(n_shots=3, trial_ids=[4, 0, 9, 2, 7], top_k=3, coefficient=1.5)
    g = torch.Generator().manual_seed(20249)
    p, blocks = model.random_parameters(c, g, value_head=False)
    p = {k: 2 * v if v.dim() == 2 else v for k, v in p.items()}  # heads that matter
    trials = fixed_trials(c, g)
    longest = max(len(t[n]) for t in trials for n in ('clean', 'corrupted'))
    cos, sin = model.rope_tables(torch.arange(longest), c['dim'] // c['n_heads'], c['theta'], torch.float32)

    def run(dtype):
        q, rope = {k: v.to(dtype) for k, v in p.items()}, (cos.to(dtype), sin.to(dtype))
        with torch.no_grad():
            return function_vector(q, blocks, c, trials, rope)
    truth, single = run(torch.float64), run(torch.float32)
    assert torch.equal(truth['top.heads'], single['top.heads'])
    truth['trial.key'] = torch.tensor([[t['id'], i] for i, t in enumerate(trials)])
    floors = {k: {'f32': distance(single[k], truth[k])} for k in single if k not in ('top.heads', 'effect.defined')}
    inp = {f'trial.{i}.{n}': t[n] for i, t in enumerate(trials) for n in ('clean', 'slots', 'corrupted', 'answer')}
    write_case(folder, 'fv', c, truth, inp | {'rope.cos': cos, 'rope.sin': sin}, p, floors, seed=20249)
