from hostile_models import commands, model, refused, world  # noqa: F401 (fixtures)
