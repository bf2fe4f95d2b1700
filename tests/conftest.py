"""One thread per worker: two workers that each take all cores are slower than one."""

import torch

torch.set_num_threads(1)
