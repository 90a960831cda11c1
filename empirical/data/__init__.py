"""Private tasks: images, rows of features, and their splits."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "binary": ["Bytes", "Source", "cifar10", "stl10", "stl10_unlabelled"],
        "fashion": ["fashion_mnist"],
        "folders": ["image_folder", "read_folder"],
        "scikit": ["digits"],
        "solar": ["elpv"],
        "splits": ["public_and_private"],
    },
)
