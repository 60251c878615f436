"""Speed and memory of the library, side by side with Hugging Face and PEFT on PyTorch."""
