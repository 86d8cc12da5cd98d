"""The multi-token-prediction Llama, its token weights, loss and training step, in plain PyTorch.

Shapes: B batch, S sequence, D hidden, V vocabulary, H horizons. Parameters are named as in Meta's files.
"""
import math
import torch, torch.nn.functional as F


def random_parameters(c, g, value_head=True):
    """f32 parameters without neutral values (norm weights near but never 1), and the names of the blocks."""
    hd, n_trunk_and_first = c['dim'] // c['n_heads'], c['n_layers'] - c['n_future'] + 1
    p = {}

    def mat(name, *shape):
        p[name] = 0.08 * torch.randn(*shape, generator=g, dtype=torch.float64)

    def vec(name, n):
        p[name] = 1 + 0.1 * torch.randn(n, generator=g, dtype=torch.float64)

    blocks = [f'layers.{i}' for i in range(n_trunk_and_first)]
    blocks += [f'extra_heads.{i}' for i in range(c['n_future'] - 1)]
    mat('tok_embeddings.weight', c['vocab'], c['dim'])
    for b in blocks:
        for n, o, i in (('wq', c['n_heads'] * hd, c['dim']), ('wk', c['n_kv'] * hd, c['dim']),
                        ('wv', c['n_kv'] * hd, c['dim']), ('wo', c['dim'], c['n_heads'] * hd)):
            mat(f'{b}.attention.{n}.weight', o, i)
        for n, o, i in (('w1', c['ffn'], c['dim']), ('w3', c['ffn'], c['dim']), ('w2', c['dim'], c['ffn'])):
            mat(f'{b}.feed_forward.{n}.weight', o, i)
        vec(f'{b}.attention_norm.weight', c['dim'])
        vec(f'{b}.ffn_norm.weight', c['dim'])
    vec('norm.weight', c['dim'])
    mat('output.weight', c['vocab'], c['dim'])
    if value_head:
        mat('value_head.weight', 1, c['dim'])
    return {k: v.float() for k, v in p.items()}, blocks


def rope_tables(positions, head_dim, theta, dtype):
    """Cosines and sines [positions, head_dim / 2], angles computed in `dtype`."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).to(dtype) / head_dim)
    angle = torch.outer(positions.to(dtype), frequency)
    return angle.cos(), angle.sin()


def interleaved(t, cos, sin):
    """Meta's rotary layout: pairs (2i, 2i+1)."""
    a, b = t[..., 0::2], t[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def half_split(t, cos, sin):
    """Hugging Face's rotary layout: pairs (i, i + Hd/2)."""
    a, b = t.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def forward(p, blocks, c, ids, cos, sin, rec, rope=interleaved, edit=lambda site, x: x):
    """Logits [B, S, V] of every head; every site of `spec/parity.md` 4.2 goes into `rec`.

    A matrix with `lora_a` and `lora_b` beside it is adapted (`spec/wmtp.md` 1.12). `edit` may replace the heads'
    outputs and the residual stream.
    """
    dt, (B, S), nh, nk = p['norm.weight'].dtype, ids.shape, c['n_heads'], c['n_kv']
    hd = c['dim'] // nh
    acc = torch.float32 if dt in (torch.float16, torch.bfloat16) else dt

    def norm(x, w):
        h = x.to(acc)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + c['eps'])
        return h.to(dt) * w

    mask = torch.full((S, S), float('-inf'), dtype=dt).triu(1)

    def block(x, b, site):
        def w(n):
            return p[f'{b}.{n}.weight']

        def linear(h, n):
            y = h @ w(n).T
            if f'{b}.{n}.lora_a' in p:
                y = y + c['alpha'] / c['r'] * ((h @ p[f'{b}.{n}.lora_a'].T) @ p[f'{b}.{n}.lora_b'].T)
            return y

        h = norm(x, w('attention_norm'))
        q, k, v = (linear(h, f'attention.{n}').view(B, S, m, hd).transpose(1, 2)
                   for n, m in (('wq', nh), ('wk', nk), ('wv', nk)))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        k, v = k.repeat_interleave(nh // nk, 1), v.repeat_interleave(nh // nk, 1)
        att = F.softmax((q @ k.transpose(-1, -2)) / math.sqrt(hd) + mask, -1, dtype=acc).to(dt)
        y = edit(f'{site}.attn_heads', (att @ v).transpose(1, 2).reshape(B, S, nh * hd))
        rec[f'{site}.attn_heads'] = y
        a = linear(y, 'attention.wo')
        rec[f'{site}.attn_out'] = a
        x = x + a
        h = norm(x, w('ffn_norm'))
        gate = F.silu(linear(h, 'feed_forward.w1'))
        x = x + linear(gate * linear(h, 'feed_forward.w3'), 'feed_forward.w2')
        x = edit(f'{site}.resid', x)
        rec[f'{site}.resid'] = x
        return x

    x = p['tok_embeddings.weight'][ids]
    rec['embed'] = x
    n_trunk = c['n_layers'] - c['n_future']
    for i in range(n_trunk):
        x = block(x, blocks[i], f'trunk.{i}')
    if 'value_head.weight' in p:
        rec['value.hidden'] = norm(x, p['norm.weight'])
        rec['value.v'] = (rec['value.hidden'] @ p['value_head.weight'].T).squeeze(-1)
    logits = []
    for k, b in enumerate(blocks[n_trunk:], 1):
        lg = norm(block(x, b, f'head.{k}'), p['norm.weight']) @ p['output.weight'].T
        rec[f'head.{k}.logits'] = lg
        logits.append(lg)
    return logits


def weights_from_value(v, mask, reward, c, rec):
    """Token weights [B, S]. `mask` marks response targets; the advantage of target j has V[j-1] as its baseline."""
    v = v.detach().to(torch.float64)
    d, A = torch.zeros_like(v), torch.zeros_like(v)
    for b in range(v.shape[0]):
        js, run = mask[b].nonzero().flatten().tolist(), 0.0
        for j in reversed(js):
            nxt = reward[b].item() if j == js[-1] else c['gamma'] * v[b, j].item()
            d[b, j] = nxt - v[b, j - 1]
            run = d[b, j].item() + c['gamma'] * c['lam'] * run
            A[b, j] = run
    s = A[mask]
    z = (s - s.mean()) / (s.std(unbiased=False) + 1e-8)
    w0 = torch.exp((z - z.max()) / c['temp'])
    w0 = w0 / w0.mean()
    lo, hi = -20.0, 20.0
    for _ in range(200):  # project to mean 1 inside [w_min, w_max]
        mid = (lo + hi) / 2
        lo, hi = (mid, hi) if (math.exp(mid) * w0).clamp(c['w_min'], c['w_max']).mean() < 1 else (lo, mid)
    w = torch.zeros_like(v)
    w[mask] = (math.exp((lo + hi) / 2) * w0).clamp(c['w_min'], c['w_max'])

    def full(t):
        return torch.zeros_like(v).masked_scatter(mask, t)
    rec.update({'td.delta': d, 'td.advantage': A, 'weight.z': full(z), 'weight.raw': full(w0), 'weight.projected': w})
    return w


def token_ce(lg, ids, k):
    """Cross-entropy [B, S-k] of horizon k in nats."""
    lg = lg[:, :-k] if lg.dtype == torch.float64 else lg[:, :-k].float()
    return F.cross_entropy(lg.transpose(1, 2), ids[:, k:], reduction='none')


def loss(logits, ids, mask, w, rec):
    """Mean over heads of the weighted sum over the number of targets; weights are [B, S], or [B, S, H] of each head."""
    tot = 0.0
    for k, lg in enumerate(logits, 1):
        m, ce = mask[:, k:], token_ce(lg, ids, k)
        rec[f'ce.{k}'] = ce
        of_head = w[:, k:] if w.dim() == 2 else w[:, k:, k - 1]
        l = (ce * of_head.to(ce.dtype) * m).sum() / m.sum()
        rec[f'loss.head.{k}'] = l.reshape(1)
        tot = tot + l
    tot = tot / len(logits)
    rec['loss.total'] = tot.reshape(1)
    return tot


def train(p32, blocks, c, opt, inp, dtype, w=None, steps=10, trained=lambda name: True, weigh=None):
    """Everything a golden holds: sites, loss, gradients, parameters after step 1, the trace. And the token weights.

    They are made in the first step, from the values, or by `weigh` from the logits.
    """
    # Copied first: without, an f32 run would train the shipped weights in place.
    p = {k: v.detach().to(dtype, copy=True).requires_grad_(trained(k)) for k, v in p32.items()}
    adamw, learned = {k: v for k, v in opt.items() if k != 'clip'}, [v for v in p.values() if v.requires_grad]
    out, optimizer, losses, norms = {}, torch.optim.AdamW(learned, foreach=False, **adamw), [], []
    for step in range(steps):
        rec = {}
        lg = forward(p, blocks, c, inp['ids'], inp['rope.cos'].to(dtype), inp['rope.sin'].to(dtype), rec)
        if w is None and weigh:
            w = weigh([l.detach() for l in lg], rec)
        elif w is None:
            w = weights_from_value(rec['value.v'], inp['mask'], inp['reward'], c, rec)
        l = loss(lg, inp['ids'], inp['mask'], w, rec)
        optimizer.zero_grad()
        l.backward()
        live = {k: v for k, v in p.items() if v.grad is not None}  # the value head gets none: part of the contract
        norm = math.sqrt(sum((v.grad.double()**2).sum().item() for v in live.values()))
        if step == 0:
            out |= {k: t.detach().clone() for k, t in rec.items()}
            out |= {f'grad.{k}': v.grad.detach().clone() for k, v in live.items()}
        for v in live.values():
            v.grad.mul_(min(1.0, opt['clip'] / (norm + 1e-6)))
        optimizer.step()
        losses.append(l.item())
        norms.append(norm)
        if step == 0:
            out |= {f'param.step1.{k}': v.detach().clone() for k, v in live.items()}
    out['trace.loss'] = torch.tensor(losses, dtype=torch.float64)
    out['trace.grad_norm'] = torch.tensor(norms, dtype=torch.float64)
    return out, w
