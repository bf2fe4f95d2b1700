"""One thread per worker: two workers that each take all cores are slower than one."""

import torch
from picture_toy import picture_model, picture_root  # noqa: F401  (fixtures that several files share)

torch.set_num_threads(1)
