"""Writes golden cases: safetensors plus a manifest that names every file's digest."""
import hashlib, json, pathlib
import torch
from safetensors.torch import save_file

SCHEMA = 'wmtp.parity/1'
STORED = (torch.float32, torch.float64, torch.int64, torch.uint8)


def _stored(tensor):
    """A tensor in one of the four types that goldens use."""
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    assert tensor.dtype in STORED, tensor.dtype
    return tensor.detach().contiguous().clone()


def numbers(values):
    """A list of Python numbers as an f64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def write_case(folder, kind, config, golden, inputs=None, weights=None, floors=None, texts=None, **more):
    """One case: `golden` and the others map keys to tensors, `texts` maps file names to text."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}

    def add(name, data):
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()

    for name, tensors in (('weights', weights), ('inputs', inputs), ('golden', golden)):
        if tensors:
            path = folder / f'{name}.safetensors'
            save_file({key: _stored(tensor) for key, tensor in tensors.items()}, path)
            add(path.name, path.read_bytes())
    for name, text in (texts or {}).items():
        add(name, text.encode())
    manifest = dict(schema=SCHEMA, case=folder.name, kind=kind, config=config, **more,
                    torch=torch.__version__, files=files, noise_floor=floors or {})
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=1, default=list) + '\n')


def distance(got, truth):
    """Relative distance of a low-precision result from the f64 one."""
    got, truth = got.double(), truth.double()[:got.shape[0]]
    return ((got[:truth.shape[0]] - truth).norm() / (truth.norm() + 1e-300)).item()
