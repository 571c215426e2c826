"""RoI caches to calibrated heads: bi-level sampling, the trainer, and methods that need no training."""

import lazy_loader

# Nothing is imported before it is used, so that a command waits only for what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["posthoc"],
    submod_attrs={
        "config": ["Config"],
        "heads": ["Head"],
        "sampler": ["BiLevelSampler"],
        "storage": ["load_head", "save_head"],
        "train": ["train_head"],
    },
)
