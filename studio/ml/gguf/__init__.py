"""Base model and adapter in, one file out that llama.cpp runs. numpy and the package `gguf`; torch only to verify. No Django."""
