"""Cases of single functions: rope, weighting, adamw, passk, tokenizer."""
import json, math, random
from fractions import Fraction

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import model
from model_cases import projected
from pack import distance, numbers, write_case


def rope(folder):
    """Rotary tables in f64 at positions near and far, for the heads of 7B models and two bases."""
    positions = torch.tensor([0, 1, 11, 2047, 4095])
    tables = [dict(name=f'e{e}-theta{t}', head_dim=e, theta=float(t)) for e in (64, 128) for t in (10_000, 500_000)]
    golden = {}
    for t in tables:
        cos, sin = model.rope_tables(positions, t['head_dim'], t['theta'], torch.float64)
        golden |= {f"cos.{t['name']}": cos, f"sin.{t['name']}": sin}
    write_case(folder, 'rope', dict(tables=tables), golden, {'positions': positions})


RIGHT = [0.4354625, 0.40575, 0.585, 0.3]
WRONG = [-0.421912, -0.49675, -0.365, -0.7]
BINDING = [0.01, 0.01, 0.02, 0.1, 8.0, 0.5, 0.2, 0.3]
SPREAD = dict(temperature=1.0, eps=0.1, w_max=3.0, entropy_floor=0.0, blend=1.0)


def score_vectors():
    """Name, scores, settings."""
    g = torch.Generator().manual_seed(20245)
    many = torch.randn(97, generator=g).double().tolist()
    worked = SPREAD | dict(eps=0.05)
    return [
        ('right', RIGHT, worked), ('right-cool', RIGHT, worked | dict(temperature=0.7)),
        ('wrong', WRONG, worked), ('wrong-cool', WRONG, worked | dict(temperature=0.7)),
        ('none', [], SPREAD), ('one', [0.7], SPREAD), ('equal', [0.25] * 6, SPREAD),
        ('extreme', [-50.0, 50.0, 0.0, 49.0, -49.5, 1.0, 2.0], SPREAD | dict(temperature=0.3)),
        ('both-clips', [math.log(x) for x in BINDING], SPREAD | dict(eps=0.3, w_max=1.7)),
        ('many', many, SPREAD), ('half-blend', many[:31], SPREAD | dict(blend=0.5)),
        ('entropy-floor', many[:23], SPREAD | dict(temperature=0.2, entropy_floor=0.9)),
    ]


def raw_weights(z, temperature):
    u = torch.exp((z - z.max()) / temperature)
    return u / u.mean()


def entropy(w):
    q = w / w.sum()
    return (-(q * q.log()).sum() / math.log(len(w))).item()


def floored(z, temperature, floor):
    """The lowest temperature from the given one up to 100 that reaches the entropy floor."""
    if entropy(raw_weights(z, temperature)) >= floor:
        return temperature
    lo, hi = temperature, 100.0
    for _ in range(200):
        mid = (lo + hi) / 2
        lo, hi = (lo, mid) if entropy(raw_weights(z, mid)) >= floor else (mid, hi)
    return hi


def weigh(scores, s):
    """Whitened scores, raw and final weights of one vector; `spec/wmtp.md` 1.8."""
    scores = numbers(scores)
    ones = torch.ones_like(scores)
    if len(scores) < 2 or scores.std(unbiased=False) < 1e-6:
        return torch.zeros_like(scores), ones, ones
    z = (scores - scores.mean()) / (scores.std(unbiased=False) + 1e-8)
    raw = raw_weights(z, floored(z, s['temperature'], s['entropy_floor']))
    return z, raw, 1 + s['blend'] * (projected(raw, s['eps'], s['w_max']) - 1)


def advantages(values, reward, gamma, lam):
    """TD errors and generalised advantages of one response; `values` are V before each target."""
    nxt = [gamma * v for v in values[1:]] + [reward]
    delta = [n - v for n, v in zip(nxt, values)]
    return delta, [sum((gamma * lam)**i * d for i, d in enumerate(delta[j:])) for j in range(len(delta))]


def weighting(folder):
    """The worked vectors of `spec/wmtp.md` 1.7 and 1.8 and the borders: none, one, equal, both clips, extremes."""
    inputs, golden, vectors, responses = {}, {}, [], []
    for name, scores, s in score_vectors():
        vectors.append(dict(name=name, **s))
        inputs[f'scores.{name}'] = numbers(scores)
        z, raw, w = weigh(scores, s)
        golden |= {f'weight.count.{name}': numbers([len(scores)])}
        if len(scores):
            golden |= {f'weight.z.{name}': z, f'weight.raw.{name}': raw, f'weight.final.{name}': w}
    for name, values, reward, gamma, lam in (
            ('three', [0.5, 0.7, 0.9], 1.0, 1.0, 0.95), ('right', [0.5, 0.55, 0.4, 0.7], 1.0, 1.0, 0.95),
            ('wrong', [0.5, 0.55, 0.4, 0.7], 0.0, 1.0, 0.95), ('discounted', [0.2, -3.0, 21.0, 0.4, 0.9], 1.0, 0.9, 0.5),
            ('single', [0.3], 1.0, 1.0, 0.95)):
        responses.append(dict(name=name, reward=reward, gamma=gamma, lam=lam))
        inputs[f'values.{name}'] = numbers(values)
        delta, advantage = advantages(values, reward, gamma, lam)
        golden |= {f'td.delta.{name}': numbers(delta), f'td.advantage.{name}': numbers(advantage)}
    inputs['raw.both-bounds'] = numbers(BINDING) / numbers(BINDING).mean()
    golden['weight.projected.both-bounds'] = projected(inputs['raw.both-bounds'], 0.05, 3.0)
    projections = [dict(name='both-bounds', eps=0.05, w_max=3.0)]
    config = dict(vectors=vectors, responses=responses, projections=projections)
    write_case(folder, 'weighting', config, golden, inputs)


def schedule(step, c):
    """Share of the peak rate in the 0-based step: linear warm-up to 1, cosine down to the floor."""
    warm, step = math.ceil(c['steps'] * c['warmup_ratio']), step + 1
    if step <= warm:
        return step / warm
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (c['steps'] - warm)))
    return c['min_lr_ratio'] + (1 - c['min_lr_ratio']) * cosine


def adamw(folder):
    """Ten steps of three tensors, with and without clipping; the matrix and the long vector decay."""
    g = torch.Generator().manual_seed(20246)
    c = dict(steps=10, lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decays=['matrix', 'long'],
             warmup_ratio=0.3, min_lr_ratio=0.1, runs=[dict(name='clipped', clip=1.0), dict(name='free', clip=1e9)])
    shapes = dict(matrix=(5, 7), long=(19,), short=(3,))
    p = {n: torch.randn(*s, generator=g) for n, s in shapes.items()}
    grads = {f'grad.{n}': 0.3 * torch.randn(c['steps'], *s, generator=g) for n, s in shapes.items()}
    grads['grad.long'][3] = 0.0
    grads['grad.short'][5] *= 1e-6

    def run(name, clip, dtype):
        q = {n: v.to(dtype, copy=True).requires_grad_() for n, v in p.items()}
        groups = [dict(params=[q[n]], weight_decay=c['weight_decay'] if n in c['decays'] else 0.0) for n in q]
        optimizer = torch.optim.AdamW(groups, lr=c['lr'], betas=c['betas'], eps=c['eps'], foreach=False)
        norms, seen = [], {n: [] for n in q}
        for step in range(c['steps']):
            for n, v in q.items():
                v.grad = grads[f'grad.{n}'][step].to(dtype, copy=True)  # clipping works in place
            norms.append(torch.nn.utils.clip_grad_norm_(list(q.values()), clip, foreach=False).double())
            for group in optimizer.param_groups:
                group['lr'] = c['lr'] * schedule(step, c)
            optimizer.step()
            for n, v in q.items():
                seen[n].append(v.detach().double().clone())
        norm = torch.stack(norms)
        return {f'clip.norm.{name}': norm, f'clip.coefficient.{name}': (clip / (norm + 1e-6)).clamp(max=1.0),
                **{f'param.{name}.{n}': torch.stack(t) for n, t in seen.items()}}
    golden = {'schedule.factor': numbers([schedule(s, c) for s in range(c['steps'])])}
    floors = {}
    for r in c['runs']:
        truth, single = (run(r['name'], r['clip'], dt) for dt in (torch.float64, torch.float32))
        golden |= truth
        floors |= {k: {'f32': distance(single[k], t)} for k, t in truth.items() if k.startswith('param.')}
    write_case(folder, 'adamw', c, golden, grads, p, floors, seed=20246)


def passk(folder):
    """pass@k over a grid, in exact fractions; where it is not defined, `defined` is 0 and the value 0."""
    sizes = (1, 2, 3, 5, 10, 20, 100, 200)
    grid = [(n, c, k) for n in sizes for c in sorted({0, 1, n // 3, n // 2, n - 1, n, n + 1}) for k in (0, 1, 2, 5, 10, 100)]
    rows = []
    for n, c, k in grid:
        defined = 0 < k <= n and c <= n
        value = 1 - Fraction(math.comb(n - c, k), math.comb(n, k)) if defined else 0
        rows.append((float(value), float(defined)))
    value, defined = map(list, zip(*rows))
    inputs = {name: torch.tensor(column) for name, column in zip('nck', zip(*grid))}
    write_case(folder, 'passk', {}, {'passk.value': numbers(value), 'passk.defined': numbers(defined)}, inputs)


PIECES = r'\n|[ \t]{2,}| ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s'
SPECIALS = ['<pad>', '<bos>', '<eos>']


def strings():
    """200 texts: borders first, then lines of code with indentation, tabs, CRLF and other scripts."""
    fixed = ['', ' ', '\n', '\t', '\r\n', '  \n  ', 'a', 'é', '\u00a0', '日本語', '🙂🙂', 'e\u0301', '<eos>', '<pad> <bos>',
             'def f(x):\n\treturn x\n', 'if a:\r\n    b = 1\r\nelse:\r\n\tb = 2\r\n', '\ufeff#!', '\u2028', '0' * 9,
             'x' * 70, '\\n', 'naïve café', 'Привет', 'مرحبا', '\0', 'a\u200bb', '    \t  mixed', '--->>> ===']
    rng = random.Random(20247)
    words = ['def', 'return', 'for', 'in', 'range', '(', ')', ':', '=', '+=', 'count_2', 'x', 'ß', '12', '3.5', "'s'", '#', 'λ', '==']
    line = lambda: rng.choice(['', '    ', '\t', '        ', ' ']) + ' '.join(rng.choices(words, k=rng.randint(1, 9)))
    texts = list(fixed)
    while len(texts) < 200:
        texts.append(rng.choice(['\n', '\r\n']).join(line() for _ in range(rng.randint(1, 5))))
    return texts


def tokenizer(folder):
    """A byte-level vocabulary trained here, ids of 200 texts and back."""
    t, texts = Tokenizer(models.BPE()), strings()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet,
                                                     show_progress=False))
    saved = t.to_str(pretty=True)
    t.encode_special_tokens = True  # the characters <eos> in a text stay characters
    encoded = [t.encode(text, add_special_tokens=False).ids for text in texts]
    assert [t.decode(ids) for ids in encoded] == texts
    width = max(map(len, encoded))
    padded = torch.tensor([ids + [-1] * (width - len(ids)) for ids in encoded])
    golden = {'ids.padded': padded, 'ids.count': torch.tensor([len(ids) for ids in encoded]),
              'back.equal': torch.ones(len(texts), dtype=torch.int64)}
    write_case(folder, 'tokenizer', {}, golden,
               texts={'tokenizer.json': saved + '\n', 'texts.json': json.dumps(texts, indent=0) + '\n'})
