"""The MONAI Label app; the only importer of `monailabel`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["app", "client", "datastore", "gate", "http_errors", "server", "settings", "state", "tasks", "uploads"],
    submod_attrs={
        "app": ["KWTLApp"],
        "datastore": ["FINAL", "KWTLDatastore"],
        "gate": ["Gate"],
        "http_errors": ["answered", "harmless_name", "refuse"],
        "server": ["TOKEN", "UPLOAD_MIB"],
        "settings": ["LabelSettings", "SETTINGS_NAME", "read_settings"],
        "uploads": ["TidyUp", "remove_after_call", "temporary_folder"],
    },
)
