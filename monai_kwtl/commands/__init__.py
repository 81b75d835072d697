"""Commands of ``kwtl``: each module has ``add_arguments(parser)`` and ``run(options)``, giving the exit status."""
