"""The torch side: loading, tokens, loop, checkpoints, merge, gguf. Runs in worker processes only; no Django."""

import os

# Read by huggingface_hub when it is first imported, so they stand here, above everything that may import it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # plain HTTP goes on at the byte where it stopped, and heeds a stop
