"""Write a small GPT-2 with random weights and a byte tokenizer, as transformers saves them: something to fine-tune.

python -m examples.tiny_checkpoint [FOLDER]    # from the repository; FOLDER is tiny-gpt2 unless said
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.text.tokenizer import bytes_

folder = sys.argv[1] if len(sys.argv) > 1 else "tiny-gpt2"
torch.manual_seed(0)
shape = {"vocab_size": 256, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}
GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
bytes_().save_pretrained(folder)
print(f"saved to {folder}")
