"""What all tests share."""

import torch

# The problems are tiny: a second thread costs more than it gives, and results then depend on no thread count.
torch.set_num_threads(1)
