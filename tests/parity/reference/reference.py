"""Makes the golden cases of the parity room. Usage: python reference.py OUT_DIR [CASE ...]

    python3 -m venv env && env/bin/pip install -r requirements.txt && env/bin/python reference.py ../goldens

An offline tool: the product needs no Python, and checking needs none either. A new case is a function that
takes its folder, and a line in CASES. A golden is never edited: a change gets a new folder and a changelog line.
"""
import pathlib, sys
import torch

import model_cases, unit_cases

CASES = {
    'nano': model_cases.nano,
    'nano-h4-mha': model_cases.nano_h4_mha,
    'lora': model_cases.lora,
    'fv': model_cases.fv,
    'rope': unit_cases.rope,
    'weighting': unit_cases.weighting,
    'rho1': model_cases.rho1,
    'rho1-step': model_cases.rho1_step,
    'adamw': unit_cases.adamw,
    'layout': model_cases.layout,
    'generate': model_cases.generate,
    'tokenizer': unit_cases.tokenizer,
    'passk': unit_cases.passk,
}


def main(out, names):
    """Makes the named cases, or all of them, under `out`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in names or CASES:
        CASES[name](pathlib.Path(out) / name)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2:])
