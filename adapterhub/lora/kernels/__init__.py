"""The products of LoRA in a forward pass: shrink and expand, for tokens of many adapters at once.

`LoraStack` is what they read, `LoraKernels` what each implementation offers: `torch_ops` runs everywhere and is what
the others are compared with. `choose_kernels` names the one of a device.
"""
