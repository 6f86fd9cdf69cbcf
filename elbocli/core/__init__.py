"""The paper: pure functions of numbers and tensors. No files, no devices, no printing."""
