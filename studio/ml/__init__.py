"""The torch side: loading, tokens, loop, checkpoints, merge, gguf. Runs in worker processes only; no Django."""
