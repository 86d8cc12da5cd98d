"""`make bench-train`: whole MTP training steps, ours beside PyTorch's, on the same cores in turn.

    python train.py TRAIN_RATE [--rounds 3] [--steps 6] [--threads N] [--sizes micro-a,demo,wide] [--products f32,bf16]
    python train.py TRAIN_RATE --device cuda [--rounds 1] [--sizes 350m,7b-lora,7b]

On a device TRAIN_RATE is built with the feature `cuda`, the sizes are others, and the most memory that each side's
tensors took is printed too. PyTorch computes activations again, block by block, where it would not fit otherwise; so do we.

TRAIN_RATE is our binary (`cargo build --workspace --examples`). A step is forward, backward, clipping and AdamW of one
MTP model with weighted cross-entropy over every head and token, with f32 products and, where the processor multiplies
bf16, with bf16 products too (PyTorch's autocast; weights and sums stay f32 on both sides). PyTorch runs as its users
would run it: fused attention, fused norm, fused AdamW; eager and compiled. Every round runs each contender once, in an order that turns;
the first two steps of a run warm up, the median of the others over all rounds is printed. The first losses of both
sides are compared on equal weights by the parity goldens, not here.

On the CPU every size and kind of products has a goal against each of PyTorch's two: the last lines say which were met, and
the exit status is 1 where one was missed or a contender did not run. PyTorch's compiler alone may be missing, as not every
machine can run it; that is said, and no verdict. A device has no goals.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, time

# dim, trunk blocks, heads, feed-forward, attention heads, vocabulary, sequence, batch
SIZES = {
    "micro-a": (256, 5, 4, 704, 4, 4096, 256, 8),
    "demo": (128, 6, 4, 384, 4, 1024, 128, 32),
    "wide": (512, 8, 4, 1408, 8, 8192, 512, 2),
}
# The same, then the rank of adapters upon frozen weights (0 trains every weight), the MiB of activations that we keep,
# and whether PyTorch computes the activations of blocks again.
DEVICE_SIZES = {
    "350m": ((1024, 20, 4, 2816, 16, 32000, 1024, 16), 0, 30000, False),
    "7b-lora": ((4096, 28, 4, 11008, 32, 32000, 2048, 4), 16, 40000, True),
    "7b": ((4096, 28, 4, 11008, 32, 32000, 2048, 2), 0, 4000, True),
}
WARM_UP = 2
# Least ratio of our tokens/s to each of PyTorch's.
GOALS = {"eager": 1.1, "compiled": 1.0}


def torch_steps(size, steps, compiled, threads, products, device="cpu", rank=0, again=False):
    """Seconds of each step of the same model in PyTorch, and the most bytes of a device's memory."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(threads)
    torch.manual_seed(42)
    torch.set_default_device(device)
    dim, trunk, heads, ffn, n_heads, vocab, sequence, batch = size
    head_dim = dim // n_heads

    class Adapted(torch.nn.Module):
        """A frozen layer in bf16, as users load it for adapters, and the adapters."""

        def __init__(self, inputs, outputs):
            super().__init__()
            base = torch.nn.Linear(inputs, outputs, bias=False).to(torch.bfloat16)
            self.base = base.requires_grad_(False)
            self.a = torch.nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
            self.b = torch.nn.Parameter(torch.zeros(outputs, rank))

        def forward(self, x):
            return self.base(x) + 2.0 * F.linear(F.linear(x, self.a), self.b)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = Adapted if rank else lambda i, o: torch.nn.Linear(i, o, bias=False)
            self.attention_norm, self.ffn_norm = torch.nn.RMSNorm(dim, 1e-5), torch.nn.RMSNorm(dim, 1e-5)
            self.qkv, self.wo = linear(dim, 3 * dim), linear(dim, dim)
            self.w13, self.w2 = linear(dim, 2 * ffn), linear(ffn, dim)

        def forward(self, x, cos, sin):
            b, s, _ = x.shape
            q, k, v = self.qkv(self.attention_norm(x)).view(b, s, 3, n_heads, head_dim).unbind(2)
            turn = lambda t: torch.stack(
                (t[..., 0::2] * cos - t[..., 1::2] * sin, t[..., 0::2] * sin + t[..., 1::2] * cos), -1
            ).flatten(-2)
            q, k, v = turn(q).transpose(1, 2), turn(k).transpose(1, 2), v.transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.wo(y.transpose(1, 2).reshape(b, s, dim))
            gate, up = self.w13(self.ffn_norm(x)).chunk(2, -1)
            return x + self.w2(F.silu(gate) * up)

    class Mtp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(vocab, dim)
            self.trunk = torch.nn.ModuleList(Block() for _ in range(trunk))
            self.heads = torch.nn.ModuleList(Block() for _ in range(heads))
            self.norm = torch.nn.RMSNorm(dim, 1e-5)
            self.output = torch.nn.Linear(dim, vocab, bias=False)

        def forward(self, ids, weights, cos, sin):
            run = lambda f, *given: checkpoint(f, *given, use_reentrant=False) if again else f(*given)
            x = self.embed(ids)
            for block in self.trunk:
                x = run(block, x, cos, sin)

            def head(k, block, x):
                # Only the positions that predict: logits of the others would be made for nothing.
                logits = self.output(self.norm(block(x, cos, sin)[:, :-k]))
                ce = F.cross_entropy(logits.reshape(-1, vocab).float(), ids[:, k:].reshape(-1), reduction="none")
                return (ce * weights[:, k:].reshape(-1)).mean()

            total = sum(run(head, k, block, x) for k, block in enumerate(self.heads, 1))
            return total / len(self.heads)

    model = Mtp()
    if rank:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith((".a", ".b")))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step_model = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    ids = (torch.arange(batch * sequence) * 7919 % vocab).view(batch, sequence)
    weights = (0.5 + (torch.arange(sequence) % 3) / 2.0).expand(batch, sequence)
    angles = torch.outer(
        torch.arange(sequence).float(), 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    )[None, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    secs = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=products == "bf16"):
            loss = step_model(ids, weights, cos, sin)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        secs.append(time.perf_counter() - start)
    return {
        "secs": secs,
        "parameters": sum(p.numel() for name, p in model.named_parameters() if not name.endswith((".a", ".b"))),
        "device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def matmul_peak(threads, products, device="cpu"):
    """GFLOP/s of PyTorch's product of two 2,048 x 2,048 matrices (8,192 on a device), best of five."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[products]
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def flops_per_token(size, rank):
    """Multiplications and additions of forward and backward: 6 a weight (4 where it is frozen), and causal attention."""
    dim, trunk, heads, ffn, _, vocab, sequence, _ = size
    blocks = trunk + heads
    matrices = blocks * (4 * dim * dim + 3 * dim * ffn) + heads * dim * vocab
    return (4 if rank else 6) * matrices + 6 * blocks * sequence * dim


def worker(arguments):
    """Runs one PyTorch contender in a process of its own, so that none warms the other's caches."""
    size, rank, _, again = sizes_on(arguments.device)[arguments.size]
    steps, threads, products, device = arguments.steps, arguments.threads, arguments.products, arguments.device
    if arguments.worker == "peak":
        print(json.dumps(matmul_peak(threads, products, device)))
    else:
        compiled = arguments.worker == "compiled"
        print(json.dumps(torch_steps(size, steps, compiled, threads, products, device, rank, again)))


def sizes_on(device):
    """Every size as on a device."""
    return DEVICE_SIZES if device == "cuda" else {name: (size, 0, None, False) for name, size in SIZES.items()}


def run_ours(binary, size, steps, threads, products, device):
    dims, rank, kept, _ = size
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "CANDLE_NUM_THREADS": "1", "MIMALLOC_PURGE_DELAY": "-1"}
    env |= {"WMTP_DEVICE": device} | ({"LORA": str(rank), "BASE": "bf16"} if rank else {})
    command = [binary, *map(str, dims), str(steps), products, *([str(kept)] if kept else [])]
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    if found.returncode != 0:
        return did_not_run("ours", found)
    return json.loads(found.stdout)


def run_torch(kind, name, steps, threads, products, device):
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "-", "--worker", kind, "--size", name, "--products", products]
    command += ["--steps", str(steps), "--threads", str(threads), "--device", device]
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    if found.returncode != 0:
        return did_not_run(f"PyTorch {kind}", found)
    return json.loads(found.stdout)


def did_not_run(who, found):
    """Says so with the last that it said; `None`."""
    last = (found.stderr.strip().splitlines() or ["without a word"])[-1][:400]
    print(f"  {who} did not run (exit status {found.returncode}): {last}", file=sys.stderr)


def bf16_instructions():
    """Those that the processor has for products of bf16 numbers. PyTorch takes the tiles of AMX where they are, we do not."""
    flags = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    return [name for name in ("avx512_bf16", "amx_bf16") if name in flags]


def measure(contenders, rounds, peak):
    """Seconds of every step behind the warm-up, and bytes on the device, of each contender that ran in every round; and
    what `peak` measured after each."""
    kinds = list(contenders)
    secs, memory, peaks, parameters = {kind: [] for kind in kinds}, {}, [], {}
    for turn in range(rounds):
        first = turn % len(kinds)
        for kind in kinds[first:] + kinds[:first]:
            found = contenders[kind]() if kind in secs else None
            if not found:
                secs.pop(kind, None)
                continue
            secs[kind] += found["secs"][WARM_UP:]
            parameters[kind] = found["parameters"]
            if found["device_bytes"]:
                memory[kind] = found["device_bytes"]
        peaks.append(peak())
    if len(set(parameters.values())) > 1:
        sys.exit(f"these are not the same model: parameters {parameters}")
    return secs, memory, peaks


def verdict(rates, kinds):
    """Prints what became of the goals; whether all that could be judged were met."""
    missed = unjudged = 0
    print(f"\n{'goal':<34}{'least':>6}{'here':>7}")
    for load, rate in rates.items():
        for kind in filter(GOALS.get, kinds):
            line, least = f"{load} over {kind}", GOALS[kind]
            absent = [who for who in ("ours", kind) if who not in rate]
            if absent:
                excused = absent == ["compiled"]
                missed, unjudged = missed + (not excused), unjudged + excused
                print(f"{line:<34}{least:>6.1f}{'-':>7}  {absent[0]} did not run{'' if excused else ': MISSED'}")
            else:
                ratio = rate["ours"] / rate[kind]
                missed += ratio < least
                print(f"{line:<34}{least:>6.1f}{ratio:>7.2f}{'' if ratio >= least else '  MISSED'}")
    print(f"{missed} missed, {unjudged} not judged")
    return missed == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--products")
    parser.add_argument("--sizes")
    parser.add_argument("--kinds", default="ours,eager,compiled")
    parser.add_argument("--worker", choices=["eager", "compiled", "peak"])
    parser.add_argument("--size", default="micro-a")
    arguments = parser.parse_args()
    device = arguments.device
    instructions = bf16_instructions()
    of_cpu = "f32,bf16" if instructions else "f32"
    arguments.products = arguments.products or ("bf16" if device == "cuda" else of_cpu)
    arguments.sizes = arguments.sizes or ",".join(sizes_on(device))
    if arguments.worker:
        return worker(arguments)
    threads = arguments.threads
    print(f"{threads} threads, bf16 by {' and '.join(instructions) or 'no instructions'}; ", end="")
    print(f"median of {arguments.steps} steps in each of {arguments.rounds} rounds")
    print(f"{'size':<14}{'ours':>9}{'eager':>9}{'compiled':>10}   tokens/s   {'/eager':>7}{'/compiled':>10}  of the matmul peak")
    rates = {}
    for products in arguments.products.split(","):
        for name in arguments.sizes.split(","):
            rates[f"{name} {products}"] = compare(arguments, name, products)
    kinds = arguments.kinds.split(",")
    if device == "cpu" and "ours" in kinds and not verdict(rates, kinds):
        sys.exit(1)


def compare(arguments, name, products):
    """Runs all contenders of a size and prints their line; tokens/s of each that ran."""
    device, threads, steps = arguments.device, arguments.threads, arguments.steps + WARM_UP
    whole = sizes_on(device)[name]
    size, rank = whole[:2]
    binary = str(pathlib.Path(arguments.binary).resolve())
    contenders = {
        "ours": lambda: run_ours(binary, whole, steps, threads, products, device),
        "eager": lambda: run_torch("eager", name, steps, threads, products, device),
        "compiled": lambda: run_torch("compiled", name, steps, threads, products, device),
    }
    asked = {kind: contenders[kind] for kind in arguments.kinds.split(",")}
    peak = lambda: run_torch("peak", name, steps, threads, products, device)
    secs, memory, peaks = measure(asked, arguments.rounds, peak)
    rate = {kind: size[6] * size[7] / statistics.median(found) for kind, found in secs.items()}
    cell = lambda kind, width: f"{rate[kind]:>{width},.0f}" if kind in rate else f"{'-':>{width}}"
    both = lambda kind: "ours" in rate and kind in rate
    ratio = lambda kind, width: f"{rate['ours'] / rate[kind]:>{width}.2f}" if both(kind) else f"{'-':>{width}}"
    share = "-"
    if "ours" in rate and all(peaks):
        most = statistics.median(peaks)
        share = f"{rate['ours'] * flops_per_token(size, rank) / most / 1e9:.0%} of {most:.0f} GFLOP/s"
    held = "".join(f"; {kind} {held / 2**30:.1f} GiB" for kind, held in memory.items())
    print(
        f"{name + ' ' + products:<14}{cell('ours', 9)}{cell('eager', 9)}{cell('compiled', 10)}              {ratio('eager', 7)}"
        f"{ratio('compiled', 10)}  {share}{held}",
        flush=True,
    )
    return rate


if __name__ == "__main__":
    main()
