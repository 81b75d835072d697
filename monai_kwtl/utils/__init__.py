"""Files, hashes, text and processes: nothing that knows of images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "atomic",
        "caching",
        "checks",
        "distributed",
        "hashing",
        "json_documents",
        "prefetch",
        "sampling",
        "tensorboard",
        "text",
    ],
    submod_attrs={
        "atomic": ["atomic_write", "remove_leftovers", "remove_unfinished", "sync_folder", "write_text"],
        "caching": ["remembering"],
        "distributed": [
            "FailedElsewhereError",
            "Ranks",
            "agreed",
            "alone",
            "barrier",
            "connect",
            "first_to_fail",
            "gathered",
            "is_main_process",
            "joined",
            "local_rank",
            "on_main_process",
            "ranks",
            "scatter",
            "start",
            "started_together",
            "stop",
        ],
        "checks": ["Check", "NOTE", "OK", "WRONG", "print_checks"],
        "hashing": ["file_sha256"],
        "json_documents": ["Checker", "LARGEST", "parse_json", "read_document", "short"],
        "prefetch": ["PrefetchingLoader", "prefetched"],
        "sampling": ["evenly_spaced", "evenly_spaced_indices"],
        "tensorboard": ["open_log", "remove_log"],
        "text": ["format_seconds", "format_table"],
    },
)
