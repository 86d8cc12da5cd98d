"""`make bench-decode`: greedy decoding with a key-value cache, ours beside PyTorch's, on one core in turn.

    python decode.py EXAMPLES [--rounds 3] [--repeats 3] [--batches 1,8,32] [--sizes micro-a,demo,deep]

EXAMPLES is the folder of our binaries (`cargo build --workspace --examples`). Both sides decode 128 greedy tokens with the same
shape, random weights, f32 and one thread, trunk and head 1; a thread's CPU seconds are counted, which neighbours on the
machine disturb less than the clock on the wall. PyTorch runs eagerly, as its users would write it: packed
projections, a cache of fixed size written in place, fused attention and norm, inference mode. Every round runs each
contender once, in an order that turns; the first repeat of a run warms up, the median of the others over all rounds is
printed. Our memory stays with the process, as `jobs/stages.sh` has it; PyTorch's cache is made once, outside of the count.

The second table is ours alone: a model of 12 trunk blocks and 4 heads learns micropy for some minutes (kept beside the
binaries for the next time), then validation prompts are continued with and without the heads' proposals, seven times in
turn. The texts are compared; the ratio is the median of the rounds', the rates those of each way's fastest. The depth is
printed at which proposals would begin to gain, from the times of a second depth.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, time

# dim, trunk blocks, heads, feed-forward, attention heads, vocabulary
SIZES = {
    "micro-a": (256, 5, 4, 704, 4, 4096),
    "demo": (64, 6, 4, 192, 4, 512),
    "deep": (256, 12, 4, 704, 4, 4096),
}
PROMPT, TOKENS = 16, 128
# Of the model of the second table.
WIDTH = 128


def torch_secs(size, batch, repeats):
    """CPU seconds of each repeat of the same decoding in PyTorch."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    torch.manual_seed(42)
    dim, trunk, _, ffn, n_heads, vocab = size
    head_dim, room = dim // n_heads, PROMPT + TOKENS

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = lambda i, o: torch.nn.Linear(i, o, bias=False)
            self.attention_norm, self.ffn_norm = torch.nn.RMSNorm(dim, 1e-5), torch.nn.RMSNorm(dim, 1e-5)
            self.qkv, self.wo = linear(dim, 3 * dim), linear(dim, dim)
            self.w13, self.w2 = linear(dim, 2 * ffn), linear(ffn, dim)
            self.k, self.v = (torch.zeros(batch, n_heads, room, head_dim) for _ in range(2))

        def forward(self, x, cos, sin, start):
            b, s, _ = x.shape
            q, k, v = self.qkv(self.attention_norm(x)).view(b, s, 3, n_heads, head_dim).unbind(2)
            turn = lambda t: torch.stack(
                (t[..., 0::2] * cos - t[..., 1::2] * sin, t[..., 0::2] * sin + t[..., 1::2] * cos), -1
            ).flatten(-2)
            self.k[:, :, start : start + s] = turn(k).transpose(1, 2)
            self.v[:, :, start : start + s] = v.transpose(1, 2)
            k, v = self.k[:, :, : start + s], self.v[:, :, : start + s]
            y = F.scaled_dot_product_attention(turn(q).transpose(1, 2), k, v, is_causal=s > 1)
            x = x + self.wo(y.transpose(1, 2).reshape(b, s, dim))
            gate, up = self.w13(self.ffn_norm(x)).chunk(2, -1)
            return x + self.w2(F.silu(gate) * up)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(vocab, dim)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(trunk + 1))
            self.norm = torch.nn.RMSNorm(dim, 1e-5)
            self.output = torch.nn.Linear(dim, vocab, bias=False)

        def forward(self, ids, start):
            x, span = self.embed(ids), slice(start, start + ids.shape[1])
            for block in self.blocks:
                x = block(x, cos[:, span], sin[:, span], start)
            return self.output(self.norm(x[:, -1]))

    model = Model()
    angles = torch.outer(torch.arange(room).float(), 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim))
    cos, sin = angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]
    prompts = (torch.arange(batch * PROMPT) * 7919 % vocab).view(batch, PROMPT)
    secs = []
    with torch.inference_mode():
        for _ in range(repeats):
            begin = time.thread_time()
            ids = model(prompts, 0).argmax(-1, keepdim=True)
            for start in range(PROMPT, room - 1):
                ids = model(ids, start).argmax(-1, keepdim=True)
            secs.append(time.thread_time() - begin)
    return secs


def as_jobs():
    """The environment that the jobs run in."""
    return os.environ | {"MIMALLOC_PURGE_DELAY": "-1", "CANDLE_NUM_THREADS": "1"}


def run_ours(binary, size, batch, repeats):
    arguments = [*size, PROMPT, batch, TOKENS, repeats]
    found = subprocess.run([binary, *map(str, arguments)], env=as_jobs(), check=True, capture_output=True, text=True)
    return json.loads(found.stdout)["secs"]


def run_torch(name, batch, repeats):
    """PyTorch in a process of its own, so that it warms nobody's caches."""
    command = [sys.executable, __file__, "-", "--worker", "--sizes", name, "--batches", batch, "--repeats", repeats]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run([*map(str, command)], env=env, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--steps", type=int, default=400, help="training steps before the second table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return print(json.dumps(torch_secs(SIZES[arguments.sizes], int(arguments.batches), arguments.repeats)))
    binary, repeats = str((arguments.examples / "decode_rate").resolve()), arguments.repeats + 1
    print(f"f32, one thread, {TOKENS} greedy tokens, median of {arguments.repeats} in each of {arguments.rounds} rounds")
    print(f"{'size':<10}{'batch':>6}{'ours':>9}{'PyTorch':>9}   tokens per CPU second   {'ratio':>6}")
    for name in arguments.sizes.split(","):
        for batch in map(int, arguments.batches.split(",")):
            contenders = {
                "ours": lambda: run_ours(binary, SIZES[name], batch, repeats),
                "torch": lambda: run_torch(name, batch, repeats),
            }
            secs = {kind: [] for kind in contenders}
            for turn in range(arguments.rounds):
                for kind in sorted(contenders, reverse=turn % 2 == 1):
                    secs[kind] += contenders[kind]()[1:]
            rate = {kind: batch * TOKENS / statistics.median(found) for kind, found in secs.items()}
            print(
                f"{name:<10}{batch:>6}{rate['ours']:>9,.0f}{rate['torch']:>9,.0f}"
                f"                           {rate['ours'] / rate['torch']:>6.2f}",
                flush=True,
            )
    speculation(arguments.examples, arguments.steps)


def speculation(examples, steps):
    """The second table."""
    command = [examples / "speculation_rate", examples / f"speculation_{WIDTH}_{steps}.safetensors", WIDTH, steps]
    found = subprocess.run([*map(str, command)], env=as_jobs(), check=True, stdout=subprocess.PIPE, text=True)
    *deep, shallow = json.loads(found.stdout)
    heads = len(shallow["proposed"])
    print(f"\nmicropy after {steps} steps, {WIDTH} wide, {deep[0]['trunk_blocks']} trunk blocks: equal texts")
    print(f"{'batch':>5}{'temp.':>7}{'plain':>9}{'proposing':>10}   tokens per CPU second   {'ratio':>6}{'(least to most)':>17}  tokens/forward  accepted")
    for run in deep:
        gains, speed = run["gains"], run["tokens_per_forward"]
        spread = f"({min(gains):.2f} to {max(gains):.2f})"
        accepted = (f"{a / max(p, 1):.0%}" for a, p in zip(run["accepted"], run["proposed"]))
        print(
            f"{run['batch']:>5}{run['temperature']:>7}{run['tokens'] / run['plain_secs']:>9,.0f}"
            f"{run['tokens'] / run['secs']:>10,.0f}                           {statistics.median(gains):>6.2f}"
            f"{spread:>17}{'no proposals' if speed is None else f'{speed:.2f}':>16}  {' '.join(accepted) if speed else ''}"
        )
    # Seconds of a plain token and of a forward with proposals, each a line over the depth.
    plain = [run["plain_secs"] / run["tokens"] for run in (shallow, deep[0])]
    forward = [run["secs"] / run["forwards"] for run in (shallow, deep[0])]
    depths = [run["trunk_blocks"] for run in (shallow, deep[0])]
    slope = lambda line: (line[1] - line[0]) / (depths[1] - depths[0])
    gained = deep[0]["tokens_per_forward"] * slope(plain) - slope(forward)
    lost = forward[0] - deep[0]["tokens_per_forward"] * plain[0] + gained * depths[0]
    print(f"break-even at {max(lost / gained, 0):.1f} trunk blocks" if gained > 0 else f"{heads} proposing heads never gain")


if __name__ == "__main__":
    main()
