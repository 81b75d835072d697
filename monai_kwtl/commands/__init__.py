"""Commands of ``kwtl``: each module has ``add_arguments(parser)`` and ``run(options)``, which returns an exit status."""
