"""What holds for every test: no network, one way to split words, nothing of the caller's environment that changes results."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers must not look for a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no warning when a test starts another process
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums in the same order on every machine
