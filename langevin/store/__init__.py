"""Runs and checkpoints on disk."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["load_checkpoint", "remove_checkpoint", "save_checkpoint"],
        "errors": ["StoreError"],
        "files": ["SUFFIXES", "check_target", "digest", "load", "save"],
    },
)
