"""Compares head 1 of the model goldens and of the merged one with Hugging Face's Llama. Usage: python cross_check.py GOLDENS

Needs `pip install transformers==5.24.0` besides requirements.txt. The reference is ours, so something written by
others has to agree with it: a case farther away than LIMIT ends the program with an error.
"""
import json, pathlib, sys
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from model_cases import to_hugging_face

# Largest rel_l2 of the logits (`spec/parity.md` 6, M1).
LIMIT = 1e-6


def llama(c, p):
    """Trunk and head 1 as a Llama in f64; query and key rows move to half-split order."""
    blocks = c['n_layers'] - c['n_future'] + 1
    config = LlamaConfig(
        vocab_size=c['vocab'], hidden_size=c['dim'], intermediate_size=c['ffn'], num_hidden_layers=blocks,
        num_attention_heads=c['n_heads'], num_key_value_heads=c['n_kv'], rms_norm_eps=c['eps'],
        rope_theta=c['theta'], tie_word_embeddings=False, attn_implementation='eager')
    state = {'model.embed_tokens.weight': p['tok_embeddings.weight'], 'model.norm.weight': p['norm.weight'],
             'lm_head.weight': p['output.weight']}
    names = {'attention.wq': 'self_attn.q_proj', 'attention.wk': 'self_attn.k_proj', 'attention.wv': 'self_attn.v_proj',
             'attention.wo': 'self_attn.o_proj', 'feed_forward.w1': 'mlp.gate_proj', 'feed_forward.w3': 'mlp.up_proj',
             'feed_forward.w2': 'mlp.down_proj', 'attention_norm': 'input_layernorm',
             'ffn_norm': 'post_attention_layernorm'}
    for i in range(blocks):
        for ours, theirs in names.items():
            w = p[f'layers.{i}.{ours}.weight']
            heads = {'attention.wq': c['n_heads'], 'attention.wk': c['n_kv']}.get(ours)
            state[f'model.layers.{i}.{theirs}.weight'] = to_hugging_face(w, heads) if heads else w
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model.double()


def main(goldens):
    for name in ('nano', 'nano-h4-mha', 'lora'):
        folder = pathlib.Path(goldens) / name
        c = json.loads((folder / 'manifest.json').read_text())['config']
        weights, inputs, golden = (load_file(folder / f'{n}.safetensors') for n in ('weights', 'inputs', 'golden'))
        weights |= {k.removeprefix('merged.'): v for k, v in golden.items() if k.startswith('merged.')}
        with torch.no_grad():
            logits = llama(c, weights)(inputs['ids']).logits
        expected = golden['head.1.logits']
        rel_l2 = ((logits - expected).norm() / expected.norm()).item()
        said = (f'{name}: rel_l2 {rel_l2:.1e}, largest difference {(logits - expected).abs().max().item():.1e} '
                f'at a scale of {expected.abs().max().item():.1f}')
        if not rel_l2 <= LIMIT:  # NaN, too
            sys.exit(f'{said}; expected at most {LIMIT:.0e}')
        print(said)


if __name__ == '__main__':
    main(sys.argv[1])
