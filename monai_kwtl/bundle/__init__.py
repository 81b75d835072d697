"""Options, paths and errors of a stage: what the configs of `bundles/kwtl` need around MONAI."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["failures", "foreign", "options", "paths", "presets", "pretext", "provenance", "workflow"],
    submod_attrs={
        "failures": ["install_error_hook", "message_for_user"],
        "foreign": ["TRAINING_OPTIONS", "check_data", "harmless", "training_options"],
        "options": [
            "RUN_ARGUMENTS",
            "check_command_line",
            "check_options",
            "checked_options",
            "command_line",
            "read_flags",
        ],
        "paths": ["bundle_root", "find_bundle", "stage_paths"],
        "presets": ["PRESETS", "choose_strategy", "default_strategy", "preset_value"],
        "pretext": ["auto_pretext"],
        "provenance": ["score_settings", "versions"],
        "workflow": ["StageWorkflow", "project_folder", "scoring_settings", "start"],
    },
)
