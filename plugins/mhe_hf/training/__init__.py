"""Training of a loaded model, for every recipe of any package: transformers' `Trainer`, what is trained, adapters.

A recipe reads `mhe_hf.training.fitting` first. Nothing is imported here, so that options can be shown without torch.
"""
