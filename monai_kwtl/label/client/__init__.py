"""The other end of the MONAI Label server: the folder it runs in, its start, and requests to it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["app_folder", "client", "doctor", "launch"],
    submod_attrs={
        "app_folder": ["make_app", "make_weights"],
        "client": ["LabelServer", "next_regions", "put_labels"],
        "doctor": ["checks"],
        "launch": [
            "access_line",
            "enter_label_environment",
            "is_loopback",
            "server_command",
            "server_environment",
            "server_token",
        ],
    },
)
