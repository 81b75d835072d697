"""The plan of a benchmark: data sets, methods, schedules, and the table of results it fills."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["case", "config", "methods", "rows", "schedules", "store", "targets"],
    submod_attrs={
        "case": ["Case", "WEIGHED_BY", "forget_data", "source_names"],
        "config": ["Config", "SIMULATED", "make_config", "read_config"],
        "methods": ["Method", "Tuning", "VARIANTS", "Variant"],
        "rows": [
            "BASELINES",
            "COLUMNS",
            "KEYS",
            "Key",
            "RUN",
            "SCOPE",
            "TIME_COLUMNS",
            "WITHOUT_BUDGET",
            "in_order",
            "merged_rows",
            "missing_experiments",
            "places",
            "read_rows",
            "read_times",
            "rows_text",
        ],
        "schedules": ["OVERRIDES", "SCHEDULES", "Schedule", "schedule_named"],
        "store": ["Store", "derived_seed", "digest", "folder_hash", "grid_of"],
        "targets": ["TARGETS", "Target", "make_splits", "target_named"],
    },
)
